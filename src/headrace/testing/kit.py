"""Test a pipeline: records in, rows out, with the real engine, no ports and a clock of your own.

```python
from headrace.testing.kit import PipelineKit


def test_swords_are_counted():
    with PipelineKit.of_file("pipeline.py") as kit:
        kit.send("events", {"event_type": "purchase_sword", "Host": "a"})
        kit.advance(60)
        kit.send("events", {"event_type": "purchase_sword", "Host": "a"})
        assert kit.rows("purchases_by_host", "host", "purchases") == [{"host": "a", "purchases": 2}]
        assert kit.rows("dead_letters") == []
```

What runs is what runs in production: the log, the stage, the one commit, the tables and views, in a
folder that is removed at the end. Only the doors are left out: a record is given as a door would
have it. `run_case` does the same for a case written as JSON, which is what `headrace test` runs.
"""

from __future__ import annotations

import contextlib
import tempfile
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import msgspec
import pyarrow as pa

from headrace.app.pipeline_file import require_plan
from headrace.log.embedded import EmbeddedLog
from headrace.model.clock import ManualClock
from headrace.model.errors import Invalid
from headrace.model.layout import Layout
from headrace.model.plan import DEAD_LETTERS, Plan, Source
from headrace.model.source import Page, PulledRecord
from headrace.process.loop import EpochProgress, Loop
from headrace.process.owner import Owner
from headrace.process.recover import recover
from headrace.pull.records import Door
from headrace.runner.local import LocalRunner
from headrace.stage.encode import encode_record, records
from headrace.stage.engine import Engine
from headrace.tables.delta import DeltaTables

SYSTEM = {"dead_letters": DEAD_LETTERS}


class PipelineKit:
    """A pipeline that runs when it is asked to, in a folder of its own. A context manager."""

    def __init__(self, plan: Plan, clock: ManualClock | None = None) -> None:
        """Make the topics; time stands at `clock`, 2026-01-01 by default."""
        self.plan = plan
        self.clock = clock or ManualClock()
        self._open = contextlib.ExitStack()
        folder = self._open.enter_context(tempfile.TemporaryDirectory(prefix="headrace-kit-"))
        self.folder = Path(folder)
        """The data directory, for other readers; it is gone when the kit is closed."""
        layout = Layout.at(folder)
        layout.run.mkdir()
        self._tables = DeltaTables(layout.root, self.clock)
        self._log = self._open.enter_context(
            contextlib.closing(EmbeddedLog(layout.log, self.clock))
        )
        for topic in plan.topics:
            self._log.create(topic.name, topic.partitions)
        for name in plan.change_topics:
            self._log.create(name, 1)
        self._engine = self._open.enter_context(contextlib.closing(Engine(threads=1)))
        runner = LocalRunner(self._log, self._tables, self.clock, threads=1)
        self._open.enter_context(contextlib.closing(runner))
        self._owner: Owner = recover(
            plan, self._log, self._tables, runner, self.clock, self._engine, layout.keys
        )
        self._open.callback(self._owner.close)
        self._doors = {
            t.name: Door(Source("kit", "kit", t.name, {}), t, self.clock) for t in plan.topics
        }

    @classmethod
    def of_file(cls, path: str | Path, clock: ManualClock | None = None) -> PipelineKit:
        """Return a kit of a pipeline file; `Invalid` with all its faults if it has any."""
        return cls(require_plan(Path(path)), clock)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """End everything and remove the folder."""
        self._open.close()

    def send(self, topic: str, *records: object) -> None:
        """Append records now: bytes as they are, anything else as JSON."""
        values = [r if isinstance(r, bytes) else msgspec.json.encode(r) for r in records]
        self.pull(topic, [PulledRecord(value) for value in values])

    def pull(self, topic: str, records: Sequence[PulledRecord]) -> None:
        """Append records now as a source gives them: with a key, when they were seen, deletions."""
        if topic not in self._doors:
            known = ", ".join(self._doors)
            raise Invalid(f"There is no topic {topic}", hint=f"the topics are {known}")
        if records:
            self._log.append(topic, self._doors[topic].batch(Page(records, b"")))

    def advance(self, seconds: float) -> None:
        """Let time pass."""
        self.clock.advance(seconds)

    def settle(self) -> None:
        """Bring everything that was sent into tables and views."""
        now_us = self.clock.now_us()
        loop = Loop(self._owner, threading.Event(), EpochProgress())
        while loop.turn() or not loop.caught_up():
            self.clock.advance(self.plan.options.every_s)
        # Waiting for the next epoch is the machine's time, not the test's.
        self.clock.set_now_us(now_us)
        with self._owner.lock:
            self._owner.views.publish(now_us, force=True)

    def rows(self, name: str, *columns: str) -> list[dict[str, Any]]:
        """Settle, then return the rows of a table or view, sorted; all columns if none is named.

        `dead_letters` has the records that could not become rows, with code and message.
        """
        table = self.table(name)
        rows = table.select(list(columns) or table.column_names).to_pylist()
        return sorted(rows, key=_order)

    def table(self, name: str) -> pa.Table:
        """Settle, then return a table or view with all its columns, in no order."""
        self.settle()
        stored = (SYSTEM.get(name, ""), f"tables/{name}", f"views/{name}")
        snapshot = next((s for n in stored if n and (s := self._tables.snapshot(n))), None)
        if snapshot is None:
            known = sorted({t.name for t in self.plan.tables} | {v.name for v in self.plan.views})
            raise Invalid(f"There is no table or view {name}", hint=f"there are {', '.join(known)}")
        return self._tables.read(snapshot)


