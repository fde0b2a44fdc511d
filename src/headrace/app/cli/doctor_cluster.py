"""What `headrace doctor` looks at beyond this machine: Kafka, the tables' storage, Spark."""

from __future__ import annotations

import importlib
import importlib.metadata
import platform
import socket
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import TYPE_CHECKING

from headrace.app.cli.finding import Finding
from headrace.app.cli.sources import duration
from headrace.app.site import expanded, kafka_of
from headrace.model.clock import Clock
from headrace.model.deployment import Deployment, KafkaSettings, SparkSettings, TableSettings
from headrace.model.errors import Fenced, HeadraceError, Unavailable
from headrace.model.pipeline_options import Options
from headrace.model.plan import Plan
from headrace.tables.storage import TEMPORARY, open_storage

if TYPE_CHECKING:
    from headrace.log.kafka import Kafka
    from headrace.log.kafka.survey import Survey, TopicFacts

BROKERS_MIN = 2
"""One alone may be lost with all that it keeps."""
CLOCK_S_MAX = 1.0
"""Messages of others are dated by their brokers' clocks, and kept by them."""
RETENTION_S_MIN = 86_400.0
"""What stands still over a night is still there in the morning."""
WORKER_LIBRARIES = ("headrace", "duckdb", "pyarrow")
JOB_TASKS = 8
"""Enough for each of a few workers to get one."""


def examine_deployment(
    deployment: Deployment, plan: Plan | None, clock: Clock
) -> Iterator[Finding]:
    """Yield what is found of a deployment's parts that are not this machine."""
    if deployment.kafka is not None:
        yield from _told("Kafka", _kafka(deployment.kafka, plan, clock))
    if "://" in deployment.tables.url:
        yield from _told("tables", _tables(deployment.tables, clock))
    if deployment.spark is not None:
        yield from _told("Spark", _spark(deployment.spark))


def _told(what: str, findings: Iterator[Finding]) -> Iterator[Finding]:
    """Yield findings, and instead of an error that it was met."""
    try:
        yield from findings
    except HeadraceError as error:
        yield Finding(what, fine=False, found=error.message, hint=error.hint)


# Kafka


def _kafka(settings: KafkaSettings, plan: Plan | None, clock: Clock) -> Iterator[Finding]:
    kafka = kafka_of(settings)
    module = importlib.import_module("headrace.log.kafka.survey")
    names = {kafka.name_of(topic.name): topic.name for topic in plan.topics} if plan else {}
    found: Survey = module.survey(kafka, clock, [*names, kafka.state_topic])
    count = len(found.brokers)
    enough = count >= max(BROKERS_MIN, settings.replication)
    yield Finding(
        "Kafka", enough, f"{count} brokers at {settings.bootstrap}" if count != 1 else "one broker",
        f"run {max(3, settings.replication)}: with fewer, one that fails stops all, or loses it",
    )  # fmt: skip
    yield _creation(found)
    options = plan.options if plan else Options()
    for name, topic in names.items():
        yield _topic(name, found.topics[name], settings, options, is_state=False, topic=topic)
    state = kafka.state_topic
    yield _topic(state, found.topics[state], settings, options, is_state=True)
    yield from _told("brokers' clocks", _clocks(kafka, clock, count))


def _creation(found: Survey) -> Finding:
    told = {None: "the brokers do not say", True: "on", False: "off"}[found.auto_create]
    return Finding(
        "automatic creation of topics", not found.auto_create, told,
        "set auto.create.topics.enable=false on the brokers: a mistyped name becomes a topic",
    )  # fmt: skip


def _topic(
    name: str,
    facts: TopicFacts | None,
    settings: KafkaSettings,
    options: Options,
    *,
    is_state: bool,
    topic: str = "",
) -> Finding:
    what = "topic of the state" if is_state else f"topic {topic}"
    if facts is None:
        return Finding(
            what, fine=True, found=f"{name} is not there yet; it is made by the first run"
        )
    faults = [*_copies(facts, settings)]
    faults += _state_kept(facts) if is_state else _kept(facts, options)
    if not faults:
        kept = "for ever" if facts.retention_s is None else duration(facts.retention_s)
        found = (
            f"{name}: {facts.partitions} partitions, {facts.replication} copies, "
            f"{facts.insync_min} before an answer, kept {kept}"
        )
        return Finding(what, fine=True, found=found)
    found = f"{name}: " + "; ".join(fault for fault, _ in faults)
    return Finding(what, fine=False, found=found, hint="; ".join(hint for _, hint in faults))


def _copies(facts: TopicFacts, settings: KafkaSettings) -> Iterator[tuple[str, str]]:
    """Yield faults of a topic's copies, with hints."""
    if facts.replication < settings.replication:
        yield (
            f"{facts.replication} of {settings.replication} copies",
            "add some with kafka-reassign-partitions.sh",
        )
    elif facts.insync < facts.replication:
        yield (
            f"{facts.insync} of {facts.replication} copies are up to date",
            "see which broker is away or behind",
        )
    if facts.insync_min < settings.insync_min:
        yield (
            f"min.insync.replicas is {facts.insync_min}",
            (
                f"kafka-configs.sh --alter --add-config min.insync.replicas={settings.insync_min}: "
                "else what was acknowledged may be on one broker alone"
            ),
        )
    elif facts.insync_min >= facts.replication > 1:
        yield (
            f"min.insync.replicas is {facts.insync_min} of {facts.replication}",
            "lower it by one: else no broker can be missed",
        )
    if facts.unclean_election:
        yield (
            "unclean leader election is on",
            (
                "kafka-configs.sh --alter --add-config unclean.leader.election.enable=false: "
                "else a broker that is behind may come to lead"
            ),
        )


