"""What is sent, and when: a function of the seed and a request's number, and of nothing else.

So any number of connections send the same, whoever comes first, and a second run sends it again.
"""

from __future__ import annotations

import bisect
import hashlib
import itertools
from collections.abc import Sequence
from typing import Literal

import msgspec

from headrace.model.clock import rfc3339

Pace = Literal["steady", "bursts", "ab"]

AB_REQUESTS = 10
"""`ab -n 10`: so many of one kind, one after another, each over a connection of its own."""
BURST_PERIOD_S = 10.0
BURST_S = 1.0
"""All that a period has comes within its first second."""
REPEAT_WITHIN = 50
"""A duplicate is of one of so many requests before it."""
_REPEATS_MAX = 8
"""A duplicate of a duplicate, and so on, is looked up so often; then it is an event of its own."""


class Request(msgspec.Struct, frozen=True):
    """One request."""

    event: int
    """Number of the event: that of an earlier request if this one repeats it."""
    path: str
    host: str
    """Host header; empty is the target's own."""
    body: bytes | None
    """JSON to be posted; None is a GET."""
    is_late: bool


class Traffic(msgspec.Struct, frozen=True, kw_only=True):
    """What a load is made of.

    In paths, hosts and the body `{user}`, `{number}` and `{time}` stand for the event's own.
    """

    paths: tuple[str, ...] = ("/",)
    weights: tuple[float, ...] = (1.0,)
    """Running sums of the paths' shares, the last one 1."""
    hosts: tuple[str, ...] = ()
    """Host headers, in turn."""
    users: tuple[float, ...] = ()
    """Running sums of the users' shares, the last one 1; see `zipf`. None are all one."""
    body: str | None = None
    late: float = 0.0
    """Part of the events that happened up to `late_s` before they are sent: in their `{time}`."""
    late_s: float = 0.0
    duplicates: float = 0.0
    """Part of the requests that repeat an earlier one, with the same id."""
    pace: Pace = "steady"
    rate: float | None = None
    """Requests a second in all, on average; None is as fast as they are answered."""
    seed: int = 0

    def due_s(self, number: int) -> float:
        """Return when a request is to be sent, seconds after the first; 0 is as soon as may be."""
        if self.rate is None:
            return 0.0
        if self.pace != "bursts":
            return number / self.rate
        period, place = divmod(number, max(1, round(self.rate * BURST_PERIOD_S)))
        return period * BURST_PERIOD_S + place / (self.rate * BURST_PERIOD_S) * BURST_S

    def request(self, number: int, begun_us: int) -> Request:
        """Return a request by its number; `begun_us` is when the first was sent.

        The time of an event is when it is due, or, without a rate, when all began.
        """
        event = self._event(number)
        path = self._path(event)
        host = self.hosts[self._turn(event) % len(self.hosts)] if self.hosts else ""
        is_late = "{time}" in (self.body or "") and self._draw(event, "late") < self.late
        early_s = self._draw(event, "early") * self.late_s if is_late else 0.0
        happened_us = begun_us + round((self.due_s(event) - early_s) * 1_000_000)
        words = {
            "user": f"user{bisect.bisect(self.users, self._draw(event, 'user')) + 1}",
            "number": str(event),
            "time": rfc3339(happened_us),
        }
        body = None if self.body is None else _filled(self.body, words).encode()
        return Request(event, _filled(path, words), _filled(host, words), body, is_late)

    def _event(self, number: int) -> int:
        """Return which event a request carries: its own, or that of one before it."""
        event = number
        for _ in range(_REPEATS_MAX):
            if event == 0 or self._draw(event, "again") >= self.duplicates:
                break
            before = 1 + int(self._draw(event, "before") * REPEAT_WITHIN)
            event = max(0, event - before)
        return event

    def _path(self, event: int) -> str:
        if self.pace == "ab":
            # The loop goes through the hosts, and for each through the paths.
            return self.paths[event // AB_REQUESTS % len(self.paths)]
        return self.paths[bisect.bisect(self.weights, self._draw(event, "path"))]

    def _turn(self, event: int) -> int:
        return event // (AB_REQUESTS * len(self.paths)) if self.pace == "ab" else event

    def _draw(self, event: int, what: str) -> float:
        """Return a number in [0, 1) that the seed, the event and a word decide."""
        text = f"{self.seed}/{event}/{what}".encode()
        drawn = int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big")
        return (drawn >> 11) / (1 << 53)


def zipf(users: int, skew: float) -> tuple[float, ...]:
    """Return running sums of the shares of users, of whom the nth has 1 / n ** skew of the first's.

    Zipf's law: 0 has all alike, 1 and more a few that do most.
    """
    return running_shares([(n + 1) ** -skew for n in range(users)])


def running_shares(weights: Sequence[float]) -> tuple[float, ...]:
    """Return running sums of weights as parts of their sum; the last one is exactly 1."""
    total = sum(weights)
    sums = list(itertools.accumulate(weight / total for weight in weights))
    return (*sums[:-1], 1.0)


def _filled(template: str, words: dict[str, str]) -> str:
    # Not str.format: the braces of JSON are its own.
    if "{" in template:
        for name, word in words.items():
            template = template.replace(f"{{{name}}}", word)
    return template
