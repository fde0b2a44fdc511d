"""`GET /v1/views/{view}/live`: a view's rows as server-sent events, each time it is published.

An event holds a whole page of the view, as `GET /v1/views/{view}` answers it, so one that was
missed is made good by the next. Its id names the version: who comes back with it in `Last-Event-ID`
and has the newest gets nothing until there is a newer one. Those who ask for the same page share
one channel: it looks for a newer version a few times a second, reads it once and encodes it once. A
slow listener is not sent what it missed, only the newest, so nothing piles up.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from headrace.model.clock import rfc3339
from headrace.model.errors import Corrupt, HeadraceError, Internal, Unavailable
from headrace.serve import formats
from headrace.serve.arguments import Arguments
from headrace.serve.freshness import Freshness
from headrace.serve.pages import page_of, split
from headrace.serve.query import stopping
from headrace.serve.reading import Reading, Readings
from headrace.serve.relations import Identity, Relation

EVERY_S = 0.1
"""How often a channel looks whether there is a newer version: two `stat` calls a time."""
HEARTBEAT_S = 15.0
"""After so long without an event a remark is sent: proxies close what is silent."""
RETRY_MS = 1_000
"""How long a browser waits before it connects again."""
LIMIT_DEFAULT, LIMIT_MAX = 100, 1_000
LISTENERS_MAX = 5_000
EVENTS_PER_S = 5_000
"""How fast events go out at most. The collector passes them on, and acknowledges records beside:
a thousand at once would hold those up for as long as all of them take it."""
CHANNELS_MAX = 500

MEDIA_TYPE = "text/event-stream"
HEADERS = {
    "cache-control": "no-store",
    # nginx would hold events back to fill its buffers.
    "x-accel-buffering": "no",
}

_log = logging.getLogger("headrace.serve")

Key = tuple[str, tuple[tuple[str, str], ...]]
"""A view's name and what was asked of its page."""


class _Channel:
    """One page of one view, and how many listen to it."""

    def __init__(self, key: Key) -> None:
        self.view, self.items = key
        self.listeners = 0
        self.identity: Identity | None = None
        self.id = ""
        self.event = b""
        """The newest, as it is sent."""
        self.changed = asyncio.Event()
        """Set, and replaced, when there is a newer one."""
        self.task: asyncio.Task[None] | None = None

    def put(self, identity: Identity, id_: str, event: bytes) -> None:
        """Take a newer event and wake all listeners."""
        self.identity, self.id, self.event = identity, id_, event
        changed, self.changed = self.changed, asyncio.Event()
        changed.set()


