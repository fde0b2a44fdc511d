"""A pipeline run on one of the logs and one of the runners, dying on the way, and what it left."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import msgspec
import pyarrow as pa
import pytest
from inputs import Call, calls
from kafka_place import KafkaPlace

from headrace.app.pipeline_file import require_plan
from headrace.log.embedded import EmbeddedLog
from headrace.log.kafka import Kafka
from headrace.model import failpoint
from headrace.model.clock import SystemClock
from headrace.model.log import Log, LogReader
from headrace.model.plan import DEAD_LETTERS, LEDGER, Plan
from headrace.model.runner import Runner
from headrace.model.source import DELETED_HEADER
from headrace.model.tables import Tables
from headrace.process.changes import VIEW_HEADER
from headrace.process.ledger import last_row
from headrace.process.loop import EpochProgress, Loop
from headrace.process.owner import Owner
from headrace.process.recover import recover
from headrace.runner.local import LocalRunner
from headrace.runner.places import Place
from headrace.runner.spark import Sizes, SparkRunner
from headrace.stage.engine import Engine
from headrace.tables.delta import DeltaTables
from headrace.tables.repair import repair
from headrace.tables.storage import LocalStorage

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

    from headrace.app.cluster.brokers import Brokers

ROOT = Path(__file__).resolve().parents[2]
PIPELINES = {
    **{p.parent.name: p for p in sorted((ROOT / "examples").glob("*/pipeline.py"))},
    "everything": Path(__file__).parent / "everything.py",
}
"""Every example, and the pipeline of everything, by the pipeline's name."""

POSITIONS = {"_partition", "_offset"}
OF_ITS_PLACE = {"letter_id", "partition", "offset", "failed_at"}
"""What of a dead letter says where the record stood, or when an epoch met it."""

CLOCK = SystemClock()
SENT = 2_000
SMALL = Sizes(task_bytes_min=20_000, merged_rows_min=1_000)
"""So that an epoch is several tasks, and some merge their partials in tasks too."""


@functools.cache
def compiled(name: str) -> Plan:
    return require_plan(PIPELINES[name])


def plan_of(name: str, partitions: int) -> Plan:
    """Return the plan of a pipeline file as it is, its topics with so many partitions."""
    plan = compiled(name)
    topics = [msgspec.structs.replace(t, partitions=partitions) for t in plan.topics]
    return msgspec.structs.replace(plan, topics=tuple(topics))


