"""Records as plain Kafka messages: the value is the record's own bytes, the rest is headers.

==========================  =======================================================
`headrace-id`               the id, as UUID text
`headrace-received-at`      microseconds since 1970 UTC, as decimal text
`headrace-mark`             the mark, as decimal text; absent if `UNMARKED`
`headrace-headers`          the record's headers as they are; only where the next line
                            would change their bytes
any other                   a header of the record's, its value UTF-8
`headrace-act`              the act that the record belongs to (`state.py`) and the offset
                            in the state's topic where it begins, as `…@7`; absent if none
==========================  =======================================================

A message that another program wrote needs none of them. Its id is made of the topic's id, partition
and offset, so it is the same whenever it is read, and it was received when its timestamp says.
"""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Callable, Sequence
from typing import NamedTuple

import msgspec
import numpy as np
import pyarrow as pa
from confluent_kafka import Message

from headrace.model.batch import RECORDS, UNMARKED, Batch
from headrace.model.clock import UUID_BYTES, uuid7
from headrace.model.errors import Invalid

ID, RECEIVED_AT, MARK = "headrace-id", "headrace-received-at", "headrace-mark"
HEADERS, ACT = "headrace-headers", "headrace-act"
HEADERS_BYTES = 120
"""About what our headers take in a message."""
OURS = frozenset({ID, RECEIVED_AT, MARK, HEADERS, ACT})

_MARK_MAX = (1 << 64) - 1
_TIME_MAX = (1 << 63) - 1
_UUID_TEXT = 36
_DASHES = [8, 13, 18, 23]
_ENTROPY_BYTES = 10
_MS = 1000
_MS_MAX = (1 << 48) - 1

Headers = list[tuple[str, bytes]]
_OBJECT = msgspec.json.Decoder(dict[str, str])


def check(batch: Batch, record_bytes_max: int) -> None:
    """Raise `Invalid` unless the columns of a batch fit together and no record is too large."""
    columns = (batch.keys, batch.headers, batch.received_at, batch.ids, batch.marks)
    fits = (
        all(len(column) == len(batch) for column in columns)
        and all(len(id_) == UUID_BYTES for id_ in batch.ids)
        and all(UNMARKED <= mark <= _MARK_MAX for mark in batch.marks)
        and all(-_TIME_MAX <= us <= _TIME_MAX for us in batch.received_at)
    )
    if not fits:
        raise Invalid("The columns of the batch do not fit together", code="unfit_batch")
    for value, key, headers in zip(batch.values, batch.keys, batch.headers, strict=True):
        if len(value) + len(key or b"") + len(headers) > record_bytes_max:
            raise Invalid(
                f"A record has {len(value)} bytes; with key and headers {record_bytes_max} may go",
                hint="send it in parts",
                code="record_too_large",
            )


def headers_of(batch: Batch, act: str = "") -> Callable[[int], Headers]:
    """Return what gives the headers of the message of the record at a position."""
    texts = b"".join(batch.ids).hex()
    # What is behind the id is mostly that of the record before.
    tails: dict[tuple[int, int, bytes], Headers] = {}

    def of(n: int) -> Headers:
        fields = batch.received_at[n], batch.marks[n], batch.headers[n]
        tail = tails.get(fields)
        if tail is None:
            tail = tails[fields] = _tail(*fields, act)
        h = texts[32 * n : 32 * n + 32]
        return [(ID, f"{h[:8]}-{h[8:12]}-{h[12:16]}-{h[16:20]}-{h[20:]}".encode()), *tail]

    return of


def _tail(received_at: int, mark: int, own: bytes, act: str) -> Headers:
    """Return the headers of a record's message behind the first, which is its id."""
    headers: Headers = [(RECEIVED_AT, b"%d" % received_at)]
    if mark != UNMARKED:
        headers.append((MARK, b"%d" % mark))
    if own:
        headers += _own_headers(own)
    if act:
        headers.append((ACT, act.encode()))
    return headers


class Told(NamedTuple):
    """What a message's headers say of its record; what is not there or cannot be read is None."""

    id: bytes | None
    received_at: int | None
    mark: int
    headers: bytes
    act: bytes | None


def told(headers: Sequence[tuple[str, bytes | None]]) -> Told:
    """Return what headers say, whoever wrote them; of equal names the last counts."""
    id_, received_at, mark, raw, act = None, None, UNMARKED, None, None
    others: Headers = []
    for name, value in headers:
        data = value or b""
        if name == ID:
            id_ = uuid_of(data)
        elif name == RECEIVED_AT:
            received_at = time_of(data)
        elif name == MARK:
            mark = mark_of(data)
        elif name == HEADERS:
            raw = data
        elif name == ACT:
            act = data
        else:
            others.append((name, data))
    own = raw if raw is not None else as_object(others) if others else b""
    return Told(id_, received_at, mark, own, act)


class Decoded(NamedTuple):
    """Records of some messages, and the acts that some of them belong to."""

    records: pa.RecordBatch
    acts: list[tuple[int, str]]
    """Position and act of each record that belongs to one."""


def decode(messages: Sequence[Message], incarnation: str) -> Decoded:
    """Return the records of messages of one partition, at least one."""
    return _decode_ours(messages) or decode_any(messages, incarnation)


