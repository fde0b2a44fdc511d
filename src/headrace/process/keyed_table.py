"""The table of a keyed table, as people read it: one row a key, made from its changelog.

Its files are sorted by the key's text and their ranges do not overlap: each carries the text from
which it begins (tag `from`), and a key belongs to the last file that begins at or before it. A
publish reads the changelog's commits since the last one, rewrites the files that their keys fall
into and leaves the others alone. Nothing of it is in memory in between. Transaction numbers name
the changelog's id, and its version and epoch that are contained, as in the state of a view.
"""

from __future__ import annotations

import bisect
import itertools
import math
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pyarrow as pa

from headrace.define.types import quoted
from headrace.model.clock import Clock
from headrace.model.errors import Invalid
from headrace.model.failpoint import failpoint
from headrace.model.plan import CHANGED_IN, WEIGHT
from headrace.model.plan import Table as PlanTable
from headrace.model.tables import DataFile, Snapshot, Table, Tables
from headrace.process.follow import commits_since
from headrace.process.view_store import Contained
from headrace.stage.apply import key_text
from headrace.stage.engine import Engine

FROM = "from"
"""Tag of a file: the key's text from which its range begins."""

FILE_BYTES = 16 << 20
"""About how large a file becomes: what one changed key makes a publish write at least."""
FILE_ROWS_MIN, FILE_ROWS_MAX, FILE_ROWS_FIRST = 1_000, 200_000, 50_000
"""Bounds of a file's rows, and how many it gets before anything is known of their size."""
FILES_MAX = 100
"""About how many files a table has: beyond, they become larger."""

BATCH_BYTES = 64 << 20
"""Bytes of changelog files that one publish takes in at most, at least one commit."""

COMMITS_PER_CHECKPOINT = 50
VERSIONS_BEHIND_MAX = 20
"""How many commits without rows may pass before the table names the newest."""

KEPT_S = 300.0
"""How long files of an older version are kept for queries that began on it."""

_TEXT = '"key text"'


@dataclass(frozen=True)
class Change:
    """A commit of the changelog that is still to be taken in."""

    version: int
    epoch: int
    files: tuple[DataFile, ...]


