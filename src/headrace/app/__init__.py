"""Wiring, supervisor and command line."""
