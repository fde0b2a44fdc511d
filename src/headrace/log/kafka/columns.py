"""Messages that come as Arrow columns, as Spark reads them: what `messages.decode` makes of each.

Nearly all messages of a batch are Headrace's own, with the same headers in the same order. These
are decoded shape by shape, column by column; what looks otherwise is left to `messages.decode`. So
the result is always that function's, and the difference is only speed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from confluent_kafka import TIMESTAMP_CREATE_TIME, Message

from headrace.log.kafka import messages
from headrace.log.kafka.messages import ACT, HEADERS, ID, MARK, RECEIVED_AT
from headrace.model.batch import RECORDS, UNMARKED
from headrace.model.clock import UUID_BYTES

SHAPES_MAX = 8
"""So many kinds of headers in a batch are decoded by columns, the rest message by message."""

_OURS = {ID, RECEIVED_AT, MARK, HEADERS, ACT}
_MS = 1000
_UUID_TEXT = 36
_DASHES = [8, 13, 18, 23]
_DIGITS = [i for i in range(_UUID_TEXT) if i not in _DASHES]
_NOT_HEX = 255
_NIBBLES = np.full(256, _NOT_HEX, np.uint8)
_NIBBLES[list(b"0123456789abcdef")] = range(16)
# What stands in JSON text as it is, of ASCII.
_IS_PLAIN = np.zeros(256, bool)
_IS_PLAIN[0x20:0x7F] = True
_IS_PLAIN[list(b'"\\')] = False

_MADE = pa.schema(
    [RECORDS.field(name) for name in ("received_at", "id", "mark", "headers")]
    + [pa.field("act", pa.binary())]
)
"""What headers and timestamp say of a message; `act` null or empty: it belongs to none."""

Rows = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]


class DecodedColumns(NamedTuple):
    """Records, and the act that each belongs to (bytes; null or empty: none)."""

    records: pa.RecordBatch
    acts: pa.Array


def decode_columns(found: pa.RecordBatch, partition: int, incarnation: str) -> DecodedColumns:
    """Return the records of messages of one partition, at least one.

    `found` has columns offset (int64), timestamp (microseconds), key and value (binary), and
    headers (list of struct of key, a string, and value, binary).
    """
    headers = _Headers(found.column("headers"))
    left = np.arange(found.num_rows)
    places: list[Rows] = []
    parts: list[pa.RecordBatch] = []
    odd: list[Rows] = []
    for _ in range(SHAPES_MAX):
        if not len(left):
            break
        names, is_so = headers.shape(left)
        rows, left = left[is_so], left[~is_so]
        is_plain = np.zeros(len(rows), bool)
        if {ID, RECEIVED_AT} <= set(names):
            part, is_plain = _decode_shape(headers, rows, names)
            places.append(rows[is_plain])
            parts.append(part if is_plain.all() else part.filter(pa.array(is_plain)))
        odd.append(rows[~is_plain])
    others = np.sort(np.concatenate([*odd, left]))
    if len(others):
        places.append(others)
        parts.append(_decode_others(found, headers, others, partition, incarnation))
    made = pa.Table.from_batches(parts).combine_chunks()
    if len(parts) > 1:
        made = made.take(pa.array(np.argsort(np.concatenate(places))))
    column = {name: made.column(name).combine_chunks() for name in _MADE.names}
    column |= {"offset": found.column("offset"), "key": found.column("key")}
    column["value"] = found.column("value").fill_null(b"")
    records = pa.RecordBatch.from_arrays([column[name] for name in RECORDS.names], schema=RECORDS)
    return DecodedColumns(records, column["act"])


class _Headers:
    """The headers of some messages, one after another."""

    def __init__(self, lists: pa.Array) -> None:
        counts = pc.list_value_length(lists).fill_null(0)
        self._counts = counts.to_numpy(zero_copy_only=False).astype(np.int64)
        self._starts = np.cumsum(self._counts) - self._counts
        flat = lists.flatten()
        names = flat.field("key").dictionary_encode()
        self._names: list[str] = names.dictionary.to_pylist()
        self._codes = names.indices.to_numpy(zero_copy_only=False)
        self._values = flat.field("value")

    def shape(self, rows: Rows) -> tuple[list[str], Flags]:
        """Return the names in the first row's headers, and which rows have the same."""
        count = int(self._counts[rows[0]])
        start = int(self._starts[rows[0]])
        shape = self._codes[start : start + count]
        is_so: Flags = self._counts[rows] == count
        starts = self._starts[rows[is_so]]
        same = np.ones(len(starts), bool)
        for place, code in enumerate(shape):
            same &= self._codes[starts + place] == code
        is_so[is_so] = same
        return [self._names[code] for code in shape], is_so

    def values(self, rows: Rows, place: int) -> pa.Array:
        """Return the values of the headers at a place of each row."""
        return self._values.take(pa.array(self._starts[rows] + place)).fill_null(b"")

    def of(self, row: int) -> list[tuple[str, bytes | None]]:
        """Return the headers of one message."""
        start, end = self._starts[row], self._starts[row] + self._counts[row]
        values = self._values.slice(start, end - start).to_pylist()
        names = [self._names[code] for code in self._codes[start:end]]
        return list(zip(names, values, strict=True))


