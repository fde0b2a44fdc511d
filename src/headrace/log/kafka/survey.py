"""What a cluster says of itself and of our topics: for `headrace doctor`, and for the retention."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from concurrent.futures import Future
from typing import Any

import msgspec
from confluent_kafka import KafkaError, KafkaException, Message, Producer, TopicCollection
from confluent_kafka.admin import AdminClient, ConfigEntry, ConfigResource

from headrace.log.kafka.client import UNKNOWN_TOPICS, Admin, Kafka, meaning
from headrace.model.clock import Clock
from headrace.model.errors import HeadraceError

PROBE_S_MAX = 20.0
_MS = 1000


class TopicFacts(msgspec.Struct, frozen=True):
    """How a topic is kept."""

    partitions: int
    replication: int
    """Copies of the partition that has the fewest."""
    insync: int
    """Copies that are up to date, of the partition that has the fewest."""
    insync_min: int
    """How many must be for an append to count."""
    retention_s: float | None
    """None keeps records whatever their age."""
    retention_bytes: int | None
    """Of each partition; None keeps them however many."""
    is_compacted: bool
    unclean_election: bool
    """Whether a copy that is behind may come to lead, and what it misses is lost."""


class Survey(msgspec.Struct, frozen=True):
    """What is there."""

    brokers: list[int]
    auto_create: bool | None
    """Whether a broker makes the topics that anyone asks for; None if it does not say."""
    topics: dict[str, TopicFacts | None]
    """By name in Kafka; None is not there."""


def survey(kafka: Kafka, clock: Clock, names: Iterable[str]) -> Survey:
    """Ask a cluster for its brokers, and how topics, by their names in Kafka, are kept.

    Raises `Unavailable` if it does not answer, `Invalid` if it does not let us in.
    """
    admin = Admin(kafka, clock)
    try:
        brokers = admin.nodes()
        return Survey(
            brokers,
            _auto_create(admin, brokers),
            {name: topic_facts(admin, name) for name in names},
        )
    finally:
        admin.close()


def topic_facts(admin: Admin, name: str) -> TopicFacts | None:
    """Return how a topic is kept, by its name in Kafka; None if there is no such."""
    try:
        told = admin.asked(lambda c: _only(c.describe_topics(TopicCollection([name]))))
        kept = configs(admin, ConfigResource.Type.TOPIC, name)
    except KafkaException as error:
        if error.args[0].code() in UNKNOWN_TOPICS:
            return None
        raise meaning(error.args[0], name) from error
    retention_ms, retention_bytes = int(kept["retention.ms"]), int(kept["retention.bytes"])
    is_deleted = "delete" in kept["cleanup.policy"]
    return TopicFacts(
        partitions=len(told.partitions),
        replication=min(len(p.replicas) for p in told.partitions),
        insync=min(len(p.isr) for p in told.partitions),
        insync_min=int(kept["min.insync.replicas"]),
        retention_s=retention_ms / _MS if is_deleted and retention_ms >= 0 else None,
        retention_bytes=retention_bytes if is_deleted and retention_bytes >= 0 else None,
        is_compacted="compact" in kept["cleanup.policy"],
        unclean_election=kept["unclean.leader.election.enable"] == "true",
    )


def configs(admin: Admin, kind: ConfigResource.Type, name: str) -> Mapping[str, str]:
    """Return the settings of a topic or a broker; Kafka's own exception if it refuses."""
    resource = ConfigResource(kind, name)

    def ask(client: AdminClient) -> dict[str, ConfigEntry]:
        return _only(client.describe_configs([resource]))

    return {key: entry.value for key, entry in admin.asked(ask).items()}


def _auto_create(admin: Admin, brokers: Iterable[int]) -> bool | None:
    for broker in brokers:
        try:
            kept = configs(admin, ConfigResource.Type.BROKER, str(broker))
        except (KafkaException, HeadraceError):
            # Managed clusters seldom let anyone see what their brokers are set to.
            return None
        if kept.get("auto.create.topics.enable") == "true":
            return True
    return False


def clock_differences_s(kafka: Kafka, clock: Clock, brokers: int) -> list[float]:
    """Return by how much the brokers' clocks are ahead of ours, one number a partition's leader.

    A topic is made for it whose messages get the brokers' time, and deleted again. Raises what
    making a topic and appending raise: so this tries both.
    """
    admin = Admin(kafka, clock)
    name = f"{kafka.prefix}headrace-doctor-{clock.new_id().hex()}"
    config = {"message.timestamp.type": "LogAppendTime", "min.insync.replicas": "1"}
    try:
        admin.create(name, brokers, config, replication=1)
        try:
            return _probed(kafka, clock, name, brokers)
        finally:
            admin.delete(name)
    finally:
        admin.close()


def _probed(kafka: Kafka, clock: Clock, name: str, partitions: int) -> list[float]:
    producer = Producer(kafka.config(acks="all", **{"linger.ms": 0}))
    producer.list_topics(name, kafka.timeout_s)
    found: list[float] = []
    for partition in range(partitions):
        answers: list[tuple[KafkaError | None, Message]] = []
        before_us = clock.now_us()
        producer.produce(
            name, b"", None, partition, lambda error, told, a=answers: a.append((error, told))
        )
        producer.flush(PROBE_S_MAX)
        after_us = clock.now_us()
        error, told = answers[0] if answers else (KafkaError(KafkaError.REQUEST_TIMED_OUT), None)
        if error is not None or told is None:
            raise meaning(error or KafkaError(KafkaError.REQUEST_TIMED_OUT), name)
        at_us = told.timestamp()[1] * _MS
        # Between asking and answering, whatever the broker's time was; ahead or behind beyond that.
        behind_us, ahead_us = min(0, at_us + _MS - before_us), max(0, at_us - after_us)
        found.append((behind_us or ahead_us) / 1_000_000)
    return found


def _only(answers: Mapping[Any, Future[Any]]) -> Any:  # noqa: ANN401 - each question has its own
    (answer,) = answers.values()
    return answer.result()
