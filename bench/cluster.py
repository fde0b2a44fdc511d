"""On Kafka and Spark: the process role against Spark's own Structured Streaming.

    python bench/cluster.py [--local] [--cluster FOLDER] [--recorded FILE] [--quick]

Both read the same topic of the same three brokers on the same Spark session, both warm, in turn. An
epoch's records become rows of a durable table, and a count by key is brought up to date and
published. Ours is the process role's loop: ranges, tasks, ledger, Delta commits, view, with ids,
accounts and dead letters. The peer is `structured_streaming.py` in both of its ways; what counts is
the faster one. All records are in the topic before; epochs are bounded to so many records on both
sides, and an epoch's time is all of it: from asking what there is to the published view.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import os
import shutil
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path

import msgspec
import structured_streaming as peer
from measure import Row, tell
from occurrences import FIELDS, make_plan, occurrences, recorded
from pyspark.sql import SparkSession
from workload import BY_PLAYER, as_the_door_makes_them, events
from workload import make_plan as make_game_plan

from headrace.app.cluster import trial
from headrace.app.cluster.jars import jars
from headrace.app.site import site_of
from headrace.model.batch import Batch
from headrace.model.clock import SystemClock
from headrace.model.deployment import Deployment, KafkaSettings, SparkSettings
from headrace.model.layout import Layout
from headrace.model.log import Log
from headrace.model.plan import Plan, Topic
from headrace.process.loop import EpochProgress, Loop
from headrace.process.recover import recover
from headrace.runner import spark_session
from headrace.stage.engine import Engine

APPEND_RECORDS = 10_000
USER_AGENT = "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0"


@dataclass(frozen=True)
class Size:
    """Epochs of so many records: how many run unmeasured first, and how many are measured."""

    records: int
    warm: int
    count: int


SIZES = (Size(1_000, 10, 20), Size(100_000, 2, 6), Size(1_000_000, 1, 1))
QUICK = (Size(1_000, 3, 5), Size(100_000, 1, 2))
THREADS = 2
PREFIX = "bench-"


@dataclass(frozen=True)
class Workload:
    """A topic's records, what we make of them, and what the peer does."""

    name: str
    plan: Plan
    values: Callable[[int], Iterator[bytes]]
    job: peer.Job


def small() -> Workload:
    """Return events of a game, about 160 bytes each."""
    plan = spread(make_game_plan({"by_player": BY_PLAYER}))
    fields = "event_type STRING, player BIGINT, Host STRING, `User-Agent` STRING, price BIGINT"
    columns = ("event_type", "player", "Host AS host", "`User-Agent` AS user_agent", "price")
    return Workload(
        "small events",
        plan,
        lambda count: events(count, user_agent=USER_AGENT),
        peer.Job(f"{PREFIX}events", fields, columns, "player"),
    )


def large(path: Path | None) -> Workload:
    """Return occurrence records: those of a file, or made up, about 1.4 kB each."""
    columns = [f"{type_.rsplit(' ', 1)[0]} AS `{name}`" for name, type_ in FIELDS.items()]
    return Workload(
        "occurrence records",
        spread(make_plan()),
        occurrences if path is None else lambda count: recorded(path, count),
        peer.Job(f"{PREFIX}occurrences", ", ".join(FIELDS.values()), tuple(columns), "species"),
    )


def spread(plan: Plan) -> Plan:
    """Return the plan with a partition for each slot: the peer's tasks then end together."""
    topics = tuple(msgspec.structs.replace(t, partitions=peer.SLOTS) for t in plan.topics)
    return msgspec.structs.replace(plan, topics=topics)


def fill(log: Log, topic: Topic, values: Iterator[bytes]) -> int:
    """Write records as the collector does, to a new topic; return the bytes of their values."""
    if topic.name in log.describe():
        log.delete(topic.name)
    log.create(topic.name, topic.partitions)
    size_bytes = 0
    while some := list(itertools.islice(values, APPEND_RECORDS)):
        batch = Batch()
        for body in as_the_door_makes_them(topic, some):
            batch.extend(body)
        log.append(topic.name, batch)
        size_bytes += sum(map(len, some))
    return size_bytes


def headrace(deployment: Deployment, plan: Plan, folder: Path, size: Size) -> float:
    """Return the seconds of an epoch: the median of those measured, in a new data directory.

    The runner is not closed: the next one goes on with its Spark session, which so stays warm.
    """
    clock = SystemClock()
    options = dataclasses.replace(
        plan.options, every_s=0.001, epoch_records_max=size.records, epoch_bytes_max=1 << 30
    )
    bounded = msgspec.structs.replace(plan, options=options)
    site = site_of(Layout.at(folder), clock, deployment)
    with closing(site.log()) as log, closing(Engine(threads=THREADS)) as engine:
        tables = site.tables()
        runner = site.runner(log, tables, THREADS)
        owner = recover(bounded, log, tables, runner, clock, engine, folder / "keys")
        loop = Loop(owner, threading.Event(), EpochProgress())
        seconds = []
        for _ in range(size.warm + size.count):
            began_s = time.perf_counter()
            assert loop.turn(), "nothing was there to read"
            owner.views.publish(clock.now_us(), force=True)
            seconds.append(time.perf_counter() - began_s)
        (view,) = plan.views
        counted = tables.read(tables.snapshot(f"views/{view.name}")).column("n")
        check_counted(sum(counted.to_pylist()), size)
        owner.close()
    return statistics.median(seconds[size.warm :])


