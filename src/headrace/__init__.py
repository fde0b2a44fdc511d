"""Headrace: events and records in, durable tables and live counts out."""

from headrace.define.pipeline import Pipeline, hopping, param, tumbling
from headrace.define.record import Json, Record, field

__all__ = ["Json", "Pipeline", "Record", "field", "hopping", "param", "tumbling"]
