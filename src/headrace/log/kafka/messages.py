"""Records as plain Kafka messages: the value is the record's own bytes, the rest is headers.

==========================  =======================================================
`headrace-id`               the id, as UUID text
`headrace-received-at`      microseconds since 1970 UTC, as decimal text
`headrace-mark`             the mark, as decimal text; absent if `UNMARKED`
`headrace-headers`          the record's headers as they are; only where the next line
                            would change their bytes
any other                   a header of the record's, its value UTF-8
`headrace-act`              the act that the record belongs to (`state.py`); absent if none
==========================  =======================================================

A message that another program wrote needs none of them. Its id is made of the topic's id, partition
and offset, so it is the same whenever it is read, and it was received when its timestamp says.
"""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Sequence
from typing import NamedTuple

import msgspec
import pyarrow as pa
from confluent_kafka import Message

from headrace.model.batch import RECORDS, UNMARKED, Batch
from headrace.model.clock import UUID_BYTES, uuid7
from headrace.model.errors import Invalid

ID, RECEIVED_AT, MARK = "headrace-id", "headrace-received-at", "headrace-mark"
HEADERS, ACT = "headrace-headers", "headrace-act"

_MARK_MAX = (1 << 64) - 1
_TIME_MAX = (1 << 63) - 1
_UUID_TEXT = 36
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


def headers_of(batch: Batch, position: int, act: str) -> Headers:
    """Return the headers of the message of a record."""
    h = batch.ids[position].hex()
    headers: Headers = [
        (ID, f"{h[:8]}-{h[8:12]}-{h[12:16]}-{h[16:20]}-{h[20:]}".encode()),
        (RECEIVED_AT, b"%d" % batch.received_at[position]),
    ]
    mark = batch.marks[position]
    if mark != UNMARKED:
        headers.append((MARK, b"%d" % mark))
    if batch.headers[position]:
        headers += _own_headers(batch.headers[position])
    if act:
        headers.append((ACT, act.encode()))
    return headers


class Decoded(NamedTuple):
    """Records of some messages, and the acts that some of them belong to."""

    records: pa.RecordBatch
    acts: list[tuple[int, str]]
    """Position and act of each record that belongs to one."""


def decode(messages: Sequence[Message], incarnation: str) -> Decoded:
    """Return the records of messages of one partition, at least one."""
    topic_id = uuid.UUID(incarnation).bytes
    rows: list[_Row] = []
    acts: list[tuple[int, str]] = []
    for position, message in enumerate(messages):
        row, act = _row(message, topic_id)
        rows.append(row)
        if act:
            acts.append((position, act))
    kinds = [pa.int64() if kind.name == "received_at" else kind.type for kind in RECORDS]
    arrays = [pa.array(c, kind) for c, kind in zip(zip(*rows, strict=True), kinds, strict=True)]
    arrays[1] = arrays[1].view(RECORDS.field("received_at").type)
    return Decoded(pa.RecordBatch.from_arrays(arrays, schema=RECORDS), acts)


_Row = tuple[int, int, bytes, int, bytes | None, bytes, bytes]


def _row(message: Message, topic_id: bytes) -> tuple[_Row, str]:
    """Return a message's record in the order of `RECORDS`, and its act, empty if none.

    What another program wrote under our names and cannot be read counts as not there.
    """
    id_, received_at, mark, raw, act = None, None, UNMARKED, None, ""
    others: Headers = []
    for name, value in message.headers() or ():
        data = value or b""
        if name == ID:
            id_ = _uuid(data)
        elif name == RECEIVED_AT:
            received_at = _number(data, -_TIME_MAX, _TIME_MAX)
        elif name == MARK:
            mark = _number(data, UNMARKED, _MARK_MAX) or UNMARKED
        elif name == HEADERS:
            raw = data
        elif name == ACT:
            act = data.decode("utf-8", "replace")
        else:
            others.append((name, data))
    offset = message.offset()
    if id_ is None or received_at is None:
        timestamp_ms = max(0, message.timestamp()[1])
        id_ = id_ or foreign_id(topic_id, message.partition(), offset, timestamp_ms)
        received_at = timestamp_ms * _MS if received_at is None else received_at
    headers = raw if raw is not None else _as_object(others) if others else b""
    return (offset, received_at, id_, mark, message.key(), headers, message.value() or b""), act


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
    if is_ours or not pairs or _as_object(pairs) != headers:
        return [(HEADERS, headers)]
    return pairs


def _as_object(pairs: Headers) -> bytes:
    """Return Kafka headers as a JSON object of strings; of equal names the last one counts."""
    return msgspec.json.encode({name: v.decode("utf-8", "backslashreplace") for name, v in pairs})


def _uuid(text: bytes) -> bytes | None:
    # A third of what `uuid.UUID` costs, which would be a third of reading a message.
    try:
        id_ = bytes.fromhex(text.replace(b"-", b"").decode())
    except ValueError:
        return None
    return id_ if len(text) == _UUID_TEXT and len(id_) == UUID_BYTES else None


def _number(text: bytes, low: int, high: int) -> int | None:
    try:
        number = int(text)
    except ValueError:
        return None
    return number if low <= number <= high else None
