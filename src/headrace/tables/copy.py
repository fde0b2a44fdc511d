"""Copies tables from one storage to another, file by file, as they are.

A table's folder names no place: its commits say where files are from the folder itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from headrace.tables.storage import Storage

_CHUNK_BYTES = 8 << 20


def copy_tables(source: Storage, target: Storage, names: Iterable[str]) -> int:
    """Copy tables that nobody commits to; return how many bytes there were. All durable on return.

    Of each the data files come first and the commits in their order after them, so that what is
    there of a copy that broke off is never more than the table was. `Internal` if a file is there.
    """
    size_bytes = 0
    for name in names:
        files = sorted(_files(source, name), key=_commits_last)
        for path in files:
            size_bytes += _copy(source, target, path)
    return size_bytes


def _files(storage: Storage, folder: str) -> Iterator[str]:
    for stored in storage.files(folder):
        yield f"{folder}/{stored.name}"
    for inner in storage.folders(folder):
        yield from _files(storage, f"{folder}/{inner}")


def _commits_last(path: str) -> tuple[bool, str]:
    return "/_delta_log/" in path, path


def _copy(source: Storage, target: Storage, path: str) -> int:
    with source.open(path) as file, target.create(path) as copy:
        size_bytes = 0
        while chunk := file.read(_CHUNK_BYTES):
            copy.write(chunk)
            size_bytes += len(chunk)
        return size_bytes
