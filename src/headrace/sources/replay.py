"""The source `replay`: recorded files handed out again, at full speed or at the pace of their time.

The cursor says which file, how many of its records were handed out, and the hash of those records
in the order in which they went. Going on reads the file from its start, which is quick against
appending, and compares the hash where it goes on: a file that only grew at its end goes on, one
that changed under the cursor is refused rather than read askew.
"""

from __future__ import annotations

import glob
import hashlib
import math
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import NamedTuple

import msgspec

from headrace.model.clock import Clock
from headrace.model.errors import HeadraceError, Invalid
from headrace.model.options import option
from headrace.model.source import BYTES_MAX, RECORDS_MAX, Page, PulledRecord
from headrace.sources.documents import documents
from headrace.sources.paths import find, items, name_at, parse_path, string_of

FILE_NAMES = ("*.json", "*.jsonl", "*.ndjson", "*.json.gz", "*.jsonl.gz", "*.ndjson.gz")
"""Names that are taken from a folder."""

_UNITS_US = {"s": 1_000_000, "ms": 1_000, "us": 1}
_DIGEST_BYTES = 16
_BEFORE_ALL = -(1 << 63)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_START_OVER = "put the file back, or give the source another name to read everything again"


@dataclass(frozen=True, slots=True)
class ReplayOptions:
    """What a replay can be told."""

    path: str = option(
        doc="File, folder or glob: NDJSON or JSON arrays, each plain or gzip, seen from the bytes."
        " A folder's files are read in the order of their names.",
        example="recordings/*.ndjson.gz",
        required=True,
    )
    records: str = option(
        "",
        doc="Key path of the record inside each document; an array there is many records.",
        example="item.data",
    )
    order_by: str = option(
        "",
        doc="Key path of a time in each document by which a file's documents are sorted. Sorting"
        " holds one file at a time in memory. A document without a time stays behind the one"
        " before it.",
        example="seen_at",
    )
    order_unit: str = option(
        "s", doc="What a time that is a number counts since 1970: s, ms or us.", example="ms"
    )
    delay_s: float = option(
        0.0, doc="Time between two records.", unit="s", at_least=0, at_most=86_400, example=0.1
    )
    speed: float = option(
        0.0,
        doc="How many times faster than the times of order_by say; 0 is full speed.",
        unit="times",
        at_least=0,
        at_most=1e9,
        example=60.0,
    )
    id: str = option(
        "", doc="Key path, in the record, of its own id: a repeat is a duplicate.", example="uuid"
    )
    key: str = option(
        "", doc="Key path, in the record, of the key that chooses its partition.", example="host"
    )
    seen_at: str = option(
        "",
        doc="Key path of the time in each document at which its records were seen. Of a record's"
        " versions in a keyed table the one seen last holds.",
        example="seen_at",
    )

    def __post_init__(self) -> None:
        """Refuse what does not go together."""
        if self.delay_s and self.speed:
            msg = "delay_s and speed exclude each other"
            raise Invalid(msg, hint="keep one of the two")
        if self.speed and not self.order_by:
            msg = "speed needs order_by: it is relative to those times"
            raise Invalid(msg, hint='say order_by="seen_at", or use delay_s')
        if self.order_unit not in _UNITS_US:
            msg = f"order_unit must be s, ms or us, not {self.order_unit!r}"
            raise Invalid(msg, hint="say what a time that is a number counts")


class _Cursor(msgspec.Struct, frozen=True):
    file: str
    """Name relative to the replay's folder."""
    records: int
    """How many records of the file were handed out."""
    digest: str
    """Hash of those, in order."""
    total: int
    """How many records of all files were handed out."""


class _Timed(NamedTuple):
    """A record, and the times that its document names in microseconds, if any."""

    record: bytes
    time_us: int | None
    seen_at_us: int | None


