"""A segment of the embedded log: one SQLite file, its schema, and how it is opened.

============  ================================================================================
table         one row
============  ================================================================================
`segment`     the segment itself: format, number, when it was opened, whether it is closed
`topics`      a topic that exists when the segment ends (a deleted one leaves the newest alone)
`firsts`      the first offset of a partition in this segment, and its bytes in all before
`batches`     a group-committed batch; its blob is `model.batch.encode`, as is or lz4
`state`       a keyed value
============  ================================================================================

Topics are named in `batches` by a number that is never used again, so what a deleted topic leaves
behind belongs to nobody. A segment file that exists under its own name is complete: it is built
under a temporary name first.
"""

from __future__ import annotations

import errno
import os
import re
import sys
import uuid
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import apsw
import msgspec

from headrace.model.errors import Corrupt, HeadraceError, Invalid, Unavailable
from headrace.model.failpoint import failpoint
from headrace.model.log import StateEntry, TopicInfo

FORMAT = 1
BUSY_TIMEOUT_MS = 5000

_NAME = re.compile(r"(\d{20})\.db")
_SIDE_FILES = ("-wal", "-shm", "-journal")
_FIXED = (3, 44, 6), (3, 50, 7)
_WAL_RESET_BUG_FROM, _WAL_RESET_BUG_TO = (3, 7, 0), (3, 51, 2)

_SCHEMA = """
CREATE TABLE segment (
    format INTEGER NOT NULL, number INTEGER NOT NULL, opened_at_us INTEGER NOT NULL,
    closed INTEGER NOT NULL, next_topic INTEGER NOT NULL, revision INTEGER NOT NULL);
CREATE TABLE topics (
    id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, incarnation TEXT NOT NULL,
    partitions INTEGER NOT NULL, crc32 INTEGER NOT NULL);
CREATE TABLE firsts (
    topic INTEGER NOT NULL, partition INTEGER NOT NULL, first_offset INTEGER NOT NULL,
    bytes_before INTEGER NOT NULL,
    PRIMARY KEY (topic, partition)) WITHOUT ROWID;
CREATE TABLE batches (
    topic INTEGER NOT NULL, partition INTEGER NOT NULL, base_offset INTEGER NOT NULL,
    n INTEGER NOT NULL, first_ts INTEGER NOT NULL, last_ts INTEGER NOT NULL,
    bytes_before INTEGER NOT NULL, raw_bytes INTEGER NOT NULL, codec INTEGER NOT NULL,
    crc32 INTEGER NOT NULL, blob BLOB NOT NULL,
    PRIMARY KEY (topic, partition, base_offset)) WITHOUT ROWID;
CREATE TABLE state (
    key TEXT NOT NULL PRIMARY KEY, value BLOB NOT NULL, revision INTEGER NOT NULL,
    crc32 INTEGER NOT NULL) WITHOUT ROWID;
"""


INSERT_TOPIC = "INSERT INTO topics VALUES (?,?,?,?,?)"
PUT_STATE = "INSERT OR REPLACE INTO state VALUES (?,?,?,?)"


@dataclass(slots=True)
class Contents:
    """What a segment begins with: everything that a log knows apart from records."""

    number: int
    opened_at_us: int
    next_topic: int = 1
    revision: int = 0
    """The highest revision ever given: a key deleted and put again goes on above it."""
    topics: dict[int, TopicInfo] = field(default_factory=dict)
    firsts: dict[tuple[int, int], int] = field(default_factory=dict)
    """(topic number, partition) → first offset."""
    bytes_before: dict[tuple[int, int], int] = field(default_factory=dict)
    """(topic number, partition) → bytes of all blobs in earlier segments, trimmed ones too."""
    state: dict[str, StateEntry] = field(default_factory=dict)


def check_sqlite(version: str) -> None:
    """Raise `Invalid` for a SQLite whose WAL can lose a commit.

    3.7.0 to 3.51.2 can overwrite committed frames when two connections meet at the moment the WAL
    is reset; 3.44.6 and 3.50.7 have the repair.
    """
    number = tuple(int(part) for part in version.split(".")[:3])
    if _WAL_RESET_BUG_FROM <= number <= _WAL_RESET_BUG_TO and number not in _FIXED:
        raise Invalid(
            f"SQLite {version} can lose committed records when its WAL is reset",
            hint="install apsw 3.51.3 or later from its wheel, which brings its own SQLite",
            code="sqlite_unsafe",
        )


def segment_path(directory: Path, number: int) -> Path:
    """Return where a segment's file is."""
    return directory / f"{number:020d}.db"


def segment_numbers(directory: Path) -> list[int]:
    """Return the numbers of existing segments, ascending; none if there is no folder."""
    try:
        with os.scandir(directory) as entries:
            matches = [_NAME.fullmatch(entry.name) for entry in entries]
    except FileNotFoundError:
        return []
    return sorted(int(match[1]) for match in matches if match)


