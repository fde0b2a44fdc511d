"""The processes that run users' SELECTs, as the serve role keeps them.

One is started when it is wanted first and stays for the next statement. One that does not answer in
time, breaks off or ends is killed, and another takes its place.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar

import msgspec

from headrace.model.errors import Corrupt, HeadraceError, Internal, Invalid, Unavailable
from headrace.serve.query import busy, stopping, timed_out
from headrace.serve.sql.wire import FRAME, Ask, Failed, Give, Head, Kind, Need, frame

T = TypeVar("T")
Resolve = Callable[[list[str]], Awaitable[Give]]
"""Says how the tables and views of these names are read now."""

WAITING_MAX = 16
"""Statements that wait for a worker; further ones are told to come back."""
GRACE_S = 1.0
"""How long after its time a worker may take to say that the time is over, before it is killed."""
START_S = 10.0
"""How long a worker may take to start; only its first statement waits for that."""
SEND_S = 60.0
"""How long a result may take to go out."""

_KINDS: dict[str, type[HeadraceError]] = {
    kind.kind_code: kind for kind in (Corrupt, Internal, Invalid, Unavailable)
}


@dataclass(frozen=True, slots=True)
class Result:
    """A result: what is known of it, and its bytes, to be read to their end."""

    head: Head
    body: AsyncIterator[bytes]


class _Process:
    """One worker and the way to it. What goes wrong there is `Unavailable`, and ends it."""

    def __init__(
        self,
        process: asyncio.subprocess.Process,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        self._process = process
        self._reader = reader
        self._writer = writer
        self.is_between = True
        """Whether it waits for a statement: the last exchange is over."""

    @classmethod
    async def start(cls, threads: int, memory_bytes: int) -> _Process:
        """Start one; it has read nothing yet."""
        ours, theirs = socket.socketpair()
        settings = {
            "fd": theirs.fileno(),
            "threads": threads,
            "memory_bytes": memory_bytes,
            "parent": os.getpid(),
        }
        with theirs:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                f"{__package__}.process",
                msgspec.json.encode(settings).decode(),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                env={},
                start_new_session=True,
            )
        reader, writer = await asyncio.open_unix_connection(sock=ours)
        return cls(process, reader, writer)

    async def send(self, kind: Kind, body: msgspec.Struct) -> None:
        """Send a frame."""
        self.is_between = False
        try:
            self._writer.write(frame(kind, body))
            await self._writer.drain()
        except OSError as e:
            raise _broke_off() from e

    async def receive(self) -> tuple[int, bytes]:
        """Return the next frame; raise the error that it may be."""
        try:
            kind, length = FRAME.unpack(await self._reader.readexactly(FRAME.size))
            body = await self._reader.readexactly(length)
        except (OSError, asyncio.IncompleteReadError) as e:
            raise _broke_off() from e
        self.is_between = kind in {Kind.FAILED, Kind.END}
        if kind == Kind.FAILED:
            told = msgspec.json.decode(body, type=Failed)
            raise _KINDS[told.kind](told.message, hint=told.hint, code=told.code)
        return kind, body

    async def expect(self, kind: Kind, type_: type[T]) -> T:
        """Return what the next frame holds, which is of this kind."""
        found, body = await self.receive()
        if found != kind:
            raise Internal(f"An SQL worker sent {found}, not {kind}")
        return msgspec.json.decode(body, type=type_)

    def kill(self) -> None:
        """Have it end now."""
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()

    async def end(self) -> None:
        """Kill it, and wait until it is gone."""
        self._writer.close()
        self.kill()
        await self._process.wait()


class Workers:
    """A few workers; used from one event loop."""

    def __init__(self, count: int, threads: int, memory_bytes: int) -> None:
        """Have at most `count` at once, each with so many threads and so much memory."""
        self._threads = threads
        self._memory_bytes = memory_bytes
        self._free = asyncio.Semaphore(count)
        self._idle: list[_Process] = []
        self._busy: set[_Process] = set()
        self._waiting = 0
        self._closed = False

    @contextlib.asynccontextmanager
    async def ask(self, ask: Ask, resolve: Resolve) -> AsyncIterator[Result]:
        """Run a statement and lend its result.

        Raises what the worker says; `Unavailable` with code `query_timeout` if it takes longer than
        it may, with `busy` if too many wait.
        """
        await self._turn(ask.timeout_s)
        process = None
        try:
            process = await self._take()
            async with _within(START_S + ask.timeout_s + GRACE_S):
                await process.send(Kind.ASK, ask)
                need = await process.expect(Kind.NEED, Need)
            give = await resolve(need.names)
            async with _within(ask.timeout_s + GRACE_S):
                await process.send(Kind.GIVE, give)
                head = await process.expect(Kind.HEAD, Head)
            # Whoever reads may do so in another task, and as slowly as this.
            too_slow = asyncio.get_running_loop().call_later(SEND_S, process.kill)
            try:
                yield Result(head, _body(process))
            finally:
                too_slow.cancel()
        finally:
            await self._give_back(process)

    async def close(self) -> None:
        """End all of them, also those that work."""
        self._closed = True
        for process in [*self._idle, *self._busy]:
            await process.end()
        self._idle.clear()

    async def _turn(self, timeout_s: float) -> None:
        if self._closed:
            raise stopping()
        if self._waiting >= WAITING_MAX:
            raise busy()
        self._waiting += 1
        try:
            async with asyncio.timeout(timeout_s):
                await self._free.acquire()
        except TimeoutError as e:
            raise busy() from e
        finally:
            self._waiting -= 1

    async def _take(self) -> _Process:
        if self._closed:
            raise stopping()
        if self._idle:
            process = self._idle.pop()
        else:
            process = await _Process.start(self._threads, self._memory_bytes)
        self._busy.add(process)
        return process

    async def _give_back(self, process: _Process | None) -> None:
        try:
            if process is not None:
                self._busy.discard(process)
                if process.is_between and not self._closed:
                    self._idle.append(process)
                else:
                    await process.end()
        finally:
            self._free.release()


async def _body(process: _Process) -> AsyncIterator[bytes]:
    while True:
        kind, body = await process.receive()
        if kind == Kind.END:
            return
        yield body


@contextlib.asynccontextmanager
async def _within(seconds: float) -> AsyncIterator[None]:
    try:
        async with asyncio.timeout(seconds):
            yield
    except TimeoutError as e:
        raise timed_out() from e


def _broke_off() -> Unavailable:
    return Unavailable(
        "The query broke off: its process ended",
        hint="It may have needed more memory than it may have. Filter or aggregate earlier.",
        code="query_broke_off",
    )
