"""The ledger: a small Delta table of the pipeline, one row an epoch.

A row is the truth about an epoch: once it is there the epoch has happened, and whatever of it is
not yet visible is made visible from the row alone. The last row alone is enough to go on from, so
what adds up (offsets, clocks, totals, each table's newest epoch) is carried whole in every row.

Row *n* is accepted only over row *n*−1: by the transaction number that every row carries, and by
the exclusive creation of the next version of the table.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypeVar

import msgspec
import pyarrow as pa
import pyarrow.compute as pc

from headrace.model.clock import Clock
from headrace.model.errors import Corrupt, Fenced
from headrace.model.plan import LEDGER
from headrace.model.runner import TableCount, TopicCount
from headrace.model.tables import DataFile, Snapshot, Table, Tables

FORMAT = 1
"""Number of the row's format; a reader refuses a higher one."""

Count = TypeVar("Count", TopicCount, TableCount)

_TXN = "/ledger#epoch"
"""After the pipeline's name: the application id of the ledger's transaction numbers."""
LEDGER_SCHEMA = pa.schema(
    [
        ("epoch", pa.int64()),
        ("committed_at", pa.timestamp("us", tz="UTC")),
        ("kind", pa.string()),
        ("plan", pa.string()),
        ("body", pa.string()),
    ]
)
"""Columns of the table; `body` is the whole row as JSON."""


class FileChange(msgspec.Struct, frozen=True):
    """What an epoch does to one table."""

    previous: int
    """The table's epoch before; 0 if there was none."""
    add: tuple[DataFile, ...] = ()
    remove: tuple[DataFile, ...] = ()


class LedgerRow(msgspec.Struct, frozen=True):
    """One epoch; see the module's words."""

    epoch: int
    committed_at_us: int
    kind: Literal["epoch", "retention", "carried", "begun_anew"]
    plan: str
    """Fingerprint of the plan that ran."""
    incarnations: dict[str, str]
    """Topic → incarnation of the offsets."""
    offsets: dict[str, int]
    """`topic/partition` → the offset up to which everything is in the tables; all of them."""
    read_from: dict[str, int]
    """`topic/partition` → where this epoch began to read, of those that it read."""
    clocks: dict[str, int]
    """`topic/partition` → the partition's clock, microseconds; all of them."""
    files: dict[str, FileChange]
    """Storage name of a table → what to commit."""
    table_epochs: dict[str, int]
    """Storage name of a table → its newest epoch, this one included; all of them."""
    topics: dict[str, TopicCount]
    """Accounting of this epoch."""
    tables: dict[str, TableCount]
    topic_totals: dict[str, TopicCount]
    """Accounting since the pipeline began."""
    table_totals: dict[str, TableCount]
    plan_text: str | None = None
    """The plan as JSON, when it is not the last row's."""
    format: int = FORMAT


def pipelines_of(ledger: Snapshot) -> list[str]:
    """Return the names of the pipelines whose epochs a ledger has: one, or none at first."""
    return [txn.removesuffix(_TXN) for txn in ledger.txns if txn.endswith(_TXN)]


class Ledger:
    """The ledger as its owner holds it."""

    def __init__(self, tables: Tables, pipeline: str, clock: Clock) -> None:
        self._tables = tables
        self._clock = clock
        self.txn = f"{pipeline}{_TXN}"
        table = tables.open(LEDGER)
        if table is None:
            table = tables.create(LEDGER, LEDGER_SCHEMA)
        self.table: Table = table
        self.last: LedgerRow | None = last_row(tables, table.snapshot)
        number = table.snapshot.txns.get(self.txn, 0)
        if number != (self.last.epoch if self.last else 0):
            msg = f"The ledger's transaction number is {number}, its last row another"
            raise Corrupt(msg, hint="Restore the data directory from a backup.")

    @property
    def epoch(self) -> int:
        """Return the number of the last epoch; 0 before the first."""
        return self.last.epoch if self.last else 0

    def append(self, row: LedgerRow) -> None:
        """Append row n over row n-1, durable on return; `Fenced` if another owner did."""
        if row.epoch != self.epoch + 1:
            msg = f"Epoch {row.epoch} does not follow epoch {self.epoch}"
            raise Fenced(msg)
        metadata = {"epoch": str(row.epoch)}
        self.table.commit([self.stage([row])], txns={self.txn: row.epoch}, metadata=metadata)
        self.last = row

    def stage(self, rows: Sequence[LedgerRow]) -> DataFile:
        """Return a staged file of rows."""
        bodies = [msgspec.json.encode(r).decode() for r in rows]
        told = [(r.epoch, r.committed_at_us, r.kind, r.plan) for r in rows]
        columns = [*zip(*told, strict=True), bodies]
        arrays = [pa.array(c, f.type) for c, f in zip(columns, LEDGER_SCHEMA, strict=True)]
        return self._tables.stage(LEDGER, pa.Table.from_arrays(arrays, schema=LEDGER_SCHEMA))

    def rows_after(self, epoch: int) -> list[LedgerRow]:
        """Return the rows of later epochs that are still kept, oldest first."""
        rows = read_rows(self._tables, self.table.snapshot, after=epoch)
        return sorted(rows, key=lambda r: r.epoch)


