"""A pipeline with its owner in this process: a real log, real tables, and crashes on demand."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pyarrow as pa
import pytest

from headrace.define.check import check
from headrace.log.embedded import EmbeddedLog
from headrace.model import failpoint
from headrace.model.batch import Batch
from headrace.model.clock import ManualClock
from headrace.model.plan import DEAD_LETTERS, Plan
from headrace.model.runner import Range
from headrace.process.commit import run_epoch
from headrace.process.ledger import LedgerRow, unbalanced
from headrace.process.owner import Owner
from headrace.process.ranges import choose, waiting
from headrace.process.recover import recover
from headrace.runner.local import LocalRunner
from headrace.stage.engine import Engine
from headrace.tables.delta import DeltaTables
from headrace.tables.repair import repair
from headrace.tables.storage import LocalStorage

START_US = ManualClock().now_us()


class TickingClock(ManualClock):
    """A clock on which everything takes a while, so that views are not published every time."""

    def monotonic_s(self) -> float:
        self._monotonic_s += 0.001
        return self._monotonic_s


class Crash(BaseException):
    """The process ends here: nothing catches it, and what is in memory is used no more."""


class Crashes:
    """Ends an owner at its n-th failpoint, then, begun again, at the next number's."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("HEADRACE_FAILPOINT", "any")
        monkeypatch.setattr(failpoint, "_act", self._reached)
        self._left: list[int] = []
        self.met: list[str] = []

    @contextlib.contextmanager
    def at(self, numbers: list[int]) -> Iterator[None]:
        self._left = list(numbers)
        try:
            yield
        finally:
            self._left = []

    def _reached(self, name: str, _wanted: str) -> None:
        if name.partition(".")[0] in {"append", "seal", "trim"} or not self._left:
            return
        self._left[0] -= 1
        if self._left[0] < 0:
            del self._left[0]
            self.met.append(name)
            raise Crash(name)


class Place:
    """A data directory, with an owner that can be begun again from what is stored."""

    def __init__(
        self,
        root: Path,
        plan: Plan,
        log: EmbeddedLog,
        engine: Engine,
        runner: LocalRunner,
        clock: ManualClock,
    ) -> None:
        self.plan, self.log, self.clock = plan, log, clock
        self._root, self._engine, self._runner = root, engine, runner
        self.owner: Owner = self.begin()
        self.deaths = 0

    def begin(self, plan: Plan | None = None) -> Owner:
        """Forget everything in memory; `plan` is another one from now on."""
        self.plan = plan or self.plan
        # What power cuts do to files has tests of its own; here a process dies, not the machine.
        storage = LocalStorage(self._root, self.clock, fsync=lambda _: None)
        self.tables = DeltaTables(self._root, self.clock, storage=storage)
        self.use()
        self.owner = recover(
            self.plan,
            self.log,
            self.tables,
            self._runner,
            self.clock,
            self._engine,
            self._root / "run" / "keys",
            lambda: repair(self.tables),
        )
        return self.owner

    def use(self) -> None:
        """Have the runner, which several places share, work for this one."""
        self._runner._log, self._runner._tables = self.log, self.tables

    def outlive(self, act: Callable[[], object]) -> None:
        """Do something, begun again from storage as often as the owner dies in it."""
        dead = False
        while True:
            try:
                if dead:
                    self.begin()
                act()
            except Crash:
                dead = True
                self.deaths += 1
            else:
                return

    def there(self) -> list[Range]:
        owner = self.owner
        return waiting(owner.log, owner.plan, owner.log.describe(), owner.ledger.last)

    def epoch(self, records_max: int | None = None) -> LedgerRow | None:
        """Run one epoch over what waits, at most so many records; None if nothing does."""
        ranges = choose(self.log, self.there(), bytes_max=1 << 30, records_max=records_max)
        return run_epoch(self.owner, ranges) if ranges else None

    def publish(self) -> None:
        self.owner.views.publish(self.clock.now_us(), force=True)

    def rows(self, name: str) -> pa.Table:
        """Return what a reader with no part in this process finds stored under a name."""
        storage = LocalStorage(self._root, self.clock, fsync=lambda _: None)
        tables = DeltaTables(self._root, self.clock, storage=storage)
        snapshot = tables.snapshot(name)
        assert snapshot is not None, name
        return tables.read(snapshot)

    def letters(self) -> list[dict]:
        return self.rows(DEAD_LETTERS).sort_by("letter_id").to_pylist()

    def assert_accounted(self) -> None:
        """Every ledger row closes, each follows the one before, and the last has all totals."""
        rows = self.owner.ledger.rows_after(0)
        read: dict[str, int] = {}
        for before, row in zip([None, *rows], rows, strict=False):
            assert unbalanced(row) == []
            assert before is None or row.epoch == before.epoch + 1
            for name, count in row.topics.items():
                read[name] = read.get(name, 0) + count.read
        if rows:
            totals = rows[-1].topic_totals
            assert {n: c.read for n, c in totals.items()} == read
            assert read == {n: sum(self.log.ends(n)) for n in read}
            tables = rows[-1].table_totals
            for table in self.plan.tables:
                assert tables[table.name].rows == self.rows(f"tables/{table.name}").num_rows


@contextlib.contextmanager
def opened(root: Path, plan: Plan, memory_limit: str | None = None) -> Iterator[Place]:
    """Make a data directory with the plan's topics, and begin its owner."""
    clock = ManualClock()
    with contextlib.ExitStack() as stack:
        log = stack.enter_context(
            contextlib.closing(EmbeddedLog(root / "log", clock, segment_bytes_max=4096))
        )
        for topic in plan.topics:
            log.create(topic.name, topic.partitions)
        for name in plan.change_topics:
            log.create(name, 1)
        engine = stack.enter_context(contextlib.closing(Engine(threads=1)))
        runner = LocalRunner(log, None, clock, threads=1, memory_limit=memory_limit)
        stack.enter_context(contextlib.closing(runner))
        yield Place(root, plan, log, engine, runner, clock)


def checked(pipeline: object, **options: object) -> Plan:
    """Return a compiled pipeline, with options that its user is not asked for."""
    plan = check(pipeline)
    assert isinstance(plan, Plan), plan
    return with_options(plan, **options)


def with_options(plan: Plan, **options: object) -> Plan:
    changed = dataclasses.replace(plan.options, **options)
    return msgspec.structs.replace(plan, options=changed)


def append(
    log: EmbeddedLog,
    clock: ManualClock,
    topic: str,
    *values: bytes,
    chosen: bytes | None = None,
) -> None:
    """Append records as a door that judges nothing would."""
    batch = Batch()
    for value in values:
        batch.add(value, received_at=clock.now_us(), id=chosen or clock.new_id())
    log.append(topic, batch)


def comparable(table: pa.Table, without: tuple[str, ...] = ()) -> list[str]:
    """Return rows as sorted texts: equal for the same rows in any order, NaN and null included."""
    kept = table.drop_columns([n for n in without if n in table.column_names])
    return sorted(repr([_plain(v) for v in row.values()]) for row in kept.to_pylist())


def _plain(value: object) -> object:
    # Zeros and NaN have many bit patterns, and are one value each.
    return value + 0.0 if isinstance(value, float) else value