def cut_into(plan: Plan, size_bytes: int, epochs: int) -> Plan:
    """Return a plan whose epochs take so many bytes that there are about so many of them.

    Its other bounds are so small that tables are compacted and get checkpoints on the way.
    """
    options = dataclasses.replace(
        plan.options,
        every_s=0.001,
        epoch_bytes_max=max(1, size_bytes // epochs),
        table_files_max=4,
        commits_per_checkpoint=3,
        tidy_every_s=1.0,
    )
    return msgspec.structs.replace(plan, options=options)


class Crash(BaseException):
    """The process ends here: nothing catches it, and what is in memory is used no more."""


class Deaths:
    """Ends an owner where it is told to: `commit.3:2` is the second time it comes there."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("HEADRACE_FAILPOINT", "any")
        monkeypatch.setattr(failpoint, "_act", self._reached)
        self.left: list[str] = []
        """Where owners are still to end, one after another."""
        self._times: Counter[str] = Counter()

    def _reached(self, name: str, _wanted: str) -> None:
        if not self.left:
            return
        self._times[name] += 1
        wanted, _, times = self.left[0].partition(":")
        if name == wanted and self._times[name] >= int(times or 1):
            del self.left[0]
            self._times.clear()
            raise Crash(name)


MakeRunner = Callable[["Site", Tables], Runner]
OpensLog = Callable[[Path], tuple[Log, Path | Kafka]]
"""Opens a log of its own for a run with a folder; returns where tasks find it too."""


class Site:
    """Where one run keeps its records and its tables."""

    def __init__(self, folder: Path, plan: Plan, log: Log, kept_at: Path | Kafka) -> None:
        self.folder, self.plan, self.log = folder, plan, log
        self.place = Place(kept_at, folder)
        """How tasks of Spark's open the same."""
        self.lives = 0

    @contextmanager
    def owned(self, make: MakeRunner) -> Iterator[Owner]:
        """Begin an owner from what is stored."""
        self.lives += 1
        tables = self.tables()
        with closing(Engine(threads=1)) as engine, closing(make(self, tables)) as runner:
            keys = self.folder / "run" / "keys"
            owner = recover(
                self.plan, self.log, tables, runner, CLOCK, engine, keys, lambda: repair(tables)
            )
            with closing(owner):
                yield owner

    def tables(self) -> DeltaTables:
        """Open the tables. What power cuts do to them has tests of its own."""
        storage = LocalStorage(self.folder, CLOCK, fsync=lambda _: None)
        return DeltaTables(self.folder, CLOCK, storage=storage)

    def run(self, make: MakeRunner) -> None:
        """Run until everything is committed, begun again as often as the owner dies."""
        while True:
            with contextlib.suppress(Crash), self.owned(make) as owner:
                Loop(owner, threading.Event(), EpochProgress(), drain=lambda: True, threads=1).run()
                return

    def begin(self, make: MakeRunner, epochs: int = 1) -> None:
        """Run so many epochs and stop, as somebody does who takes another runner from there."""
        progress = EpochProgress()
        with self.owned(make) as owner:
            loop = Loop(owner, threading.Event(), progress, threads=1)
            while progress.epochs < epochs:
                loop.turn()
            assert not loop.caught_up()


def local(site: Site, tables: Tables) -> Runner:
    """Make the runner of one machine."""
    return LocalRunner(site.log, tables, CLOCK, threads=1)


def spark_on(session: SparkSession) -> MakeRunner:
    """Return what makes a runner on a session."""
    return lambda site, tables: SparkRunner(
        site.log, tables, CLOCK, site.place, session=session, sizes=SMALL
    )


def embedded(folder: Path) -> tuple[Log, Path | Kafka]:
    """Make an embedded log of several segments."""
    return EmbeddedLog(folder / "log", CLOCK, segment_bytes_max=100_000), folder / "log"


def kafka_on(cluster: Brokers) -> OpensLog:
    """Return what makes a log in a cluster, under a prefix of its own."""
    place = KafkaPlace(cluster)
    return lambda _folder: (place.open(), place.kafka)


@contextmanager
def filled(folder: Path, plan: Plan, sent: Sequence[Call], opens: OpensLog) -> Iterator[Site]:
    """Make a log with a plan's topics and append everything."""
    log, kept_at = opens(folder)
    with closing(log):
        for topic in plan.topics:
            log.create(topic.name, topic.partitions)
        for name in plan.change_topics:
            log.create(name, 1)
        for call in sent:
            log.append(call.topic, call.records)
        yield Site(folder, plan, log, kept_at)


@functools.cache
def sent_to(name: str, *, leaps: bool = False) -> Sequence[Call]:
    """Return what is sent to a pipeline."""
    return calls(plan_of(name, 1), SENT, leaps=leaps)


class Found(NamedTuple):
    """What a run left, as multisets: a name → row → how often it is there."""

    tables: dict[str, Counter[str]]
    views: dict[str, Counter[str]]
    changes: dict[str, Counter[str]]
    """By change topic: of the last record of each key, those that are no deletion."""
    letters: Counter[str]
    counts: dict[str, dict[str, int]]
    """What the ledger says of topics and tables."""
    epochs: int


def found_at(site: Site) -> Found:
    """Return what a reader finds who had no part in the run."""
    tables, plan = site.tables(), site.plan

    def rows(name: str) -> pa.Table:
        snapshot = tables.snapshot(name)
        assert snapshot is not None, name
        return tables.read(snapshot)

    last = last_row(tables, tables.snapshot(LEDGER))
    totals = {f"topic {n}": msgspec.to_builtins(c) for n, c in last.topic_totals.items()}
    totals |= {f"table {n}": msgspec.to_builtins(c) for n, c in last.table_totals.items()}
    return Found(
        tables={t.name: multiset(rows(f"tables/{t.name}"), POSITIONS) for t in plan.tables},
        views={v.name: multiset(rows(f"views/{v.name}")) for v in plan.views},
        changes={name: _live(site.log, name) for name in plan.change_topics},
        letters=multiset(rows(DEAD_LETTERS), OF_ITS_PLACE),
        counts=totals,
        epochs=last.epoch,
    )


@functools.cache
def first_of(name: str, *, leaps: bool = False) -> Found:
    """Return what the run leaves with which all others are compared."""
    sent = sent_to(name, leaps=leaps)
    plan = cut_into(plan_of(name, 3), 1 << 30, 1)
    with (
        tempfile.TemporaryDirectory() as folder,
        filled(Path(folder), plan, sent, embedded) as site,
    ):
        site.run(local)
        return found_at(site)


def _live(log: LogReader, topic: str) -> Counter[str]:
    (end,) = log.ends(topic)
    last: dict[bytes, tuple[dict[str, str], bytes]] = {}
    for batch in log.read(topic, 0, log.starts(topic)[0], end):
        for record in batch.to_pylist():
            last[record["key"]] = (msgspec.json.decode(record["headers"]), record["value"])
    return Counter(
        f"{headers[VIEW_HEADER]} {value!r}"
        for headers, value in last.values()
        if DELETED_HEADER not in headers
    )


def multiset(rows: pa.Table, without: set[str] = frozenset()) -> Counter[str]:
    """Return how often each row is there, NaN and null included."""
    kept = rows.drop_columns([n for n in rows.column_names if n in without])
    return Counter(repr([_plain(v) for v in row.values()]) for row in kept.to_pylist())


def _plain(value: object) -> object:
    # Zeros and NaN have many bit patterns, and are one value each.
    return value + 0.0 if isinstance(value, float) else value


def differences(found: Found, first: Found) -> dict[str, object]:
    """Return what is other than in the first run, by where it stands; some rows of each."""
    said: dict[str, object] = {}
    for kind in ("tables", "views", "changes"):
        ours, theirs = getattr(found, kind), getattr(first, kind)
        for name in {*ours, *theirs}:
            _compare(f"{kind} {name}", ours[name], theirs[name], said)
    _compare("dead letters", found.letters, first.letters, said)
    for name in {*found.counts, *first.counts}:
        if found.counts.get(name) != first.counts.get(name):
            said[name] = (found.counts.get(name), first.counts.get(name))
    return said


def _compare(where: str, ours: Counter[str], theirs: Counter[str], said: dict[str, object]) -> None:
    if ours != theirs:
        more, less = ours - theirs, theirs - ours
        said[where] = {
            "more": (more.total(), list(more)[:3]),
            "less": (less.total(), list(less)[:3]),
        }
