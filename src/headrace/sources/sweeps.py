"""Following a service that has no feed of changes: reading it again and again, in sweeps.

`SweepSource` owns what such sources have in common: the cursor, when the next sweep is due,
whether it reads everything or what changed, and whether a full one may be believed. A source of its
own says how a service is asked: see its four hooks.

**Full or changes.** The first sweep is full, and so is every one after `full_every` sweeps of
changes. A full one that turned out to have missed something is followed by another full one, once:
a service whose count is always a little off is not to be read whole for ever.

**When a full sweep is believed.** What it did not give is taken for gone, so it must not have
missed anything: at its end the service is asked how many records there are, and a sweep that gave
fewer different ones ends as one that is not full. So does one in which a part was not `sound`.

**The cursor** is JSON: the sweep, the source's own position in it, and when it ended. Opened in the
wait between two sweeps, a source waits for the rest of it only. A cursor of another filter begins a
new full sweep: what was read by the old one says nothing about the new one.
"""

from __future__ import annotations

import hashlib
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import msgspec

from headrace.model.clock import Clock
from headrace.model.errors import Closed, Invalid, Unavailable
from headrace.model.options import option
from headrace.model.source import (
    BYTES_MAX,
    DIGEST_BYTES,
    RECORDS_MAX,
    Page,
    PulledRecord,
    Sweep,
)
from headrace.sources.http import Network, Service

_DAY_S = 86_400.0
_NOWHERE = msgspec.Raw(b"null")
_ASK_AGAIN = "nothing needs to be done: it is asked again"


@dataclass(frozen=True, slots=True)
class SweepOptions:
    """What every source that sweeps can be told."""

    url: str = option(doc="Where the service is.", example="https://api.example.org/v1")
    contact: str = option(
        "",
        doc="Address or page by which the service's operators reach you; it stands in the"
        " User-Agent. Services ask for one and are kinder to those who say it.",
        example="data@museum.example.org",
    )
    follow: bool = option(
        True,
        doc="Sweep again for ever; false sweeps once and is done.",
        example=False,
    )
    interval_s: float = option(
        3600.0,
        doc="Time from the end of a sweep to the start of the next.",
        unit="s",
        at_least=0,
        at_most=366 * _DAY_S,
        example=900.0,
    )
    overlap_s: float = option(
        _DAY_S,
        doc="How far before the start of the last sweep the next sweep of changes begins: longer"
        " than the service takes to show a change that it has dated.",
        unit="s",
        at_least=0,
        at_most=366 * _DAY_S,
        example=3600.0,
    )
    full_every: int = option(
        23,
        doc="Sweeps of changes between two full ones; deletions are found by full ones only. 0"
        " makes every sweep a full one.",
        unit="sweeps",
        at_least=0,
        at_most=1_000_000,
        example=6,
    )
    requests_per_s: float = option(
        1.0,
        doc="Requests that are sent at most, one at a time.",
        unit="requests/s",
        at_least=0.001,
        at_most=1000,
        example=0.5,
    )
    timeout_s: float = option(
        60.0,
        doc="How long the service may take to connect, and between two parts of an answer.",
        unit="s",
        at_least=0.1,
        at_most=3600,
        example=30.0,
    )
    page_size: int = option(
        1000,
        doc="Records to ask for at a time.",
        unit="records",
        at_least=1,
        at_most=RECORDS_MAX,
        example=500,
    )


class Part(NamedTuple):
    """Some records of a sweep, and where to go on after them: a page as a service's hook has it."""

    records: Sequence[PulledRecord]
    """Within the bounds of a page; see `bounded`."""
    position: bytes
    """The hook's own, JSON."""
    total: int | None = None
    """How many records the sweep has in all, if the service says it now."""
    repeats: int = 0
    """How many of the records the sweep has given before."""
    sound: bool = True
    """False if records that were there all the time may have been missed before this part."""


