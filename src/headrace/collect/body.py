"""A request's body off the wire, whole or not at all, within its bounds.

Two facts of the server shape this. Reading at once (`await protocol()`) fails when the client goes
away, but has no bound; so it is used for small bodies of a declared length, which HTTP/1.1 framing
bounds. Reading by chunks is bounded here, but shows an aborted body as an ended one: a declared
length is compared, and without one the end must have been said (one empty chunk; a body that
broke off gives two).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Protocol

from headrace.collect.exchange import Headers
from headrace.collect.limits import Limits, Share, too_large
from headrace.model.clock import Clock
from headrace.model.errors import Invalid, Unavailable

_AT_ONCE_BYTES_MAX = 64 << 10


class Incoming(Protocol):
    """The part of an RSGI protocol that bodies come through."""

    async def __call__(self) -> bytes:
        """Return the whole body."""

    def __aiter__(self) -> AsyncIterator[bytes]:
        """Yield the body in chunks."""


class BodyReader:
    """Reads bodies and ends those that take too long. Used on one event loop."""

    def __init__(self, limits: Limits, clock: Clock) -> None:
        self._limits = limits
        self._clock = clock
        self._since: dict[asyncio.Task[object], float] = {}
        self._stopping = False

    async def read(self, headers: Headers, incoming: Incoming, share: Share) -> bytes:
        """Return the body; `share` is charged for it as it comes and kept by the caller."""
        declared = _declared_length(headers)
        if declared == 0:
            return b""
        if declared is not None and declared > self._limits.body_bytes_max:
            raise too_large(self._limits.body_bytes_max)
        task = asyncio.current_task()
        assert task is not None
        self._since[task] = self._clock.monotonic_s()
        try:
            if declared is not None and declared <= _AT_ONCE_BYTES_MAX:
                share.take(declared)
                return await incoming()
            return await self._by_chunks(incoming, declared, share)
        except asyncio.CancelledError:
            # Only `end_overdue` and `stop` cancel, and only while a body is read.
            raise self._given_up() from None
        except RuntimeError:
            raise _incomplete() from None
        finally:
            del self._since[task]

    def end_overdue(self) -> None:
        """End bodies that have been coming for too long; to be called now and then."""
        oldest_allowed = self._clock.monotonic_s() - self._limits.body_timeout_s
        for task, since in list(self._since.items()):
            # Oldest first, since a dictionary keeps the order of insertion.
            if since > oldest_allowed:
                break
            task.cancel()

    def stop(self) -> None:
        """End every body that is still coming."""
        self._stopping = True
        for task in list(self._since):
            task.cancel()

    async def _by_chunks(self, incoming: Incoming, declared: int | None, share: Share) -> bytes:
        chunks: list[bytes] = []
        total = ends = 0
        async for chunk in incoming:
            if not chunk:
                ends += 1
                continue
            total += len(chunk)
            if total > self._limits.body_bytes_max:
                raise too_large(self._limits.body_bytes_max)
            share.take(len(chunk))
            chunks.append(chunk)
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
    if headers.get("transfer-encoding") is not None:
        return None
    text = headers.get("content-length")
    if text is None:
        return 0
    if not (text.isascii() and text.isdigit()):
        raise Invalid("Content-Length is not a number", hint="", code="invalid_content_length")
    return int(text)


def _incomplete() -> Invalid:
    return Invalid(
        "The body broke off",
        hint="Send the whole body again.",
        code="incomplete_body",
    )