def expire(ledger: Ledger, before_us: int, files_txn: str) -> int:
    """Forget the oldest rows, up to the first from after a time or the last; return how many.

    The oldest row that stays gets the plan's text, so the ledger always says what ran. The caller
    holds the owner's lock.
    """
    table = ledger.table
    rows = ledger.rows_after(0)
    # Clocks are set back: a row that says it is old may follow one that says it is not.
    young = (i for i, r in enumerate(rows) if r.committed_at_us >= before_us)
    first = next(young, len(rows) - 1)
    forgotten, kept = rows[:first], rows[first:]
    if not forgotten:
        return 0
    text = next((r.plan_text for r in reversed(forgotten) if r.plan_text), None)
    kept[0] = msgspec.structs.replace(kept[0], plan_text=kept[0].plan_text or text)
    staged = ledger.stage(kept)
    number = table.snapshot.txns.get(files_txn, 0) + 1
    table.commit([staged], table.snapshot.files, txns={files_txn: number}, data_change=False)
    return len(forgotten)


def last_row(tables: Tables, snapshot: Snapshot) -> LedgerRow | None:
    """Return the newest row of a ledger's snapshot; None if it is empty."""
    newest = max(snapshot.files, key=_epoch_max, default=None)
    if newest is None:
        return None
    rows = tables.read(snapshot, [newest])
    return _parse(rows.column("body")[pc.index(rows.column("epoch"), pc.max(rows.column("epoch")))])


def read_rows(tables: Tables, snapshot: Snapshot, *, after: int) -> list[LedgerRow]:
    """Return the rows of a snapshot whose epoch is past `after`, in no order."""
    files = [f for f in snapshot.files if _epoch_max(f) > after]
    if not files:
        return []
    rows = tables.read(snapshot, files)
    rows = rows.filter(pc.greater(rows.column("epoch"), after))
    return [_parse(body) for body in rows.column("body")]


def _parse(body: pa.Scalar) -> LedgerRow:
    row = msgspec.json.decode(body.as_py(), type=LedgerRow)
    if row.format > FORMAT:
        msg = f"The ledger is of format {row.format}; this version reads up to {FORMAT}"
        raise Corrupt(msg, hint="Upgrade Headrace.")
    return row


def _epoch_max(file: DataFile) -> int:
    stats = msgspec.json.decode(file.stats) if file.stats else {}
    return int(stats.get("maxValues", {}).get("epoch", 0))


def added(totals: dict[str, Count], counts: dict[str, Count]) -> dict[str, Count]:
    """Return totals with an epoch's counts added."""
    sums = {name: _sum(totals[name], c) if name in totals else c for name, c in counts.items()}
    return {**totals, **sums}


def unbalanced(row: LedgerRow) -> Sequence[str]:
    """Return what in a row's accounting does not add up; empty when all is well."""
    wrong = [
        f"topic {name}: {c}"
        for name, c in row.topics.items()
        if c.read != c.decoded + c.dead + c.duplicates
    ]
    wrong += [
        f"table {name}: {c}"
        for name, c in row.tables.items()
        if c.decoded != c.rows + c.filtered + c.failed
    ]
    return wrong


def _sum(a: Count, b: Count) -> Count:
    names = a.__struct_fields__
    return type(a)(*(getattr(a, n) + getattr(b, n) for n in names))
