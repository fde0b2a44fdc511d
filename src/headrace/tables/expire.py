"""Retention by age: rows older than a cut leave the table, by rewriting the files they stand in."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import pyarrow as pa
import pyarrow.compute as pc

from headrace.model.tables import DataFile, Snapshot, Table, Tables
from headrace.tables import statistics

_Age = Literal["young", "mixed", "old"]


def expire_rows(
    tables: Tables, table: Table, column: str, before_us: int
) -> tuple[list[DataFile], list[DataFile], int]:
    """Stage a table without the rows whose `column` (a timestamp) is before a time.

    Returns files to add, files to remove, and how many rows that takes out; the caller commits them
    with its own numbers. A row without a time stays. Files that statistics prove young are not
    read; files that are old throughout are removed unread.
    """
    snapshot = table.snapshot
    add: list[DataFile] = []
    remove: list[DataFile] = []
    rows_removed = 0
    for file in snapshot.files:
        young = _young_rows(tables, snapshot, file, column, before_us)
        if young == file.rows:
            continue
        remove.append(file)
        rows_removed += file.rows - young
        if young:
            kept = _filtered(tables, snapshot, file, column, before_us)
            rows = pa.RecordBatchReader.from_batches(snapshot.schema, kept)
            add.append(tables.stage(snapshot.name, rows, tags=file.tags))
    return add, remove, rows_removed


def _young_rows(
    tables: Tables, snapshot: Snapshot, file: DataFile, column: str, before_us: int
) -> int:
    match _age(file, column, before_us):
        case "young":
            return file.rows
        case "old":
            return 0
        case "mixed":
            return sum(b.num_rows for b in _filtered(tables, snapshot, file, column, before_us))


def _age(file: DataFile, column: str, before_us: int) -> _Age:
    stats = statistics.parse(file.stats)
    low, high = stats.min_values.get(column), stats.max_values.get(column)
    if low is not None and statistics.time_us(low) >= before_us:
        return "young"
    has_nulls = stats.null_count.get(column, 1) > 0
    if high is not None and statistics.time_us(high) < before_us and not has_nulls:
        return "old"
    return "mixed"


def _filtered(
    tables: Tables, snapshot: Snapshot, file: DataFile, column: str, before_us: int
) -> Iterator[pa.RecordBatch]:
    cut = pa.scalar(before_us, pa.timestamp("us", tz="UTC"))
    for batch in tables.scan(snapshot, [file]):
        young = pc.greater_equal(batch.column(column), cut)
        yield batch.filter(pc.fill_null(young, fill_value=True))
