"""Whether the client was polite: every request is kept, and what is allowed is held against it."""

from __future__ import annotations

import itertools
import re
import threading
from collections import Counter, deque
from email.utils import parsedate_to_datetime

import msgspec

from headrace.model.clock import Clock
from headrace.testing.services.exchange import Reply, Request
from headrace.testing.services.moments import EPOCH

KEPT_MAX = 200_000
"""Requests that are kept; older ones are forgotten."""
CONTACT = re.compile(r"[\w.+-]+@[\w-]+(\.[\w-]+)+|https?://")
"""What makes a contact: an address or a page."""


class Entry(msgspec.Struct):
    """One request as it was received, and what became of it."""

    service: str
    method: str
    target: str
    """Path and query."""
    at_s: float
    """On the monotonic clock."""
    at_us: int
    user_agent: str
    at_once: int
    """How many requests of the service were under way, this one included."""
    too_early: bool
    """Whether it came before a Retry-After that was sent had passed."""
    body: str = ""
    status: int | None = None
    """None while it is under way, and if it was not answered."""
    fault: str | None = None
    sweep: int = 0


class OfService(msgspec.Struct):
    """What the requests of one service were like."""

    requests: int = 0
    answered: int = 0
    """Those with the right answer."""
    statuses: dict[str, int] = {}
    faults: dict[str, int] = {}
    most_in_a_second: int = 0
    most_at_once: int = 0
    too_early: int = 0
    without_contact: int = 0
    least_gap_s: float | None = None
    """Shortest time between the beginnings of two requests."""
    repeated: dict[str, int] = {}
    """What was rightly answered more than once since the last mark → how often again."""


class Report(msgspec.Struct):
    """What the requests were like, by service."""

    services: dict[str, OfService]
    sweep: int
    """How many marks were set."""

    @property
    def polite(self) -> bool:
        """Whether no service was asked twice at once, too early, or by nobody."""
        return all(
            s.most_at_once <= 1 and not s.too_early and not s.without_contact
            for s in self.services.values()
        )


class Recorder:
    """Keeps requests. Used by all the threads that answer them."""

    def __init__(self, clock: Clock, services: tuple[str, ...]) -> None:
        """Begin with none."""
        self._clock = clock
        self._services = services
        self._lock = threading.Lock()
        self.reset()

    def reset(self) -> None:
        """Forget everything, waits that were asked for included."""
        with self._lock:
            self._entries: deque[Entry] = deque(maxlen=KEPT_MAX)
            self._under_way = dict.fromkeys(self._services, 0)
            self._not_before_s: dict[str, float] = {}
            self._sweep = 0

    def mark(self) -> None:
        """Say that a sweep begins here: what is asked from now on may have been asked before."""
        with self._lock:
            self._sweep += 1

    def begin(self, service: str, request: Request, target: str) -> Entry:
        """Keep a request that has come."""
        now_s = self._clock.monotonic_s()
        with self._lock:
            self._under_way[service] += 1
            entry = Entry(
                service=service,
                method=request.method,
                target=target,
                at_s=now_s,
                at_us=self._clock.now_us(),
                user_agent=request.headers.get("user-agent", ""),
                at_once=self._under_way[service],
                too_early=now_s < self._not_before_s.get(service, now_s),
                body=request.body.decode(errors="replace"),
                sweep=self._sweep,
            )
            self._entries.append(entry)
        return entry

    def waits(self, entry: Entry, reply: Reply) -> None:
        """Keep until when a reply, about to be sent, asks to wait."""
        after = reply.headers.get("Retry-After")
        if after is None:
            return
        now_s = self._clock.monotonic_s()
        until_s = now_s + _seconds(after, self._clock.now_us())
        with self._lock:
            self._not_before_s[entry.service] = until_s

    def end(self, entry: Entry, status: int | None, fault: str | None) -> None:
        """Keep what became of a request."""
        with self._lock:
            entry.status, entry.fault = status, fault
            self._under_way[entry.service] = max(0, self._under_way[entry.service] - 1)

    def under_way(self, service: str) -> int:
        """Return how many requests of a service are under way."""
        with self._lock:
            return self._under_way[service]

    def entries(self) -> list[Entry]:
        """Return the requests, oldest first."""
        with self._lock:
            return list(self._entries)

    def report(self) -> Report:
        """Return what they were like."""
        entries = self.entries()
        of = {s: _of_service([e for e in entries if e.service == s]) for s in self._services}
        for name, about in of.items():
            again = Counter(
                f"{e.target} {e.body}".strip()
                for e in entries
                if e.service == name and _rightly_answered(e) and e.sweep == self._sweep
            )
            about.repeated = {what: n - 1 for what, n in again.items() if n > 1}
        return Report(of, self._sweep)


def _rightly_answered(entry: Entry) -> bool:
    return entry.status in {200, 201, 204, 304} and entry.fault is None


def _of_service(entries: list[Entry]) -> OfService:
    begun = sorted(e.at_s for e in entries)
    gaps = [b - a for a, b in itertools.pairwise(begun)]
    return OfService(
        requests=len(entries),
        answered=sum(map(_rightly_answered, entries)),
        statuses=dict(Counter(str(e.status) for e in entries)),
        faults=dict(Counter(e.fault for e in entries if e.fault is not None)),
        most_in_a_second=most_within(begun, 1.0),
        most_at_once=max((e.at_once for e in entries), default=0),
        too_early=sum(e.too_early for e in entries),
        without_contact=sum(CONTACT.search(e.user_agent) is None for e in entries),
        least_gap_s=min(gaps, default=None),
    )


def most_within(moments_s: list[float], seconds: float) -> int:
    """Return the most of the sorted moments that lie within so many seconds, anywhere."""
    most = begin = 0
    for end, moment_s in enumerate(moments_s):
        while moments_s[begin] <= moment_s - seconds:
            begin += 1
        most = max(most, end - begin + 1)
    return most


def _seconds(after: str, now_us: int) -> float:
    if after.isdecimal():
        return float(after)
    return (parsedate_to_datetime(after) - EPOCH).total_seconds() - now_us / 1_000_000
