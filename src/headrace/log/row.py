"""A row of a segment's table `batches`: a group-committed batch with its checksum.

The checksum is CRC-32 over the row's nine numbers and the stored blob, so that a changed offset is
found like a changed value.
"""

from __future__ import annotations

import struct
import zlib

import lz4.block

from headrace.model.errors import Corrupt

PLAIN, LZ4 = 0, 1
LZ4_FROM_BYTES = 4096
"""Below this, compression saves less than a page of the file."""

_NUMBERS = struct.Struct("<9q")

INSERT = "INSERT INTO batches VALUES (?,?,?,?,?,?,?,?,?,?,?)"

Row = tuple[int, int, int, int, int, int, int, int, int, int, bytes]
"""topic, partition, base_offset, n, first_ts, last_ts, bytes_before, raw_bytes, codec, crc32, blob:
the columns of `batches`."""


def pack(
    topic: int,
    partition: int,
    base_offset: int,
    n: int,
    ts: list[int],
    bytes_before: int,
    blob: bytes,
) -> Row:
    """Return the row of a batch, compressed if it is worth it, with its checksum."""
    raw_bytes, codec, stored = len(blob), PLAIN, blob
    if raw_bytes >= LZ4_FROM_BYTES:
        packed = lz4.block.compress(blob, store_size=False)
        if len(packed) < raw_bytes:
            codec, stored = LZ4, packed
    first_ts, last_ts = min(ts), max(ts)
    numbers = (topic, partition, base_offset, n, first_ts, last_ts, bytes_before, raw_bytes, codec)
    return (*numbers, zlib.crc32(stored, zlib.crc32(_NUMBERS.pack(*numbers))), stored)


def unpack(row: Row) -> bytes:
    """Return the blob of a row, or raise `Corrupt` if any bit of the row has changed."""
    *numbers, crc32, stored = row
    if zlib.crc32(stored, zlib.crc32(_NUMBERS.pack(*numbers))) != crc32:
        raise _damaged(row)
    if numbers[-1] == PLAIN:
        return stored
    try:
        return lz4.block.decompress(stored, uncompressed_size=numbers[-2])
    except lz4.block.LZ4BlockError as error:
        raise _damaged(row) from error


def _damaged(row: Row) -> Corrupt:
    return Corrupt(
        f"The log batch at offset {row[2]} of partition {row[1]} fails its checksum",
        hint="the disk changed stored bytes; restore the data directory from a backup",
        code="log_batch_damaged",
    )
