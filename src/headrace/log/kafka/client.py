"""Where a Kafka cluster is, what is asked of it beside records, and what its errors mean."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, TypeVar

from confluent_kafka import (
    IsolationLevel,
    KafkaError,
    KafkaException,
    TopicCollection,
    TopicPartition,
)
from confluent_kafka.admin import AdminClient, NewTopic, OffsetSpec

from headrace.model.clock import Clock
from headrace.model.errors import Closed, HeadraceError, Invalid, Unavailable
from headrace.model.log import TopicInfo

STATE_TOPIC = "headrace-state"
"""Keyed state, after the prefix: one partition, whose order decides which put comes first."""

RETRY_S = 0.05
UNKNOWN_TRIES = 6
"""A topic just created is not known to every broker at once, so an unknown one is asked for again
so often, `RETRY_S` apart."""

REQUEST_S_MAX = 3.0
_NAME_LENGTH_MAX = 249
T = TypeVar("T")


@dataclass(frozen=True)
class Kafka:
    """A cluster and how topics are kept there.

    `properties` are librdkafka's own (`security.protocol`, `sasl.mechanism`, `ssl.ca.location`, …)
    and are handed on as they are; what a promise of the log hangs on cannot be changed by them.
    `prefix` stands before every topic's name, so that several logs can share a cluster. New topics
    are kept `replication` times, and an append counts once `insync_min` of them have it.
    """

    bootstrap: str
    """`host:port,…` of some brokers."""
    properties: Mapping[str, str] = field(default_factory=dict, hash=False, repr=False)
    prefix: str = ""
    replication: int = 3
    insync_min: int = 2
    record_bytes_max: int = 32 << 20
    timeout_s: float = 10.0
    """How long a question, and the reading of what is there, may take."""
    delivery_s_max: float = 30.0
    """How long records may wait until they are durable; then they are given up."""

    def config(self, **ours: object) -> dict[str, Any]:
        """Return a client's configuration; `ours` go before what the user wants."""
        # What fails is told by the errors of calls; the client itself would tell it many times.
        config: dict[str, Any] = {"client.id": "headrace", "log_level": 2}
        config |= self.properties
        return config | {"bootstrap.servers": self.bootstrap} | ours

    def name_of(self, topic: str) -> str:
        """Return a topic's name in Kafka; `Invalid` if Kafka allows none such."""
        name = self.prefix + topic
        plain = name.replace("_", "a").replace("-", "a").replace(".", "a")
        is_plain = plain.isascii() and plain.isalnum()
        if not (topic and is_plain and len(name) <= _NAME_LENGTH_MAX):
            raise Invalid(
                f"Kafka allows no topic {name}",
                hint="up to 249 letters, digits, dots, dashes and underscores",
                code="bad_topic_name",
            )
        return name

    @property
    def message_bytes_max(self) -> int:
        """Bytes of the largest message: a record and what Kafka and our headers' names add."""
        return self.record_bytes_max + (64 << 10)

    @property
    def state_topic(self) -> str:
        """Name in Kafka of the topic with keyed state."""
        return self.prefix + STATE_TOPIC


@dataclass
class _Seen:
    incarnation: str
    ends: dict[int, int] = field(default_factory=dict)
    """The highest end of each partition."""


