"""The contract of a log: partitioned topics, appended to durably, read by offset range.

Who calls what. One process owns the writing end (`Log`); any number read (`LogReader`). The
embedded log's owner is `collect`, and other roles append through its door; Kafka lets every
process own a writing end.

What holds. `append` returns only when the records *and* `state` are durable, in one act: after a
crash either all of both is there, or nothing. Offsets of a partition start at 0 in each
*incarnation* (a UUID made when the topic is created), never repeat, and grow in append order; a log
may leave gaps. A read never returns a record that was not durable. Keyed state survives like
records, and `put_if` is a compare-and-swap.

What may fail. `Unavailable`: no room, or the broker cannot promise durability; nothing was
appended. `Invalid`: unknown topic, record too large. `Corrupt`: a stored batch fails its checksum;
nothing of it is returned. `Closed`. What leaves durability unknown ends the owner. No order is
promised between partitions; reading below a trimmed start is `Invalid`, code `offset_trimmed`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Protocol

import msgspec
import pyarrow as pa

from headrace.model.batch import Batch
from headrace.model.errors import HeadraceError


class TopicInfo(msgspec.Struct, frozen=True):
    """What a log knows of a topic."""

    name: str
    incarnation: str
    """UUID text, new whenever a topic of this name is created."""
    partitions: int


class Appended(msgspec.Struct, frozen=True):
    """Where records of an append went: `n` records from `base_offset` on in one partition.

    `positions` are the records' places in the appended batch, in offset order.
    """

    topic: str
    partition: int
    base_offset: int
    positions: Sequence[int]


class StateEntry(msgspec.Struct, frozen=True):
    """A keyed value in the log: a source's cursor, a lease, a token."""

    key: str
    value: bytes
    revision: int
    """Grows with every write of the key; 0 means absent, for `put_if`."""


Done = Callable[[list[Appended] | HeadraceError], None]
"""What `submit` calls with its result."""

DELETED = "deleted/"
"""A log remembers a deletion under this and the incarnation. One that is gone without was lost."""


class LogReader(Protocol):
    """The reading end; safe to use from one thread at a time."""

    def describe(self) -> dict[str, TopicInfo]:
        """Return every topic by name."""

    def ends(self, topic: str) -> list[int]:
        """Return the offset after the last durable record, for each partition."""

    def starts(self, topic: str) -> list[int]:
        """Return the lowest offset still kept, for each partition."""

    def read(
        self, topic: str, partition: int, start: int, end: int, *, bytes_max: int = 32 << 20
    ) -> Iterator[pa.RecordBatch]:
        """Yield the records with `start` ≤ offset < `end` in order, as `batch.RECORDS`.

        Stops after the batch with which the values pass `bytes_max` (at least one batch is
        yielded), so the caller goes on from the last offset that it got.
        """

    def size_between(self, topic: str, partition: int, start: int, end: int) -> int:
        """Return about how many bytes `read` of that range holds, without reading it."""

    def stamp(self) -> object:
        """Return, cheaply, what equals an earlier stamp only if nothing was appended between."""

    def get(self, key: str) -> StateEntry | None:
        """Return a keyed value."""

    def scan(self, prefix: str) -> list[StateEntry]:
        """Return every keyed value whose key starts with `prefix`, by key."""

    def close(self) -> None:
        """Release what is held; later calls raise `Closed`."""


class Log(LogReader, Protocol):
    """The writing end. `append` may be called from many threads; the rest from one."""

    def create(self, topic: str, partitions: int) -> TopicInfo:
        """Create a topic; `Invalid` if it exists with another number of partitions."""

    def delete(self, topic: str) -> None:
        """Forget a topic and its records, leaving a `DELETED` entry; `Invalid` if there is none."""

    def append(
        self,
        topic: str,
        records: Batch,
        state: Mapping[str, bytes] | None = None,
        expect: Mapping[str, int] | None = None,
    ) -> list[Appended]:
        """Append records and put keyed values in the same act; return when durable.

        Records with a key go to the partition that Kafka's default partitioner (murmur2) names,
        without one by their client-chosen id, else all of a call to one partition, in turn.
        An empty batch with `state` only puts the state. `expect` names the revisions that keys
        must have (0: absent), else `Fenced` and nothing is done.
        """

    def submit(
        self,
        topic: str,
        records: Batch,
        done: Done,
        state: Mapping[str, bytes] | None = None,
        expect: Mapping[str, int] | None = None,
    ) -> None:
        """Append without waiting: `done` is called once, on a thread of the log's.

        It gets what `append` would return or raise, and must not block. Raises `Unavailable`,
        with nothing queued, while too many bytes wait to be written.
        """

    def put_if(self, key: str, expected_revision: int, value: bytes | None) -> StateEntry | None:
        """Put a value if the key's revision still is `expected_revision`; None deletes it.

        Returns the new entry (None after a delete); `Fenced` if the revision is another.
        """

    def trim(self, topic: str, before: Sequence[int]) -> None:
        """Allow records below these offsets, one a partition, to be forgotten, when it suits."""
