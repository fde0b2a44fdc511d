"""Reading a query of GBIF's search whole: slice by slice, page by page.

Pages are cut by offset, so a record that appears or goes away while a slice is read moves the
others, and one may be missed. A reading of a slice is *clean* if the service counted the same
number of records on every page and as many different ones came. One that is not is read again, a
bounded number of times, with pages that are a record shorter: replies are cached for ten minutes by
their address, and the same addresses would give the same pages. What is still not clean is said
not to be sound.

What remains: a record that goes away and one that appears between two pages, the one before and the
other after the place where the reading is, cancel out and are not noticed; and a record whose
dataset or year changes may move from a slice that is still to be read into one that was. The first
is bounded to a sweep; the second makes the whole sweep give fewer records than GBIF counts.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple, Protocol

import msgspec

from headrace.model.errors import Invalid, Unavailable
from headrace.model.source import PulledRecord
from headrace.sources.gbif_query import Step
from headrace.sources.gbif_slices import (
    WALL,
    Facet,
    Path,
    fields_to_cut_by,
    too_large,
)
from headrace.sources.sweeps import Part, bounded

REREADS_OF_A_SLICE_MAX = 2
REREADS_MAX = 8
"""How often a slice, and how often slices of one sweep, are read again."""


class Position(msgspec.Struct, frozen=True, omit_defaults=True):
    """Which slice is read, and how far."""

    path: tuple[Step, ...] = ()
    offset: int = 0
    count: int | None = None
    """How many records the slice had on the first page of this reading."""
    seen: int = 0
    """Different records that this reading gave."""
    steady: bool = True
    """Whether the count has been the same on every page."""
    again: int = 0
    """How often the slice was read before."""
    rereads: int = 0
    """How many readings of this sweep were repeated."""
    dropped: int = 0
    """Records that were given by a reading that counts no more; told with the next records."""
    finished: bool = False
    """Whether the slice was given, and the next one is to be found."""

    @property
    def is_clean(self) -> bool:
        """Whether a finished reading missed nothing."""
        return self.steady and self.seen >= (self.count or 0)


class Found(NamedTuple):
    """A page of a query."""

    records: list[PulledRecord]
    total: int
    """Of the query, in all."""
    ends: bool
    """Whether the service says that there is nothing after it."""


class Search(Protocol):
    """How the service is asked."""

    def page(self, path: Path, offset: int, limit: int) -> Found:
        """Return records of a slice; there may be fewer than asked for."""

    def facet(self, path: Path, field: str) -> Facet:
        """Return how many records of a slice have each value of a field."""


class Slices:
    """One reading of a query. `careful`: repeat what is not clean."""

    def __init__(self, search: Search, page_size: int, *, careful: bool, wall: int = WALL) -> None:
        self._search = search
        self._page_size = page_size
        self._careful = careful
        self._wall = wall
        self._target = max(1, wall // 2)
        """Records of a slice that joins values: far enough below the wall to grow meanwhile."""
        self._facets: dict[tuple[Path, str], Facet] = {}
        self._keys: set[bytes] = set()
        self._total: int | None = None

    def parts(self, at: Position) -> Iterator[Part]:
        """Yield the records from a position on, each part with the position after it."""
        while True:
            if at.finished:
                path = self._after(at.path)
                if path is None:
                    return
                at = self._begun(Position(path=path, rereads=at.rereads, dropped=at.dropped))
            limit = min(max(1, self._page_size - at.again), self._wall - at.offset)
            found = self._search.page(at.path, at.offset, limit)
            if not at.path:
                self._total = found.total
            if found.total > self._wall:
                path = self._cut(at.path, found.total)
                dropped = at.dropped + at.seen
                at = self._begun(Position(path=path, rereads=at.rereads, dropped=dropped))
                continue
            for part in self._given(at, found):
                yield part
                at = msgspec.json.decode(part.position, type=Position)

    def _begun(self, at: Position) -> Position:
        self._keys.clear()
        return at

    def _given(self, at: Position, found: Found) -> Iterator[Part]:
        """Yield a page's records in parts that fit a page of ours."""
        count = found.total if at.count is None else at.count
        at = msgspec.structs.replace(at, count=count, steady=at.steady and found.total == count)
        ends = self._ends(at, found)
        pieces = list(bounded(found.records)) or [[]]
        for number, records in enumerate(pieces, 1):
            new = sum(self._is_new(record) for record in records)
            repeats = len(records) - new + at.dropped
            at = msgspec.structs.replace(
                at, offset=at.offset + len(records), seen=at.seen + new, dropped=0
            )
            sound = True
            if ends and number == len(pieces):
                at, sound = self._ended(at)
            yield Part(records, msgspec.json.encode(at), self._total, repeats, sound)

    def _ends(self, at: Position, found: Found) -> bool:
        after = at.offset + len(found.records)
        if not found.records and not found.ends and after < found.total:
            msg = f"GBIF gave an empty page at {after} of {found.total} records"
            hint = "nothing needs to be done: it is asked again"
            raise Unavailable(msg, hint=hint, code="unreadable_answer")
        return found.ends or not found.records or after >= self._wall

    def _is_new(self, record: PulledRecord) -> bool:
        if record.key is None:
            return True
        before = len(self._keys)
        self._keys.add(record.key)
        return len(self._keys) > before

    def _ended(self, at: Position) -> tuple[Position, bool]:
        """Return the position after a slice was read, and whether it was read soundly."""
        once_more = at.again < REREADS_OF_A_SLICE_MAX and at.rereads < REREADS_MAX
        if at.is_clean or not self._careful or not once_more:
            return msgspec.structs.replace(at, finished=True), at.is_clean
        again = Position(path=at.path, again=at.again + 1, rereads=at.rereads + 1, dropped=at.seen)
        return self._begun(again), True

    def _cut(self, path: Path, records: int) -> Path:
        """Return the first slice within one that is too large.

        A field that every record has is taken before one that some lack, which takes a predicate.
        """
        chosen: Facet | None = None
        for field in fields_to_cut_by(path):
            facet = self._facet(path, field)
            if facet.usable and (chosen is None or not facet.missing):
                chosen = facet
                if not facet.missing:
                    break
        first = None if chosen is None else chosen.after(None, self._target)
        if first is None:
            raise self._too_large(path, records)
        return (*path, first)

    def _too_large(self, path: Path, records: int) -> Invalid:
        steps = " and ".join(f"{s.field} {'none' if s.values is None else s.values}" for s in path)
        return too_large(steps or "this one", records, self._wall)

    def _after(self, path: Path) -> Path | None:
        """Return the slice after one that was read; None after the last."""
        while path:
            *above, last = path
            path = tuple(above)
            beside = self._facet(path, last.field).after(last, self._target)
            if beside is not None:
                return (*path, beside)
        return None

    def _facet(self, path: Path, field: str) -> Facet:
        if (path, field) not in self._facets:
            # Only slices above the one that is read are asked of again.
            kept = {k: f for k, f in self._facets.items() if k[0] == path[: len(k[0])]}
            self._facets = {**kept, (path, field): self._search.facet(path, field)}
        return self._facets[path, field]
