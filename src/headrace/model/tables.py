"""The contract of table storage: Delta tables that one owner commits to and anyone reads.

Who calls what. Runners (many threads, many machines) only `stage`: a staged file is durable and
invisible. The one owner of a pipeline opens each table as a `Table` and makes files visible with
`commit`, under one lock that is held from the snapshot to the last fsync. Readers open snapshots.

What holds. A commit is the exclusive creation of exactly version v+1 over the v that the `Table`
holds. It is durable when `commit` returns, and never half visible. A commit that finds v+1 taken
raises `Fenced`, and the `Table` may only be refreshed by whoever decides that it is the owner now.
Application transaction numbers (`#epoch`, `#files`) live in the commit (Delta `txn` actions).

What may fail. `Fenced` as above. `Corrupt`: a commit or file is damaged in a way that repair must
not hide. `Unavailable`: no room; the staged file or commit is not there. Or a storage over the
network gave no answer, and the commit may be there: open the table anew before the next.

What is not promised. Which txn numbers are right: comparing them is the caller's part (see
`process/commit.py`). No consistency between two tables. A staged file that never is committed stays
until `clean` finds it older than the caller says.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import msgspec
import pyarrow as pa


class DataFile(msgspec.Struct, frozen=True):
    """A Parquet file of a table, staged or committed."""

    path: str
    """Relative to the table's root, `/` between parts."""
    rows: int
    size_bytes: int
    stats: str = ""
    """Delta statistics as JSON text: numRecords, minValues, maxValues, nullCount."""
    tags: dict[str, str] = {}
    """Free words that stay with the file, such as the state part that it holds."""


class Snapshot(msgspec.Struct, frozen=True):
    """A table at one version, as a value."""

    name: str
    root: str
    """Where the table is: an absolute folder, or a storage URL."""
    table_id: str
    """UUID made when the table was created: a table dropped and made again has another."""
    version: int
    files: tuple[DataFile, ...]
    txns: dict[str, int]
    """Application id → number, of every application that ever committed."""
    schema: pa.Schema
    metadata: dict[str, str]
    """The newest commit's own words (Delta `commitInfo`), for people and for salvage."""


class AddedFiles(msgspec.Struct, frozen=True):
    """The files that one commit added with new rows (`dataChange` true)."""

    version: int
    files: tuple[DataFile, ...]
    txns: dict[str, int]
    removed_rows: bool
    """Whether the commit also took rows away: who follows additions must start over."""


class Table(Protocol):
    """A table opened by its owner; not for use from two threads without `lock`."""

    @property
    def snapshot(self) -> Snapshot:
        """What this owner last read or committed; no I/O."""

    def refresh(self) -> Snapshot:
        """Read the newest version from storage."""

    def commit(
        self,
        add: Sequence[DataFile] = (),
        remove: Sequence[DataFile] = (),
        *,
        txns: Mapping[str, int] | None = None,
        data_change: bool = True,
        schema: pa.Schema | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> Snapshot:
        """Commit version `snapshot.version + 1`, durable on return; `Fenced` if it is taken.

        `schema` only ever adds nullable columns; anything else is `Invalid`.
        """

    def added_since(self, version: int) -> list[AddedFiles] | None:
        """Return what each commit after `version` added, oldest first.

        None if some of those commits or their files are no longer kept: rebuild from the snapshot.
        """

    def checkpoint(self, keep_log_s: float) -> None:
        """Write a Delta checkpoint, durable, then drop log entries older than `keep_log_s`."""

    def clean(self, older_than_us: int, keep_version: int) -> int:
        """Delete files that no version from `keep_version` on names and that are old enough.

        Returns how many were deleted.
        """


class Tables(Protocol):
    """All tables of a data directory or storage prefix."""

    def names(self) -> list[str]:
        """Return the names of existing tables, sorted; `tables/events`, and so on."""

    def create(
        self, name: str, schema: pa.Schema, *, txns: Mapping[str, int] | None = None
    ) -> Table:
        """Create an empty table, version 0, with these numbers; `Fenced` if it exists."""

    def open(self, name: str) -> Table | None:
        """Open a table to commit to it; None if there is none."""

    def snapshot(self, name: str, version: int | None = None) -> Snapshot | None:
        """Read a table's state for reading, at a version or the newest."""

    def stage(
        self, name: str, rows: pa.Table, *, unique: Sequence[str] = (), tags: Mapping[str, str] = {}
    ) -> DataFile:
        """Write rows as a durable Parquet file of a table that may not exist yet.

        `rows` may be a RecordBatchReader, so that not all of them are in memory. `unique` names
        columns whose values hardly repeat (no dictionary is tried for them).
        Thread-safe; touches nothing but the new file.
        """

    def read(self, snapshot: Snapshot, files: Sequence[DataFile] | None = None) -> pa.Table:
        """Return the rows of a snapshot, or of some of its files, in the snapshot's schema.

        A file whose size is not what the table says, or that does not parse, is `Corrupt`.
        """

    def scan(
        self, snapshot: Snapshot, files: Sequence[DataFile] | None = None
    ) -> pa.RecordBatchReader:
        """Return what `read` does as a stream, file by file, so that it need not fit in memory."""

    def drop(self, name: str) -> None:
        """Remove a table and its files; nothing if there is none."""