class Replay:
    """See the module's words. `clock` paces; `options` say what is read."""

    Options = ReplayOptions

    def __init__(
        self,
        options: ReplayOptions,
        clock: Clock,
        network: object = None,  # noqa: ARG002 - every kind is made alike; files need none
    ) -> None:
        self._options = options
        self._clock = clock
        self._closed = threading.Event()
        self._records = parse_path(options.records)
        self._order_by = parse_path(options.order_by)
        self._id = parse_path(options.id)
        self._key = parse_path(options.key)
        self._seen_at = parse_path(options.seen_at)
        self._unit_us = _UNITS_US[options.order_unit]

    def close(self) -> None:
        """See `Source`."""
        self._closed.set()

    def open(self, cursor: bytes | None) -> Iterator[Page]:
        """See `Source`."""
        start = _read_cursor(cursor)
        total = start.total if start else 0
        last = start
        for name, path in _files(self._options.path, start):
            digest = hashlib.blake2b(digest_size=_DIGEST_BYTES)
            timed = self._in_order(path)
            count = 0
            if start and name == start.file:
                count = start.records
                _skip(timed, start, digest, path)
            for gathered in self._due(timed):
                for passed in gathered:
                    digest.update(passed.record + b"\n")
                count += len(gathered)
                total += len(gathered)
                last = _Cursor(name, count, digest.hexdigest(), total)
                pulled = [self._pulled(passed) for passed in gathered]
                yield Page(pulled, msgspec.json.encode(last), progress=(total, None))
            if self._closed.is_set():
                return
        yield Page((), msgspec.json.encode(last), done=True, progress=(total, total))

    def _pulled(self, timed: _Timed) -> PulledRecord:
        key = name_at(timed.record, self._key) if self._key else None
        return PulledRecord(
            value=timed.record,
            key=None if key is None else key.encode(),
            id=name_at(timed.record, self._id) if self._id else None,
            seen_at_us=timed.seen_at_us,
        )

    def _in_order(self, path: Path) -> Iterator[_Timed]:
        """Yield a file's records in the order in which they go out."""
        found = documents(path)
        ordered = self._sorted(found) if self._order_by else ((None, d) for d in found)
        for time_us, document in ordered:
            seen_at_us = self._time_at(document, self._seen_at) if self._seen_at else None
            for record in self._records_of(document):
                yield _Timed(record, time_us, seen_at_us)

    def _records_of(self, document: bytes) -> list[bytes]:
        """Return the records inside a document; one that has none at that path goes as it is."""
        if not self._records:
            return [document]
        inside = find(document, self._records)
        return [document] if inside is None else items(inside)

    def _sorted(self, found: Iterable[bytes]) -> list[tuple[int | None, bytes]]:
        timed: list[tuple[int | None, bytes]] = []
        before = None
        for document in found:
            time_us = self._time_at(document, self._order_by)
            before = before if time_us is None else time_us
            timed.append((before, document))
        timed.sort(key=lambda t: _BEFORE_ALL if t[0] is None else t[0])
        return timed

    def _time_at(self, document: bytes, path: tuple[str, ...]) -> int | None:
        return _time_us(find(document, path), self._unit_us)

    def _due(self, timed: Iterator[_Timed]) -> Iterator[list[_Timed]]:
        """Yield records as pages, each when its records are due; ends when closed.

        What was gathered before a file turned out to be damaged is yielded before the error.
        """
        pace = _Pace(self._options, self._clock)
        gathered: list[_Timed] = []
        size = 0
        try:
            for passed in timed:
                wait_s = pace.wait_s(passed.time_us)
                full = len(gathered) == RECORDS_MAX or size + len(passed.record) > BYTES_MAX
                if gathered and (full or wait_s > 0):
                    yield gathered
                    gathered, size = [], 0
                    wait_s = pace.again_s()
                if self._closed.is_set() or (wait_s > 0 and self._wait(wait_s)):
                    return
                gathered.append(passed)
                size += len(passed.record)
        except HeadraceError:
            if gathered:
                yield gathered
            raise
        if gathered:
            yield gathered

    def _wait(self, seconds: float) -> bool:
        return self._clock.wait(self._closed, seconds)


