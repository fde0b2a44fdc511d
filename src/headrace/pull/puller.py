"""One source's way into the log: each page and the cursor after it go into it in one act.

Per page:

1. take the page from the source;
2. append its records and the source's new state, which holds the cursor, in one act, expecting
   the revision that this owner last saw;
3. read the state back: it is what was written, or another owner has taken over.

A crash before 2 is durable takes the same page again; after it, the next one. Two owners of one
source are told apart by the revision: the later one is `Fenced`.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Protocol

import msgspec

from headrace.model import plan as plans
from headrace.model.batch import Batch
from headrace.model.clock import Clock
from headrace.model.errors import Fenced, Invalid, Unavailable
from headrace.model.log import Appended, StateEntry
from headrace.model.source import Page, Source
from headrace.pull.records import Door

BACKOFF_S_MIN, BACKOFF_S_MAX = 0.5, 60.0
"""Bounds of the pause after a failure that asks for no longer one; it doubles each time."""
JITTER = 0.5
"""Up to this part of a pause is added by chance, so that sources do not come back together."""


class PullLog(Protocol):
    """What of `Log` is needed here."""

    def append(
        self,
        topic: str,
        records: Batch,
        state: dict[str, bytes] | None = None,
        expect: dict[str, int] | None = None,
    ) -> list[Appended]:
        """See `Log`."""

    def get(self, key: str) -> StateEntry | None:
        """See `LogReader`."""


class SourceState(msgspec.Struct, frozen=True):
    """What the log keeps of a source under `state_key`, as JSON."""

    cursor: msgspec.Raw = msgspec.Raw(b"null")
    """The source's own, opaque; null before the first page."""
    records: int = 0
    pages: int = 0
    done: bool = False


class SourceReport(msgspec.Struct):
    """How a source fares, for people and for metrics."""

    name: str
    topic: str
    records: int = 0
    """Pulled and durable, since the source first ran."""
    pages: int = 0
    done: bool = False
    records_in_all: int | None = None
    """Where the source knows it."""
    waiting_for: str = ""
    """Why it waits now."""
    error: str = ""
    """Why it ended without being done."""
    hint: str = ""


Report = Callable[[SourceReport], None]


def state_key(source: str) -> str:
    """Return the key under which the log keeps a source's state."""
    return f"source/{source}/cursor"


def read_state(entry: StateEntry | None) -> SourceState:
    """Return what the log keeps of a source; a fresh state before its first page."""
    return SourceState() if entry is None else msgspec.json.decode(entry.value, type=SourceState)


class Puller:
    """One source's way into the log."""

    def __init__(
        self,
        declared: plans.Source,
        source: Source,
        door: Door,
        log: PullLog,
        reading: threading.Lock,
    ) -> None:
        self.report = SourceReport(declared.name, declared.topic)
        self.failure: BaseException | None = None
        self._key = state_key(declared.name)
        self._source = source
        self._door = door
        self._log = log
        self._reading = reading
        self._revision = 0
        self._state = SourceState()

    def run(self, clock: Clock, stop: threading.Event, report: Report) -> None:
        """Pull until done, stopped or failed; what is wrong is kept, never raised."""
        try:
            self._until_done(clock, stop, report)
        except Invalid as error:
            self.report.error, self.report.hint = error.message, error.hint
        except BaseException as error:  # noqa: BLE001 - run_pull raises it where it is seen
            self.failure = error
        self.report.waiting_for = ""
        report(self.report)

    def _until_done(self, clock: Clock, stop: threading.Event, report: Report) -> None:
        """Pull, and after `Unavailable` wait and open again at the last durable cursor."""
        failures = 0
        while not stop.is_set():
            pages = self.report.pages
            try:
                self._resume()
                self._pages(stop, report)
            except Unavailable as error:
                failures = 1 if self.report.pages > pages else failures + 1
                self.report.waiting_for = error.message
                report(self.report)
                clock.wait(stop, _pause_s(error, failures, clock))
            else:
                return

    def _pages(self, stop: threading.Event, report: Report) -> None:
        cursor = bytes(self._state.cursor)
        for page in self._source.open(None if cursor == b"null" else cursor):
            if stop.is_set():
                return
            self._append(page)
            self.report.records_in_all = page.progress[1]
            self.report.waiting_for = ""
            report(self.report)
            if page.done:
                return

    def _append(self, page: Page) -> None:
        unchanged = not page.records and page.cursor == bytes(self._state.cursor)
        if unchanged and page.done == self._state.done:
            return
        state = SourceState(
            cursor=msgspec.Raw(page.cursor),
            records=self._state.records + len(page.records),
            pages=self._state.pages + bool(page.records),
            done=page.done,
        )
        value = msgspec.json.encode(state)
        expect = {self._key: self._revision}
        try:
            self._log.append(self.report.topic, self._door.batch(page), {self._key: value}, expect)
        except Fenced:
            # An append whose answer was lost on the way may have been ours.
            self._resume(value)
            return
        self._resume(value)

    def _resume(self, written: bytes | None = None) -> None:
        """Take over what the log keeps; `Fenced` if it is not what this owner has `written`."""
        with self._reading:
            entry = self._log.get(self._key)
        if written is not None and (entry is None or entry.value != written):
            raise Fenced(
                f"Source {self.report.name} is pulled by another process too",
                hint="stop one of the two: each source has one owner",
            )
        self._revision = entry.revision if entry else 0
        self._state = read_state(entry)
        self.report.records = self._state.records
        self.report.pages = self._state.pages
        self.report.done = self._state.done


def _pause_s(error: Unavailable, failures: int, clock: Clock) -> float:
    backoff_s = min(BACKOFF_S_MAX, BACKOFF_S_MIN * 2.0 ** (failures - 1))
    return max(backoff_s, error.retry_after_s) * (1.0 + JITTER * clock.random())