class Admin:
    """What is asked of a cluster beside records; safe to use from many threads."""

    def __init__(self, kafka: Kafka, clock: Clock) -> None:
        self._kafka = kafka
        self._clock = clock
        self._denied: KafkaError | None = None
        self._seen: dict[str, _Seen] = {}
        """What was seen of topics, by their names in Kafka."""
        try:
            self._client: AdminClient | None = AdminClient(kafka.config(error_cb=self._note))
        except KafkaException as error:
            raise Invalid(
                f"Kafka's client does not take its properties: {error.args[0].str()}",
                hint="[kafka.properties] has librdkafka's own; see docs/deploy.md",
                code="bad_kafka_properties",
            ) from error

    def close(self) -> None:
        """Let the connections go; later calls raise `Closed`."""
        self._client = None

    def topics(self) -> dict[str, TopicInfo]:
        """Return every topic of this log by its name without the prefix."""
        names = list(self.asked(lambda c: c.list_topics(timeout=self._request_s).topics))
        prefix, state = self._kafka.prefix, self._kafka.state_topic
        mine = [n for n in names if n.startswith(prefix) and n != state and n[:2] != "__"]
        return {info.name: info for info in self._describe(mine) if info is not None}

    def topic(self, topic: str) -> TopicInfo:
        """Return what Kafka knows of a topic; `Invalid` if there is none."""
        name = self._kafka.name_of(topic)
        for _ in range(UNKNOWN_TRIES):
            (info,) = self._describe([name])
            if info is not None:
                return info
            self._clock.sleep(RETRY_S)
        raise unknown_topic(topic)

    def offsets(self, topic: str, partitions: int, *, latest: bool) -> list[int]:
        """Return each partition's end, or its start."""
        spec = OffsetSpec.latest() if latest else OffsetSpec.earliest()
        places = [TopicPartition(self._kafka.name_of(topic), p) for p in range(partitions)]
        return self._offsets(places, spec)[0]

    def bounds(self, topic: str, partition: int) -> tuple[int, int]:
        """Return a partition's start and end."""
        place = [TopicPartition(self._kafka.name_of(topic), partition)]
        (start,), (end,) = self._offsets(place, OffsetSpec.earliest(), OffsetSpec.latest())
        return start, end

    def seen_end(self, topic: str, partition: int) -> int:
        """Return the highest end of a partition that was seen, without asking; 0 if none was."""
        seen = self._seen.get(self._kafka.name_of(topic))
        return seen.ends.get(partition, 0) if seen is not None else 0

    def ends(self, topics: Sequence[TopicInfo]) -> list[int]:
        """Return the ends of all partitions of many topics and of the state, one after another."""
        names = {self._kafka.name_of(info.name): info.partitions for info in topics}
        places = [TopicPartition(name, p) for name, n in names.items() for p in range(n)]
        return self._offsets(places, OffsetSpec.latest())[0]

    def bound(self, name: str, *, latest: bool) -> int | None:
        """Return the end or the start of a topic with one partition; None if there is no such."""
        spec = OffsetSpec.latest() if latest else OffsetSpec.earliest()
        try:
            ((offset,),) = self._offsets([TopicPartition(name, 0)], spec)
        except Invalid as error:
            if error.code == "unknown_topic":
                return None
            raise
        return offset

    def create(
        self, name: str, partitions: int, config: Mapping[str, str], replication: int | None = None
    ) -> bool:
        """Create a topic by its name in Kafka; return whether it was not there before.

        It is kept `replication` times, or as often as the others. Returns once its partitions have
        leaders that answer.
        """
        config = {
            "min.insync.replicas": str(self._kafka.insync_min),
            "max.message.bytes": str(self._kafka.message_bytes_max),
            "unclean.leader.election.enable": "false",
            **config,
        }
        wanted = NewTopic(name, partitions, replication or self._kafka.replication, config=config)
        try:
            self.asked(
                lambda c: _result(c.create_topics([wanted], request_timeout=self._request_s))
            )
            is_new = True
        except KafkaException as error:
            if error.args[0].code() != KafkaError.TOPIC_ALREADY_EXISTS:
                raise meaning(error.args[0], name) from error
            is_new = False
        self._wait(lambda: self._answers(name, partitions if is_new else 1))
        return is_new

    def delete(self, name: str) -> None:
        """Delete a topic by its name in Kafka, and wait until it is known to be gone."""
        try:
            self.asked(lambda c: _result(c.delete_topics([name], request_timeout=self._request_s)))
        except KafkaException as error:
            # Asked twice because an answer was lost, the second one finds that it is gone.
            if error.args[0].code() not in UNKNOWN_TOPICS:
                raise meaning(error.args[0], name) from error
        self._wait(lambda: self._describe([name]) == [None])

    def delete_before(self, name: str, offset: int) -> None:
        """Delete the records of a topic's only partition before an offset."""
        place = [TopicPartition(name, 0, offset)]
        self.asked(lambda c: _result(c.delete_records(place, request_timeout=self._request_s)))

    def nodes(self) -> list[int]:
        """Return the ids of the brokers that are there; none while there is no controller."""
        found = self.asked(lambda c: c.list_topics(timeout=self._request_s))
        return list(found.brokers) if found.controller_id >= 0 else []

    def asked(self, ask: Callable[[AdminClient], T]) -> T:
        """Ask, again while Kafka says that it is about to know; what it refuses is raised.

        `Unavailable` if it cannot be asked, else Kafka's own exception, which callers understand.
        """
        deadline_s = self._clock.monotonic_s() + self._kafka.timeout_s
        while True:
            client = self._client
            if client is None:
                raise Closed("The log is closed")
            try:
                return ask(client)
            except KafkaException as error:
                client.poll(0)
                code = error.args[0].code()
                if code in UNKNOWN_TOPICS or code == KafkaError.TOPIC_ALREADY_EXISTS:
                    raise
                is_late = self._clock.monotonic_s() > deadline_s
                if code not in _PASSING or is_late or self._denied is not None:
                    raise self._meaning(error) from error
            self._clock.sleep(RETRY_S)
            # The client goes on asking a dead broker for what only a controller may answer, until
            # somebody makes it look who is there.
            with suppress(KafkaException):
                client.list_topics(timeout=self._request_s)

    @property
    def _request_s(self) -> float:
        """How long one try may take; there is more than one in what a question may take."""
        return min(self._kafka.timeout_s, REQUEST_S_MAX)

    def _note(self, error: KafkaError) -> None:
        if error.code() in DENIED or _ALERT in error.str():
            self._denied = error

    def _wait(self, is_so: Callable[[], bool]) -> None:
        """Return once several answers running are that it is so: each may be another broker's."""
        deadline_s = self._clock.monotonic_s() + self._kafka.timeout_s
        running = 0
        while running < UNKNOWN_TRIES and self._clock.monotonic_s() < deadline_s:
            running = running + 1 if is_so() else 0
            self._clock.sleep(RETRY_S / UNKNOWN_TRIES)

    def _answers(self, name: str, partitions: int) -> bool:
        """Return whether a topic is known, and its partitions have leaders."""
        if self._describe([name]) == [None]:
            return False
        try:
            self._offsets([TopicPartition(name, p) for p in range(partitions)], OffsetSpec.latest())
        except HeadraceError:
            return False
        return True

    def _offsets(self, places: Sequence[TopicPartition], *specs: OffsetSpec) -> list[list[int]]:
        """Return the offsets that each of `specs` names, for all places."""
        if not places:
            return [[] for _ in specs]

        latest = [isinstance(spec, type(OffsetSpec.latest())) for spec in specs]

        def ask(client: AdminClient) -> list[list[int]]:
            answers = [
                client.list_offsets(
                    dict.fromkeys(places, spec),
                    isolation_level=IsolationLevel.READ_COMMITTED,
                    request_timeout=self._request_s,
                )
                for spec in specs
            ]
            try:
                found = [[answer[place].result().offset for place in places] for answer in answers]
            except KafkaException as error:
                # The client says this of a topic without leaders, and of one that is not there.
                if error.args[0].code() != KafkaError._NOENT:  # noqa: SLF001 - the code's name
                    raise
                is_there = self._describe([places[0].topic]) != [None]
                code = "LEADER_NOT_AVAILABLE" if is_there else "UNKNOWN_TOPIC_OR_PART"
                raise KafkaException(KafkaError(getattr(KafkaError, code))) from error
            if any(offset < 0 for offsets in found for offset in offsets):
                # The client has no number while a partition's leader changes, and says no more.
                raise KafkaException(KafkaError(KafkaError.OFFSET_NOT_AVAILABLE))
            for offsets, are_ends in zip(found, latest, strict=True):
                if are_ends:
                    self._check_ends(places, offsets)
            return found

        try:
            return self.asked(ask)
        except KafkaException as error:
            raise meaning(error.args[0], places[0].topic) from error

    def _check_ends(self, places: Sequence[TopicPartition], ends: Sequence[int]) -> None:
        """Raise what is asked again after, if an end lies before one that was seen.

        A broker that has just become leader may not know yet how far its partition goes. An end
        that went back would be taken for a loss.
        """
        for name in {place.topic for place in places} - self._seen.keys():
            self._describe([name])
        for place, end in zip(places, ends, strict=True):
            seen = self._seen.get(place.topic)
            if seen is None or end >= seen.ends.get(place.partition, 0):
                continue
            self._describe([place.topic])
            if self._seen.get(place.topic) is seen:
                raise KafkaException(KafkaError(KafkaError.OFFSET_NOT_AVAILABLE))
        for place, end in zip(places, ends, strict=True):
            if place.topic in self._seen:
                self._seen[place.topic].ends[place.partition] = end

    def _describe(self, names: Sequence[str]) -> list[TopicInfo | None]:
        """Return what Kafka knows of topics by their names there; None of those that are not."""
        if not names:
            return []

        def ask(client: AdminClient) -> list[TopicInfo | None]:
            wanted = TopicCollection(list(names))
            answers = client.describe_topics(wanted, request_timeout=self._request_s)
            return [self._described(name, answers[name]) for name in names]

        return self.asked(ask)

    def _described(self, name: str, answer: Future[Any]) -> TopicInfo | None:
        try:
            told = answer.result()
        except KafkaException as error:
            if error.args[0].code() in UNKNOWN_TOPICS:
                return None
            raise
        id_ = told.topic_id
        high, low = id_.get_most_significant_bits(), id_.get_least_significant_bits()
        number = ((high & _WORD) << 64) | (low & _WORD)
        incarnation = str(uuid.UUID(int=number))
        if name not in self._seen or self._seen[name].incarnation != incarnation:
            self._seen[name] = _Seen(incarnation)
        topic = name.removeprefix(self._kafka.prefix)
        return TopicInfo(topic, incarnation, len(told.partitions))

    def _meaning(self, error: KafkaException) -> HeadraceError:
        return meaning(error.args[0], "") if self._denied is None else _denied(self._denied)