def sync_folder(directory: Path) -> None:
    """Make the names in a folder durable."""
    handle = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sync_wal(path: Path) -> None:
    """Make durable what a segment's WAL holds.

    Whoever opens a segment after a crash recovers frames that the crashed writer may not have
    synced; they may only be shown once they are. The WAL carries no locks, so opening it beside
    SQLite is safe (opening the database itself would drop this process's locks on it).
    """
    try:
        handle = os.open(f"{path}-wal", os.O_RDONLY)
    except FileNotFoundError:
        return
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def open_writing(path: Path) -> apsw.Connection:
    """Open an existing segment to write to it: every COMMIT is on disk when it returns."""
    connection = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READWRITE)
    connection.set_busy_timeout(BUSY_TIMEOUT_MS)
    connection.pragma("synchronous", "FULL")
    # SQLite's own checkpoints swallow a failed fsync, and the next one then reports success.
    connection.pragma("wal_autocheckpoint", 0)
    connection.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1)
    if sys.platform == "darwin":
        connection.pragma("fullfsync", value=True)
        connection.pragma("checkpoint_fullfsync", value=True)
    return connection


def open_reading(path: Path) -> apsw.Connection:
    """Open a segment for reading only, and make sure that what it shows is durable."""
    connection = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READONLY)
    try:
        connection.set_busy_timeout(BUSY_TIMEOUT_MS)
        _check_format(connection, path)
        sync_wal(path)
    except BaseException:
        connection.close()
        raise
    return connection


def _check_format(connection: apsw.Connection, path: Path) -> None:
    ((found,),) = query(connection, "SELECT format FROM segment")
    if found != FORMAT:
        raise Invalid(
            f"The log segment {path.name} has format {found}; this version reads {FORMAT}",
            hint="open the data directory with the version of Headrace that wrote it",
            code="format_unknown",
        )


def query(connection: apsw.Connection, sql: str, bindings: tuple[Any, ...] = ()) -> list[Any]:
    """Return all rows of a statement, so that no read stays open behind the call."""
    return connection.execute(sql, bindings).fetchall()


def create_segment(directory: Path, contents: Contents) -> Path:
    """Build a segment, durable and complete before it gets its name; return its path."""
    path = segment_path(directory, contents.number)
    building = path.with_suffix(".new")
    remove_segment(building)
    connection = apsw.Connection(str(building))
    try:
        connection.pragma("journal_mode", "WAL")
        connection.pragma("synchronous", "FULL")
        with connection:
            _fill(connection, contents)
        connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_TRUNCATE)
    finally:
        connection.close()
    _sync_file(building)
    building.rename(path)
    sync_folder(directory)
    return path


def _fill(connection: apsw.Connection, contents: Contents) -> None:
    connection.execute(_SCHEMA)
    connection.execute(
        "INSERT INTO segment VALUES (?,?,?,0,?,?)",
        (FORMAT, contents.number, contents.opened_at_us, contents.next_topic, contents.revision),
    )
    connection.executemany(
        INSERT_TOPIC, [topic_row(id_, info) for id_, info in contents.topics.items()]
    )
    connection.executemany(
        "INSERT INTO firsts VALUES (?,?,?,?)",
        [(*key, first, contents.bytes_before[key]) for key, first in contents.firsts.items()],
    )
    connection.executemany(PUT_STATE, [state_row(entry) for entry in contents.state.values()])