class SweepCursor(msgspec.Struct, frozen=True, omit_defaults=True):
    """How far a source has come."""

    number: int
    started_at_us: int
    filter: str
    """What is asked for; a cursor of another filter is not gone on from."""
    full: bool = True
    """Whether the sweep reads everything."""
    since_us: int | None = None
    """From when on a sweep of changes reads."""
    position: msgspec.Raw = _NOWHERE
    """Where the sweep is, as its hook says; null before its first part."""
    records: int = 0
    """Given by this sweep, repeats included."""
    repeats: int = 0
    total: int | None = None
    sound: bool = True
    ended_at_us: int | None = None
    """None while the sweep is under way."""
    changes: int = 0
    """Sweeps of changes since the last full one, this one included."""
    again: bool = False
    """Whether it is full because the sweep before was, and missed something."""

    def sweep(self) -> Sweep:
        """Return the sweep as pages name it."""
        return Sweep(self.number, self.started_at_us, self.full and self.sound)


class SweepSource(ABC):
    """A source that sweeps, over four hooks: `filter`, `parts`, `count` and `deletion`."""

    def __init__(self, options: SweepOptions, clock: Clock, network: Network) -> None:
        """Keep the options; nothing is asked before `open`."""
        self._sweeping = options
        self.clock = clock
        self.closed = threading.Event()
        self.rests_until_us: int | None = None
        self.service = Service(
            network,
            options.url,
            contact=options.contact,
            closed=self.closed,
            timeout_s=options.timeout_s,
            requests_per_s=options.requests_per_s,
        )

    @abstractmethod
    def filter(self) -> str:
        """Return what is asked for, as a person reads it; the same for the same options."""

    @abstractmethod
    def parts(self, sweep: Sweep, since_us: int | None, position: bytes | None) -> Iterator[Part]:
        """Yield a sweep's records from after `position` on; it ends where they end.

        `since_us` is None for a full sweep, else from when on changes are asked for. A sweep at
        whose position everything was given yields nothing more. Raises what `Source.open` raises.
        """

    @abstractmethod
    def count(self) -> tuple[int, str]:
        """See `Swept`."""

    @abstractmethod
    def deletion(self, key: bytes) -> bytes:
        """See `Swept`."""

    def close(self) -> None:
        """See `Source`."""
        self.closed.set()

    def open(self, cursor: bytes | None) -> Iterator[Page]:
        """See `Source`."""
        at = read_cursor(cursor)
        try:
            if at is None or at.filter != self.filter():
                at = self._first(at)
            elif at.ended_at_us is not None and not self._sweeping.follow:
                yield self._page((), at, done=True)
                return
            while True:
                if at.ended_at_us is not None:
                    if self._wait(at.ended_at_us):
                        return
                    at = self._next(at)
                at = yield from self._sweep(at)
                if not self._sweeping.follow:
                    return
        except Closed:
            return

    def _first(self, before: SweepCursor | None) -> SweepCursor:
        number = before.number + 1 if before else 1
        return SweepCursor(number, self.clock.now_us(), self.filter())

    def _next(self, ended: SweepCursor) -> SweepCursor:
        """Return the cursor at the start of the sweep after the one that ended."""
        again = ended.full and not ended.sound and not ended.again
        full = again or ended.changes >= self._sweeping.full_every
        since_us = ended.started_at_us - round(self._sweeping.overlap_s * 1_000_000)
        return SweepCursor(
            number=ended.number + 1,
            started_at_us=self.clock.now_us(),
            filter=ended.filter,
            full=full,
            since_us=None if full else max(0, since_us),
            changes=0 if full else ended.changes + 1,
            again=again,
        )

    def _sweep(self, at: SweepCursor) -> Generator[Page, None, SweepCursor]:
        """Yield a sweep's pages from a cursor on; return the cursor at its end."""
        position = None if at.position == _NOWHERE else bytes(at.position)
        for part in self.parts(at.sweep(), at.since_us, position):
            if self.closed.is_set():
                raise Closed("The source is closed")
            at = msgspec.structs.replace(
                at,
                position=msgspec.Raw(part.position),
                records=at.records + len(part.records),
                repeats=at.repeats + part.repeats,
                total=at.total if part.total is None else part.total,
                sound=at.sound and part.sound,
            )
            yield self._page(part.records, at)
        at = msgspec.structs.replace(
            at, sound=at.sound and self._is_whole(at), ended_at_us=self.clock.now_us()
        )
        yield self._page((), at, done=not self._sweeping.follow, sweep_done=True)
        return at

    def _is_whole(self, at: SweepCursor) -> bool:
        """Return whether a sweep gave as many different records as the service has by now."""
        return not at.full or at.records - at.repeats >= self.count()[0]

    def _wait(self, ended_at_us: int) -> bool:
        """Wait until the next sweep is due; return whether the source was closed."""
        gone_s = (self.clock.now_us() - ended_at_us) / 1_000_000
        rest_s = self._sweeping.interval_s - max(0.0, gone_s)
        if rest_s <= 0:
            return self.closed.is_set()
        self.rests_until_us = self.clock.now_us() + round(rest_s * 1_000_000)
        try:
            return self.clock.wait(self.closed, rest_s)
        finally:
            self.rests_until_us = None

    def _page(
        self,
        records: Sequence[PulledRecord],
        at: SweepCursor,
        *,
        done: bool = False,
        sweep_done: bool = False,
    ) -> Page:
        return Page(
            records,
            msgspec.json.encode(at),
            done=done,
            progress=(at.records, at.total),
            sweep=at.sweep(),
            sweep_done=sweep_done,
        )


