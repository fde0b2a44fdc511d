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
    numbers = segment_numbers(source)
    for number in numbers:
        path = segment_path(target, number)
        reader = open_reading(segment_path(source, number))
        writer = apsw.Connection(str(path))
        try:
            with writer.backup("main", reader, "main") as backup:
                while not backup.done:
                    backup.step(-1)
        finally:
            writer.close()
            reader.close()
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
    sync_folder(target)
    return len(numbers)
