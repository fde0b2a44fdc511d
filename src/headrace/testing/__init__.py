"""Conformance suites, the pipeline test kit and faults, for users too."""
