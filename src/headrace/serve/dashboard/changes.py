"""`/_/changes`: tells a page that something it may show has changed.

One look serves all pages, a few times a second and only while somebody looks: at the versions of
the ledger, in which every epoch of every table is, and of the views, which are published when that
suits. Each costs two `stat` calls. What has changed is not said; a page asks for itself again.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from headrace.model.errors import HeadraceError, Unavailable
from headrace.model.plan import LEDGER, Plan
from headrace.serve import live
from headrace.serve.query import stopping
from headrace.serve.relations import Snapshots

EVERY_S = 0.2
LISTENERS_MAX = 1_000

Mark = list[tuple[str, int] | None]
"""The versions that there are."""

_log = logging.getLogger("headrace.serve")


class Changes:
    """The handler, with those who listen; used from one event loop."""

    def __init__(self, plan: Plan, snapshots: Snapshots) -> None:
        """Look at nothing yet."""
        self._snapshots = snapshots
        self._storages = [LEDGER, *(f"views/{v.name}" for v in plan.views)]
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
        known: Mark | None = None
        while True:
            try:
                found = await asyncio.to_thread(self._mark)
            except (HeadraceError, OSError) as e:
                _log.debug("Nothing was seen: %s", e)
            else:
                if known is not None and found != known:
                    changed, self._changed = self._changed, asyncio.Event()
                    changed.set()
                known = found
            await asyncio.sleep(EVERY_S)

    def _mark(self) -> Mark:
        return [
            None if snapshot is None else (snapshot.table_id, snapshot.version)
            for snapshot in map(self._snapshots.newest, self._storages)
        ]
