"""The source `http_stream`: an HTTP answer without an end, its records as they come.

The cursor says where the stream is: the highest position that a record named, how many records
named just that one, and the last event's id. After a break it connects again, with that id in
`Last-Event-ID` and with the position in a parameter if the service takes one, and leaves out what
comes a second time: everything before that position, and as many records at it as were taken.
That asks for a stream in the order of its positions. A stream without positions and without ids
gives after a break whatever it gives to a new listener, and every page says so.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import msgspec

from headrace.model.clock import Clock
from headrace.model.errors import Closed, HeadraceError, Internal, Invalid, Unavailable
from headrace.model.options import option
from headrace.model.source import BYTES_MAX, Page, PulledRecord
from headrace.sources.http import Answer, Network, Service
from headrace.sources.paths import Path, find, name_at, parse_path
from headrace.sources.stream_split import FORMATS, Item, Splitter, format_of

PAGE_RECORDS_MAX = 1_000
PAGE_S = 0.25
"""A page is full with so many records, or when its first has waited so long."""
CHUNKS_MAX = 64
"""Pieces of the stream that wait to be taken apart; then nothing more is read from the socket."""
REQUESTS_PER_S = 1.0
"""How often it connects at most."""

Position = int | float | str
_POSITION = msgspec.json.Decoder(Position)


@dataclass(frozen=True, slots=True)
class HttpStreamOptions:
    """What a stream can be told."""

    url: str = option(
        doc="Address of the stream.",
        example="https://stream.example.org/v1/changes",
        required=True,
    )
    format: str = option(
        "",
        doc="How records are told apart: ndjson (a line each), json (documents one after another)"
        " or sse (the data of server-sent events). By itself what Content-Type says, else json.",
        example="ndjson",
    )
    records: str = option(
        "", doc="Key path of the record inside each document.", example="payload.after"
    )
    position: str = option(
        "",
        doc="Key path in each document of a number or text by which the stream is ordered, such as"
        " its time. After a break it goes on from there; without it what is sent again is taken"
        " again.",
        example="time",
    )
    resume_param: str = option(
        "",
        doc="Query parameter in which the last position is sent after a break. The service is to"
        " begin at it, not after it. Without one it is read over.",
        example="from",
    )
    ends: bool = option(
        False,
        doc="Whether the source is done when the stream ends by itself; else it connects again.",
        example=True,
    )
    id: str = option(
        "", doc="Key path, in the record, of its own id: a repeat is a duplicate.", example="uuid"
    )
    key: str = option(
        "", doc="Key path, in the record, of the key that chooses its partition.", example="line"
    )
    idle_s: float = option(
        60.0,
        doc="After so long without a byte the stream counts as broken.",
        unit="s",
        at_least=0.1,
        at_most=86_400,
        example=30.0,
    )
    contact: str = option(
        "", doc="Whom the service's operators can write to.", example="me@example.org"
    )

    def __post_init__(self) -> None:
        """Refuse what does not go together."""
        if self.format not in {"", *FORMATS}:
            msg = f"format must be one of {', '.join(FORMATS)}, not {self.format!r}"
            raise Invalid(msg, hint="leave it out to go by the Content-Type")
        if self.resume_param and not self.position:
            msg = "resume_param needs position: that is what is sent in it"
            raise Invalid(msg, hint='say position="time"')


class _Cursor(msgspec.Struct, frozen=True, omit_defaults=True):
    position: Position | None = None
    """The highest that a record named."""
    at_position: int = 0
    """How many records named just that one."""
    event_id: str | None = None
    records: int = 0
    """How many records were taken since the source first ran."""


class _Ended(NamedTuple):
    error: BaseException | None


class HttpStream:
    """See the module's words."""

    Options = HttpStreamOptions

    def __init__(self, options: HttpStreamOptions, clock: Clock, network: Network) -> None:
        self._options = options
        self._clock = clock
        self._closed = threading.Event()
        self._records = parse_path(options.records)
        self._position = parse_path(options.position)
        self._id = parse_path(options.id)
        self._key = parse_path(options.key)
        self._service = Service(
            network,
            options.url,
            contact=options.contact,
            closed=self._closed,
            timeout_s=options.idle_s,
            requests_per_s=REQUESTS_PER_S,
        )

    def open(self, cursor: bytes | None) -> Iterator[Page]:
        """See `Source`."""
        at = msgspec.json.decode(cursor, type=_Cursor) if cursor else _Cursor()
        place = _Place(at, self._position)
        connection = _Connection(self._service, self._options, at)
        connection.start()
        try:
            yield from self._pages(connection, place, _Growing(self._clock))
        finally:
            connection.stop()

    def close(self) -> None:
        """See `Source`."""
        self._closed.set()

    def _pages(self, connection: _Connection, place: _Place, page: _Growing) -> Iterator[Page]:
        while not self._closed.is_set():
            chunk = connection.next(page.left_s())
            if isinstance(chunk, _Ended):
                yield from self._last(chunk, connection, place, page)
                return
            items = connection.splitter.feed(chunk) if chunk else ()
            for item in items:
                if place.take(item):
                    page.add(self._record(item))
                if page.is_full:
                    yield self._page(page, place)
            if page.is_due:
                yield self._page(page, place)

    def _last(
        self, ended: _Ended, connection: _Connection, place: _Place, page: _Growing
    ) -> Iterator[Page]:
        """Yield what is left when the connection has ended; raise unless that is the end."""
        if ended.error is None:
            for item in connection.splitter.rest():
                if place.take(item):
                    page.add(self._record(item))
        is_over = ended.error is None and self._options.ends
        if page.records or is_over:
            yield self._page(page, place, done=is_over)
        if is_over:
            return
        if ended.error is not None:
            raise ended.error
        raise Unavailable(
            f"The stream {self._options.url} has ended",
            hint="nothing needs to be done: it connects again. ends=True says that this is all",
            code="stream_ended",
        )

    def _record(self, item: Item) -> PulledRecord:
        value = item.value
        if self._records:
            # A document without one is handed on whole: it will say itself what is wrong with it.
            value = find(value, self._records) or value
        key = name_at(value, self._key) if self._key else None
        return PulledRecord(
            value,
            key=None if key is None else key.encode("utf-8", "surrogatepass"),
            id=name_at(value, self._id) if self._id else None,
        )

    def _page(self, page: _Growing, place: _Place, *, done: bool = False) -> Page:
        cursor = msgspec.json.encode(place.cursor)
        repeats = not (self._position or self._id or place.cursor.event_id is not None)
        notice = (
            "After a break the stream gives what it gives to a new listener, and all of it is"
            " taken again: say position=, or id="
            if repeats
            else ""
        )
        records = (place.cursor.records, None)
        return Page(page.taken(), cursor, done=done, progress=records, notice=notice)


