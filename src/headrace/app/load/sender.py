"""Sends traffic over some connections, and counts what comes back in memory that does not grow."""

from __future__ import annotations

import http.client
import itertools
import math
import ssl
import threading
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from headrace.app.load.traffic import Request, Traffic
from headrace.model.clock import Clock

TIMEOUT_S = 30.0
ACKNOWLEDGED = ("200", "202")
_GAMMA = math.log(1.01)
"""Latencies are counted in steps of one percent."""
_LEAST_S = 1e-6


@dataclass(frozen=True)
class Target:
    """Where requests go."""

    host: str
    port: int
    token: str = ""
    """Shown with every request, if there is one."""
    tls: ssl.SSLContext | None = None

    def connect(self) -> http.client.HTTPConnection:
        """Return a connection that is opened by its first request."""
        if self.tls is None:
            return http.client.HTTPConnection(self.host, self.port, timeout=TIMEOUT_S)
        return http.client.HTTPSConnection(
            self.host, self.port, timeout=TIMEOUT_S, context=self.tls
        )


@dataclass
class Tally:
    """What was sent, and what came back; a connection's, or the sum of several."""

    sent: int = 0
    late: int = 0
    statuses: Counter[str] = field(default_factory=Counter)
    """Status, or the kind of error → how often."""
    steps: Counter[int] = field(default_factory=Counter)
    """Latencies of answered requests, by how many steps of one percent they are long."""
    latency_s_max: float = 0.0
    events: set[int] = field(default_factory=set)
    """Numbers of the events that were acknowledged, if some are sent more than once."""

    @property
    def acknowledged(self) -> int:
        """Return how many requests were acknowledged."""
        return sum(self.statuses[status] for status in ACKNOWLEDGED)

    def answered(self, seconds: float) -> None:
        """Count how long an answer took."""
        self.steps[math.ceil(math.log(max(seconds, _LEAST_S)) / _GAMMA)] += 1
        self.latency_s_max = max(self.latency_s_max, seconds)

    def latency_s(self, part: float) -> float:
        """Return the latency that a part of the answers kept below, to one percent; 0 of none."""
        left = part * self.steps.total()
        for step in sorted(self.steps):
            left -= self.steps[step]
            if left <= 0:
                return min(math.exp(step * _GAMMA), self.latency_s_max)
        return self.latency_s_max


def summed(tallies: Iterable[Tally]) -> Tally:
    """Return the sum of tallies, which others may be counting into."""
    whole = Tally()
    for each in tallies:
        whole.sent += each.sent
        whole.late += each.late
        # Copies first: a connection adds a status or a step at any moment.
        whole.statuses.update(each.statuses.copy())
        whole.steps.update(each.steps.copy())
        whole.latency_s_max = max(whole.latency_s_max, each.latency_s_max)
        whole.events |= each.events.copy()
    return whole


class Load:
    """Traffic on its way; `begin`, look at `tally`, then `join`."""

    def __init__(
        self,
        target: Target,
        traffic: Traffic,
        clock: Clock,
        *,
        count: int | None = None,
        duration_s: float | None = None,
        connections: int = 1,
        name: str = "",
    ) -> None:
        """Send `count` requests, or as many as begin within `duration_s`, whichever ends first.

        With a `name` every request has an id made of it and its event's number, so that what is
        sent again counts once.
        """
        self._target = target
        self._traffic = traffic
        self._clock = clock
        self._count = math.inf if count is None else count
        self._duration_s = math.inf if duration_s is None else duration_s
        self._name = name
        # next() on a count is one step of the interpreter, so threads share it without a lock.
        self._numbers = itertools.count()
        self._tallies = [Tally() for _ in range(connections)]
        self._threads = [
            threading.Thread(target=self._send_all, args=(tally,), daemon=True)
            for tally in self._tallies
        ]
        self._begun_s = 0.0
        self._begun_us = 0
        self.stop = threading.Event()
        """Set it, and nothing more is sent."""

    def begin(self) -> None:
        """Send from now on."""
        self._begun_s, self._begun_us = self._clock.monotonic_s(), self._clock.now_us()
        for thread in self._threads:
            thread.start()

    @property
    def is_done(self) -> bool:
        """Whether everything has been sent and answered."""
        return not any(thread.is_alive() for thread in self._threads)

    def join(self) -> Tally:
        """Wait for the last answer; return what all connections saw."""
        for thread in self._threads:
            thread.join()
        return self.tally()

    def tally(self) -> Tally:
        """Return what all connections have seen so far."""
        return summed(self._tallies)

    def _send_all(self, tally: Tally) -> None:
        connection = self._target.connect()
        while (number := next(self._numbers)) < self._count:
            due_s = self._traffic.due_s(number)
            wait_s = self._begun_s + due_s - self._clock.monotonic_s()
            elapsed_s = self._clock.monotonic_s() - self._begun_s
            if max(due_s, elapsed_s) > self._duration_s:
                break
            if self.stop.is_set() or (wait_s > 0 and self._clock.wait(self.stop, wait_s)):
                break
            request = self._traffic.request(number, self._begun_us)
            self._send(connection, request, tally)
            if self._traffic.pace == "ab":
                connection.close()
        connection.close()

    def _send(self, connection: http.client.HTTPConnection, request: Request, tally: Tally) -> None:
        before_s = self._clock.monotonic_s()
        tally.sent += 1
        tally.late += request.is_late
        try:
            method = "GET" if request.body is None else "POST"
            connection.request(method, request.path, request.body, self._headers(request))
            with connection.getresponse() as response:
                response.read()
                status = str(response.status)
        except (OSError, http.client.HTTPException) as error:
            # Not sent again: whether the first one arrived is not known.
            tally.statuses[type(error).__name__] += 1
            connection.close()
            return
        tally.answered(self._clock.monotonic_s() - before_s)
        tally.statuses[status] += 1
        if self._name and status in ACKNOWLEDGED:
            tally.events.add(request.event)

    def _headers(self, request: Request) -> dict[str, str]:
        headers = {"User-Agent": "headrace-load"}
        if self._target.token:
            headers["Authorization"] = f"Bearer {self._target.token}"
        if request.host:
            headers["Host"] = request.host
        if request.body is not None:
            headers["Content-Type"] = "application/json"
        if self._name:
            headers["Idempotency-Key"] = f"{self._name}-{request.event}"
        if self._traffic.pace == "ab":
            headers["Connection"] = "close"
        return headers