def nodes_of(kafka: Kafka, clock: Clock) -> list[int]:
    """Return the ids of a cluster's brokers; `Unavailable` if it cannot be asked."""
    admin = Admin(kafka, clock)
    try:
        return admin.nodes()
    finally:
        admin.close()


def unknown_topic(topic: str) -> Invalid:
    """Return the error of asking for a topic that is not there."""
    return Invalid(
        f"There is no topic {topic}",
        hint="topics are created when the pipeline that declares them runs",
        code="unknown_topic",
    )


def meaning(error: KafkaError, topic: str) -> HeadraceError:
    """Return what an error of Kafka's means to whoever called the log."""
    code, text = error.code(), error.str()
    if code in UNKNOWN_TOPICS:
        return unknown_topic(topic)
    if code in _TOO_LARGE:
        return Invalid(
            f"A record is too large for Kafka: {text}",
            hint="send it in parts, or raise the topic's max.message.bytes",
            code="record_too_large",
        )
    if code in DENIED:
        return _denied(error)
    if code in _OPEN:
        return outcome_unknown(text)
    return Unavailable(
        f"Kafka cannot do it now: {text}",
        hint="see whether its brokers run and can be reached",
        code="kafka_unavailable",
    )


def _denied(error: KafkaError) -> Invalid:
    return Invalid(
        f"Kafka does not let us in: {error.str()}",
        hint="check the security properties (docs/deploy.md), and what the user may do",
        code="kafka_denied",
    )


