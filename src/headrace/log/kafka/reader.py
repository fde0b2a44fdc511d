"""The reading end of the log on Kafka, for any process.

Offsets, topics and their incarnations are asked of the brokers each time; nothing about them is
kept, so another process's writing, creating and deleting is seen at once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa
from confluent_kafka import Message

from headrace.log.kafka.client import Admin, Kafka
from headrace.log.kafka.fetch import BYTES_MAX, Fetcher
from headrace.log.kafka.messages import Decoded, decode
from headrace.log.kafka.pause_gc import gc_paused
from headrace.log.kafka.sender import Sender
from headrace.log.kafka.tail import StateLog
from headrace.model.clock import Clock
from headrace.model.errors import Invalid
from headrace.model.log import StateEntry, TopicInfo

ABORT_BYTES_MAX = 1 << 20


class KafkaLogReader:
    """Reads the log in a Kafka cluster; see `model.log.LogReader`.

    Topics may come and go meanwhile, and other programs may write to them: of their messages the
    value, key and headers are a record's, and the rest is made up of where they stand. Offsets may
    be missing. A read waits for an append under way that puts state with its records, and gives it
    up (`act_aborted`) if it takes longer than ten seconds.
    """

    def __init__(self, kafka: Kafka, clock: Clock) -> None:
        self._kafka = kafka
        self._clock = clock
        self._admin = Admin(kafka, clock)
        self._fetcher = Fetcher(kafka, clock)
        self._read_from: dict[str, str] = {}
        """Incarnations of the topics that the fetcher has read."""
        self._own_sender: Sender | None = None
        self._state = StateLog(kafka, clock, self._admin, self._sender)

    def describe(self) -> dict[str, TopicInfo]:
        """See `LogReader`; topics of Kafka's own are left out."""
        return self._admin.topics()

    def ends(self, topic: str) -> list[int]:
        """See `LogReader`."""
        return self._admin.offsets(topic, self._admin.topic(topic).partitions, latest=True)

    def starts(self, topic: str) -> list[int]:
        """See `LogReader`; a topic's retention moves them."""
        return self._admin.offsets(topic, self._admin.topic(topic).partitions, latest=False)

    def get(self, key: str) -> StateEntry | None:
        """See `LogReader`; safe to call from any thread."""
        return self._state.get(key)

    def scan(self, prefix: str) -> list[StateEntry]:
        """See `LogReader`."""
        return self._state.scan(prefix)

    def size_between(self, topic: str, partition: int, start: int, end: int) -> int:
        """See `LogReader`; what was read last tells how large a record is."""
        is_there = end <= self._admin.seen_end(topic, partition)
        if is_there and self._fetcher.record_bytes:
            return round(max(0, end - start) * self._fetcher.record_bytes)
        self._info(topic, partition)
        low, high = self._admin.bounds(topic, partition)
        count = min(end, high) - max(start, low)
        if count <= 0:
            return 0
        if not self._fetcher.record_bytes:
            self._fetcher.fetch(self._kafka.name_of(topic), partition, max(start, low), high)
        return round(count * self._fetcher.record_bytes)

    def stamp(self) -> object:
        """See `LogReader`; changes with keyed state and topics too."""
        infos = list(self._admin.topics().values())
        return (
            *((i.name, i.incarnation) for i in infos),
            *self._admin.ends(infos),
            self._state.end(),
        )

    def read(
        self, topic: str, partition: int, start: int, end: int, *, bytes_max: int = 32 << 20
    ) -> Iterator[pa.RecordBatch]:
        """See `LogReader`; ends early where the durable records end."""
        info = self._info(topic, partition)
        if start >= end:
            return
        low, high = self._admin.bounds(topic, partition)
        if start < low:
            raise Invalid(
                f"Offset {start} of {topic}/{partition} was trimmed; {low} is the first",
                hint="read from the start that the log names",
                code="offset_trimmed",
            )
        at, end, left_bytes = start, min(end, high), bytes_max
        while at < end and left_bytes >= 0:
            decoded, at, left_bytes = self._read_some(info, partition, at, end, left_bytes)
            batch = decoded and self._visible(decoded)
            if batch and batch.num_rows:
                yield batch
        self._fetcher.rest()

    @gc_paused()
    def _read_some(
        self, info: TopicInfo, partition: int, at: int, end: int, left_bytes: int
    ) -> tuple[Decoded | None, int, int]:
        """Return some records from an offset on, the offset to go on from, and the bytes left.

        The messages are gone when it returns, so that the collector has none to look through.
        """
        found, stop = self._fetcher.fetch(
            self._kafka.name_of(info.name), partition, at, end, bytes_max=min(BYTES_MAX, left_bytes)
        )
        messages, left_bytes = _until_past(found, left_bytes)
        if len(messages) < len(found):
            stop = messages[-1].offset() + 1
        decoded = decode(messages, info.incarnation) if messages else None
        return decoded, stop, left_bytes

    def close(self) -> None:
        """See `LogReader`."""
        self._fetcher.close()
        self._state.close()
        if self._own_sender is not None:
            self._own_sender.close()
        self._admin.close()

    def _sender(self) -> Sender:
        """Return what writes: a reader's only changes are the aborts of acts left open."""
        if self._own_sender is None:
            self._own_sender = Sender(self._kafka, self._clock, ABORT_BYTES_MAX)
        return self._own_sender

    def _info(self, topic: str, partition: int) -> TopicInfo:
        info = self._admin.topic(topic)
        if not 0 <= partition < info.partitions:
            raise Invalid(
                f"The topic {topic} has partitions 0 to {info.partitions - 1}, not {partition}",
                code="unknown_partition",
            )
        if self._read_from.setdefault(topic, info.incarnation) != info.incarnation:
            # The client may go on from what it knew of the topic that had this name before.
            self._fetcher.reset()
            self._read_from = {topic: info.incarnation}
        return info

    def _visible(self, decoded: Decoded) -> pa.RecordBatch:
        """Return records without those of acts that were aborted."""
        if not decoded.acts:
            return decoded.records
        aborted = self._state.aborted({act for _, act in decoded.acts})
        if not aborted:
            return decoded.records
        kept = np.ones(decoded.records.num_rows, bool)
        kept[[position for position, act in decoded.acts if act in aborted]] = False
        return decoded.records.filter(pa.array(kept))


def _until_past(messages: Sequence[Message], left_bytes: int) -> tuple[Sequence[Message], int]:
    """Return the first messages, to that with which they pass so many bytes, and what is left."""
    size_bytes = sum(map(len, messages))
    if size_bytes <= left_bytes:
        return messages, left_bytes - size_bytes
    for count, message in enumerate(messages, 1):
        left_bytes -= len(message)
        if left_bytes < 0:
            return messages[:count], left_bytes
    return messages, left_bytes
