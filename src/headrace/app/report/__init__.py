"""Reports: what a pipeline did, as one page that needs nothing else to be read."""