class _Pace:
    """When each record is due, from the first one on; a slow reader catches up."""

    def __init__(
        self,
        options: ReplayOptions,
        clock: Clock,
        network: object = None,  # noqa: ARG002 - every kind is made alike; files need none
    ) -> None:
        self._options = options
        self._clock = clock
        self._due_s = 0.0
        self._before_us: int | None = None
        self._started_s: float | None = None

    def wait_s(self, time_us: int | None) -> float:
        """Return how long the next record is to wait, 0 for not at all."""
        if not self._options.delay_s and not self._options.speed:
            return 0.0
        if self._started_s is None:
            self._started_s = self._clock.monotonic_s()
        elif self._options.delay_s:
            self._due_s += self._options.delay_s
        elif time_us is not None and self._before_us is not None:
            gap_us = max(0, time_us - self._before_us)
            self._due_s += gap_us / 1_000_000 / self._options.speed
        self._before_us = time_us
        return self.again_s()

    def again_s(self) -> float:
        """Return how long the same record still is to wait."""
        if self._started_s is None:
            return 0.0
        return max(0.0, self._started_s + self._due_s - self._clock.monotonic_s())


def _read_cursor(cursor: bytes | None) -> _Cursor | None:
    if not cursor:
        return None
    try:
        return msgspec.json.decode(cursor, type=_Cursor | None)
    except msgspec.DecodeError as error:
        msg = f"This is no cursor of a replay: {error}"
        hint = "give the source another name, or start over with a new data directory"
        raise Invalid(msg, hint=hint, code="unknown_cursor") from error


def _files(path: str, start: _Cursor | None) -> list[tuple[str, Path]]:
    """Return name and path of the files from the cursor's on; `Invalid` if there are none."""
    given = Path(path).expanduser()
    if given.is_dir():
        found = [(p.name, p) for pattern in FILE_NAMES for p in given.glob(pattern)]
    elif given.is_file():
        found = [(given.name, given)]
    else:
        # Path.glob does not take an absolute pattern.
        matches = glob.glob(str(given), recursive=True)  # noqa: PTH207
        found = [(m, Path(m)) for m in matches if Path(m).is_file()]
    if not found:
        msg = f"There is nothing to replay at {path}"
        raise Invalid(
            msg, hint=f"a folder is searched for {', '.join(FILE_NAMES)}", code="no_files"
        )
    found.sort()
    if start is None:
        return found
    rest = [(name, p) for name, p in found if name >= start.file]
    if not rest or rest[0][0] != start.file:
        msg = f"{start.file}, where the replay had stopped, is gone from {path}"
        raise Invalid(msg, hint=_START_OVER, code="file_gone")
    return rest


def _skip(timed: Iterator[_Timed], start: _Cursor, digest: hashlib.blake2b, path: Path) -> None:
    """Go past the records that were handed out, and check that they are the same."""
    for _ in range(start.records):
        passed = next(timed, None)
        if passed is None:
            break
        digest.update(passed.record + b"\n")
    if digest.hexdigest() != start.digest:
        msg = f"{path} has changed since its first {start.records} records were replayed"
        raise Invalid(msg, hint=_START_OVER, code="file_changed")


def _time_us(text: bytes | None, unit_us: int) -> int | None:
    """Return microseconds since 1970 of an ISO 8601 text (UTC if unsaid) or of a number."""
    if text is None:
        return None
    try:
        if (written := string_of(text)) is not None:
            moment = datetime.fromisoformat(written)
            aware = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
            return (aware - _EPOCH) // timedelta(microseconds=1)
        return math.floor(float(text) * unit_us)
    except (ValueError, OverflowError):
        return None
