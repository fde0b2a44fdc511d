"""Read-only connections to segment files, while a writer seals and unlinks them.

Only the newest segment changes, so it alone stays open between calls; a connection to a sealed one
would keep it from leaving WAL mode.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import apsw

from headrace.log.segment import (
    load_firsts,
    open_reading,
    reading,
    segment_numbers,
    segment_path,
)
from headrace.model.errors import Closed


class Connections:
    """The connections of one reader."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._closed = False
        self._newest: apsw.Connection | None = None
        self._newest_file = (0, 0, 0)
        self._opened = 0
        self._sealed_firsts: dict[int, dict[tuple[int, int], int]] = {}

    def numbers(self) -> list[int]:
        """Return the numbers of the segments that exist now, ascending."""
        if self._closed:
            raise Closed("The log reader is closed")
        return segment_numbers(self._directory)

    @contextmanager
    def use(self, number: int, *, is_newest: bool) -> Iterator[apsw.Connection]:
        """Lend a connection to a segment; `FileNotFoundError` if it was unlinked.

        What SQLite says inside is raised as our kinds.
        """
        path = segment_path(self._directory, number)
        with reading(path):
            if is_newest:
                yield self._open_newest(number, path)
                return
            connection = open_reading(path)
            try:
                yield connection
            finally:
                connection.close()

    def _open_newest(self, number: int, path: Path) -> apsw.Connection:
        status = path.stat()
        # The inode tells a log that was wiped and begun again under the same names.
        file = (number, status.st_dev, status.st_ino)
        if self._newest is None or self._newest_file != file:
            self.drop()
            if number <= self._newest_file[0]:
                self._sealed_firsts.clear()
            self._newest, self._newest_file = open_reading(path), file
            self._opened += 1
        return self._newest

    def stamp(self) -> tuple[int, int, int]:
        """Return numbers that change with every commit; `FileNotFoundError` if one was unlinked."""
        numbers = self.numbers()
        if not numbers:
            return 0, 0, 0
        with self.use(numbers[-1], is_newest=True) as connection:
            # SQLite's own number of what others committed; it means something on one connection.
            return numbers[-1], self._opened, connection.pragma("data_version")

    def firsts(self, number: int, newest: int) -> dict[tuple[int, int], int]:
        """Return the first offsets in a segment; those of a sealed one no longer change."""
        if number != newest and number in self._sealed_firsts:
            return self._sealed_firsts[number]
        with self.use(number, is_newest=number == newest) as connection:
            firsts = load_firsts(connection)
        if number != newest:
            self._sealed_firsts[number] = firsts
        return firsts

    def forget_before(self, number: int) -> None:
        """Forget what is remembered of segments that are gone."""
        for old in [n for n in self._sealed_firsts if n < number]:
            del self._sealed_firsts[old]

    def drop(self) -> None:
        """Close the connection that is kept; the next use opens it again."""
        if self._newest is not None:
            self._newest.close()
            self._newest = None

    def close(self) -> None:
        """Close for good."""
        self._closed = True
        self.drop()
