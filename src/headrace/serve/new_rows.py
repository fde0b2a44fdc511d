"""Following a table or view: the rows of each version that were not there before.

Two snapshots say it. Files that both name hold nothing new, so the new rows are those of the files
that only the newer one names, less those of the files that only the older one names. That is right
for tables that are appended to, for compaction, which writes the same rows again, and for views and
keyed tables, whose files are rewritten: of these it gives the rows that are new or changed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import duckdb
import msgspec
import pyarrow as pa

from headrace.define.types import quoted
from headrace.model.tables import DataFile, Snapshot
from headrace.model.tables_to_read import TablesToRead
from headrace.serve.query import SETTINGS, failure
from headrace.serve.relations import Relation, columns_of
from headrace.tables.near import NearTables

PLACE = ("received_at", "_topic", "_partition", "_offset")
"""Columns that say in which order rows came; a table has all, some or none of them."""


class NewRows(NamedTuple):
    """What a version has that the one looked at before has not."""

    version: int
    rows: pa.RecordBatchReader
    """To be read before the next look. In the order in which they came, where columns say it."""


class Follower:
    """Looks at one table or view again and again. For one thread."""

    def __init__(self, tables: TablesToRead, storage: str, *, from_beginning: bool) -> None:
        """Follow a table by its storage name, which may not be there yet."""
        self._tables = tables
        self._storage = storage
        self._connection = duckdb.connect(":memory:", config=SETTINGS)
        self._connection.execute("SET TimeZone = 'UTC'")
        self._seen = None if from_beginning else tables.snapshot(storage)

    def look(self) -> NewRows | None:
        """Return the rows that are new since the last look; None if there are none.

        Raises `Unavailable` with code `file_gone` if files were cleaned away that the last look
        saw: it was hours ago.
        """
        newest = self._tables.snapshot(self._storage)
        if newest is None:
            return None
        before, self._seen = self._seen, newest
        if before is None or before.table_id != newest.table_id:
            # A table that was dropped and made again has nothing in common with the old one.
            before = msgspec.structs.replace(newest, files=())
        added, gone = _without(newest.files, before.files), _without(before.files, newest.files)
        if not added:
            return None
        try:
            rows = self._connection.sql(self._select(newest, added, before, gone))
            return NewRows(newest.version, rows.to_arrow_reader())
        except duckdb.Error as e:
            raise failure(e) from e

    def close(self) -> None:
        """Release what is held."""
        self._connection.close()

    def _select(
        self,
        newest: Snapshot,
        added: Sequence[DataFile],
        before: Snapshot,
        gone: Sequence[DataFile],
    ) -> str:
        names = newest.schema.names
        sql = self._rows(newest, newest, added)
        if gone:
            sql = f"({sql}) EXCEPT ALL ({self._rows(newest, before, gone)})"
        by = [quoted(name) for name in PLACE if name in names]
        if not by and (gone or self._storage.startswith("views/")):
            by = ["ALL"]
        return f"SELECT * FROM ({sql}) ORDER BY {', '.join(by)}" if by else sql

    def _rows(self, newest: Snapshot, of: Snapshot, files: Sequence[DataFile]) -> str:
        """Return a SELECT of some files' rows, with the newest columns."""
        if isinstance(self._tables, NearTables):
            self._tables.fetch(of, files)
        part = msgspec.structs.replace(of, files=tuple(files))
        name, columns = self._storage, columns_of(newest.schema)
        return Relation(name, name, name, (), columns, (), part).select()


def _without(files: Sequence[DataFile], others: Sequence[DataFile]) -> list[DataFile]:
    paths = {file.path for file in others}
    return [file for file in files if file.path not in paths]
