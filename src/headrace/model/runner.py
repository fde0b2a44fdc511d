"""The contract of a runner: one epoch's records in, staged files and partial aggregates out.

Who calls what. The loop in `process` chooses the ranges, calls `run`, and commits what comes back.
A runner reads the log and stages files; it never commits and keeps nothing between two epochs
that it could not make again.

What holds. The result is a function of the plan, the records in the ranges and the known ids.
Running the same epoch twice gives the same rows; the first run's files are orphans. Every record in
a range is accounted for: read = decoded + dead + duplicates, and for each table
decoded = rows + filtered + failed.

What may fail. `Unavailable`: the log or storage cannot be read now; nothing happened. `Corrupt`:
a stored batch is damaged. `Internal`: the engine failed in a way no record explains.
"""

from __future__ import annotations

from typing import Protocol

import msgspec
import pyarrow as pa

from headrace.model.plan import Plan
from headrace.model.tables import DataFile


class Range(msgspec.Struct, frozen=True):
    """Records `start` ≤ offset < `end` of a partition."""

    topic: str
    partition: int
    start: int
    end: int


class Epoch(msgspec.Struct, frozen=True):
    """What a runner is asked to do."""

    number: int
    plan: Plan
    ranges: tuple[Range, ...]
    incarnations: dict[str, str]
    clocks: dict[str, int]
    """`topic/partition` → the partition's clock before the epoch, microseconds."""
    started_at_us: int


class TopicCount(msgspec.Struct):
    """Accounting of a topic in an epoch: read = decoded + dead + duplicates."""

    read: int = 0
    decoded: int = 0
    dead: int = 0
    duplicates: int = 0


class TableCount(msgspec.Struct):
    """Accounting of a table in an epoch: decoded = rows + filtered + failed."""

    decoded: int = 0
    rows: int = 0
    filtered: int = 0
    failed: int = 0


class Outcome(msgspec.Struct):
    """What became of an epoch."""

    files: dict[str, list[DataFile]]
    """Staged files by table name (`tables/events`, `system/dead_letters`, `system/known_ids`)."""
    partials: dict[str, dict[str, pa.Table]]
    """View name → part name → the rows of its `partial_sql` over this epoch's rows."""
    known_ids: pa.Table | None
    """The client-chosen ids that this epoch kept, `plan.KNOWN_ID_SCHEMA`."""
    clocks: dict[str, int]
    """`topic/partition` → the partition's clock after the epoch."""
    topics: dict[str, TopicCount]
    tables: dict[str, TableCount]
    ranges: tuple[Range, ...]
    """What was read: a range may end earlier than asked, never later."""
    keyed: dict[str, pa.Table] = {}
    """Rows of keyed tables, by the table's name, with its `made` columns: neither staged nor in
    `partials`, because what they change depends on the rows before (`stage/apply.py`)."""


class KnownIds(Protocol):
    """The client-chosen ids within the horizon, as a runner looks them up."""

    def find(self, topic: str, partition: int, ids: pa.Array, before: int) -> pa.Array:
        """Return for each 16-byte id its clock at the newest keeping below offset `before`.

        int64 microseconds, null where the id is not known.
        """


class Runner(Protocol):
    """Runs epochs; used from one thread."""

    def prepare(self, plan: Plan) -> None:
        """Get ready for epochs of a plan, or stay so; nobody has to call it.

        Returns at once: what takes long goes on by itself, and `run` waits for what it needs of it.
        It raises nothing: what cannot be had is missing in the next `run`, too.
        """

    def run(self, epoch: Epoch, known: KnownIds) -> Outcome:
        """Run one epoch; see the module's words."""

    def close(self) -> None:
        """Release what is held."""