class _Place:
    """Where a stream is, and which records come a second time."""

    def __init__(self, cursor: _Cursor, path: Path) -> None:
        self._path = path
        self.cursor = cursor
        self._catching_up = cursor.position is not None
        self._again = cursor.at_position
        """How many records at the cursor's position are still to come a second time."""

    def take(self, item: Item) -> bool:
        """Move on to a record; return whether it is new."""
        position = self._position_of(item.value) if self._path else None
        if self._catching_up and not self._is_new(position):
            return False
        before = self.cursor
        event_id = item.event_id if item.event_id is not None else before.event_id
        moved = msgspec.structs.replace(before, event_id=event_id, records=before.records + 1)
        if position is not None and _is_after(position, before.position):
            moved = msgspec.structs.replace(moved, position=position, at_position=1)
        elif position is not None and position == before.position:
            moved = msgspec.structs.replace(moved, at_position=before.at_position + 1)
        self.cursor = moved
        return True

    def _is_new(self, position: Position | None) -> bool:
        if position is None or _is_after(self.cursor.position, position):
            return False
        if position == self.cursor.position and self._again:
            self._again -= 1
            return False
        self._catching_up = False
        return True

    def _position_of(self, value: bytes) -> Position | None:
        text = find(value, self._path)
        try:
            return None if text is None else _POSITION.decode(text)
        except (msgspec.DecodeError, UnicodeDecodeError):
            return None


