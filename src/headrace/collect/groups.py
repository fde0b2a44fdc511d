"""Records of many requests on their way into the log together, without waiting for each other.

All requests that the event loop serves in one turn share a batch: one hand-over to the log instead
of one a request, and no delay, since the turn ends anyway. Requests of the next turn do not wait
for the first batch; what the log has not begun to write, it groups again.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from contextlib import suppress

from headrace.model.batch import Batch
from headrace.model.clock import Clock
from headrace.model.errors import HeadraceError, Internal
from headrace.model.ids import give_ids
from headrace.model.log import Appended, Log

Result = list[Appended] | HeadraceError

_FULL_RECORDS = 4_096
_FULL_BYTES = 1 << 20


class Group:
    """A batch that is being filled, and the future that all its requests await.

    Its result is the log's: places, or an error as a value (so that one nobody awaits is quiet).
    """

    __slots__ = ("batch", "done", "size_bytes")

    def __init__(self, done: asyncio.Future[Result]) -> None:
        self.batch = Batch()
        self.done = done
        self.size_bytes = 0


class Groups:
    """The open group of each topic. Used on one event loop; only `_finish` runs elsewhere."""

    def __init__(self, log: Log, clock: Clock, on_lost: Callable[[HeadraceError], None]) -> None:
        """Hand over to `log`; `on_lost` hears of an error after which it must not go on."""
        self._log = log
        self._clock = clock
        self._on_lost = on_lost
        self._open: dict[str, Group] = {}
        self._finished: deque[tuple[asyncio.Future[Result], Result]] = deque()
        self._waking = False
        self._idle = asyncio.Event()
        self._idle.set()
        self.waiting = 0
        """Groups handed over and not yet durable."""

    def group(self, topic: str, size_bytes: int) -> Group:
        """Return the group that takes `size_bytes` more of a topic before this turn ends."""
        group = self._open.get(topic)
        if group is None:
            loop = asyncio.get_running_loop()
            group = self._open[topic] = Group(loop.create_future())
            loop.call_soon(self._flush_turn, topic, group)
        elif group.size_bytes > _FULL_BYTES or len(group.batch) > _FULL_RECORDS:
            self.flush(topic)
            return self.group(topic, size_bytes)
        group.size_bytes += size_bytes
        return group

    def flush(self, topic: str) -> None:
        """Hand the open group to the log now."""
        group = self._open.pop(topic, None)
        if group is None:
            return
        # From here on the log alone holds the records: who waits for them keeps no second copy.
        batch, group.batch = group.batch, Batch()
        give_ids(batch, self._clock)
        done = group.done
        try:
            self._log.submit(topic, batch, lambda result: self._finish(done, result))
        except HeadraceError as refused:
            done.set_result(refused)
            self._watch(refused)
        else:
            self.waiting += 1
            self._idle.clear()

    async def settled(self, timeout_s: float) -> bool:
        """Return whether everything handed over was answered within `timeout_s`."""
        with suppress(TimeoutError):
            await asyncio.wait_for(self._idle.wait(), timeout_s)
        return self.waiting == 0

    def _flush_turn(self, topic: str, group: Group) -> None:
        if self._open.get(topic) is group:
            self.flush(topic)

    def _finish(self, done: asyncio.Future[Result], result: Result) -> None:
        # On the log's thread. One wake-up serves every group that finishes before the loop turns.
        self._finished.append((done, result))
        if not self._waking:
            self._waking = True
            # A loop that is closed has nobody left who waits: `?wait=false`, at a stop.
            with suppress(RuntimeError):
                done.get_loop().call_soon_threadsafe(self._wake)

    def _wake(self) -> None:
        self._waking = False
        while self._finished:
            done, result = self._finished.popleft()
            self.waiting -= 1
            done.set_result(result)
            if isinstance(result, HeadraceError):
                self._watch(result)
        if self.waiting == 0:
            self._idle.set()

    def _watch(self, error: HeadraceError) -> None:
        # Anything but a refusal leaves it open what became durable: nothing may follow it.
        if error.kind_code not in {"unavailable", "invalid"}:
            self._on_lost(error)


def places(result: Result) -> list[Appended]:
    """Return where a group went, or raise what went wrong."""
    if isinstance(result, HeadraceError):
        raise result
    if not isinstance(result, list):
        msg = "The log answered with neither places nor an error"
        raise Internal(msg)
    return result
