"""Headrace: events and records in, durable tables and live counts out."""