def decode_any(messages: Sequence[Message], incarnation: str) -> Decoded:
    """Do what `decode` does one message after another, whoever wrote it."""
    topic_id = uuid.UUID(incarnation).bytes
    ids, times, tolds = [], [], []
    for message in messages:
        said = told(message.headers() or ())
        timestamp_ms = max(0, message.timestamp()[1])
        place = message.partition(), message.offset(), timestamp_ms
        ids.append(said.id or foreign_id(topic_id, *place))
        times.append(timestamp_ms * _MS if said.received_at is None else said.received_at)
        tolds.append(said)
    return _decoded(messages, b"".join(ids), times, tolds)


def _decode_ours(messages: Sequence[Message]) -> Decoded | None:
    """Decode messages that all begin with our id and time, as those that we write do; else None.

    A fraction of one by one's work: ids and times are read together, and what stands behind them is
    mostly that of a message before.
    """
    ids: list[bytes] = []
    times: list[bytes] = []
    tolds: list[Told] = []
    known: dict[tuple[tuple[str, bytes], ...], Told] = {}
    try:
        for message in messages:
            (first, id_), (second, time), *others = message.headers()
            if first != ID or second != RECEIVED_AT:
                return None
            behind = tuple(others)
            said = known.get(behind)
            if said is None:
                said = known[behind] = told(behind)
                if any(name in (ID, RECEIVED_AT) for name, _ in behind):
                    return None
            ids.append(id_ or b"")
            times.append(time)
            tolds.append(said)
        received_at = [int(time) for time in times]
    except (TypeError, ValueError):
        return None
    joined = _uuids(ids)
    if joined is None or max(map(abs, received_at)) > _TIME_MAX:
        return None
    return _decoded(messages, joined, received_at, tolds)


def _decoded(
    messages: Sequence[Message], ids: bytes, received_at: Sequence[int], tolds: Sequence[Told]
) -> Decoded:
    _, _, marks, headers, acts = zip(*tolds, strict=True)
    columns = [
        pa.array([m.offset() for m in messages], pa.int64()),
        pa.array(received_at, pa.int64()).view(RECORDS.field("received_at").type),
        pa.Array.from_buffers(pa.binary(UUID_BYTES), len(messages), [None, pa.py_buffer(ids)]),
        pa.array(marks, pa.uint64()),
        pa.array([m.key() for m in messages], pa.binary()),
        pa.array(headers, pa.binary()),
        pa.array([m.value() or b"" for m in messages], pa.binary()),
    ]
    named = [(at, act.decode("utf-8", "replace")) for at, act in enumerate(acts) if act]
    return Decoded(pa.RecordBatch.from_arrays(columns, schema=RECORDS), named)


def _uuids(texts: Sequence[bytes]) -> bytes | None:
    """Return ids of their texts, one after another; None if one is not written as UUIDs are."""
    if any(len(text) != _UUID_TEXT for text in texts):
        return None
    joined = b"".join(texts)
    letters = np.frombuffer(joined, np.uint8).reshape(len(texts), _UUID_TEXT)
    if not (letters[:, _DASHES] == ord("-")).all():
        return None
    ids = _from_hex(joined)
    return ids if ids is not None and len(ids) == UUID_BYTES * len(texts) else None


def foreign_id(topic_id: bytes, partition: int, offset: int, timestamp_ms: int) -> bytes:
    """Return the id of a message that has none: a UUIDv7 that depends on nothing but its place.

    Within a partition no two are equal, for the offset is added to what stands for the partition.
    """
    place = topic_id + partition.to_bytes(4, "big")
    digest = hashlib.blake2b(place, digest_size=_ENTROPY_BYTES).digest()
    # Of the last eight bytes the upper two bits are the UUID's own.
    counted = (int.from_bytes(digest[2:], "big") + offset) & ((1 << 62) - 1)
    return uuid7(timestamp_ms & _MS_MAX, digest[:2] + counted.to_bytes(8, "big"))


def _own_headers(headers: bytes) -> Headers:
    """Return a record's headers as Kafka headers of their names, if reading gives them back."""
    try:
        named = _OBJECT.decode(headers)
        pairs = [(name, value.encode()) for name, value in named.items()]
    except (msgspec.MsgspecError, UnicodeEncodeError):
        return [(HEADERS, headers)]
    is_ours = any(name.startswith("headrace-") for name in named)
    if is_ours or not pairs or as_object(pairs) != headers:
        return [(HEADERS, headers)]
    return pairs


def as_object(pairs: Headers) -> bytes:
    """Return Kafka headers as a JSON object of strings; of equal names the last one counts."""
    return msgspec.json.encode({name: v.decode("utf-8", "backslashreplace") for name, v in pairs})


def uuid_of(text: bytes) -> bytes | None:
    """Return the id that a text says; None if it says none."""
    # A third of what `uuid.UUID` costs.
    id_ = _from_hex(text)
    return id_ if id_ is not None and len(text) == _UUID_TEXT and len(id_) == UUID_BYTES else None


def time_of(text: bytes) -> int | None:
    """Return the microseconds that a text says; None if it says none that can be kept."""
    return _number(text, -_TIME_MAX, _TIME_MAX)


def mark_of(text: bytes) -> int:
    """Return the mark that a text says; `UNMARKED` if it says none."""
    return _number(text, UNMARKED, _MARK_MAX) or UNMARKED


def _from_hex(text: bytes) -> bytes | None:
    try:
        return bytes.fromhex(text.replace(b"-", b"").decode())
    except ValueError:
        return None


def _number(text: bytes, low: int, high: int) -> int | None:
    try:
        number = int(text)
    except ValueError:
        return None
    return number if low <= number <= high else None