def _is_after(position: Position | None, other: Position | None) -> bool:
    """Return whether a position comes after another; numbers come before texts, None first."""
    if position is None or other is None:
        return position is not None
    if isinstance(position, str) or isinstance(other, str):
        if isinstance(position, str) and isinstance(other, str):
            return position > other
        return isinstance(position, str)
    return position > other


class _Growing:
    """Records that wait to be a page."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._begun_s = 0.0
        self._size_bytes = 0
        self.records: list[PulledRecord] = []

    def add(self, record: PulledRecord) -> None:
        """Take one more."""
        if not self.records:
            self._begun_s = self._clock.monotonic_s()
        self.records.append(record)
        self._size_bytes += len(record.value)

    @property
    def is_full(self) -> bool:
        """Whether it takes no more."""
        return len(self.records) >= PAGE_RECORDS_MAX or self._size_bytes >= BYTES_MAX // 2

    @property
    def is_due(self) -> bool:
        """Whether the first has waited long enough."""
        return bool(self.records) and self.left_s() <= 0

    def left_s(self) -> float:
        """Return how long to wait for more, seconds."""
        if not self.records:
            return PAGE_S
        return self._begun_s + PAGE_S - self._clock.monotonic_s()

    def taken(self) -> list[PulledRecord]:
        """Return the records, and begin anew."""
        records, self.records, self._size_bytes = self.records, [], 0
        return records


class _Connection:
    """Reads one answer in a thread of its own, no further ahead than `CHUNKS_MAX`."""

    def __init__(self, service: Service, options: HttpStreamOptions, at: _Cursor) -> None:
        self._service = service
        self._options = options
        self._at = at
        self._stopped = threading.Event()
        self._chunks: queue.Queue[bytes | _Ended] = queue.Queue(CHUNKS_MAX)
        self._splitter: Splitter | None = None

    @property
    def splitter(self) -> Splitter:
        """What cuts the stream; there once a chunk came."""
        return self._splitter or FORMATS["json"]()

    def start(self) -> None:
        """Begin to read."""
        threading.Thread(target=self._run, name="http-stream", daemon=True).start()

    def stop(self) -> None:
        """Have the thread end, at the next bytes or the time-out."""
        self._stopped.set()

    def next(self, timeout_s: float) -> bytes | _Ended:
        """Return the next piece, none after the time-out, or that it has ended."""
        try:
            return self._chunks.get(timeout=max(timeout_s, 0.001))
        except queue.Empty:
            return b""

    def _run(self) -> None:
        params = None
        if self._options.resume_param and self._at.position is not None:
            params = {self._options.resume_param: self._at.position}
        headers = {"last-event-id": self._at.event_id} if self._at.event_id else None
        error: BaseException | None = None
        try:
            self._service.stream(
                self._options.url, self._begin, self._put, params=params, headers=headers
            )
        except HeadraceError as raised:
            error = raised
        except BaseException as raised:  # noqa: BLE001 - raised where it is waited for
            error = Internal(f"The stream was not read: {raised}")
            error.__cause__ = raised
        self._put(_Ended(error))

    def _begin(self, answer: Answer) -> None:
        named = self._options.format or format_of(answer.headers.get("content-type", ""))
        self._splitter = FORMATS[named]()

    def _put(self, chunk: bytes | _Ended) -> None:
        while not self._stopped.is_set():
            try:
                self._chunks.put(chunk, timeout=PAGE_S)
            except queue.Full:
                continue
            return
        if isinstance(chunk, bytes):
            raise Closed("Nobody reads the stream any more")
