"""All keyed tables of a pipeline, as their owner keeps them: apply, remember, publish.

In an epoch: `apply` stages each changelog's net changes, beside what the runner staged; once the
changelog is committed, `committed` brings the index of old rows up and tells the table that people
read, which is published when its time has come.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path

import msgspec
import pyarrow as pa

from headrace.model.clock import Clock
from headrace.model.failpoint import failpoint
from headrace.model.plan import CHANGED_IN, WEIGHT, Plan
from headrace.model.plan import Table as PlanTable
from headrace.model.runner import Outcome
from headrace.model.tables import DataFile, Snapshot, Table, Tables
from headrace.process.follow import commits_since
from headrace.process.key_index import KeyIndex
from headrace.process.keyed_table import KeyedTable
from headrace.stage.apply import ENTRIES, Apply, still_said
from headrace.stage.engine import Engine

_KEPT = "headrace#kept "
"""Transaction id of a changelog, with a hash of the columns kept of old rows: its number is the
version since which they are."""

_UNIQUE = ("event_id", "_offset")


class _Keyed:
    """One keyed table: what is made ready, remembered and published of it."""

    def __init__(self, spec: PlanTable, apply: Apply, index: KeyIndex, table: KeyedTable) -> None:
        self.spec, self.apply, self.index, self.table = spec, apply, index, table
        self.changed: tuple[pa.Table, list[DataFile]] | None = None
        """Entries for the index and the staged files of the epoch under way."""


class KeyedTables:
    """Every keyed table of a plan. Used from one thread, under the owner's lock."""

    def __init__(
        self, plan: Plan, tables: Tables, clock: Clock, engine: Engine, folder: Path
    ) -> None:
        """`folder` is where the indexes of old rows are kept."""
        self._tables = tables
        self._plan = plan
        self._clock = clock
        self._engine = engine
        self._folder = folder
        self._keyed: dict[str, _Keyed] = {}

    def recover(self, opened: Mapping[str, Table]) -> None:
        """Open every table and bring its index up to the changelog; `opened` has the changelogs."""
        self.close()
        for spec in self._plan.tables:
            if spec.keyed is None:
                continue
            changelog = opened[spec.storage]
            apply = Apply(spec, self._plan.views_of(spec.name), self._engine)
            index = KeyIndex(self._folder / f"{spec.name}.db", _identity(changelog.snapshot, apply))
            table = KeyedTable(spec, self._tables, self._clock, self._engine, self._plan.name)
            keyed = _Keyed(spec, apply, index, table)
            self._keyed[spec.name] = keyed
            table.kept_since = _adopt(changelog, apply)
            self._bring_up(keyed, changelog)
            table.load(changelog)

    def apply(self, outcome: Outcome, epoch: int) -> None:
        """Stage what an epoch's rows change, and put files and partials into the outcome."""
        for name, rows in outcome.keyed.items():
            keyed = self._keyed[name]
            keyed.changed = None
            old = keyed.index.find(keyed.apply.keys(rows))
            changes = keyed.apply.changes(rows, old, epoch)
            if not changes.num_rows:
                continue
            storage = keyed.spec.storage
            staged = [self._tables.stage(storage, changes, unique=_UNIQUE)]
            outcome.files[storage] = staged
            outcome.partials |= keyed.apply.partials(changes)
            keyed.changed = (keyed.apply.entries(changes), staged)

    def committed(self, opened: Mapping[str, Table], epoch: int) -> None:
        """Remember what the epoch changed: its changelogs are committed now."""
        for keyed in self._keyed.values():
            if keyed.changed is None:
                continue
            entries, staged = keyed.changed
            version = opened[keyed.spec.storage].snapshot.version
            failpoint("keyed.1")
            keyed.index.put(entries, (version, epoch))
            keyed.table.add(staged, version, epoch)
            keyed.changed = None

    def publish(self, share: float, *, force: bool = False) -> int:
        """Publish the tables that are due, those behind with `force`; return how many times.

        A table waits so long after a publish that publishing takes at most `share` of the time.
        """
        published = 0
        for keyed in self._keyed.values():
            table = keyed.table
            while table.is_behind and (force or table.is_due(self._clock.monotonic_s())):
                table.publish()
                published += 1
                wait_s = table.cost_s * len(self._keyed) / share
                table.wait_until(self._clock.monotonic_s() + wait_s - table.cost_s)
        return published

    def table(self, name: str) -> KeyedTable:
        """Return the published side of a keyed table."""
        return self._keyed[name].table

    def still_said(self, name: str, changes: pa.Table) -> pa.Table:
        """Return the rows of a changelog that are still of use; from housekeeping's thread."""
        keyed = self._keyed[name]
        with closing(Engine(threads=1)) as engine:
            sql = f"SELECT {keyed.apply.key_sql} AS k FROM changes"
            texts = engine.query(sql, {"changes": changes}).column("k").to_pylist()
        return still_said(changes, keyed.index.epochs(texts))

    def slowest_version(self, name: str) -> int | None:
        """Return the oldest version of a changelog still needed here; None if not keyed."""
        keyed = self._keyed.get(name)
        if keyed is None:
            return None
        version, _ = keyed.index.contained or (0, 0)
        return min(keyed.table.contained.version, version)

    def maintain(self, opened: Mapping[str, Table]) -> None:
        """Do at most one checkpoint and clean-up; name versions that brought no rows."""
        for keyed in self._keyed.values():
            log = opened[keyed.spec.storage].snapshot
            if not keyed.table.is_behind:
                self._name_contained(keyed, log)
                keyed.table.name_contained(log.version)
        for keyed in self._keyed.values():
            if keyed.table.maintain():
                return

    def close(self) -> None:
        """Release the indexes."""
        for keyed in self._keyed.values():
            keyed.index.close()
        self._keyed = {}

    def _bring_up(self, keyed: _Keyed, changelog: Table) -> None:
        """Bring an index up to its changelog, or make it again.

        Entries of a plan whose views read other columns are of no use: `KeyIndex` is told so.
        """
        log = changelog.snapshot
        version, epoch = keyed.index.contained or (None, 0)
        added = commits_since(changelog, version, epoch, self._epoch_txn(keyed))
        if added is None:
            keyed.index.clear()
        for file in log.files if added is None else (f for a in added for f in a.files):
            self._fill(keyed, log, file)
        self._name_contained(keyed, log)

    def _fill(self, keyed: _Keyed, log: Snapshot, file: DataFile) -> None:
        """Put the rows of a file into an index, reading only what entries are made of."""
        wanted = [*(c.name for c in keyed.apply.kept), WEIGHT, CHANGED_IN]
        schema = pa.schema([log.schema.field(name) for name in dict.fromkeys(wanted)])
        rows = self._tables.read(msgspec.structs.replace(log, schema=schema), [file])
        keyed.index.put(keyed.apply.entries(rows), keyed.index.contained)

    def _name_contained(self, keyed: _Keyed, log: Snapshot) -> None:
        epoch = log.txns.get(self._epoch_txn(keyed), 0)
        keyed.index.put(ENTRIES.empty_table(), (log.version, epoch))

    def _epoch_txn(self, keyed: _Keyed) -> str:
        return f"{self._plan.name}/{keyed.spec.storage}#epoch"


def _adopt(changelog: Table, apply: Apply) -> int:
    """Return since which version a changelog's old rows have the columns that are kept now.

    The changelog itself says so, because a plan in between may have kept others.
    """
    txns = changelog.snapshot.txns
    since = {name: number for name, number in txns.items() if name.startswith(_KEPT)}
    name = f"{_KEPT}{_hash(apply)}"
    if name not in since or since[name] < max(since.values()):
        since[name] = changelog.snapshot.version + 1
        changelog.commit(txns={name: since[name]})
    return since[name]


def _identity(log: Snapshot, apply: Apply) -> str:
    """Return what entries are of: the changelog, and the columns that are kept."""
    return f"{log.table_id}/{_hash(apply)}"


def _hash(apply: Apply) -> str:
    return hashlib.blake2b(msgspec.json.encode(apply.kept), digest_size=8).hexdigest()
