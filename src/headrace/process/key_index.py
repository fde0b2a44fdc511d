"""The index of old rows: what each key of a keyed table holds now, on local disk.

A cache of the changelog, which says which of its versions, and which epoch, it contains. Each entry
has the epoch that made it, so that files may be taken in in any order. It is written after the
changelog's commit: behind it, the commits since are applied; ahead of it, of another table or of
other columns, damaged or gone, it is made again from the changelog. SQLite keeps it whole through a
power cut, if perhaps at an older version, which is then behind.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import apsw
import pyarrow as pa

from headrace.model.errors import Unavailable
from headrace.stage.apply import ENTRIES

_CACHE_KB = 64 << 10
_CHECKPOINT_PAGES = 16_384
"""Pages of 4 KiB that the write-ahead log may grow to before it goes into the file: 64 MiB."""

_LOOKED_UP_AT_ONCE = 10_000

_PUT = (
    "INSERT INTO entries VALUES (?, ?, ?, ?) ON CONFLICT DO UPDATE "
    "SET live = excluded.live, row = excluded.row, epoch = excluded.epoch "
    "WHERE excluded.epoch >= entries.epoch"
)

_TABLES = """
CREATE TABLE IF NOT EXISTS entries
    (key TEXT PRIMARY KEY, live INTEGER, row TEXT, epoch INTEGER) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS contained (of TEXT, version INTEGER, epoch INTEGER);
"""


class KeyIndex:
    """The entries of one keyed table. Used from one thread, but for `contained`.

    `of` names what the entries are of: the changelog's id and the columns that are kept. Entries of
    anything else are dropped.
    """

    contained: tuple[int, int] | None
    """The changelog's version that the entries are of, and its epoch; None if there are none.

    In memory, because housekeeping asks for it from its own thread."""

    def __init__(self, path: Path, of: str) -> None:
        self._path = path
        self._of = of
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        try:
            self._db = self._opened()
        except apsw.Error:
            _remove(self._path)
            self._db = self._opened()

    def clear(self) -> None:
        """Forget everything."""
        self._db.close()
        _remove(self._path)
        self._db = self._opened()

    def find(self, keys: Sequence[str]) -> pa.Table:
        """Return the entries of some keys, those that there are, as `ENTRIES`."""
        rows: list[tuple[str, int, str, int]] = []
        if keys:
            # The join's order is said outright: SQLite would rather read the whole index.
            sql = (
                "SELECT key, live, row, epoch FROM carray(?) AS wanted "
                "CROSS JOIN entries WHERE entries.key = wanted.value"
            )
            with _as_unavailable(self._path):
                rows = list(self._db.execute(sql, (apsw.carray(tuple(keys)),)))
        columns = zip(*rows, strict=True) if rows else ([], [], [], [])
        key, live, row, epoch = (list(column) for column in columns)
        arrays = [key, list(map(bool, live)), row, epoch]
        return pa.Table.from_pydict(dict(zip(ENTRIES.names, arrays, strict=True)), schema=ENTRIES)

    def put(self, entries: pa.Table, contained: tuple[int, int] | None) -> None:
        """Take in entries, of schema `ENTRIES`, of keys that have none of a later epoch.

        `contained` is what the index contains from now on; None while it is still being made.
        """
        columns = [entries.column(name).to_pylist() for name in ENTRIES.names]
        with _as_unavailable(self._path), self._db:
            self._db.executemany(_PUT, zip(*columns, strict=True))
            self._db.execute("DELETE FROM contained")
            if contained is not None:
                self._db.execute("INSERT INTO contained VALUES (?, ?, ?)", (self._of, *contained))
        self.contained = contained

    def epochs(self, keys: Sequence[str]) -> list[int | None]:
        """Return for each key the epoch of its entry, None without one; from any thread."""
        sql = "SELECT key, epoch FROM carray(?) AS wanted CROSS JOIN entries ON key = wanted.value"
        found: dict[str, int] = {}
        flags = apsw.SQLITE_OPEN_READONLY
        with (
            _as_unavailable(self._path),
            contextlib.closing(apsw.Connection(str(self._path), flags=flags)) as db,
        ):
            for start in range(0, len(keys), _LOOKED_UP_AT_ONCE):
                some = tuple(keys[start : start + _LOOKED_UP_AT_ONCE])
                found.update(db.execute(sql, (apsw.carray(some),)))
        return [found.get(key) for key in keys]

    def close(self) -> None:
        """Release the file."""
        self._db.close()

    def _opened(self) -> apsw.Connection:
        db = apsw.Connection(str(self._path))
        try:
            self._prepare(db)
        except apsw.Error:
            # Before its file is removed: closed later, it would take the next one's log along.
            db.close()
            raise
        return db

    def _prepare(self, db: apsw.Connection) -> None:
        for statement in (
            "PRAGMA journal_mode = WAL",
            # A power cut may take the last transactions back, which are then behind the changelog.
            "PRAGMA synchronous = NORMAL",
            f"PRAGMA wal_autocheckpoint = {_CHECKPOINT_PAGES}",
            f"PRAGMA cache_size = -{_CACHE_KB}",
        ):
            list(db.execute(statement))
        db.execute(_TABLES)
        found = list(db.execute("SELECT version, epoch FROM contained WHERE of = ?", (self._of,)))
        self.contained = found[0] if found else None


def _remove(path: Path) -> None:
    for suffix in ("", "-wal", "-shm"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)


@contextlib.contextmanager
def _as_unavailable(path: Path) -> Iterator[None]:
    """Tell an error of the disk as what it is; a damaged index is made again at the next start."""
    try:
        yield
    except apsw.FullError as error:
        raise Unavailable(f"No room for the index {path.name}", hint="Free some space.") from error
    except (apsw.CorruptError, apsw.NotADBError) as error:
        _remove(path)
        raise Unavailable(f"The index {path.name} was damaged and is made again") from error
