"""Raw records as columns: how a door hands them to the log, and how the log hands them on.

A `Batch` is the unit of an append: the records of one topic, as lists of equal length. `encode`
makes it a blob and `decode` makes many blobs one Arrow record batch, with a handful of NumPy calls
whatever their number: an epoch often reads thousands of blobs with a few records each.

The blob, all integers little-endian, `n` records (`n` is kept beside the blob, not in it):

==============================  =====================================================
three uint32                    total bytes of values, of keys, of headers
uint32[n] × 3                   length of each value, key (0xFFFFFFFF: no key), headers
int64[n]                        received_at, microseconds since 1970 UTC
16 bytes × n                    ids
uint64[n]                       marks
bytes                           values, then keys, then headers, each concatenated
==============================  =====================================================
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from headrace.model.clock import CHOSEN_BY_CLIENT, UUID_BYTES
from headrace.model.errors import Corrupt

UNMARKED = 0
"""The mark of a record that no door has found valid."""

NO_KEY = 0xFFFFFFFF
_NO_KEY_BYTES = NO_KEY.to_bytes(4, "little")
_TOTALS = struct.Struct("<III")
_VERSION_BYTE = 6
"""Where in an id its version stands, in the upper half."""
_FIXED_BYTES = 4 * 3 + 8 + UUID_BYTES + 8

RECORDS = pa.schema(
    [
        pa.field("offset", pa.int64(), nullable=False),
        pa.field("received_at", pa.timestamp("us", tz="UTC"), nullable=False),
        pa.field("id", pa.binary(UUID_BYTES), nullable=False),
        pa.field("mark", pa.uint64(), nullable=False),
        pa.field("key", pa.binary()),
        pa.field("headers", pa.binary(), nullable=False),
        pa.field("value", pa.binary(), nullable=False),
    ]
)
"""Schema of what a log reads back.

