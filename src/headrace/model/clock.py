"""The only place that reads the clock, sleeps, or makes ids and random numbers.

Everything that needs time or chance takes a `Clock` as an argument; linting bans the rest. Wall
time is microseconds since 1970-01-01 UTC, as integers. Timeouts use the monotonic clock, which
never jumps.
"""

from __future__ import annotations

import os
import random
import threading
import time
from datetime import UTC, datetime, timedelta
from typing import Protocol

UUID_BYTES = 16
MADE_AT_THE_DOOR = 7
"""Version nibble of an id that Headrace made (UUIDv7, RFC 9562)."""
CHOSEN_BY_CLIENT = 8
"""Version nibble of an id derived from what a client chose (UUIDv8, RFC 9562)."""


class Clock(Protocol):
    """Time and chance, as a value that can be replaced in tests."""

    def now_us(self) -> int:
        """Return wall time in microseconds since the epoch, UTC."""

    def monotonic_s(self) -> float:
        """Return seconds on a clock that only goes forward; its zero means nothing."""

    def sleep(self, seconds: float) -> None:
        """Return after `seconds`."""

    def wait(self, event: threading.Event, timeout_s: float) -> bool:
        """Return whether `event` was set within `timeout_s`."""

    def new_id(self) -> bytes:
        """Return a new 16-byte UUIDv7; later ids sort later, within a millisecond by chance."""

    def random(self) -> float:
        """Return a number in [0, 1), for jitter."""

    def secret(self, size_bytes: int) -> bytes:
        """Return random bytes that nobody can guess."""


class SystemClock:
    """The machine's clock."""

    def now_us(self) -> int:
        """See `Clock`."""
        return time.time_ns() // 1000

    def monotonic_s(self) -> float:
        """See `Clock`."""
        return time.monotonic()

    def sleep(self, seconds: float) -> None:
        """See `Clock`."""
        time.sleep(seconds)

    def wait(self, event: threading.Event, timeout_s: float) -> bool:
        """See `Clock`."""
        return event.wait(timeout_s)

    def new_id(self) -> bytes:
        """See `Clock`."""
        return uuid7(time.time_ns() // 1_000_000, os.urandom(10))

    def random(self) -> float:
        """See `Clock`."""
        return random.random()  # noqa: S311 - jitter, not a secret

    def secret(self, size_bytes: int) -> bytes:
        """See `Clock`."""
        return os.urandom(size_bytes)


class ManualClock:
    """A clock that moves only when told to: tests and `headrace test` run on it."""

    def __init__(self, now_us: int = 1_767_225_600_000_000, seed: int = 0) -> None:
        """Start at `now_us` (2026-01-01 by default) with the random seed given."""
        self._now_us = now_us
        self._monotonic_s = 0.0
        self._random = random.Random(seed)  # noqa: S311 - repeatable on purpose

    def advance(self, seconds: float) -> None:
        """Move both clocks forward."""
        self._now_us += round(seconds * 1_000_000)
        self._monotonic_s += seconds

    def set_now_us(self, now_us: int) -> None:
        """Make the wall clock jump, also backwards; the monotonic clock stays."""
        self._now_us = now_us

    def now_us(self) -> int:
        """See `Clock`."""
        return self._now_us

    def monotonic_s(self) -> float:
        """See `Clock`."""
        return self._monotonic_s

    def sleep(self, seconds: float) -> None:
        """Advance instead of sleeping."""
        self.advance(seconds)

    def wait(self, event: threading.Event, timeout_s: float) -> bool:
        """Advance instead of waiting."""
        if not event.is_set():
            self.advance(timeout_s)
        return event.is_set()

    def new_id(self) -> bytes:
        """See `Clock`."""
        return uuid7(self._now_us // 1000, self._random.randbytes(10))

    def random(self) -> float:
        """See `Clock`."""
        return self._random.random()

    def secret(self, size_bytes: int) -> bytes:
        """Return bytes that follow from the seed: a test's secrets are none."""
        return self._random.randbytes(size_bytes)


def uuid7(unix_ms: int, entropy: bytes) -> bytes:
    """Lay out a UUIDv7 (RFC 9562, 5.7) from milliseconds and 10 random bytes."""
    tail = bytearray(entropy)
    tail[0] = (MADE_AT_THE_DOOR << 4) | (tail[0] & 0x0F)
    tail[2] = 0x80 | (tail[2] & 0x3F)
    return unix_ms.to_bytes(6, "big") + bytes(tail)


def rfc3339(us: int) -> str:
    """Return microseconds since 1970 as RFC 3339 text in UTC, with microseconds."""
    moment = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=us)
    return moment.isoformat(timespec="microseconds").replace("+00:00", "Z")
