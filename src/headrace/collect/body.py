"""A request's body off the wire, whole or not at all, within its bounds.

Two facts of the server shape this. Reading at once (`await protocol()`) fails when the client goes
away, but has no bound; so it is used for small bodies of a declared length, which HTTP/1.1 framing
bounds. Reading by chunks is bounded here, but shows an aborted body as an ended one: a declared
length is compared, and without one the end must have been said (one empty chunk; a body that
broke off gives two).
"""

from __future__ import annotations

import asyncio
from collections.abc import Generator
from typing import Any, Protocol

from headrace.collect.exchange import Headers
from headrace.collect.limits import Limits, Share, too_large
from headrace.model.clock import Clock
from headrace.model.errors import Invalid, Unavailable

_AT_ONCE_BYTES_MAX = 64 << 10


class Coming(Protocol):
    """Bytes that are on their way: awaited by one, cancelled perhaps by another."""

    def __await__(self) -> Generator[Any, Any, bytes]:
        """Wait for them."""

    def cancel(self) -> object:
        """Make the one who waits raise `CancelledError`."""


class Incoming(Protocol):
    """The part of an RSGI protocol that bodies come through."""

    def __call__(self) -> Coming:
        """Return the whole body."""

    def __aiter__(self) -> Incoming:
        """Begin to give the body in chunks."""

    def __anext__(self) -> Coming:
        """Return the next chunk."""


class BodyReader:
    """Reads bodies and ends those that take too long. Used on one event loop."""

    def __init__(self, limits: Limits, clock: Clock) -> None:
        self._limits = limits
        self._clock = clock
        self._looked_at_s = clock.monotonic_s()
        self._coming: dict[object, tuple[float, Coming]] = {}
        """Everything that is waited for, oldest body first, with when its body began."""
        self._stopping = False

    async def read(self, headers: Headers, incoming: Incoming, share: Share) -> bytes:
        """Return the body; `share` is charged for it as it comes and kept by the caller."""
        declared = _declared_length(headers)
        if declared == 0:
            return b""
        if declared is not None and declared > self._limits.body_bytes_max:
            raise too_large(self._limits.body_bytes_max)
        try:
            if declared is None or declared > _AT_ONCE_BYTES_MAX:
                return await self._by_chunks(incoming, declared, share)
            share.take(declared)
            coming = incoming()
            self._coming[coming] = self._looked_at_s, coming
            try:
                return await coming
            finally:
                del self._coming[coming]
        except asyncio.CancelledError:
            # Only `end_overdue` and `stop` cancel, and only what is waited for here.
            raise self._given_up() from None
        except RuntimeError:
            raise _incomplete() from None

    def end_overdue(self) -> None:
        """End bodies that have been coming for too long; to be called several times a second.

        The time of these calls is also what a body's beginning is noted as: asking the clock for
        each would cost more than being late by one call.
        """
        self._looked_at_s = self._clock.monotonic_s()
        oldest_allowed = self._looked_at_s - self._limits.body_timeout_s
        for since, coming in list(self._coming.values()):
            if since > oldest_allowed:
                break
            coming.cancel()

    def stop(self) -> None:
        """End every body that is still coming."""
        self._stopping = True
        for _, coming in list(self._coming.values()):
            coming.cancel()

    async def _by_chunks(self, incoming: Incoming, declared: int | None, share: Share) -> bytes:
        chunks: list[bytes] = []
        total = ends = 0
        stream = incoming.__aiter__()
        since = self._looked_at_s
        try:
            while True:
                coming = stream.__anext__()
                self._coming[stream] = since, coming
                chunk = await coming
                if not chunk:
                    ends += 1
                    continue
                total += len(chunk)
                if total > self._limits.body_bytes_max:
                    raise too_large(self._limits.body_bytes_max)
                share.take(len(chunk))
                chunks.append(chunk)
        except StopAsyncIteration:
            pass
        finally:
            self._coming.pop(stream, None)
        if (declared is None and ends != 1) or (declared is not None and total != declared):
            raise _incomplete()
        return b"".join(chunks)

    def _given_up(self) -> Invalid | Unavailable:
        if self._stopping:
            return Unavailable(
                "The collector is stopping", hint="Send again in a moment.", code="stopping"
            )
        return Invalid(
            f"The body did not arrive within {self._limits.body_timeout_s:g} s",
            hint="Send smaller bodies.",
            code="body_timeout",
        )


def _declared_length(headers: Headers) -> int | None:
    """Return Content-Length, 0 if there is no body, None for one that says its end itself."""
    text = headers.get("content-length")
    if text is None:
        return None if headers.get("transfer-encoding") is not None else 0
    if not (text.isascii() and text.isdigit()):
        raise Invalid("Content-Length is not a number", hint="", code="invalid_content_length")
    # With both, HTTP says that chunks count; the length then is no bound.
    return None if headers.get("transfer-encoding") is not None else int(text)


def _incomplete() -> Invalid:
    return Invalid(
        "The body broke off",
        hint="Send the whole body again.",
        code="incomplete_body",
    )
