"""The two Delta tables of a view: its state, and the public table made from it.

State: one table with the columns of all parts and `_part`, one file a part (tag `part`), written
whole. Its transaction numbers name the table's id, version and epoch that it contains; numbers
outlive log clean-up, which a commit's own words do not. The public table's number names the version
of the state that it was made from. Both are committed by exclusive creation of the next version
over the one that was loaded or last written, so another owner's commit in between is `Fenced`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import msgspec
import pyarrow as pa

from headrace.model.clock import Clock
from headrace.model.errors import Fenced
from headrace.model.failpoint import failpoint
from headrace.model.plan import Column, View
from headrace.model.tables import DataFile, Snapshot, Table, Tables
from headrace.stage.engine import Engine

PART = "part"
"""Tag of a state file: the part that it holds."""

COMMITS_PER_CHECKPOINT = 50
STATE_KEPT_S = 60.0
"""How long files of an older state are kept: only its owner reads them."""
PUBLIC_KEPT_S = 300.0
"""How long files of an older public table are kept for queries that began on it."""

_PART_COLUMN = Column("_part", "VARCHAR")


@dataclass(frozen=True)
class Contained:
    """Which rows a view contains: those of a table's version, the newest of them of an epoch."""

    table_id: str
    version: int
    epoch: int


