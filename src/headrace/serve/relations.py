"""Tables and views at one version, as SQL can read them.

A snapshot is kept for as long as it is the newest. Whether it still is costs two `stat` calls: the
time of the table's `_delta_log` folder, which changes with every entry made or removed there, and
the name of the next commit, for a commit within the same tick of the file system's clock. Of tables
far away the reader says which is the newest, as often as it sees fit to ask.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import duckdb
import pyarrow as pa

from headrace.define.types import quoted
from headrace.model.errors import HeadraceError
from headrace.model.letters import Act
from headrace.model.plan import (
    DEAD_LETTER_SCHEMA,
    DEAD_LETTERS,
    Column,
    Plan,
)
from headrace.model.samples import SAMPLE_SCHEMA, SAMPLES, SAMPLES_NAME
from headrace.model.tables import DataFile, Snapshot

DEAD_LETTERS_NAME = "dead_letters"
"""Name of the dead letters where tables and views are read by name."""


Identity = tuple[str, int, tuple[str, ...]]
"""Table id, version, and the SQL of derived columns."""


class Reader(Protocol):
    """The part of `model.tables.Tables` that reading needs; called from many threads."""

    def snapshot(self, name: str, version: int | None = None) -> Snapshot | None:
        """Read a table's state at a version or the newest; None if there is no such table."""

    def read(self, snapshot: Snapshot, files: Sequence[DataFile] | None = None) -> pa.Table:
        """Return the rows of a snapshot, or of some of its files."""


@dataclass(frozen=True, slots=True)
class Relation:
    """Something to select from, at one version; `snapshot` None is a table not made yet."""

    name: str
    storage: str
    """Where it is stored: `tables/events`."""
    source: str
    """Storage name of the table whose epochs it follows: its own, or its view's table's."""
    topics: tuple[str, ...]
    columns: tuple[Column, ...]
    key: tuple[str, ...]
    """Columns that tell its rows apart, and order its pages."""
    snapshot: Snapshot | None
    derived: tuple[tuple[Column, str], ...] = ()
    """Columns that are not stored, each with its SQL over the others; the rows differ with it."""

    @property
    def all_columns(self) -> tuple[Column, ...]:
        """Return what can be selected: the stored columns, then the derived ones."""
        return (*self.columns, *(column for column, _ in self.derived))

    @property
    def version(self) -> int:
        """Return the version of the snapshot; -1 if there is none."""
        return -1 if self.snapshot is None else self.snapshot.version

    @property
    def rows(self) -> int:
        """Return how many rows the snapshot holds."""
        return 0 if self.snapshot is None else sum(f.rows for f in self.snapshot.files)

    @property
    def size_bytes(self) -> int:
        """Return how many bytes of files the snapshot has."""
        return 0 if self.snapshot is None else sum(f.size_bytes for f in self.snapshot.files)

    @property
    def identity(self) -> Identity:
        """Return what differs whenever the rows may differ."""
        table_id = "" if self.snapshot is None else self.snapshot.table_id
        return table_id, self.version, tuple(sql for _, sql in self.derived)

    def select(self) -> str:
        """Return a SELECT of all rows with exactly `all_columns`, in DuckDB's dialect."""
        more = "".join(f", {sql} AS {quoted(column.name)}" for column, sql in self.derived)
        return f"SELECT *{more} FROM ({self._stored()})"

    def _stored(self) -> str:
        # Columns that some or all files lack are NULL; the empty branch gives them their type.
        nulls = ", ".join(f"CAST(NULL AS {c.type}) AS {quoted(c.name)}" for c in self.columns)
        empty = f"SELECT {nulls} WHERE false"
        if self.snapshot is None or not self.snapshot.files:
            return empty
        files = ", ".join(literal(path_of(self.snapshot, f)) for f in self.snapshot.files)
        scan = f"read_parquet([{files}], union_by_name=true, hive_partitioning=false)"
        columns = ", ".join(
            f"CAST({quoted(c.name)} AS {c.type}) AS {quoted(c.name)}" for c in self.columns
        )
        return f"SELECT {columns} FROM (SELECT * FROM {scan} UNION ALL BY NAME {empty})"


