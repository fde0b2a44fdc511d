"""Finds what Kafka is about to delete, or has deleted, before it was committed to tables.

A topic's retention is its own: whoever else reads it expects it. Kafka deletes whole segments whose
newest record is older than `retention.ms`, or without which `retention.bytes` are still there: so a
record is safe until it is that old itself, and while no more than that lies behind it.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec
from confluent_kafka import TIMESTAMP_NOT_AVAILABLE

from headrace.log.kafka.client import Admin, Kafka
from headrace.log.kafka.fetch import Fetcher
from headrace.log.kafka.messages import HEADERS_BYTES
from headrace.log.kafka.survey import TopicFacts, topic_facts
from headrace.model.clock import Clock
from headrace.model.errors import Invalid

SHARE = 0.2
"""Of the retention: what has no more left is at risk."""


class AtRisk(msgspec.Struct, frozen=True):
    """A partition of which records that are still needed are gone, or will be soon."""

    topic: str
    partition: int
    needed: int
    """The first offset that is still needed."""
    gone: int
    """So many records from there on are deleted already, as far as offsets tell; 0 if none is."""
    left_s: float | None
    """When the first may be deleted for its age; None if its age is no reason."""
    left_bytes: int | None
    """After so many more it may be deleted for its place; None if its place is no reason."""


class RetentionGuard:
    """Looks what of a ledger's offsets is at risk; for one thread at a time."""

    def __init__(self, kafka: Kafka, clock: Clock) -> None:
        self._kafka = kafka
        self._clock = clock
        self._admin = Admin(kafka, clock)
        self._fetcher = Fetcher(kafka, clock)

    def close(self) -> None:
        """Let the connections go."""
        self._fetcher.close()
        self._admin.close()

    def at_risk(self, needed: Mapping[str, int], *, share: float = SHARE) -> list[AtRisk]:
        """Return the partitions that are at risk, in the order given.

        `needed` is "topic/partition" → the offset up to which everything is committed, as a
        ledger's row has it. What has less than `share` of its topic's retention left is at risk.
        Topics that are not there are passed over: that they are lost is found elsewhere. Raises
        `Unavailable` if the brokers do not answer.
        """
        facts: dict[str, TopicFacts | None] = {}
        found = []
        for place, offset in needed.items():
            topic, _, partition = place.rpartition("/")
            name = self._kafka.name_of(topic)
            if name not in facts:
                facts[name] = topic_facts(self._admin, name)
            kept = facts[name]
            if kept is None or int(partition) >= kept.partitions:
                continue
            risk = self._look(topic, int(partition), offset, kept, share)
            if risk is not None:
                found.append(risk)
        self._fetcher.rest()
        return found

    def _look(
        self, topic: str, partition: int, needed: int, kept: TopicFacts, share: float
    ) -> AtRisk | None:
        start, end = self._admin.bounds(topic, partition)
        if start > needed:
            return AtRisk(topic, partition, needed, start - needed, None, None)
        if needed >= end or (kept.retention_s is None and kept.retention_bytes is None):
            return None
        left_s = left_bytes = None
        try:
            written_us, record_bytes = self._first(topic, partition, needed, end)
        except Invalid as error:
            if error.code != "offset_trimmed":
                raise
            start, _ = self._admin.bounds(topic, partition)
            return AtRisk(topic, partition, needed, start - needed, None, None)
        if kept.retention_s is not None and written_us is not None:
            left_s = kept.retention_s - (self._clock.now_us() - written_us) / 1_000_000
            if left_s > share * kept.retention_s:
                left_s = None
        if kept.retention_bytes is not None:
            # Compressed on the broker it is less: so this is told rather too early.
            left_bytes = round(kept.retention_bytes - (end - needed) * record_bytes)
            if left_bytes > share * kept.retention_bytes:
                left_bytes = None
        if left_s is None and left_bytes is None:
            return None
        return AtRisk(topic, partition, needed, 0, left_s, left_bytes)

    def _first(self, topic: str, partition: int, needed: int, end: int) -> tuple[int | None, float]:
        """Return when the first record from an offset on was written, and about its size."""
        name, at = self._kafka.name_of(topic), needed
        while at < end:
            messages, at = self._fetcher.fetch(name, partition, at, end)
            if messages:
                kind, ms = messages[0].timestamp()
                written_us = None if kind == TIMESTAMP_NOT_AVAILABLE else ms * 1000
                return written_us, self._fetcher.record_bytes + HEADERS_BYTES
        return None, 0.0
