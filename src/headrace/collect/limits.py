"""What one request, and all of them together, may take of the collector.

The limits are the product's own: the HTTP server underneath bounds headers and nothing else.
"""

from __future__ import annotations

from dataclasses import dataclass

from headrace.model.errors import Invalid, Unavailable


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of the HTTP door; every one of them answers with a status of its own."""

    body_bytes_max: int = 16 << 20
    """A body, as sent and after decompression; above it 413."""
    records_max: int = 100_000
    """Records of one body; above it 413."""
    body_timeout_s: float = 10.0
    """From the request's head to its body's last byte; above it 408."""
    in_flight_bytes_max: int = 64 << 20
    """All bodies that are read or wait for the log; above it 503."""
    errors_listed_max: int = 100
    """Faults of single records that an answer lists; all are counted."""
    inline_bytes_max: int = 128 << 10
    """A larger body is taken apart on a thread, so that small ones do not wait behind it."""
    connections_max: int = 16_384
    """Open connections; further ones wait to be accepted."""
    headers_bytes_max: int = 64 << 10
    """A request's head; above it 431."""
    headers_timeout_s: float = 10.0
    """From the start of a request's head to its end, and for a connection that says nothing."""
    stop_timeout_s: float = 8.0
    """How long a stop waits for what is under way; the rest of ten seconds closes the log."""
    bridge_streams_max: int = 1_024
    """Event streams of the other role that are passed on at once; above it 503."""
    bridge_connections_max: int = 1_280
    """Requests that are under way at the other role at once, streams among them; above it 503."""
    bridge_held_bytes_max: int = 1 << 20
    """A bridged answer up to this size is held in memory, a larger one goes through a file."""
    bridge_stream_bytes_max: int = 64 << 20
    """An event stream ends after this much; its client connects again."""


class Budget:
    """Bytes of all bodies in flight. Used on one event loop."""

    def __init__(self, bytes_max: int) -> None:
        self.bytes_max = bytes_max
        self.used = 0

    def take(self, size_bytes: int) -> None:
        """Reserve bytes, or raise `Unavailable`."""
        if self.used + size_bytes > self.bytes_max:
            raise Unavailable(
                "Too many bytes of other requests are in flight",
                hint="Send again after the seconds in Retry-After.",
                code="too_busy",
            )
        self.used += size_bytes


class Share:
    """What one request has taken of a budget, given back as one."""

    __slots__ = ("_budget", "_taken")

    def __init__(self, budget: Budget) -> None:
        self._budget = budget
        self._taken = 0

    def take(self, size_bytes: int) -> None:
        """Reserve more, or raise `Unavailable`."""
        self._budget.take(size_bytes)
        self._taken += size_bytes

    def give_back(self) -> None:
        """Free everything."""
        self._budget.used -= self._taken
        self._taken = 0


def too_large(bytes_max: int) -> Invalid:
    """Return the error of a body over the limit."""
    return Invalid(
        f"The body has more than {bytes_max:,} bytes",
        hint="Send it in parts.",
        code="body_too_large",
    )
