"""The reading end of the embedded log, for any process.

Every call lists the segments anew and reads a snapshot of each: a record shows once it is durable,
and a segment sealed or unlinked meanwhile is noticed by the next listing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import pyarrow as pa

from headrace.log.connections import Connections
from headrace.log.row import Row, unpack
from headrace.log.segment import bytes_until, end_of, load_firsts, query, state_of, topic_of
from headrace.model.batch import decode
from headrace.model.errors import Corrupt, Invalid, Unavailable
from headrace.model.log import StateEntry, TopicInfo

BATCH_ROWS_MAX = 8192
BATCH_BYTES_MAX = 8 << 20
"""Blobs are decoded together until they hold so many records or bytes."""

_OVERHEAD_BYTES = 44
"""What a record takes in a blob beside its value, key and headers."""

_TRIES = 8
"""How often a call lists the segments again because one was unlinked under it."""

T = TypeVar("T")


class _Stream(NamedTuple):
    """A partition of one incarnation."""

    name: str
    incarnation: str
    id: int
    partition: int

    @property
    def key(self) -> tuple[int, int]:
        """What names it within segments."""
        return self.id, self.partition


class EmbeddedLogReader:
    """Reads the log in `directory`; see `model.log.LogReader`.

    The folder may not exist yet, and may be written, sealed and trimmed meanwhile. Safe to use from
    one thread at a time. Unknown topics and partitions are `Invalid`.
    """

    def __init__(self, directory: Path) -> None:
        self._connections = Connections(directory)

    def describe(self) -> dict[str, TopicInfo]:
        """See `LogReader`."""
        found = [topic_of(row) for row in self._query_newest("SELECT * FROM topics")]
        return {info.name: info for _, info in found}

    def ends(self, topic: str) -> list[int]:
        """See `LogReader`."""
        return self._retried(lambda: [self._end(s) for s in self._streams(topic)])

    def starts(self, topic: str) -> list[int]:
        """See `LogReader`."""
        return self._retried(lambda: [self._start(s) for s in self._streams(topic)])

    def get(self, key: str) -> StateEntry | None:
        """See `LogReader`."""
        found = self._query_newest("SELECT * FROM state WHERE key = ?", (key,))
        return state_of(found[0]) if found else None

    def scan(self, prefix: str) -> list[StateEntry]:
        """See `LogReader`."""
        found = self._query_newest("SELECT * FROM state WHERE key >= ? ORDER BY key", (prefix,))
        return [state_of(row) for row in found if row[0].startswith(prefix)]

    def size_between(self, topic: str, partition: int, start: int, end: int) -> int:
        """See `LogReader`; a batch at an edge counts by its share, trimmed records not at all."""

        def size() -> int:
            stream = self._stream(topic, partition)
            return self._bytes_until(stream, end) - self._bytes_until(stream, start)

        return self._retried(size)

    def stamp(self) -> object:
        """See `LogReader`; changes with keyed state and topics too."""
        return self._retried(self._connections.stamp)

    def read(
        self, topic: str, partition: int, start: int, end: int, *, bytes_max: int = 32 << 20
    ) -> Iterator[pa.RecordBatch]:
        """See `LogReader`; ends early where the durable records end."""
        at, size_bytes = start, 0
        stream: _Stream | None = None
        while at < end and (stream is None or size_bytes <= bytes_max):
            found = self._stream(topic, partition)
            if stream is not None and found != stream:
                raise Invalid(f"The topic {topic} was created again while it was read")
            stream = found
            chunk = self._next_rows(stream, at, end, min(BATCH_BYTES_MAX, bytes_max - size_bytes))
            if not chunk:
                return
            size_bytes += sum(map(_size_bytes, chunk))
            batch = decode([(row[2], row[3], unpack(row)) for row in chunk])
            base = chunk[0][2]
            stop = min(end, base + batch.num_rows)
            yield batch.slice(at - base, stop - at)
            at = stop

    def close(self) -> None:
        """See `LogReader`."""
        self._connections.close()

    def _retried(self, act: Callable[[], T]) -> T:
        for _ in range(_TRIES):
            try:
                return act()
            except FileNotFoundError:
                self._connections.drop()
        raise Unavailable("The log's files were removed while it was read", code="log_unreadable")

    def _query_newest(self, sql: str, bindings: tuple[Any, ...] = ()) -> list[Any]:
        def act() -> list[Any]:
            numbers = self._connections.numbers()
            if not numbers:
                return []
            with self._connections.use(numbers[-1], is_newest=True) as connection:
                return query(connection, sql, bindings)

        return self._retried(act)

    def _streams(self, topic: str) -> list[_Stream]:
        found = self._query_newest("SELECT * FROM topics WHERE name = ?", (topic,))
        if not found:
            raise Invalid(
                f"There is no topic {topic}",
                hint="topics are created when the pipeline that declares them runs",
                code="unknown_topic",
            )
        id_, info = topic_of(found[0])
        return [_Stream(topic, info.incarnation, id_, p) for p in range(info.partitions)]

    def _stream(self, topic: str, partition: int) -> _Stream:
        streams = self._streams(topic)
        if not 0 <= partition < len(streams):
            raise Invalid(
                f"The topic {topic} has partitions 0 to {len(streams) - 1}, not {partition}",
                code="unknown_partition",
            )
        return streams[partition]

    def _start(self, stream: _Stream) -> int:
        numbers = self._connections.numbers()
        self._connections.forget_before(numbers[0])
        for number in numbers:
            first = self._connections.firsts(number, numbers[-1]).get(stream.key)
            if first is not None:
                return first
        raise _unlinked(stream)

    def _end(self, stream: _Stream) -> int:
        numbers = self._connections.numbers()
        with self._connections.use(numbers[-1], is_newest=True) as connection:
            first = load_firsts(connection).get(stream.key, 0)
            return end_of(connection, *stream.key, first)

    def _bytes_until(self, stream: _Stream, offset: int) -> int:
        numbers = self._connections.numbers()
        number = self._segment_at(stream, offset, numbers)
        with self._connections.use(number, is_newest=number == numbers[-1]) as connection:
            return bytes_until(connection, *stream.key, offset)

    def _next_rows(self, stream: _Stream, at: int, end: int, bytes_max: int) -> list[Row]:
        return self._retried(lambda: self._rows(stream, at, end, bytes_max))

    def _rows(self, stream: _Stream, at: int, end: int, bytes_max: int) -> list[Row]:
        """Return consecutive batches of one segment, the first of which holds `at`.

        Nothing is returned if no durable record is there yet.
        """
        numbers = self._connections.numbers()
        number = self._segment_with(stream, at, numbers)
        is_newest = number == numbers[-1]
        with self._connections.use(number, is_newest=is_newest) as connection:
            cursor = connection.execute(_ROWS, (*stream.key, *stream.key, at, end))
            rows: list[Row] = []
            records = size_bytes = 0
            for row in cursor:
                rows.append(row)
                records += row[3]
                size_bytes += _size_bytes(row)
                if records >= BATCH_ROWS_MAX or size_bytes > bytes_max:
                    break
            # A statement left open would keep the writer from starting its WAL over.
            cursor.close()
        if is_newest and (not rows or _ends_by(rows, at)):
            return []
        _check_no_gap(stream, rows, at)
        return rows

    def _segment_at(self, stream: _Stream, offset: int, numbers: list[int]) -> int:
        """Return the newest segment that begins at or before an offset, else the oldest."""
        oldest = None
        for number in reversed(numbers):
            first = self._connections.firsts(number, numbers[-1]).get(stream.key)
            if first is None:
                break
            oldest = number
            if first <= offset:
                break
        if oldest is None:
            raise _unlinked(stream)
        return oldest

    def _segment_with(self, stream: _Stream, offset: int, numbers: list[int]) -> int:
        """Return the newest segment that begins at or before an offset; `Invalid` if none does."""
        number = self._segment_at(stream, offset, numbers)
        first = self._connections.firsts(number, numbers[-1])[stream.key]
        if first > offset:
            raise Invalid(
                f"Offset {offset} of {stream.name}/{stream.partition} was trimmed; {first} is the"
                " first",
                hint="read from the start that the log names",
                code="offset_trimmed",
            )
        return number


_ROWS = (
    "SELECT * FROM batches WHERE topic = ? AND partition = ? AND base_offset >= coalesce("
    "(SELECT max(base_offset) FROM batches WHERE topic = ? AND partition = ? AND base_offset <= ?),"
    " 0) AND base_offset < ? ORDER BY base_offset"
)


def _size_bytes(row: Row) -> int:
    """Return the bytes of a batch's values, keys and headers."""
    return row[7] - _OVERHEAD_BYTES * row[3]


def _unlinked(stream: _Stream) -> FileNotFoundError:
    """Return what makes a call list the segments again: the topic is not in those it saw."""
    return FileNotFoundError(f"{stream.name}/{stream.partition}")


def _ends_by(rows: list[Row], at: int) -> bool:
    """Return whether the only batch found is the last one and ends before `at`."""
    return len(rows) == 1 and rows[0][2] + rows[0][3] <= at


def _check_no_gap(stream: _Stream, rows: list[Row], at: int) -> None:
    """Raise `Corrupt` unless the batches follow each other and the first one holds `at`."""
    follows = [row[2] + row[3] for row in rows]
    bases = [row[2] for row in rows[1:]]
    if not rows or not rows[0][2] <= at < follows[0] or bases != follows[:-1]:
        raise Corrupt(
            f"Records of {stream.name}/{stream.partition} are missing from offset {at} on",
            hint="log files were damaged or removed; restore the data directory from a backup",
            code="log_gap",
        )
