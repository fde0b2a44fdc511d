"""Sweeps as values: how far one is, which records are news, whether what it missed is gone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import msgspec

from headrace.model.source import Page, PulledRecord, Sweep
from headrace.pull.seen import UNKNOWN, Entry

DOUBTED_KEYS_MIN = 1000
DOUBTED_PART = 0.5
"""A sweep that misses more than this part of at least so many keys is not believed at once.

A service that lost its search index, or answers a filter that it no longer knows with little or
nothing, looks like one whose records are gone. Taking them out and in again would make every count
jump twice, so a second full sweep has to miss them too. Of fewer keys half may well go at once.
"""


class SweepProgress(msgspec.Struct, frozen=True):
    """How far the present sweep is, or how the last one ended."""

    number: int
    """The source's own, of `Sweep`."""
    mark: int
    """Counts the sweeps of this source here; unlike the number it never begins again."""
    started_at_us: int
    full: bool
    ended: bool = False
    pages: int = 0
    records: int = 0
    """Given by the source."""
    changed: int = 0
    """Of these, appended: they are new, or not what their key had before."""
    new: int = 0
    """Of these, with a key that was not known."""
    deleted: int = 0

    @property
    def unchanged(self) -> int:
        """Records given and not appended."""
        return self.records - self.changed


class Sorted(NamedTuple):
    """A page's records, told apart by what was known before."""

    changed: list[PulledRecord]
    entries: dict[bytes, Entry | None]
    """What is known of the page's keys after it; None of a key that is gone."""
    new: int


def keyed(page: Page) -> Iterable[bytes]:
    """Return the keys of a page's records; a key of no bytes is none."""
    return {record.key for record in page.records if record.key}


def sort_out(page: Page, known: Mapping[bytes, Entry], mark: int) -> Sorted:
    """Tell which records of a sweep's page are news.

    A record without a key or a digest always is. One that says that its key is gone is news if the
    key is known.
    """
    changed: list[PulledRecord] = []
    entries: dict[bytes, Entry | None] = {}
    new = 0
    for record in page.records:
        if not record.key:
            changed.append(record)
            continue
        before = entries[record.key] if record.key in entries else known.get(record.key)
        if record.deleted:
            entries[record.key] = None
            is_news = before is not None
        else:
            digest = record.digest or UNKNOWN
            entries[record.key] = Entry(digest, mark)
            is_news = before is None or before.digest != digest or digest == UNKNOWN
            new += before is None
        if is_news:
            changed.append(record)
    return Sorted(changed, entries, new)


def follow(last: SweepProgress | None, sweep: Sweep) -> SweepProgress:
    """Return the progress of the sweep that a page is of, before that page."""
    if last is not None and last.number == sweep.number:
        return msgspec.structs.replace(last, full=last.full and sweep.full)
    mark = last.mark + 1 if last else 1
    return SweepProgress(sweep.number, mark, sweep.started_at_us, sweep.full)


def is_believed(known: int, missed: int, missed_twice: int) -> bool:
    """Return whether what a full sweep missed is taken for gone.

    Of the `known` keys from before it, it missed so many; `missed_twice` were missed by the last
    full sweep too, and that one was not believed.
    """
    if known < DOUBTED_KEYS_MIN or missed <= known * DOUBTED_PART:
        return True
    return missed_twice > known * DOUBTED_PART