def _kept(facts: TopicFacts, options: Options) -> Iterator[tuple[str, str]]:
    """Yield faults of how long records are kept, with hints."""
    needed_s = max(RETENTION_S_MIN, options.horizon_s, options.log_retention_s)
    if facts.is_compacted:
        yield (
            "it is compacted",
            "set cleanup.policy=delete: else of each key all but the newest may be gone unread",
        )
    if facts.retention_s is not None and facts.retention_s < needed_s:
        yield (
            f"kept for {duration(facts.retention_s)}",
            (
                f"set retention.ms to {round(needed_s * 1000)} or more: what is not processed by "
                "then is lost"
            ),
        )


def _state_kept(facts: TopicFacts) -> Iterator[tuple[str, str]]:
    if facts.is_compacted or facts.retention_s is not None or facts.retention_bytes is not None:
        yield (
            "it is not kept whole",
            (
                "set cleanup.policy=delete, retention.ms=-1, retention.bytes=-1: it is the only "
                "place of cursors, leases and tokens, and is shortened by Headrace itself"
            ),
        )
    if facts.partitions != 1:
        yield (
            f"it has {facts.partitions} partitions",
            "only Headrace may make it: with more than one, two owners can both win",
        )


def _clocks(kafka: Kafka, clock: Clock, brokers: int) -> Iterator[Finding]:
    module = importlib.import_module("headrace.log.kafka.survey")
    found: list[float] = module.clock_differences_s(kafka, clock, brokers)
    worst_s = max(found, key=abs)
    yield Finding(
        "brokers' clocks", abs(worst_s) <= CLOCK_S_MAX,
        "as here" if abs(worst_s) <= CLOCK_S_MAX else f"{worst_s:+.1f} s from here",
        "have all machines follow the same time servers",
    )  # fmt: skip


# Tables


def _tables(settings: TableSettings, clock: Clock) -> Iterator[Finding]:
    """Race two new puts of one name: it is what every commit stands on."""
    options = expanded(settings.options)
    name = f"{TEMPORARY}/doctor-{clock.new_id().hex()}"
    storages = [open_storage(settings.url, clock, options) for _ in range(2)]

    def put(n: int) -> bool:
        try:
            storages[n].put_new(name, b"%d" % n, new_folder=True)
        except Fenced:
            return False
        return True

    try:
        with ThreadPoolExecutor(2) as pool:
            won = list(pool.map(put, range(2)))
        kept = storages[0].read(name)
    finally:
        with suppress(HeadraceError):
            storages[0].delete(name)
    fine = sorted(won) == [False, True] and kept == b"%d" % won.index(True)
    yield Finding(
        "tables", fine,
        f"{settings.url}: " + ("of two puts one wins" if fine else f"of two puts {sum(won)} won"),
        "use a storage that keeps conditional puts (If-None-Match: *)",
    )  # fmt: skip


# Spark


def _spark(settings: SparkSettings) -> Iterator[Finding]:
    try:
        module = importlib.import_module("headrace.runner.spark_session")
    except ModuleNotFoundError as error:
        yield Finding(
            "Spark", fine=False, found=f"{error.name} is not installed",
            hint="pip install 'headrace[spark]'",
        )  # fmt: skip
        return
    try:
        session = module.begin(settings.master, expanded(settings.settings))
    except Exception as error:
        raise _no_spark(settings, error) from error
    try:
        context = session.sparkContext
        java = context._jvm.java.lang.System.getProperty("java.version")  # noqa: SLF001 - no other way
        yield Finding(
            "Spark", fine=True, found=f"{session.version} on Java {java}, master {settings.master}"
        )
        try:
            told = context.parallelize(range(JOB_TASKS), JOB_TASKS).map(_worker()).collect()
        except Exception as error:
            raise _no_spark(settings, error) from error
        yield from _workers(dict(told))
    finally:
        module.end(session)


def _no_spark(settings: SparkSettings, error: Exception) -> Unavailable:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return Unavailable(
        f"Spark at {settings.master} runs no job: {lines[-1]}",
        hint="see whether its master and workers run, and the log of its driver",
        code="spark_failed",
    )


def _worker() -> Callable[[int], tuple[str, dict[str, str]]]:
    """Return what tells a worker's versions; sent by value, as a worker may lack Headrace."""
    libraries = WORKER_LIBRARIES

    def versions(_: int) -> tuple[str, dict[str, str]]:
        found = {"Python": ".".join(platform.python_version_tuple()[:2])}
        for name in libraries:
            try:
                found[name] = importlib.metadata.version(name)
            except importlib.metadata.PackageNotFoundError:
                found[name] = "missing"
        return socket.gethostname(), found

    versions.__module__ = "__main__"
    return versions


def _workers(told: Mapping[str, dict[str, str]]) -> Iterator[Finding]:
    _, here = _worker()(0)
    for host, found in sorted(told.items()):
        differing = [
            f"{name} {found[name]}, here {version}"
            for name, version in here.items()
            if found[name] != version
        ]
        listed = ", ".join(f"{name} {version}" for name, version in found.items())
        yield Finding(
            f"Spark worker {host}", not differing, "; ".join(differing) or listed,
            "give the workers the Python that runs here: spark.pyspark.python, or an archive of it",
        )  # fmt: skip