class KeyedTable:
    """One table. Used from one thread, under the owner's lock."""

    def __init__(
        self, spec: PlanTable, tables: Tables, clock: Clock, engine: Engine, pipeline: str
    ) -> None:
        assert spec.keyed is not None
        self.spec = spec
        self._name = f"tables/{spec.name}"
        self._tables = tables
        self._clock = clock
        self._engine = engine
        self._pipeline = pipeline
        self._schema = engine.arrow_schema(spec.columns)
        self._key = key_text(spec.keyed.key)
        self._table: Table | None = None
        self._log: Table | None = None
        self._anew = False
        """Whether what is stored is to be replaced as a whole by the next publish."""
        self._waiting: deque[Change] = deque()
        self.contained = Contained("", 0, 0)
        """What the table holds of the changelog."""
        self.kept_since = 0
        """The changelog's version since which its old rows have all columns that views read."""
        self.cost_s = 0.0
        """What a publish takes, a moving average; 0 before the first."""
        self._next_s = -math.inf
        self._checkpointed: int | None = None

    @property
    def is_behind(self) -> bool:
        """Return whether the changelog has commits that the table does not contain."""
        return bool(self._waiting)

    @property
    def snapshot(self) -> Snapshot:
        """Return what was last published."""
        assert self._table is not None
        return self._table.snapshot

    def load(self, changelog: Table) -> None:
        """Open the table, or make it, and find what its changelog has beyond it.

        A table that does not fit the changelog is made anew from all of it, in one piece.
        """
        log = changelog.snapshot
        self._log = changelog
        table = self._tables.open(self._name)
        self._table = table or self._tables.create(self._name, self._schema)
        self._add_columns()
        version, epoch = self._named(log.table_id)
        added = commits_since(changelog, version, epoch, self._epoch_txn)
        if version is None or added is None:
            self._start_over(log)
            return
        self.contained = Contained(log.table_id, version, epoch)
        self._waiting = deque(
            Change(a.version, a.txns.get(self._epoch_txn, 0), a.files) for a in added if a.files
        )

    def add(self, files: Sequence[DataFile], version: int, epoch: int) -> None:
        """Take in that the changelog has a new commit."""
        self._waiting.append(Change(version, epoch, tuple(files)))

    def is_due(self, now_s: float) -> bool:
        """Return whether to publish now."""
        return self.is_behind and now_s >= self._next_s

    def wait_until(self, next_s: float) -> None:
        """Publish no earlier than `next_s`, monotonic."""
        self._next_s = next_s

    def publish(self) -> None:
        """Take in commits of the changelog, at least one, and make the result visible.

        The order of effects: 1. stage the files of the ranges that changed; 2. commit them in the
        place of the old ones, naming what is contained now.
        """
        began_s = self._clock.monotonic_s()
        taken = self._take()
        files = [file for change in taken for file in change.files]
        # 1
        latest = self._latest(files)
        staged, gone = self._rewrite(latest) if latest.num_rows else ([], [])
        gone = list(self.snapshot.files) if self._anew else gone
        failpoint("keyed.2")
        # 2
        last = taken[-1]
        contained = Contained(self.contained.table_id, last.version, last.epoch)
        self._commit(staged, gone, contained)
        self._anew = False
        failpoint("keyed.3")
        for _ in taken:
            self._waiting.popleft()
        took_s = self._clock.monotonic_s() - began_s
        self.cost_s = 0.8 * self.cost_s + 0.2 * took_s if self.cost_s else took_s

    def name_contained(self, version: int) -> None:
        """Say that the table contains a later version, when many commits brought no rows."""
        if not self._waiting and version - self.contained.version >= VERSIONS_BEHIND_MAX:
            table_id, epoch = self.contained.table_id, self.contained.epoch
            self._commit([], [], Contained(table_id, version, epoch))

    def maintain(self) -> bool:
        """Write a checkpoint that is due, and delete files that are no longer needed."""
        assert self._table is not None
        version = self._table.snapshot.version
        if self._checkpointed is None:
            self._checkpointed = version - version % COMMITS_PER_CHECKPOINT
        if version - self._checkpointed < COMMITS_PER_CHECKPOINT:
            return False
        self._table.checkpoint(KEPT_S)
        self._table.clean(self._clock.now_us() - round(KEPT_S * 1_000_000), version)
        self._checkpointed = version
        return True

    def _start_over(self, log: Snapshot) -> None:
        """Let the next publish make the table of the whole changelog, as if it were one commit."""
        self._anew = bool(self.snapshot.files)
        self.contained = Contained(log.table_id, 0, 0)
        epoch = log.txns.get(self._epoch_txn, 0)
        started = log.files or self._anew
        self._waiting = deque([Change(log.version, epoch, log.files)] if started else [])

    def _add_columns(self) -> None:
        assert self._table is not None
        have = self._table.snapshot.schema
        if new := [field for field in self._schema if field.name not in have.names]:
            # What readers are told of the table's epoch is in the newest commit.
            words = self._table.snapshot.metadata
            self._table.commit(schema=pa.schema([*have, *new]), metadata=words)
        missing = [name for name in have.names if name not in self._schema.names]
        if missing:
            raise Invalid(
                f"The table {self.spec.name} has columns that are no longer made: {missing[0]}",
                hint=f"Select it, or begin anew: headrace outputs drop --made {self.spec.name}",
                code="incompatible_plan",
            )

    def _take(self) -> list[Change]:
        """Return the oldest commits that wait, as many as one publish takes in."""
        taken: list[Change] = []
        size_bytes = 0
        for change in self._waiting:
            size_bytes += sum(file.size_bytes for file in change.files)
            if taken and size_bytes > BATCH_BYTES:
                break
            taken.append(change)
        return taken

    def _latest(self, files: Sequence[DataFile]) -> pa.Table:
        """Return the newest row of each key in files of the changelog, and the keys' texts."""
        assert self._log is not None
        rows = self._tables.read(self._log.snapshot, files)
        names = ", ".join(quoted(c.name) for c in self.spec.columns)
        sql = (
            f"SELECT {names}, {WEIGHT}, {self._key} AS {_TEXT} FROM changes WHERE {WEIGHT} >= 0 "
            f"QUALIFY row_number() OVER (PARTITION BY {self._key} ORDER BY {CHANGED_IN} DESC) = 1 "
            f"ORDER BY {_TEXT}"
        )
        return self._engine.query(sql, {"changes": rows})

    def _rewrite(self, latest: pa.Table) -> tuple[list[DataFile], list[DataFile]]:
        """Stage what takes the place of the files that keys fall into; return new and old ones."""
        held = () if self._anew else self.snapshot.files
        files = sorted(held, key=lambda f: f.tags.get(FROM, ""))
        staged: list[DataFile] = []
        gone: list[DataFile] = []
        small: pa.Table | None = None
        before = -1
        for place, rows in self._by_file(files, latest):
            if small is not None and place != before + 1:
                staged += self._stage(small)
                small = None
            merged = self._merged(files[place] if files else None, rows, small)
            gone += [files[place]] if files else []
            # What is left of a file joins its neighbour, so that deletions leave no crumbs.
            small = merged if merged.num_rows < self._file_rows() // 4 else None
            if small is None:
                staged += self._stage(merged)
            before = place
        if small is not None:
            staged += self._stage(small)
        return staged, gone

    def _by_file(
        self, files: Sequence[DataFile], latest: pa.Table
    ) -> Iterator[tuple[int, pa.Table]]:
        """Yield the number of each file that keys fall into, and the rows of those keys."""
        starts = [file.tags.get(FROM, "") for file in files]
        texts = latest.column("key text").to_pylist()
        at = 0
        while at < len(texts):
            place = max(0, bisect.bisect_right(starts, texts[at]) - 1)
            end = len(texts)
            if place + 1 < len(starts):
                end = bisect.bisect_left(texts, starts[place + 1], lo=at)
            yield place, latest.slice(at, end - at)
            at = end

    def _merged(self, file: DataFile | None, rows: pa.Table, small: pa.Table | None) -> pa.Table:
        """Return a file's rows with some replaced or deleted, by key, the texts beside them."""
        names = ", ".join(quoted(c.name) for c in self.spec.columns)
        relations = {"latest": rows}
        parts = [f"SELECT {names}, {_TEXT} FROM latest WHERE {WEIGHT} = 1"]
        if file is not None:
            relations["held"] = self._tables.read(self.snapshot, [file])
            parts.append(
                f"SELECT {names}, {self._key} AS {_TEXT} FROM held "
                f"WHERE {self._key} NOT IN (SELECT {_TEXT} FROM latest)"
            )
        if small is not None:
            relations["small"] = small
            parts.append(f"SELECT {names}, {_TEXT} FROM small")
        sql = f"SELECT * FROM ({' UNION ALL '.join(parts)}) ORDER BY {_TEXT}"
        return self._engine.query(sql, relations)

    def _stage(self, rows: pa.Table) -> list[DataFile]:
        """Stage sorted rows as files of about the same size."""
        count = max(1, round(rows.num_rows / self._file_rows())) if rows.num_rows else 0
        bounds = [rows.num_rows * i // count for i in range(count + 1)] if count else []
        staged = []
        for start, end in itertools.pairwise(bounds):
            piece = rows.slice(start, end - start)
            text = piece.column("key text")[0].as_py()
            made = piece.drop_columns(["key text"]).cast(self._schema)
            staged.append(
                self._tables.stage(
                    self._name, made, unique=("event_id", "_offset"), tags={FROM: text}
                )
            )
        return staged

    def _file_rows(self) -> int:
        """Return how many rows a file gets, by the size of those there are."""
        rows = sum(file.rows for file in self.snapshot.files)
        size_bytes = sum(file.size_bytes for file in self.snapshot.files)
        if not rows:
            return FILE_ROWS_FIRST
        fitting = round(FILE_BYTES / (size_bytes / rows))
        return min(FILE_ROWS_MAX, max(FILE_ROWS_MIN, fitting, rows // FILES_MAX))

    def _commit(
        self, add: Sequence[DataFile], remove: Sequence[DataFile], contained: Contained
    ) -> None:
        assert self._table is not None
        txns = {self._txn(contained.table_id, "version"): contained.version}
        txns[self._txn(contained.table_id, "epoch")] = contained.epoch
        words = {
            "table": self.spec.storage,
            "table_id": contained.table_id,
            "table_version": str(contained.version),
            "epoch": str(contained.epoch),
        }
        self._table.commit(add, remove, txns=txns, metadata=words)
        self.contained = contained

    def _named(self, table_id: str) -> tuple[int | None, int]:
        """Return the changelog's version and epoch that the stored table names."""
        if self._table is None:
            return None, 0
        txns = self._table.snapshot.txns
        version = txns.get(self._txn(table_id, "version"))
        return version, txns.get(self._txn(table_id, "epoch"), 0)

    def _txn(self, table_id: str, what: str) -> str:
        return f"{self._pipeline}/{self._name}@{table_id}#{what}"

    @property
    def _epoch_txn(self) -> str:
        return f"{self._pipeline}/{self.spec.storage}#epoch"
