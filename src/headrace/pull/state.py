"""What is kept of a source in the log, and what is told of it while it runs."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from headrace.model.log import StateEntry
from headrace.pull.sweeps import SweepProgress

STATES = "source/"
"""What the keys of everything that the log keeps of sources begin with."""
_SUFFIX = "/cursor"


class SourceState(msgspec.Struct, frozen=True):
    """What the log keeps of a source under `state_key`, as JSON."""

    cursor: msgspec.Raw = msgspec.Raw(b"null")
    """The source's own, opaque; null before the first page."""
    records: int = 0
    """Appended, deletions too."""
    pages: int = 0
    """Taken from the source; of one that does not sweep, those with records."""
    done: bool = False
    topic: str = ""
    """The topic that it fills, of a source that sweeps."""
    sweep: SweepProgress | None = None
    deleting: bytes | None = None
    """While the keys that a complete sweep did not give are deleted: the last that was, or empty
    before the first."""
    counting: bool = False
    """Whether the service's own count is due."""
    doubted: int | None = None
    """Mark of the last full sweep, if it missed so much that it was not believed."""
    completed_at_us: int | None = None
    """When the last full sweep was complete, with its deletions."""
    content: str = ""
    """Digest of what was appended and put in the index with this state: states that other pages
    have led to differ in it."""


class SourceReport(msgspec.Struct):
    """How a source fares, for people and for metrics."""

    name: str
    topic: str
    records: int = 0
    """Pulled and durable, since the source first ran."""
    pages: int = 0
    done: bool = False
    records_in_all: int | None = None
    """Where the source knows it; of the present sweep, if it sweeps."""
    sweep: int | None = None
    """Number of the sweep that is under way, or was last; so is what follows."""
    sweep_pages: int = 0
    sweep_records: int = 0
    """Given by the service; changed and unchanged ones make it up."""
    changed: int = 0
    unchanged: int = 0
    deleted: int = 0
    """Keys that were found gone after the sweep."""
    records_per_s: float | None = None
    """Since this process took the sweep up, its waiting included."""
    remaining: int | None = None
    eta_s: float | None = None
    """Seconds until nothing remains, at that rate; while it waits, that pause too."""
    goes_on_at_us: int | None = None
    """When it asks again, while it waits; microseconds since 1970."""
    completed_at_us: int | None = None
    """When the last full sweep was complete, with its deletions."""
    notice: str = ""
    """What people should know though it goes on."""
    waiting_for: str = ""
    """Why it waits now."""
    error: str = ""
    """Why it ended without being done."""
    hint: str = ""

    def take(self, state: SourceState) -> None:
        """Tell what the log keeps."""
        self.records, self.pages, self.done = state.records, state.pages, state.done
        self.completed_at_us = state.completed_at_us
        if state.sweep is not None:
            self.sweep = state.sweep.number
            self.sweep_pages, self.sweep_records = state.sweep.pages, state.sweep.records
            self.changed, self.unchanged = state.sweep.changed, state.sweep.unchanged
            self.deleted = state.sweep.deleted

    def wait(self, reason: str, pause_s: float, now_us: int) -> None:
        """Tell that the source waits `pause_s` from `now_us` on, and why."""
        self.waiting_for = reason
        self.goes_on_at_us = now_us + round(pause_s * 1_000_000)
        if self.remaining is not None and self.records_per_s:
            self.eta_s = self.remaining / self.records_per_s + pause_s

    def go_on(self) -> None:
        """Tell that the source waits no more."""
        self.waiting_for, self.goes_on_at_us = "", None

    def advance(self, records_in_all: int | None, pace: Pace, now_s: float) -> None:
        """Tell how far the source is, `now_s` by the monotonic clock."""
        self.go_on()
        self.records_in_all = records_in_all
        done = self.records if self.sweep is None else self.sweep_records
        self.records_per_s = pace.per_s(self.sweep, done, now_s)
        self.remaining = self.eta_s = None
        if records_in_all is not None:
            self.remaining = max(0, records_in_all - done)
            if self.records_per_s:
                self.eta_s = self.remaining / self.records_per_s


class Pace:
    """How fast records come, since a sweep was taken up."""

    def __init__(self) -> None:
        self._begun: tuple[int | None, int, float] | None = None

    def per_s(self, sweep: int | None, records: int, now_s: float) -> float | None:
        """Return records a second, its waiting included; None before there are two moments."""
        if self._begun is None or self._begun[0] != sweep:
            self._begun = sweep, records, now_s
        _, before, since_s = self._begun
        return (records - before) / (now_s - since_s) if now_s > since_s else None


def state_key(source: str) -> str:
    """Return the key under which the log keeps a source's state."""
    return f"{STATES}{source}{_SUFFIX}"


def read_state(entry: StateEntry | None) -> SourceState:
    """Return what the log keeps of a source; a fresh state before its first page."""
    return SourceState() if entry is None else msgspec.json.decode(entry.value, type=SourceState)


def filled_by(entries: Iterable[StateEntry], topic: str) -> set[str]:
    """Return the names of the sources that sweep into a topic, of what the log keeps of all."""
    return {
        entry.key.removeprefix(STATES).removesuffix(_SUFFIX)
        for entry in entries
        if entry.key.endswith(_SUFFIX) and read_state(entry).topic == topic
    }