class ViewStore:
    """State and public table of one view, as the owner holds them.

    `write_state` and `write_public` use nothing but the view's own two tables, so different views
    may be written at the same time.
    """

    def __init__(
        self, view: View, tables: Tables, clock: Clock, engine: Engine, pipeline: str
    ) -> None:
        self._view = view
        self._tables = tables
        self._clock = clock
        self._pipeline = pipeline
        self._public_schema = engine.arrow_schema(view.columns)
        columns = {c.name: c for part in view.parts for c in part.columns}
        self._state_schema = engine.arrow_schema([_PART_COLUMN, *columns.values()])
        self._state_name = f"state/{view.name}-{view.fingerprint}"
        self._public_name = f"views/{view.name}"
        self._state = tables.open(self._state_name)
        self._public = tables.open(self._public_name)
        self._public_fits = self._public is not None and _fits(view, self._public, engine)
        self._checkpointed: dict[str, int] = {}
        self._stale = _other_builds(view, tables)

    @property
    def in_step(self) -> bool:
        """Return whether the public table is there and names the state's version."""
        if self._state is None or self._public is None or not self._public_fits:
            return False
        named = self._public.snapshot.txns.get(self._state_txn)
        return named == self._state.snapshot.version

    def contained(self, table_id: str) -> Contained | None:
        """Return what the stored state contains of a table; None if there is none of this id."""
        if self._state is None:
            return None
        txns = self._state.snapshot.txns
        version = txns.get(self._txn(table_id, "version"))
        if version is None:
            return None
        return Contained(table_id, version, txns.get(self._txn(table_id, "epoch"), 0))

    def load(self) -> dict[str, pa.Table]:
        """Return the stored state, part name → rows."""
        assert self._state is not None
        snapshot = self._state.snapshot
        parts = {}
        for part in self._view.parts:
            files = [f for f in snapshot.files if f.tags.get(PART) == part.name]
            names = [c.name for c in part.columns]
            narrow = msgspec.structs.replace(snapshot, schema=_narrowed(snapshot.schema, names))
            parts[part.name] = self._tables.read(narrow, files)
        return parts

    def public_rows(self) -> pa.Table | None:
        """Return what the public table holds now; None if there is none with these columns."""
        if self._public is None or not self._public_fits:
            return None
        return self._tables.read(self._public.snapshot)

    def write_state(self, parts: Mapping[str, pa.Table], contained: Contained) -> None:
        """Replace the stored state, durable on return."""
        staged = [
            self._tables.stage(self._state_name, _marked(rows, name), tags={PART: name})
            for name, rows in parts.items()
            if rows.num_rows
        ]
        failpoint("publish.1")
        if self._state is None:
            self._state = self._tables.create(self._state_name, self._state_schema)
        self._commit_state(staged, self._state.snapshot.files, contained)
        failpoint("publish.2")

    def write_public(self, rows: pa.Table, contained: Contained) -> None:
        """Replace the public table, durable on return; it names the state's version.

        A table with other columns is dropped and made again: a view's columns are what its SQL
        says, and whoever follows the table sees another id.
        """
        if self._public is None or not self._public_fits:
            if self._public is not None:
                self._drop_misfit(self._public.snapshot)
            self._public = self._tables.create(self._public_name, self._public_schema)
            self._public_fits = True
        staged = [self._tables.stage(self._public_name, rows)] if rows.num_rows else []
        self._commit_public(staged, self._public.snapshot.files, contained)
        failpoint("publish.3")
        self._drop_other_builds()

    def name_contained(self, contained: Contained) -> None:
        """Say that the stored state contains a later version, where nothing in it changed."""
        if self._state is not None and self._public is not None:
            self._commit_state([], [], contained)
            self._commit_public([], [], contained)

    def maintain(self) -> bool:
        """Write a checkpoint of one table that is due, and delete what it no longer needs."""
        kept = ((self._state, STATE_KEPT_S), (self._public, PUBLIC_KEPT_S))
        for table, kept_s in kept:
            if table is not None and self._is_due(table.snapshot):
                table.checkpoint(kept_s)
                older_us = self._clock.now_us() - round(kept_s * 1_000_000)
                table.clean(older_us, table.snapshot.version)
                self._checkpointed[table.snapshot.name] = table.snapshot.version
                return True
        return False

    def _is_due(self, snapshot: Snapshot) -> bool:
        before = snapshot.version - snapshot.version % COMMITS_PER_CHECKPOINT
        done = self._checkpointed.setdefault(snapshot.name, before)
        return snapshot.version - done >= COMMITS_PER_CHECKPOINT

    def _commit_state(
        self, add: Sequence[DataFile], remove: Sequence[DataFile], contained: Contained
    ) -> None:
        assert self._state is not None
        txns = {
            self._txn(contained.table_id, "version"): contained.version,
            self._txn(contained.table_id, "epoch"): contained.epoch,
        }
        self._state.commit(add, remove, txns=txns, metadata=self._words(contained))

    def _commit_public(
        self, add: Sequence[DataFile], remove: Sequence[DataFile], contained: Contained
    ) -> None:
        assert self._state is not None
        assert self._public is not None
        version = self._state.snapshot.version
        words = {**self._words(contained), "state": self._state_name, "state_version": str(version)}
        self._public.commit(add, remove, txns={self._state_txn: version}, metadata=words)

    def _words(self, contained: Contained) -> dict[str, str]:
        return {
            "table": f"tables/{self._view.table}",
            "table_id": contained.table_id,
            "table_version": str(contained.version),
            "epoch": str(contained.epoch),
        }

    def _txn(self, table_id: str, what: str) -> str:
        return f"{self._pipeline}/{self._state_name}@{table_id}#{what}"

    @property
    def _state_txn(self) -> str:
        assert self._state is not None
        return f"{self._pipeline}/{self._state_name}@{self._state.snapshot.table_id}#state"

    def _drop_misfit(self, loaded: Snapshot) -> None:
        """Drop a public table with other columns, unless it is no longer the one that was loaded.

        A table that another owner has made in the meantime is not ours to drop.
        """
        now = self._tables.snapshot(self._public_name)
        if now is None or (now.table_id, now.version) != (loaded.table_id, loaded.version):
            raise Fenced(
                f"Another owner has published {self._public_name}",
                hint="Another process has taken over this pipeline.",
            )
        self._tables.drop(self._public_name)

    def _drop_other_builds(self) -> None:
        for name in self._stale:
            self._tables.drop(name)
        self._stale = []


def _fits(view: View, public: Table, engine: Engine) -> bool:
    return engine.columns(public.snapshot) == view.columns


def _other_builds(view: View, tables: Tables) -> list[str]:
    """Return the state tables of the same view under other fingerprints."""
    pattern = re.compile(rf"state/{re.escape(view.name)}-[0-9a-f]{{16}}")
    own = f"state/{view.name}-{view.fingerprint}"
    return [name for name in tables.names() if pattern.fullmatch(name) and name != own]


def _marked(rows: pa.Table, part: str) -> pa.Table:
    return rows.add_column(0, "_part", pa.repeat(pa.scalar(part), rows.num_rows))


def _narrowed(schema: pa.Schema, names: Sequence[str]) -> pa.Schema:
    return pa.schema([schema.field(name) for name in names])