def _decode_shape(
    headers: _Headers, rows: Rows, names: Sequence[str]
) -> tuple[pa.RecordBatch, Flags]:
    """Return what headers of these names say, and of which rows that may be believed.

    Of equal names the last one counts.
    """
    last = {name: place for place, name in enumerate(names)}
    nulls = pa.nulls(len(rows), pa.binary())
    ids, is_plain = _ids(headers.values(rows, last[ID]))
    times, are_numbers = _numbers(headers.values(rows, last[RECEIVED_AT]), pa.int64())
    is_plain &= are_numbers
    marks = pa.array(np.full(len(rows), UNMARKED, np.uint64))
    if MARK in last:
        marks, are_numbers = _numbers(headers.values(rows, last[MARK]), pa.uint64())
        is_plain &= are_numbers
    others = [name for name in last if name not in _OURS]
    own = pa.array([b""], pa.binary()).take(pa.array(np.zeros(len(rows), np.int64)))
    if HEADERS in last:
        own = headers.values(rows, last[HEADERS])
    elif others:
        own, are_plain = _objects(others, [headers.values(rows, last[name]) for name in others])
        is_plain &= are_plain
    acts = headers.values(rows, last[ACT]) if ACT in last else nulls
    times = times.view(RECORDS.field("received_at").type)
    return pa.RecordBatch.from_arrays([times, ids, marks, own, acts], schema=_MADE), is_plain


def _ids(texts: pa.Array) -> tuple[pa.Array, Flags]:
    """Return ids of their texts, and which were written as ids are."""
    lengths = pc.binary_length(texts).to_numpy(zero_copy_only=False)
    is_plain: Flags = lengths == _UUID_TEXT
    whole = texts if is_plain.all() else texts.filter(pa.array(is_plain))
    letters = _bytes_of(whole).reshape(-1, _UUID_TEXT)
    nibbles = _NIBBLES[letters[:, _DIGITS]]
    ids = np.zeros((len(texts), UUID_BYTES), np.uint8)
    ids[is_plain] = nibbles[:, ::2] << 4 | nibbles[:, 1::2]
    is_id = (nibbles != _NOT_HEX).all(axis=1) & (letters[:, _DASHES] == ord("-")).all(axis=1)
    is_plain[is_plain] = is_id
    buffers = [None, pa.py_buffer(ids)]
    return pa.Array.from_buffers(pa.binary(UUID_BYTES), len(texts), buffers), is_plain


def _numbers(texts: pa.Array, kind: pa.DataType) -> tuple[pa.Array, Flags]:
    """Return what decimal texts say, and which are; none is believed if one is too large."""
    is_number = np.ones(len(texts), bool)
    # Bytes that are less than a zero wrap round.
    if ((_bytes_of(texts) - ord("0")) > 9).any():  # noqa: PLR2004 - the last digit
        is_number = _matches(texts, r"^[0-9]+$")
    texts = pc.if_else(pa.array(is_number), texts, b"0").cast(pa.string())
    try:
        return texts.cast(kind), is_number
    except pa.ArrowInvalid:
        return pa.array(np.zeros(len(texts), np.int64)).cast(kind), np.zeros(len(texts), bool)


def _matches(texts: pa.Array, pattern: str) -> Flags:
    flags: Flags = pc.match_substring_regex(texts, pattern).to_numpy(zero_copy_only=False)
    return flags


def _objects(names: Sequence[str], columns: Sequence[pa.Array]) -> tuple[pa.Array, Flags]:
    """Return values under these names as JSON objects, and which need no escapes in JSON."""
    is_plain = np.ones(len(columns[0]), bool)
    parts: list[pa.Array | bytes] = []
    for i, (name, column) in enumerate(zip(names, columns, strict=True)):
        if not _IS_PLAIN[_bytes_of(column)].all():
            is_plain &= _matches(column, r"^[ !#-\[\]-~]*$")
        key = msgspec.json.encode(name)
        parts += [(b"," if i else b"{") + key + b':"', column, b'"']
    return pc.binary_join_element_wise(*parts, b"}", b""), is_plain


def _decode_others(
    found: pa.RecordBatch, headers: _Headers, rows: Rows, partition: int, incarnation: str
) -> pa.RecordBatch:
    """Return what `messages.decode` makes of some messages."""
    columns = ("offset", "timestamp", "key", "value")
    some = found.select(columns).take(pa.array(rows))
    place = some.schema.get_field_index("timestamp")
    some = some.set_column(place, "timestamp", some.column(place).cast(pa.int64()))
    told = [
        Message(
            topic="",
            partition=partition,
            offset=row["offset"],
            timestamp=(TIMESTAMP_CREATE_TIME, row["timestamp"] // _MS),
            key=row["key"],
            headers=headers.of(at),
            value=row["value"],
        )
        for row, at in zip(some.to_pylist(), rows.tolist(), strict=True)
    ]
    records, acts = messages.decode(told, incarnation)
    act_of = {position: act.encode() for position, act in acts}
    column = {name: records.column(name) for name in _MADE.names if name != "act"}
    column["act"] = pa.array([act_of.get(i) for i in range(len(rows))], pa.binary())
    return pa.RecordBatch.from_arrays([column[name] for name in _MADE.names], schema=_MADE)


def _bytes_of(values: pa.Array) -> npt.NDArray[np.uint8]:
    """Return the bytes of binary values without nulls, one value after another."""
    _, offsets, data = values.buffers()
    if data is None or not len(values):
        return np.zeros(0, np.uint8)
    ends = np.frombuffer(offsets, np.int32)[values.offset : values.offset + len(values) + 1]
    return np.frombuffer(data, np.uint8)[ends[0] : ends[-1]]