class Snapshots:
    """The newest snapshot of each table, read again only when there is a newer one."""

    def __init__(self, data_dir: Path | None, reader: Reader) -> None:
        """`data_dir` is where the tables' folders are; None if that is no place of this machine."""
        self.reader = reader
        self._data_dir = data_dir
        self._lock = threading.Lock()
        self._locks: dict[str, threading.Lock] = {}
        self._held: dict[str, tuple[tuple[int, int], Snapshot | None]] = {}

    def newest(self, storage: str) -> Snapshot | None:
        """Return a table's newest snapshot; None if there is no such table."""
        with self._lock:
            lock = self._locks.setdefault(storage, threading.Lock())
        if self._data_dir is None:
            return self.reader.snapshot(storage)
        log = self._data_dir / storage / "_delta_log"
        with lock:
            # The mark is taken before the snapshot is read: a commit in between is seen next time.
            mark = _mark(log)
            if mark is None:
                self._held.pop(storage, None)
                return None
            held = self._held.get(storage)
            if held is not None and held[0] == mark and not _has_next(log, held[1]):
                return held[1]
            snapshot = self.reader.snapshot(storage)
            self._held[storage] = (mark, snapshot)
            return snapshot

    def forget(self, storage: str) -> None:
        """Read the table's snapshot again next time, whatever the files say."""
        self._held.pop(storage, None)


def _mark(log: Path) -> tuple[int, int] | None:
    try:
        stat = log.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    return stat.st_ino, stat.st_mtime_ns


def _has_next(log: Path, snapshot: Snapshot | None) -> bool:
    version = -1 if snapshot is None else snapshot.version
    return (log / f"{version + 1:020d}.json").exists()


class Catalog:
    """The relations of a plan by name, at their newest versions.

    `acts` says what was done about dead letters, by their ids.
    """

    def __init__(
        self, plan: Plan, snapshots: Snapshots, acts: Callable[[], Mapping[str, Act]]
    ) -> None:
        self.plan = plan
        self.snapshots = snapshots
        self._acts = acts
        self._tables = {t.name: t for t in plan.tables}
        self._views = {v.name: v for v in plan.views}
        self._made: dict[str, Relation] = {}

    def table(self, name: str) -> Relation:
        """Return a table; `unknown_table` if the plan has none of that name."""
        if name not in self._tables:
            raise unknown("table", name, self._tables)
        return self._newest(f"tables/{name}", lambda snapshot: self._table(name, snapshot))

    def view(self, name: str) -> Relation:
        """Return a view; `unknown_view` if the plan has none of that name."""
        if name not in self._views:
            raise unknown("view", name, self._views)
        return self._newest(f"views/{name}", lambda snapshot: self._view(name, snapshot))

    def dead_letters(self) -> Relation:
        """Return the dead letters, each with what became of it, and its bytes as text if it is."""
        letters = self._newest(DEAD_LETTERS, self._dead_letters)
        if letters.snapshot is None:
            return letters
        status = (Column("status", "VARCHAR"), _status_sql(self._acts()))
        return replace(letters, derived=(status, *letters.derived[1:]))

    def samples(self) -> Relation:
        """Return what the roles used of their machines."""
        return self._newest(SAMPLES, self._samples)

    def has(self, name: str) -> bool:
        """Return whether the plan has a table or view of that name."""
        return name in self._tables or name in self._views

    def all(self) -> list[Relation]:
        """Return every table, then every view, then the dead letters."""
        tables = [self.table(name) for name in self._tables]
        return [*tables, *map(self.view, self._views), self.dead_letters()]

    def find(self, name: str) -> Relation:
        """Return the table or view of that name."""
        return self.table(name) if name in self._tables else self.view(name)

    def _newest(self, storage: str, make: Callable[[Snapshot | None], Relation]) -> Relation:
        """Return a relation over the newest snapshot, made once a snapshot."""
        snapshot = self.snapshots.newest(storage)
        made = self._made.get(storage)
        if made is None or made.snapshot is not snapshot:
            made = self._made[storage] = make(snapshot)
        return made

    def _table(self, name: str, snapshot: Snapshot | None) -> Relation:
        table = self._tables[name]
        storage = f"tables/{name}"
        topics = tuple(dict.fromkeys(i.topic for i in table.inputs))
        columns = with_stored(table.columns, snapshot)
        held = {c.name for c in columns}
        order = ("received_at", "_topic", "_partition", "_offset")
        key = tuple(c for c in order if c in held) or tuple(c.name for c in columns)
        if table.keyed and set(table.keyed.key) <= held:
            key = table.keyed.key
        return Relation(name, storage, table.storage, topics, columns, key, snapshot)

    def _view(self, name: str, snapshot: Snapshot | None) -> Relation:
        view = self._views[name]
        storage = f"views/{name}"
        table = self._tables.get(view.table)
        topics = tuple(dict.fromkeys(i.topic for i in table.inputs)) if table else ()
        # What a view's own table holds beyond the plan's columns is of an older build of it.
        columns = view.columns
        key = view.key or tuple(c.name for c in columns)
        source = table.storage if table else f"tables/{view.table}"
        return Relation(name, storage, source, topics, columns, key, snapshot)

    def _samples(self, snapshot: Snapshot | None) -> Relation:
        # They come from no topic, so nothing is said of offsets.
        columns = with_stored(columns_of(SAMPLE_SCHEMA), snapshot)
        key = ("sampled_at", "node", "role", "pid")
        return Relation(SAMPLES_NAME, SAMPLES, SAMPLES, (), columns, key, snapshot)

    def _dead_letters(self, snapshot: Snapshot | None) -> Relation:
        columns = with_stored(columns_of(DEAD_LETTER_SCHEMA), snapshot)
        topics = tuple(t.name for t in self.plan.topics)
        return Relation(
            name=DEAD_LETTERS_NAME,
            storage=DEAD_LETTERS,
            source=DEAD_LETTERS,
            topics=topics,
            columns=columns,
            key=("failed_at", "letter_id"),
            snapshot=snapshot,
            derived=(
                (Column("status", "VARCHAR"), _status_sql({})),
                (Column("text", "VARCHAR"), 'TRY(decode("value"))'),
            ),
        )