def read_cursor(cursor: bytes | None) -> SweepCursor | None:
    """Return a source's cursor; None before its first page, `Invalid` for what is none."""
    if not cursor:
        return None
    try:
        return msgspec.json.decode(cursor, type=SweepCursor | None)
    except msgspec.DecodeError as error:
        msg = f"This is no cursor of a source that sweeps: {error}"
        hint = "give the source another name, or start over with a new data directory"
        raise Invalid(msg, hint=hint, code="unknown_cursor") from error


def bounded(records: Iterable[PulledRecord]) -> Iterator[list[PulledRecord]]:
    """Cut records into lists that fit a page."""
    gathered: list[PulledRecord] = []
    size = 0
    for record in records:
        full = len(gathered) == RECORDS_MAX or size + len(record.value) > BYTES_MAX
        if gathered and full:
            yield gathered
            gathered, size = [], 0
        gathered.append(record)
        size += len(record.value)
    if gathered:
        yield gathered


def keyset_parts(
    records: Iterable[PulledRecord],
    after: str,
    position: Callable[[str], bytes],
    *,
    total: int | None = None,
    sound: bool = True,
) -> Iterator[Part]:
    """Yield a page of a service that orders by key, as parts that go on behind their last key.

    `after` is the key behind which the page was asked for, `position` makes the position of a key.
    Raises `Unavailable` if the page holds nothing that is behind it: asked on, it would not end.
    """
    highest = after
    for cut in bounded(records):
        repeats = 0
        for record in cut:
            key = "" if record.key is None else record.key.decode("utf-8", "surrogatepass")
            repeats += record.key is not None and key <= highest
            highest = max(highest, key)
        if highest == after:
            msg = f"A page does not go on behind {after or 'its start'}, as it was asked to"
            raise Unavailable(msg, hint=_ASK_AGAIN, code="unreadable_answer")
        yield Part(cut, position(highest), total, repeats, sound)


def swept_record(
    value: bytes, id_member: str, asked_at_us: int, volatile: frozenset[str] = frozenset()
) -> PulledRecord:
    """Return a record as a service sent it, keyed by its member `id_member`: a string or a number.

    `volatile` names the members that change without meaning; see `digest_of`. A record without an
    id goes as it is, without key and digest: whether the topic takes it is judged where all are.
    """
    members = _members(value)
    key = members.get(id_member)
    if not isinstance(key, str | int) or isinstance(key, bool) or key == "":
        return PulledRecord(value, seen_at_us=asked_at_us)
    return PulledRecord(
        value,
        key=str(key).encode("utf-8", "surrogatepass"),
        digest=digest_of(members, volatile),
        seen_at_us=asked_at_us,
    )


def digest_of(members: dict[str, object], volatile: frozenset[str]) -> bytes:
    """Return a hash of a JSON object that is the same for the same content.

    The order of members and how it is spaced do not matter, nor do the members in `volatile`.
    """
    kept = {name: value for name, value in members.items() if name not in volatile}
    canonical = msgspec.json.encode(kept, order="sorted")
    return hashlib.blake2b(canonical, digest_size=DIGEST_BYTES).digest()


_OBJECT = msgspec.json.Decoder(dict[str, object])


def _members(value: bytes) -> dict[str, object]:
    try:
        return _OBJECT.decode(value)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        msg = f"A record of the answer is no JSON object: {error}"
        raise Unavailable(msg, hint=_ASK_AGAIN, code="unreadable_answer") from error
