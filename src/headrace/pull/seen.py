"""What a sweeping source gave and when: an index that tells what is new, changed or gone.

A SQLite file a source, `key → digest, mark of the sweep that last gave it`. It must say what is in
the log, no more and no less, whatever crash comes when. So each change is made in this order:

1. `write`: the change, what it replaces, and the source's state before and after it are durable;
2. the log takes the records and the state after it, in one act;
3. the next `write` forgets what the last one replaced.

`settle` compares the state in the log with the two in the file. The log has the later one: the
change holds. The log has the earlier one: 2 did not happen, the change is taken back. Anything else
(another file, another log, a backup of either): they do not fit, and the caller begins anew.
As each state in the log is different from every other, there is no fourth case.

An `Entry` with an empty digest is of a key that is known without what it holds: the next record of
the key counts as changed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple, cast

import apsw

from headrace.log.segment import check_sqlite
from headrace.model.errors import Fenced, Unavailable

UNKNOWN = b""
"""The digest of an entry whose record is not known: it equals that of no record."""

_SIDE_FILES = ("-wal", "-shm")
_BUSY_TIMEOUT_MS = 5000
_SCHEMA = """
CREATE TABLE seen (
    key BLOB NOT NULL PRIMARY KEY, digest BLOB NOT NULL, mark INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE replaced (
    key BLOB NOT NULL PRIMARY KEY, digest BLOB, mark INTEGER) WITHOUT ROWID;
CREATE TABLE agreed (
    before BLOB NOT NULL, after BLOB NOT NULL,
    whole_from INTEGER NOT NULL, incomplete INTEGER NOT NULL);
"""
_FORMAT = 1
"""Kept as SQLite's user_version; 0 is a file that was never finished."""


class Entry(NamedTuple):
    """What is known of a key."""

    digest: bytes
    mark: int
    """Of the sweep that last gave the key: `sweeps.SweepProgress.mark`."""


class Seen:
    """The index of one source; for use from one thread.

    What SQLite says of a damaged file becomes `Unavailable` after the file was removed, so that the
    next `settle` finds that nothing fits; no room and a file that another holds are `Unavailable`.
    """

    def __init__(self, path: Path) -> None:
        """Touch nothing yet; `Invalid` if this SQLite is known to lose commits."""
        check_sqlite(apsw.sqlite_lib_version())
        self._path = path
        self._connection: apsw.Connection | None = None

    def settle(self, logged: bytes) -> bool:
        """Agree with the state that the log has, `logged`; return False if that cannot be done.

        Then nothing but `begin` may follow.
        """
        if self._connection is None and not self._path.exists():
            return False
        with self._transaction() as db:
            if _number(db, "PRAGMA user_version") != _FORMAT:
                return False
            ((before, after),) = db.execute("SELECT before, after FROM agreed").fetchall()
            if logged == before != after:
                db.execute("DELETE FROM seen WHERE key IN (SELECT key FROM replaced)")
                db.execute("INSERT INTO seen SELECT * FROM replaced WHERE mark IS NOT NULL")
                db.execute("UPDATE agreed SET after = before")
                db.execute("DELETE FROM replaced")
            return logged in (before, after)

    def begin(self, logged: bytes, whole_from: int, *, incomplete: bool) -> None:
        """Begin anew, empty, in agreement with the log.

        `whole_from` is the mark of the first sweep of which no page can be missing here.
        `incomplete` says that the log has keys of the source that are not here: see `complete`.
        """
        self._remove()
        with self._transaction() as db:
            for statement in filter(str.strip, _SCHEMA.split(";")):
                db.execute(statement)
            db.execute(
                "INSERT INTO agreed VALUES (?, ?, ?, ?)", (logged, logged, whole_from, incomplete)
            )
            db.execute(f"PRAGMA user_version = {_FORMAT}")

    @property
    def whole_from(self) -> int:
        """The mark of the first sweep of which every page is here."""
        with self._transaction() as db:
            return _number(db, "SELECT whole_from FROM agreed")

    @property
    def incomplete(self) -> bool:
        """Whether keys that the source gave in former times may be missing here."""
        with self._transaction() as db:
            return bool(_number(db, "SELECT incomplete FROM agreed"))

    def complete(self, keys: Iterable[bytes]) -> None:
        """Add the keys that are missing, as given by no sweep; from now on it is complete."""
        with self._transaction() as db:
            db.executemany(
                "INSERT OR IGNORE INTO seen VALUES (?, ?, 0)", ((key, UNKNOWN) for key in keys)
            )
            db.execute("UPDATE agreed SET incomplete = 0")

    def look_up(self, keys: Iterable[bytes]) -> dict[bytes, Entry]:
        """Return what is known of those keys of which anything is."""
        with self._transaction() as db:
            found = db.executemany(
                "SELECT key, digest, mark FROM seen WHERE key = ?", ((key,) for key in keys)
            )
            return {key: Entry(digest, mark) for key, digest, mark in found}

    def write(self, before: bytes, after: bytes, entries: Mapping[bytes, Entry | None]) -> None:
        """Make a change durable that holds once the log's state goes from `before` to `after`.

        An entry of None forgets the key. `Fenced` if somebody else wrote since `settle`.
        """
        with self._transaction() as db:
            db.execute(
                "UPDATE agreed SET before = ?1, after = ?2 WHERE after = ?1", (before, after)
            )
            if db.changes() != 1:
                raise Fenced(
                    f"The index {self._path.name} was written by another process",
                    hint="stop one of the two: each source has one owner",
                )
            db.execute("DELETE FROM replaced")
            db.executemany(
                "INSERT INTO replaced SELECT ?1, digest, mark"
                " FROM (SELECT 1) LEFT JOIN seen ON key = ?1",
                ((key,) for key in entries),
            )
            db.executemany(
                "INSERT INTO seen VALUES (?, ?, ?) ON CONFLICT (key)"
                " DO UPDATE SET digest = excluded.digest, mark = excluded.mark",
                ((key, *entry) for key, entry in entries.items() if entry),
            )
            db.executemany(
                "DELETE FROM seen WHERE key = ?",
                ((key,) for key, entry in entries.items() if entry is None),
            )

    def size(self, before_mark: int | None = None) -> int:
        """Return how many keys there are, or how many no sweep from `before_mark` on gave."""
        with self._transaction() as db:
            if before_mark is None:
                return _number(db, "SELECT count(*) FROM seen")
            return _number(db, "SELECT count(*) FROM seen WHERE mark < ?", (before_mark,))

    def not_given(self, since_mark: int, after: bytes, keys_max: int) -> list[bytes]:
        """Return the first keys beyond `after` that no sweep from `since_mark` on gave, in order.

        Empty, `after` is before every key.
        """
        with self._transaction() as db:
            found = db.execute(
                "SELECT key FROM seen WHERE key > ? AND mark < ? ORDER BY key LIMIT ?",
                (after, since_mark, keys_max),
            )
            return [key for (key,) in found]

    def close(self) -> None:
        """Close the file; the next call opens it again."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    @contextmanager
    def _transaction(self) -> Iterator[apsw.Connection]:
        """Lend the open file, in a transaction that is durable at the end."""
        try:
            connection = self._open()
            with connection:
                yield connection
        except (apsw.CorruptError, apsw.NotADBError) as error:
            self._remove()
            raise Unavailable(
                f"The index {self._path.name} is damaged: {error}",
                hint="it is made anew: every record of the next sweep is appended again",
                retry_after_s=0.0,
            ) from error
        except (apsw.FullError, apsw.BusyError, apsw.CantOpenError) as error:
            raise Unavailable(
                f"The index {self._path.name} cannot be written now: {error}",
                hint="look at the room on the disk and at the folder's owner",
            ) from error

    def _open(self) -> apsw.Connection:
        if self._connection is None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            connection = apsw.Connection(str(self._path))
            connection.set_busy_timeout(_BUSY_TIMEOUT_MS)
            connection.pragma("journal_mode", "WAL")
            connection.pragma("synchronous", "FULL")
            self._connection = connection
        return self._connection

    def _remove(self) -> None:
        """Remove the file, then its side files, which mean nothing without it."""
        self.close()
        remove_index(self._path)


def remove_index(path: Path) -> None:
    """Remove an index that nobody has open, its side files after it."""
    path.unlink(missing_ok=True)
    for suffix in _SIDE_FILES:
        Path(f"{path}{suffix}").unlink(missing_ok=True)


def _number(db: apsw.Connection, sql: str, bindings: tuple[int, ...] = ()) -> int:
    """Return the one value of a statement."""
    ((number,),) = db.execute(sql, bindings).fetchall()
    return cast("int", number)
