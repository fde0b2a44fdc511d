"""`/_/changes`: tells a page that something it may show has changed.

One look serves all pages: the versions of every table and view, which costs two `stat` calls each,
a few times a second and only while somebody looks. What has changed is not said; a page asks for
itself again.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from headrace.model.errors import HeadraceError, Unavailable
from headrace.serve import live
from headrace.serve.query import stopping
from headrace.serve.reading import Reading, Readings
from headrace.serve.relations import Catalog, Identity, Relation

EVERY_S = 0.2
LISTENERS_MAX = 1_000

_log = logging.getLogger("headrace.serve")


class Changes:
    """The handler, with those who listen; used from one event loop."""

    def __init__(self, readings: Readings) -> None:
        """Look at nothing yet."""
        self._readings = readings
        self._listeners = 0
        self._changed = asyncio.Event()
        self._closed = False
        self._task: asyncio.Task[None] | None = None

    async def stream(self, _: Request) -> Response:
        """Answer a stream with an event for each change; it ends when the client does."""
        if self._closed:
            raise stopping()
        if self._listeners >= LISTENERS_MAX:
            raise Unavailable("Too many pages are open", code="busy")
        return StreamingResponse(self._events(), headers=live.HEADERS, media_type=live.MEDIA_TYPE)

    def close(self) -> None:
        """End all streams."""
        self._closed = True
        self._changed.set()
        if self._task is not None:
            self._task.cancel()

    async def _events(self) -> AsyncIterator[bytes]:
        self._listeners += 1
        if self._task is None:
            self._task = asyncio.create_task(self._follow())
        try:
            yield f"retry: {live.RETRY_MS}\n\n".encode()
            while not self._closed:
                changed = self._changed
                try:
                    await asyncio.wait_for(changed.wait(), live.HEARTBEAT_S)
                except TimeoutError:
                    yield b": still here\n\n"
                else:
                    yield b"event: changed\ndata: 1\n\n"
        finally:
            self._listeners -= 1
            if not self._listeners and self._task is not None:
                self._task.cancel()
                self._task = None

    async def _follow(self) -> None:
        known: tuple[int, Sequence[Identity]] | None = None
        while True:
            try:
                found = await self._readings.read(self._all, self._marks)
            except HeadraceError as e:
                _log.debug("Nothing was seen: %s", e.message)
            else:
                if known is not None and found != known:
                    changed, self._changed = self._changed, asyncio.Event()
                    changed.set()
                known = found
            await asyncio.sleep(EVERY_S)

    def _all(self, catalog: Catalog) -> list[Relation]:
        plan = self._readings.plan
        return [
            *(catalog.table(t.name) for t in plan.tables),
            *(catalog.view(v.name) for v in plan.views),
            catalog.dead_letters(),
        ]

    def _marks(self, reading: Reading) -> tuple[int, Sequence[Identity]]:
        return self._readings.ledger.last().epoch, [r.identity for r in reading.relations]
