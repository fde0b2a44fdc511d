"""What a segment's WAL says about itself, beyond what SQLite looks at.

When SQLite opens a WAL after a crash it takes every frame up to the first one that fails its
checksum and silently drops the rest. That is right for a commit that a crash cut short. It is wrong
for a bit that the disk changed in the middle: everything acknowledged after it would be gone. As
every COMMIT is synced before the next one begins, a crash leaves at most one commit frame behind
the last good one; two or more mean damage. The file format: https://sqlite.org/fileformat2.html.
"""

from __future__ import annotations

import os
import struct
from pathlib import Path

import apsw

from headrace.model.errors import Corrupt

_HEADER = struct.Struct(">8I")
_FRAME_BYTES = 24
_BIG_ENDIAN_SUMS = 1
_MAGIC = 0x377F0682
_MASK = 0xFFFFFFFF


def check_wal(path: Path, connection: apsw.Connection) -> None:
    """Raise `Corrupt` if the WAL of an open segment was damaged before it was recovered.

    To be called before anything is written through `connection`.
    """
    connection.execute("SELECT count(*) FROM segment").fetchall()
    good_frames, _ = connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_PASSIVE)
    try:
        handle = os.open(f"{path}-wal", os.O_RDONLY)
    except FileNotFoundError:
        return
    try:
        damaged = _is_damaged(handle, max(good_frames, 0))
    finally:
        os.close(handle)
    if damaged:
        raise Corrupt(
            f"The WAL of the log segment {path.name} is damaged before its end",
            hint="the disk changed stored bytes; restore the data directory from a backup",
            code="log_segment_damaged",
        )


def _is_damaged(handle: int, good_frames: int) -> bool:
    header = os.pread(handle, _HEADER.size, 0)
    if len(header) < _HEADER.size or not any(header):
        return False  # Nothing was ever committed to it.
    magic, _, page_bytes, _, salt_1, salt_2, sum_1, sum_2 = _HEADER.unpack(header)
    if magic & ~_BIG_ENDIAN_SUMS != _MAGIC or _sums(header[:24], magic) != (sum_1, sum_2):
        return True
    salts = struct.pack(">2I", salt_1, salt_2)
    stride = _FRAME_BYTES + page_bytes
    commits = 0
    at = _HEADER.size + good_frames * stride
    while len(frame := os.pread(handle, _FRAME_BYTES, at)) == _FRAME_BYTES:
        if frame[8:16] == salts and any(frame[4:8]):
            commits += 1
        at += stride
    return commits > 1


def _sums(data: bytes, magic: int) -> tuple[int, int]:
    """Return SQLite's checksum of the header."""
    order = ">" if magic & _BIG_ENDIAN_SUMS else "<"
    first = second = 0
    for a, b in struct.iter_unpack(f"{order}2I", data):
        first = (first + a + second) & _MASK
        second = (second + b + first) & _MASK
    return first, second