class LiveViews:
    """The handler, with its channels; used from one event loop."""

    def __init__(self, readings: Readings) -> None:
        """Listen to nothing yet."""
        self._readings = readings
        self._channels: dict[Key, _Channel] = {}
        """Those that somebody listens to."""
        self._opening: dict[Key, asyncio.Task[_Channel]] = {}
        self._listeners = 0
        self._free_s = 0.0
        """When, by the loop's clock, the next event may go out."""
        self._closed = asyncio.Event()

    @property
    def listeners(self) -> int:
        """How many streams are open."""
        return self._listeners

    async def stream(self, request: Request) -> Response:
        """Answer a stream that ends when the client or the server does."""
        if self._closed.is_set():
            raise stopping()
        if self._listeners >= LISTENERS_MAX:
            raise Unavailable(
                "Too many listen already", hint="Ask for the view itself instead.", code="busy"
            )
        items = tuple(request.query_params.multi_items())
        channel = await self._channel((request.path_params["view"], items))
        seen = request.headers.get("last-event-id", "")
        return StreamingResponse(
            self._events(channel, seen), headers=HEADERS, media_type=MEDIA_TYPE
        )

    def close(self) -> None:
        """End all streams."""
        self._closed.set()
        for channel in self._channels.values():
            channel.changed.set()
            if channel.task is not None:
                channel.task.cancel()

    async def _channel(self, key: Key) -> _Channel:
        """Return the channel of a page; the first event of a new one is read before.

        So whatever is wrong with the request is said instead of a stream.
        """
        channel = self._channels.get(key)
        if channel is not None:
            return channel
        opening = self._opening.get(key)
        if opening is None:
            if len(self._channels) + len(self._opening) >= CHANNELS_MAX:
                raise Unavailable("Too many different pages are listened to", code="busy")
            opening = self._opening[key] = asyncio.create_task(self._open(key))
        # Others may wait for the same, should this client leave.
        return await asyncio.shield(opening)

    async def _open(self, key: Key) -> _Channel:
        try:
            channel = _Channel(key)
            await self._look(channel)
            return channel
        finally:
            del self._opening[key]

    async def _events(self, channel: _Channel, seen: str) -> AsyncIterator[bytes]:
        channel = self._enter(channel)
        try:
            yield f"retry: {RETRY_MS}\n\n".encode()
            while not self._closed.is_set():
                changed = channel.changed
                if channel.id != seen:
                    seen = channel.id
                    yield channel.event
                    continue
                try:
                    await asyncio.wait_for(changed.wait(), HEARTBEAT_S)
                except TimeoutError:
                    yield b": still here\n\n"
                else:
                    await self._turn()
        finally:
            self._leave(channel)

    async def _turn(self) -> None:
        """Return when the next event may go out; by then there may be a newer one to send."""
        now_s = asyncio.get_running_loop().time()
        turn_s = max(self._free_s, now_s)
        self._free_s = turn_s + 1 / EVENTS_PER_S
        await asyncio.sleep(turn_s - now_s)

    def _enter(self, found: _Channel) -> _Channel:
        """Return the channel to listen to: another listener's, if one was quicker."""
        channel = self._channels.setdefault((found.view, found.items), found)
        self._listeners += 1
        channel.listeners += 1
        if channel.task is None:
            channel.task = asyncio.create_task(self._follow(channel))
        return channel

    def _leave(self, channel: _Channel) -> None:
        self._listeners -= 1
        channel.listeners -= 1
        if not channel.listeners:
            self._channels.pop((channel.view, channel.items), None)
            if channel.task is not None:
                channel.task.cancel()
                channel.task = None

    async def _follow(self, channel: _Channel) -> None:
        """Look for newer versions while anybody listens."""
        while True:
            await asyncio.sleep(EVERY_S)
            try:
                await self._look(channel)
            except (Corrupt, Internal):
                _log.exception("The view %s cannot be followed", channel.view)
            except HeadraceError as e:
                # A query that found no thread, a file that was replaced meanwhile: the next look.
                _log.debug("The view %s was not read: %s", channel.view, e.message)

    async def _look(self, channel: _Channel) -> None:
        """Read the page if there is a newer version of the view."""
        readings, known = self._readings, channel.identity

        def work(reading: Reading) -> tuple[Identity, str, bytes] | None:
            (relation,) = reading.relations
            if relation.identity == known:
                return None
            id_ = _id_of(relation)
            return relation.identity, id_, _event(channel, relation, reading, id_)

        found = await readings.read(lambda catalog: [catalog.view(channel.view)], work)
        if found is not None:
            channel.put(*found)


def _id_of(relation: Relation) -> str:
    """Return what names the version that is shown."""
    table_id, version, _ = relation.identity
    return f"{table_id}.{version}"


def _event(channel: _Channel, relation: Relation, reading: Reading, id_: str) -> bytes:
    arguments = Arguments(channel.items)
    page = page_of(relation, arguments, LIMIT_DEFAULT, LIMIT_MAX)
    reading.session.prepare(reading.relations)
    rows, cursor = split(page, reading.session.select(page.sql, page.values))
    head = {"more": cursor is not None, **_told(reading.fresh[0])}
    data = b"".join(formats.pieces(rows, "json", head))
    return b"id: %s\nevent: rows\ndata: %s\n\n" % (id_.encode(), data)


def _told(fresh: Freshness) -> dict[str, object]:
    committed_us = fresh.committed_at_us
    return {
        "version": fresh.version,
        "offsets": fresh.offsets,
        "committed_at": rfc3339(committed_us) if committed_us else None,
    }