def outcome_unknown(why: str) -> Unavailable:
    """Return the error of a write of which nobody knows whether it was done."""
    return Unavailable(
        f"Whether Kafka has kept the records is unknown: {why}",
        hint="look before writing again: at the keyed state, or at the log's end",
        code="outcome_unknown",
    )


def _result(answers: Mapping[Any, Future[T]]) -> T:
    (answer,) = answers.values()
    return answer.result()


_WORD = (1 << 64) - 1
UNKNOWN_TOPICS = {
    KafkaError.UNKNOWN_TOPIC_OR_PART,
    KafkaError._UNKNOWN_TOPIC,  # noqa: SLF001 - so the client's own error codes are named
    KafkaError._UNKNOWN_PARTITION,  # noqa: SLF001
    KafkaError.UNKNOWN_TOPIC_ID,
}
_TOO_LARGE = {KafkaError.MSG_SIZE_TOO_LARGE, KafkaError.RECORD_LIST_TOO_LARGE}
DENIED = {
    KafkaError._AUTHENTICATION,  # noqa: SLF001
    KafkaError._SSL,  # noqa: SLF001
    KafkaError.SASL_AUTHENTICATION_FAILED,
    KafkaError.TOPIC_AUTHORIZATION_FAILED,
    KafkaError.CLUSTER_AUTHORIZATION_FAILED,
    KafkaError.GROUP_AUTHORIZATION_FAILED,
}
_ALERT = "SSL alert number"
"""How OpenSSL tells that the other side refuses us; the client takes it for a lost connection."""
_OPEN = {
    KafkaError._MSG_TIMED_OUT,  # noqa: SLF001
    KafkaError.REQUEST_TIMED_OUT,
    KafkaError.NOT_ENOUGH_REPLICAS_AFTER_APPEND,
    KafkaError._PURGE_INFLIGHT,  # noqa: SLF001
    KafkaError._FATAL,  # noqa: SLF001
}
"""Errors of a delivery after which the records may be there, or may not."""

_PASSING = {
    KafkaError.LEADER_NOT_AVAILABLE,
    KafkaError.NOT_LEADER_FOR_PARTITION,
    KafkaError.COORDINATOR_NOT_AVAILABLE,
    KafkaError.NOT_CONTROLLER,
    KafkaError.UNKNOWN_LEADER_EPOCH,
    KafkaError.FENCED_LEADER_EPOCH,
    KafkaError.OFFSET_NOT_AVAILABLE,
    KafkaError.REPLICA_NOT_AVAILABLE,
    KafkaError.KAFKA_STORAGE_ERROR,
    KafkaError._TRANSPORT,  # noqa: SLF001
    KafkaError._TIMED_OUT,  # noqa: SLF001
    KafkaError._ALL_BROKERS_DOWN,  # noqa: SLF001
    KafkaError.REQUEST_TIMED_OUT,
    KafkaError.BROKER_NOT_AVAILABLE,
}
"""Errors that a change of leaders brings, and that pass by themselves."""