def _sync_file(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def load_contents(connection: apsw.Connection) -> Contents:
    """Read what a segment holds apart from records."""
    ((number, opened_at_us, next_topic, revision),) = query(
        connection, "SELECT number, opened_at_us, next_topic, revision FROM segment"
    )
    return Contents(
        number,
        opened_at_us,
        next_topic,
        revision,
        dict(topic_of(row) for row in query(connection, "SELECT * FROM topics")),
        load_firsts(connection),
        {(t, p): size for t, p, size in query(connection, _BYTES_BEFORE)},
        {row[0]: state_of(row) for row in query(connection, "SELECT * FROM state")},
    )


def topic_row(id_: int, info: TopicInfo) -> tuple[Any, ...]:
    """Return a row of `topics`."""
    return _with_checksum((id_, info.name, info.incarnation, info.partitions))


def topic_of(row: tuple[Any, ...]) -> tuple[int, TopicInfo]:
    """Return the number and the topic of a row, or raise `Corrupt` if any bit has changed."""
    id_, *info = _checked(row)
    return id_, TopicInfo(*info)


def state_row(entry: StateEntry) -> tuple[Any, ...]:
    """Return a row of `state`."""
    return _with_checksum((entry.key, entry.value, entry.revision))


def state_of(row: tuple[Any, ...]) -> StateEntry:
    """Return the entry of a row, or raise `Corrupt` if any bit has changed."""
    return StateEntry(*_checked(row))


def _with_checksum(columns: tuple[Any, ...]) -> tuple[Any, ...]:
    return (*columns, zlib.crc32(msgspec.msgpack.encode(columns)))


def _checked(row: tuple[Any, ...]) -> tuple[Any, ...]:
    columns = row[:-1]
    if _with_checksum(columns) != row:
        raise Corrupt(
            f"What the log keeps of {columns[0]} fails its checksum",
            hint="the disk changed stored bytes; restore the data directory from a backup",
            code="log_segment_damaged",
        )
    return columns


def load_firsts(connection: apsw.Connection) -> dict[tuple[int, int], int]:
    """Read the first offset of every partition in a segment."""
    found = query(connection, "SELECT topic, partition, first_offset FROM firsts")
    return {(t, p): first for t, p, first in found}


_BYTES_BEFORE = "SELECT topic, partition, bytes_before FROM firsts"
_LAST = (
    "SELECT base_offset, n, bytes_before, raw_bytes FROM batches"
    " WHERE topic = ? AND partition = ? AND base_offset < ? ORDER BY base_offset DESC LIMIT 1"
)
_OFFSET_MAX = (1 << 63) - 1


def end_of(connection: apsw.Connection, topic: int, partition: int, first: int) -> int:
    """Return the offset after a partition's last record in a segment."""
    # max(base_offset + n) would scan.
    rows = query(connection, _LAST, (topic, partition, _OFFSET_MAX))
    return rows[0][0] + rows[0][1] if rows else first


def bytes_until(
    connection: apsw.Connection, topic: int, partition: int, offset: int = _OFFSET_MAX
) -> int:
    """Return the bytes of a partition's blobs from the first ever to before an offset.

    A batch that the offset cuts counts by its share. Two lookups, whatever the log holds.
    """
    rows = query(connection, _LAST, (topic, partition, offset))
    if rows:
        ((base, n, before, raw_bytes),) = rows
        return before + raw_bytes * min(offset - base, n) // n
    rows = query(
        connection, _BYTES_BEFORE + " WHERE topic = ? AND partition = ?", (topic, partition)
    )
    return rows[0][2] if rows else 0


def settle(connection: apsw.Connection) -> bool:
    """Close a segment that another one follows, and bring its WAL home.

    Returns whether it left WAL mode: from then on it is one file that nothing changes. It cannot
    while somebody has it open; the next try may.

    1. `closed` is set. 2. The WAL is checkpointed. 3. The WAL is given up.
    """
    connection.set_busy_timeout(0)
    try:
        connection.execute("UPDATE segment SET closed = 1 WHERE NOT closed")  # 1
        failpoint("seal.3")
        connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_TRUNCATE)  # 2
        return bool(connection.pragma("journal_mode", "DELETE") == "delete")  # 3
    except (apsw.Error, OSError) as error:
        if not is_no_room(error):
            raise
        return False


def is_closed(connection: apsw.Connection) -> bool:
    """Return whether the segment says that another one follows it."""
    ((closed,),) = query(connection, "SELECT closed FROM segment")
    return bool(closed)


def is_settled(connection: apsw.Connection) -> bool:
    """Return whether `settle` was done to the end."""
    return is_closed(connection) and connection.pragma("journal_mode") == "delete"


def remove_segment(path: Path) -> None:
    """Unlink a segment's file, then its side files.

    The file goes first: without it the side files mean nothing, while the file without its WAL
    would be a segment that lost records.
    """
    path.unlink(missing_ok=True)
    for suffix in _SIDE_FILES:
        Path(f"{path}{suffix}").unlink(missing_ok=True)


def remove_leftovers(directory: Path) -> None:
    """Unlink what a crash left: segments never named, side files of segments that are gone."""
    names = {path.name for path in directory.iterdir()}
    for name in names:
        base = name
        for suffix in _SIDE_FILES:
            base = base.removesuffix(suffix)
        if base.endswith(".new") or (base != name and base.endswith(".db") and base not in names):
            (directory / name).unlink(missing_ok=True)


def new_incarnation(id_: bytes) -> str:
    """Return the text of an incarnation."""
    return str(uuid.UUID(bytes=id_))


_NO_ROOM = (errno.ENOSPC, errno.EDQUOT)


def is_no_room(error: BaseException) -> bool:
    """Return whether an error says that nothing was written because there is no room, or a lock."""
    if isinstance(error, OSError):
        return error.errno in _NO_ROOM
    return isinstance(error, (apsw.FullError, apsw.BusyError, apsw.LockedError))


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn what SQLite says while a segment is read into our kinds; a missing file stays one."""
    try:
        yield
    except (apsw.CorruptError, apsw.NotADBError, apsw.SQLError) as error:
        raise Corrupt(
            f"The log segment {path.name} is damaged: {error}",
            hint="restore the data directory from a backup",
            code="log_segment_damaged",
        ) from error
    except apsw.CantOpenError as error:
        if not path.exists():
            raise FileNotFoundError(path) from error
        raise _unreadable(path, error) from error
    except apsw.IOError as error:
        if getattr(error, "extendedresult", 0) == apsw.SQLITE_IOERR_SHORT_READ:
            raise Corrupt(
                f"The log segment {path.name} is shorter than it says",
                hint="restore the data directory from a backup",
                code="log_segment_damaged",
            ) from error
        raise _unreadable(path, error) from error
    except apsw.Error as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: Exception) -> HeadraceError:
    return Unavailable(
        f"The log segment {path.name} cannot be read now: {error}",
        hint="check the folder's owner, and that the disk is well",
        code="log_unreadable",
    )
