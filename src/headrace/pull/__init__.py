"""Runs sources: pages to records in the log."""