class Mismatch(msgspec.Struct, frozen=True):
    """An output that is not what a case expects; rows have only the columns that it names."""

    output: str
    missing: list[dict[str, Any]]
    """Rows expected and not there."""
    unexpected: list[dict[str, Any]]
    """Rows there and not expected."""


class Step(msgspec.Struct, forbid_unknown_fields=True):
    """Records of one topic, after some time has passed."""

    topic: str
    records: list[msgspec.Raw] = []
    raw: list[str] = []
    """Records that are no JSON, as text."""
    after_s: float = 0.0
    """Seconds that pass before."""


class Case(msgspec.Struct, forbid_unknown_fields=True):
    """A test of a pipeline, as JSON; see `docs/guide.md`."""

    expect: dict[str, list[dict[str, Any]]]
    """Table or view → its rows in any order, as HTTP shows them; columns not named do not count."""
    records: dict[str, list[msgspec.Raw]] = {}
    """Topic → records, all at once."""
    steps: list[Step] = []
    """What is sent afterwards, in order."""


def read_case(path: Path) -> Case:
    """Return the case of a file; `Invalid` says what is wrong with it."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=Case)
    except (OSError, msgspec.MsgspecError) as error:
        hint = 'write {"records": {"topic": [...]}, "expect": {"table": [...]}}'
        raise Invalid(f"{path} is no test case: {error}", hint=hint) from error


def run_case(plan: Plan, case: Case) -> list[Mismatch]:
    """Run a case; return what is not as it expects, nothing if all is."""
    with PipelineKit(plan) as kit:
        for topic, records in case.records.items():
            kit.send(topic, *map(bytes, records))
        for step in case.steps:
            kit.advance(step.after_s)
            kit.send(step.topic, *map(bytes, step.records), *(t.encode() for t in step.raw))
        found = (compare(name, rows, kit) for name, rows in case.expect.items())
        return [mismatch for mismatch in found if mismatch]


def compare(name: str, expected: Sequence[Mapping[str, Any]], kit: PipelineKit) -> Mismatch | None:
    """Compare the rows of an output in the columns that each expected row names."""
    left = [msgspec.json.decode(encode_record(row)) for row in records(kit.table(name))]
    missing = []
    for row in expected:
        match = next((r for r in left if _fits(r, row)), None)
        if match is None:
            missing.append(dict(row))
        else:
            left.remove(match)
    if not missing and not left:
        return None
    named = {column for row in expected for column in row}
    shown = [{k: v for k, v in row.items() if k in named or not named} for row in left]
    return Mismatch(name, missing, shown)


def _fits(row: Mapping[str, Any], expected: Mapping[str, Any]) -> bool:
    return all(column in row and row[column] == value for column, value in expected.items())


def _order(row: Mapping[str, Any]) -> list[tuple[bool, str]]:
    return [(value is None, str(value)) for value in row.values()]
