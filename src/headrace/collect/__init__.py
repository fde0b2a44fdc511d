"""HTTP in: requests to records in the log."""