`offset` position in the partition; `received_at` when a door had the whole record; `id` a UUID (see
`is_client_chosen`); `mark` the fingerprint of the schema that the value was found valid for, or
`UNMARKED`; `key` the record's key; `headers` a JSON object of strings, or empty; `value` the bytes
as sent.
"""


@dataclass(slots=True)
class Batch:
    """Records of one topic on their way into a log, one list a column, all of one length."""

    values: list[bytes] = field(default_factory=list)
    keys: list[bytes | None] = field(default_factory=list)
    headers: list[bytes] = field(default_factory=list)
    received_at: list[int] = field(default_factory=list)
    ids: list[bytes] = field(default_factory=list)
    marks: list[int] = field(default_factory=list)

    def __len__(self) -> int:
        """Return the number of records."""
        return len(self.values)

    @property
    def size_bytes(self) -> int:
        """Bytes that the batch takes in a blob before compression."""
        variable = sum(map(len, self.values)) + sum(map(len, self.headers))
        return variable + sum(map(len, filter(None, self.keys))) + _FIXED_BYTES * len(self) + 12

    def add(
        self,
        value: bytes,
        *,
        received_at: int,
        id: bytes,  # noqa: A002 - the column's name
        key: bytes | None = None,
        headers: bytes = b"",
        mark: int = UNMARKED,
    ) -> None:
        """Append one record."""
        self.values.append(value)
        self.keys.append(key)
        self.headers.append(headers)
        self.received_at.append(received_at)
        self.ids.append(id)
        self.marks.append(mark)

    def extend(self, other: Batch) -> None:
        """Append all records of `other`, in order."""
        self.values += other.values
        self.keys += other.keys
        self.headers += other.headers
        self.received_at += other.received_at
        self.ids += other.ids
        self.marks += other.marks

    def take(self, positions: Sequence[int]) -> Batch:
        """Return the records at `positions`, in that order."""
        return Batch(
            [self.values[i] for i in positions],
            [self.keys[i] for i in positions],
            [self.headers[i] for i in positions],
            [self.received_at[i] for i in positions],
            [self.ids[i] for i in positions],
            [self.marks[i] for i in positions],
        )


def is_client_chosen(id: bytes) -> bool:  # noqa: A002 - the column's name
    """Return whether a client chose this id, so that it can name a duplicate."""
    return id[_VERSION_BYTE] >> 4 == CHOSEN_BY_CLIENT


def any_client_chosen(ids: Sequence[bytes]) -> bool:
    """Return whether a client chose any of these ids; quick where none is chosen."""
    # Versions up to 7 leave the top bit of their byte clear, so that byte is ASCII.
    if b"".join(ids)[_VERSION_BYTE::UUID_BYTES].isascii():
        return False
    return any(map(is_client_chosen, ids))


def encode(batch: Batch) -> bytes:
    """Return the blob of a batch of at least one record."""
    n = len(batch)
    values, headers = b"".join(batch.values), b"".join(batch.headers)
    keys = b"".join(filter(None, batch.keys))
    return b"".join(
        (
            _TOTALS.pack(len(values), len(keys), len(headers)),
            struct.pack(f"<{n}I", *map(len, batch.values)),
            _key_lengths(batch.keys),
            struct.pack(f"<{n}I", *map(len, batch.headers)) if headers else bytes(4 * n),
            _packed("q", batch.received_at),
            b"".join(batch.ids),
            _packed("Q", batch.marks),
            values,
            keys,
            headers,
        )
    )


def _key_lengths(keys: Sequence[bytes | None]) -> bytes:
    if keys.count(None) == len(keys):
        return _NO_KEY_BYTES * len(keys)
    return struct.pack(f"<{len(keys)}I", *[NO_KEY if k is None else len(k) for k in keys])


def _packed(format_: str, numbers: Sequence[int]) -> bytes:
    """Return eight-byte numbers; a column of one and the same is the common case."""
    if numbers.count(numbers[0]) == len(numbers):
        return struct.pack(f"<{format_}", numbers[0]) * len(numbers)
    return struct.pack(f"<{len(numbers)}{format_}", *numbers)


def decode(blobs: Sequence[tuple[int, int, bytes]]) -> pa.RecordBatch:
    """Return the records of many blobs as one Arrow record batch of schema `RECORDS`.

    `blobs` are (offset of the first record, number of records, blob), at least one, together under
    2 GiB. A blob whose lengths do not add up raises `Corrupt`.
    """
    columns: list[list[memoryview]] = [[] for _ in range(9)]
    offsets = []
    for base_offset, n, blob in blobs:
        offsets.append(np.arange(base_offset, base_offset + n, dtype=np.int64))
        _slice_blob(memoryview(blob), n, columns)
    value_n, key_n, header_n, received, ids, marks, values, keys, headers = (
        b"".join(c) for c in columns
    )
    total = len(marks) // 8
    key_lengths = np.frombuffer(key_n, np.uint32)
    present = key_lengths != NO_KEY
    return pa.RecordBatch.from_arrays(
        [
            pa.array(np.concatenate(offsets)),
            _fixed(pa.timestamp("us", tz="UTC"), total, received),
            _fixed(pa.binary(UUID_BYTES), total, ids),
            _fixed(pa.uint64(), total, marks),
            _binary(np.where(present, key_lengths, 0), keys, present),
            _binary(np.frombuffer(header_n, np.uint32), headers, None),
            _binary(np.frombuffer(value_n, np.uint32), values, None),
        ],
        schema=RECORDS,
    )


def _slice_blob(view: memoryview, n: int, columns: list[list[memoryview]]) -> None:
    if len(view) < _TOTALS.size + _FIXED_BYTES * n:
        msg = f"A log blob of {n} records is only {len(view)} bytes long"
        raise Corrupt(msg)
    totals = _TOTALS.unpack_from(view)
    widths = (4 * n, 4 * n, 4 * n, 8 * n, UUID_BYTES * n, 8 * n, *totals)
    at = _TOTALS.size
    for column, width in zip(columns, widths, strict=True):
        column.append(view[at : at + width])
        at += width
    if at != len(view):
        msg = f"A log blob of {n} records is {len(view)} bytes long; its lengths say {at}"
        raise Corrupt(msg)


def _fixed(kind: pa.DataType, n: int, data: bytes) -> pa.Array:
    return pa.Array.from_buffers(kind, n, [None, pa.py_buffer(data)])


def _binary(lengths: np.ndarray, data: bytes, present: np.ndarray | None) -> pa.Array:
    starts = np.zeros(len(lengths) + 1, np.int32)
    np.cumsum(lengths, out=starts[1:])
    if starts[-1] != len(data):
        msg = "The lengths in a log blob do not add up to its bytes"
        raise Corrupt(msg)
    valid = None
    if present is not None and not present.all():
        valid = pa.py_buffer(np.packbits(present, bitorder="little").tobytes())
    buffers = [valid, pa.py_buffer(starts), pa.py_buffer(data)]
    return pa.Array.from_buffers(pa.binary(), len(lengths), buffers)
