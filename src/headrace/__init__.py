"""Headrace: events and records in, durable tables and live counts out."""

from headrace.define.pipeline import Pipeline, hopping, param, tumbling
from headrace.define.record import Json, Record, field
from headrace.reading import open  # noqa: A004 - what users call it, as headrace.open

__all__ = ["Json", "Pipeline", "Record", "field", "hopping", "open", "param", "tumbling"]