def check_counted(records: int, size: Size) -> None:
    """Raise unless so many records are those of all epochs; each partition's share is rounded."""
    epochs = size.warm + size.count
    assert abs(records - size.records * epochs) <= peer.SLOTS * epochs, (records, size)


def compare(
    deployment: Deployment, workload: Workload, size: Size, rounds: int, folder: Path
) -> Row:
    """Measure both sides at one size of epochs, in turn, and return the medians."""
    assert deployment.kafka is not None
    bootstrap = deployment.kafka.bootstrap
    numbers = itertools.count()
    found: dict[str, list[float]] = {}
    for _ in range(rounds):
        home = folder / f"{workload.job.topic}-{size.records}-{next(numbers)}"
        ours = headrace(deployment, workload.plan, home, size)
        found.setdefault("headrace", []).append(ours)
        shutil.rmtree(home)
        session = peer.tuned(SparkSession.builder.getOrCreate())
        for name, way in peer.WAYS.items():
            home = folder / f"{workload.job.topic}-{size.records}-{next(numbers)}"
            batch_s = peer.run(
                session, bootstrap, workload.job, way, home, size.records, size.warm, size.count
            )
            found.setdefault(name, []).append(batch_s)
            shutil.rmtree(home)
        print(f"# {workload.name}, {size.records:,}: {found}, load {os.getloadavg()}", flush=True)
    medians = {name: statistics.median(seconds) for name, seconds in found.items()}
    ours_s = medians.pop("headrace")
    way = min(medians, key=medians.__getitem__)
    return {
        "records": workload.name,
        "an epoch": f"{size.records:,}",
        "ratio": medians[way] / ours_s,
        "headrace/s": size.records / ours_s,
        "Structured Streaming/s": size.records / medians[way],
        "headrace ms": ours_s * 1000,
        "Structured Streaming ms": medians[way] * 1000,
        "in": way,
    }


def add_where(parser: argparse.ArgumentParser) -> None:
    """Add the options that say where both sides run."""
    parser.add_argument("--local", action="store_true", help="Spark as local[2]")
    parser.add_argument("--cluster", type=Path, help="folder of a trial cluster that runs")


def where(options: argparse.Namespace) -> str:
    """Return those options in words."""
    return "local[2]" if options.local else "a master and two workers"


def deploy(stack: ExitStack, folder: Path, options: argparse.Namespace) -> Deployment:
    """Return where both sides run: a trial cluster, which is stopped with the stack."""
    clock, home = SystemClock(), folder / "cluster"
    found = trial.running(options.cluster) if options.cluster else None
    if found is None:
        found = trial.up(home, clock, with_spark=not options.local, until_pid=os.getpid())
        stack.callback(trial.down, home)
    assert found.kafka is not None
    kafka = KafkaSettings(bootstrap=found.kafka.bootstrap, prefix=PREFIX)
    settings = {
        "spark.jars": ",".join(map(str, sorted(jars("spark").glob("*.jar")))),
        "spark.driver.memory": "2g",
    }
    if options.local:
        return Deployment(kafka=kafka, spark=SparkSettings("local[2]", settings))
    assert found.spark is not None
    settings |= found.spark.settings() | {"spark.executor.memory": "1g"}
    return Deployment(kafka=kafka, spark=SparkSettings(found.spark.master, settings))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    add_where(parser)
    parser.add_argument("--recorded", type=Path, help="lines with GBIF's records, gzipped")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="one round, no epochs of a million")
    options = parser.parse_args()
    sizes, rounds = (QUICK, 1) if options.quick else (SIZES, options.rounds)
    most = max(size.records * (size.warm + size.count) for size in sizes)
    rows: list[Row] = []
    before = os.getloadavg()[0]
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        deployment = deploy(stack, folder, options)
        site = site_of(Layout.at(folder), SystemClock(), deployment)
        for workload in (small(), large(options.recorded)):
            with closing(site.log()) as log:
                size_bytes = fill(log, workload.plan.topics[0], workload.values(most))
            print(f"# {workload.name}: {most:,} of {size_bytes / most:,.0f} bytes", flush=True)
            rows += [compare(deployment, workload, size, rounds, folder) for size in sizes]
        spark_session.end(SparkSession.builder.getOrCreate())
    tell("cluster", rows, spark=where(options), rounds=rounds, load_before=before)


if __name__ == "__main__":
    main()
