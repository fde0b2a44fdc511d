"""The command line: one verb, one job."""