def _status_sql(acts: Mapping[str, Act]) -> str:
    """Return the SQL of a dead letter's status, with the ids of those acted on in it.

    They stand there as one text: of a hundred thousand literals DuckDB makes a plan for seconds.
    """
    of_act: dict[str, list[str]] = {}
    for letter_id, act in acts.items():
        of_act.setdefault(act.act, []).append(letter_id)
    whens = "".join(
        f" WHEN letter_id IN (SELECT unnest(string_split({literal(','.join(ids))}, ',')))"
        f" THEN {literal(act)}"
        for act, ids in of_act.items()
    )
    return f"CASE{whens} ELSE 'open' END" if whens else "'open'"


def with_stored(columns: Sequence[Column], snapshot: Snapshot | None) -> tuple[Column, ...]:
    """Return a plan's columns, then those that the stored table has beside them."""
    if snapshot is None:
        return tuple(columns)
    known = {c.name for c in columns}
    return (*columns, *(c for c in columns_of(snapshot.schema) if c.name not in known))


def columns_of(schema: pa.Schema) -> tuple[Column, ...]:
    """Return an Arrow schema's columns with DuckDB's types."""
    with duckdb.connect(":memory:") as connection:
        types = connection.from_arrow(schema.empty_table()).types
    return tuple(Column(n, str(t)) for n, t in zip(schema.names, types, strict=True))


def unknown(kind: str, name: str, known: object) -> HeadraceError:
    """Return the error for a name that is none of `known`."""
    names = ", ".join(sorted(known)) if isinstance(known, dict) else ""
    hint = f"There are: {names}." if names else f"This pipeline declares no {kind}."
    return HeadraceError(f"There is no {kind} {name!r}", hint=hint, code=f"unknown_{kind}")


def path_of(snapshot: Snapshot, file: DataFile) -> str:
    """Return where a file is."""
    return f"{snapshot.root.rstrip('/')}/{file.path}"


def literal(text: str) -> str:
    """Return a text as an SQL literal."""
    return "'" + text.replace("'", "''") + "'"
