"""A copy of an embedded log while it is being written."""

from __future__ import annotations

import os
from pathlib import Path

import apsw

from headrace.log.segment import open_reading, segment_numbers, segment_path, sync_folder


def copy_log(source: Path, target: Path) -> int:
    """Copy every segment that is there now into an empty folder; return how many.

    Segments are copied through SQLite, oldest first, each as of one moment, so the copy is a log
    that ends at some moment during the call. The caller keeps trimming out meanwhile.
    """
    target.mkdir(parents=True, exist_ok=True)
    copied: set[int] = set()
    while True:
        numbers = segment_numbers(source)
        for number in numbers:
            if number not in copied:
                _copy_segment(segment_path(source, number), segment_path(target, number))
                copied.add(number)
        if segment_numbers(source) == numbers:
            break
        # What was the newest segment grew on after it was copied, until it was sealed.
        copied.discard(numbers[-1])
    sync_folder(target)
    return len(copied)


def _copy_segment(source: Path, target: Path) -> None:
    target.unlink(missing_ok=True)
    reader = open_reading(source)
    writer = apsw.Connection(str(target))
    try:
        with writer.backup("main", reader, "main") as backup:
            while not backup.done:
                backup.step(-1)
    finally:
        writer.close()
        reader.close()
    handle = os.open(target, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
