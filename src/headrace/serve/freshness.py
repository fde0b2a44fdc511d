"""How far what is answered has come: from a snapshot's epoch to offsets of the log.

The ledger has one row an epoch, with the offsets up to which everything is in the tables. A table
without rows in an epoch is not committed then, so its own epoch may be lower than the ledger's and
it is true up to the ledger's offsets all the same, unless the ledger's row names files for it that
are not visible yet.

The ledger is read before the tables: what is said of them is then true, if perhaps too modest.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Mapping

import msgspec

from headrace.model.errors import Corrupt
from headrace.model.plan import LEDGER, Plan
from headrace.model.tables import DataFile, Snapshot
from headrace.serve.relations import Relation, Snapshots

FORMAT = 1
"""The newest format of a ledger's row that is understood here."""

ROWS_HELD_MAX = 4096
"""Ledger rows kept in memory, for views that lag behind their table."""


class Change(msgspec.Struct, frozen=True):
    """The part of a row's `files` that matters here."""

    previous: int


class Row(msgspec.Struct, frozen=True):
    """A ledger row, as far as readers need it; `process.ledger.LedgerRow` has all of it."""

    epoch: int
    committed_at_us: int
    offsets: dict[str, int]
    incarnations: dict[str, str] = {}
    read_from: dict[str, int] = {}
    files: dict[str, Change] = {}
    table_epochs: dict[str, int] = {}
    format: int = FORMAT


NOTHING = Row(epoch=0, committed_at_us=0, offsets={})
"""Before the first epoch."""


class Freshness(msgspec.Struct, frozen=True):
    """What an answer read from one relation, and up to where that is true."""

    name: str
    version: int
    epoch: int
    """Everything of the log up to this epoch is in it."""
    committed_at_us: int
    """When that epoch was committed; 0 before the first."""
    offsets: dict[str, int]
    """`topic/partition` → the offset after the last record that it contains; each of its topics."""


class Ledger:
    """The ledger as readers hold it; safe to use from many threads."""

    def __init__(self, snapshots: Snapshots) -> None:
        self._snapshots = snapshots
        self._lock = threading.Lock()
        self._rows: OrderedDict[int, Row] = OrderedDict()
        self._read: tuple[tuple[str, int], Row] | None = None

    def last(self) -> Row:
        """Return the newest row; `NOTHING` before the first epoch."""
        snapshot = self._snapshots.newest(LEDGER)
        if snapshot is None:
            return NOTHING
        identity = (snapshot.table_id, snapshot.version)
        with self._lock:
            if self._read is None or self._read[0] != identity:
                newest = max(snapshot.files, key=_epoch_max, default=None)
                row = NOTHING if newest is None else self._rows_of(snapshot, newest)
                self._read = (identity, row)
            return self._read[1]

    def row(self, epoch: int) -> Row | None:
        """Return the row of an epoch; None if it is not kept any more."""
        if epoch == 0:
            return NOTHING
        with self._lock:
            if epoch in self._rows:
                return self._rows[epoch]
        snapshot = self._snapshots.newest(LEDGER)
        files = () if snapshot is None else snapshot.files
        at = [f for f in files if _epoch_min(f) <= epoch <= _epoch_max(f)]
        with self._lock:
            for file in at:
                self._rows_of(snapshot, file)
            return self._rows.get(epoch)

    def _rows_of(self, snapshot: Snapshot | None, file: DataFile) -> Row:
        """Read a file's rows into memory; return the newest of them."""
        if snapshot is None:
            return NOTHING
        table = self._snapshots.reader.read(snapshot, [file]).select(["epoch", "body"])
        table = table.sort_by("epoch").slice(max(0, table.num_rows - ROWS_HELD_MAX))
        row = NOTHING
        for body in table.column("body"):
            row = _parse(body.as_py())
            self._rows[row.epoch] = row
            self._rows.move_to_end(row.epoch)
        while len(self._rows) > ROWS_HELD_MAX:
            self._rows.popitem(last=False)
        return row


def freshness_of(relation: Relation, ledger: Ledger, last: Row, plan: Plan) -> Freshness:
    """Return up to where a relation is true.

    `last` is the ledger's newest row, read before the relation's snapshot was.
    """
    epoch = _epoch_of(relation, plan)
    change = last.files.get(relation.source)
    if epoch >= last.table_epochs.get(relation.source, 0):
        row: Row | None = last
        reached: Mapping[str, int] = last.offsets
    elif change is not None and epoch == change.previous:
        row = ledger.row(last.epoch - 1)
        reached = {**last.offsets, **last.read_from}
    else:
        row = ledger.row(epoch)
        reached = {} if row is None else _still_valid(row, last)
    partitions = {
        f"{t.name}/{n}": 0
        for t in plan.topics
        if t.name in relation.topics
        for n in range(t.partitions)
    }
    kept = {k: v for k, v in reached.items() if k.rpartition("/")[0] in relation.topics}
    return Freshness(
        name=relation.name,
        version=relation.version,
        epoch=epoch if row is None else row.epoch,
        committed_at_us=0 if row is None else row.committed_at_us,
        offsets={**partitions, **kept},
    )


def _still_valid(row: Row, last: Row) -> dict[str, int]:
    """Return a row's offsets without those of topics that were made anew after it."""
    now = last.incarnations
    renewed = {t for t, was in row.incarnations.items() if now.get(t, was) != was}
    return {k: v for k, v in row.offsets.items() if k.rpartition("/")[0] not in renewed}


def _epoch_of(relation: Relation, plan: Plan) -> int:
    """Return the newest epoch that a relation's snapshot contains; 0 if none."""
    snapshot = relation.snapshot
    if snapshot is None:
        return 0
    if relation.storage == relation.source:
        return snapshot.txns.get(f"{plan.name}/{relation.storage}#epoch", 0)
    # A view is not committed to by epochs: it says which one its state contains.
    return int(snapshot.metadata.get("epoch", "0"))


def missing(wanted: Mapping[str, int], reached: Mapping[str, int]) -> dict[str, int]:
    """Return what of `wanted` is not reached: partition → offset."""
    return {k: v for k, v in wanted.items() if k in reached and reached[k] < v}


def _parse(body: str) -> Row:
    row = msgspec.json.decode(body, type=Row)
    if row.format > FORMAT:
        msg = f"The ledger is of format {row.format}; this version reads up to {FORMAT}"
        raise Corrupt(msg, hint="Upgrade Headrace.")
    return row


def _epoch_max(file: DataFile) -> int:
    return _bound(file, "maxValues", 0)


def _epoch_min(file: DataFile) -> int:
    return _bound(file, "minValues", 0)


def _bound(file: DataFile, which: str, otherwise: int) -> int:
    stats = msgspec.json.decode(file.stats) if file.stats else {}
    return int(stats.get(which, {}).get("epoch", otherwise))
