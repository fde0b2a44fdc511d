"""What runners name the files that they stage, how they are written, and what they read."""

from __future__ import annotations

import pyarrow as pa

from headrace.model.plan import DEAD_LETTERS, KNOWN_IDS

READ_BYTES_MAX = 1 << 30
"""Bytes of one range that are read at most: a column of an Arrow batch holds 2 GiB."""

_UNIQUE = {
    DEAD_LETTERS: ("letter_id", "event_id", "value"),
    KNOWN_IDS: ("id",),
}


def unique_columns(name: str) -> tuple[str, ...]:
    """Return the columns whose values hardly repeat, of a table by its storage name."""
    return _UNIQUE.get(name, ("event_id", "_offset"))


def file_name(table: str) -> str:
    """Return the storage name of a table that is not keyed."""
    return f"tables/{table}"


def joined(batches: list[pa.RecordBatch]) -> pa.RecordBatch:
    """Return batches of one schema, at least one, as one."""
    if len(batches) == 1:
        return batches[0]
    return pa.Table.from_batches(batches).combine_chunks().to_batches()[0]
