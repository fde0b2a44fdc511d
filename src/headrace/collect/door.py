"""The HTTP door as a server: RSGI on the outside, the `Collector` within, and a clean stop.

One process, one event loop, the server embedded in it: the log's writing end lives in the same
process, signals are ours, and a process more would only stand between them.

Order of effects of a stop, eight seconds at most:

1. No new connection is taken; requests under way go on, idle connections are closed.
2. After a moment, bodies that still are coming are refused with 503.
3. What was handed to the log becomes durable and is answered.
"""

from __future__ import annotations

import asyncio
import logging
import shutil
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import uvloop
from granian.constants import HTTPModes, Interfaces
from granian.http import HTTP1Settings

from headrace.collect.body import BodyReader
from headrace.collect.bridge import Bridge
from headrace.collect.collector import Collector, unexpected
from headrace.collect.exchange import HeaderList, Headers, Request, Response, refusal
from headrace.collect.gate import Gate
from headrace.collect.limits import Limits, Share
from headrace.collect.metrics import Families, MetricsFile
from headrace.control.admission import OPEN_PATH
from headrace.control.public_port import PublicPort, Reached
from headrace.model.clock import Clock
from headrace.model.errors import HeadraceError, Internal, Invalid
from headrace.model.log import Log, LogReader
from headrace.model.plan import Plan

METRICS = "metrics-collect.prom"
"""File in the data directory's `run/`."""

ANYHOW = Reached()

_BACKLOG = 4_096
_LOOK_EVERY_S = 0.25
_BODIES_FINISH_S = 1.0
_OPENS_WITHIN_S = 10.0

_logger = logging.getLogger(__name__)


class Application:
    """The collector as the server calls it (RSGI)."""

    def __init__(
        self, collector: Collector, bridge: Bridge | None, clock: Clock, reached: Reached
    ) -> None:
        self.bodies = BodyReader(collector.limits, clock)
        self._collector = collector
        self._bridge = bridge
        self._clock = clock
        self._reached = reached

    async def __rsgi__(self, scope: Any, protocol: Any) -> None:  # noqa: ANN401 - native objects
        """Answer one request."""
        started = self._clock.monotonic_s()
        share = Share(self._collector.budget)
        headers: Headers = scope.headers
        client, scheme = scope.client, scope.scheme
        if (proxies := self._reached.proxies) is not None:
            seen = proxies.client(client, scheme, headers.items())
            client, scheme = seen
            headers = HeaderList(proxies.seen(seen, headers.items()))
        read = partial(self.bodies.read, headers, protocol, share)
        request = Request(
            scope.method, scope.path, scope.query_string, headers, read, share, client
        )
        try:
            response = await self._collector.respond(request)
            if response is None:
                status = await self._elsewhere(request, scheme, protocol)
            else:
                status = self._answer(response, protocol)
        finally:
            share.give_back()
        self._collector.metrics.observe(status, self._clock.monotonic_s() - started)

    def _answer(self, response: Response, protocol: Any) -> int:  # noqa: ANN401 - as above
        headers = [*response.headers, *self._reached.headers]
        protocol.response_bytes(response.status, headers, response.body)
        return response.status

    async def _elsewhere(self, request: Request, scheme: str, protocol: Any) -> int:  # noqa: ANN401
        try:
            if self._reached.hosts is not None and request.path != OPEN_PATH:
                self._reached.hosts.check(request.headers.get("host"))
            self._collector.identify(request)
            if self._bridge is not None:
                return await self._bridge.forward(request, scheme, request.client, protocol)
            error: HeadraceError = Invalid(
                "There is nothing at this path",
                hint="GET /v1/topics lists the topics.",
                code="not_found",
            )
        except HeadraceError as refused:
            error = refused
        except Exception as fault:  # noqa: BLE001 - as `Collector.respond`
            error = unexpected(fault)
        return self._answer(refusal(error), protocol)


class HttpDoor:
    """The HTTP door over a log that someone else opened and closes."""

    def __init__(
        self,
        plan: Plan,
        log: Log,
        clock: Clock,
        limits: Limits,
        *,
        run_dir: Path,
        upstream: Path | None = None,
        gate: Gate | None = None,
        reached: Reached = ANYHOW,
        reader: Callable[[], AbstractContextManager[LogReader]] | None = None,
    ) -> None:
        self._limits = limits
        self._clock = clock
        self._run_dir = run_dir
        self._upstream = upstream
        self._reached = reached
        self._lost: HeadraceError | None = None
        self._stopping = asyncio.Event()
        self._collector = Collector(
            plan, log, clock, limits, gate=gate, reader=reader, on_lost=self._lose
        )

    def run(
        self, host: str, port: int, *, stop: threading.Event, ready: Callable[[], None]
    ) -> None:
        """Serve until `stop` is set, calling `ready` once requests are answered.

        Raises `Invalid` if the port is taken, and what the log failed with if it must not go on.
        """
        refuse_taken_port(host, port)
        if redirect_port := self._reached.http.redirect_port:
            refuse_taken_port(host, redirect_port)
        metrics = MetricsFile(
            self._run_dir / METRICS, Families(self._collector.metrics, self._gauges), self._clock
        )
        with ExitStack() as stack:
            stack.enter_context(closing(self._collector))
            metrics.start()
            stack.enter_context(closing(metrics))
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                runner.run(self._serve(host, port, stop, ready))
        if self._lost is not None:
            raise self._lost

    def _lose(self, error: HeadraceError) -> None:
        _logger.error("The log cannot go on: %s", error.code)
        self._lost = self._lost or error
        self._stopping.set()

    def _gauges(self) -> dict[str, tuple[str, float]]:
        return {
            "headrace_in_flight_bytes": (
                "Bytes of bodies in flight.",
                self._collector.budget.used,
            ),
            "headrace_append_groups_waiting": (
                "Groups of records handed to the log and not yet durable.",
                self._collector.groups.waiting,
            ),
        }

    async def _serve(
        self, host: str, port: int, stop: threading.Event, ready: Callable[[], None]
    ) -> None:
        loop = asyncio.get_running_loop()
        bridge = self._bridge()
        app = Application(self._collector, bridge, self._clock, self._reached)
        server = PublicPort(
            app, _settings(self._limits), self._reached.http, host, port, self._clock
        )

        def look() -> None:
            app.bodies.end_overdue()
            if stop.is_set():
                self._stopping.set()

        with _repeated(loop, look):
            serving = loop.create_task(server.serve())
            await _opened(serving, host, port)
            ready()
            waiting = loop.create_task(self._stopping.wait())
            await asyncio.wait({serving, waiting}, return_when=asyncio.FIRST_COMPLETED)
            waiting.cancel()
            # 1
            server.stop()
            if bridge is not None:
                await bridge.close()
            # 2
            body_end = loop.call_later(_BODIES_FINISH_S, app.bodies.stop)
            # 3
            await asyncio.wait({serving}, timeout=self._limits.stop_timeout_s)
            body_end.cancel()
            await self._collector.groups.settled(self._limits.stop_timeout_s)

    def _bridge(self) -> Bridge | None:
        if self._upstream is None:
            return None
        spool = self._run_dir / "spool"
        shutil.rmtree(spool, ignore_errors=True)
        spool.mkdir()
        return Bridge(self._upstream, spool, self._limits, self._reached.headers)


def _settings(limits: Limits) -> dict[str, Any]:
    return {
        "interface": Interfaces.RSGI,
        # HTTP/1.1 alone: its framing is what `body` relies on, and what all collectors' clients
        # speak.
        "http": HTTPModes.http1,
        "http1_settings": HTTP1Settings(
            header_read_timeout=int(limits.headers_timeout_s * 1000),
            max_buffer_size=limits.headers_bytes_max,
        ),
        "backlog": _BACKLOG,
        "backpressure": limits.connections_max,
    }


def refuse_taken_port(host: str, port: int) -> None:
    """Raise `Invalid` if someone listens on the port already.

    The server binds with SO_REUSEPORT: without this, two collectors would share a port in silence.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        with socket.socket(family) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
    except OSError as error:
        raise Invalid(
            f"Cannot listen on {host}:{port}: {error.strerror}",
            hint="Choose another port with --port, or stop what listens there.",
            code="port_taken",
        ) from None


async def _opened(serving: asyncio.Task[None], host: str, port: int) -> None:
    """Return when the server accepts connections."""
    async with asyncio.timeout(_OPENS_WITHIN_S):
        while not serving.done():
            try:
                _, writer = await asyncio.open_connection(host, port)
            except OSError:
                await asyncio.sleep(0.01)
            else:
                writer.close()
                return
    await serving
    msg = "The HTTP server ended before it began"
    raise Internal(msg)


@contextmanager
def _repeated(loop: asyncio.AbstractEventLoop, act: Callable[[], None]) -> Iterator[None]:
    """Call `act` every `_LOOK_EVERY_S`."""
    timer: asyncio.TimerHandle

    def tick() -> None:
        nonlocal timer
        timer = loop.call_later(_LOOK_EVERY_S, tick)
        act()

    timer = loop.call_later(_LOOK_EVERY_S, tick)
    yield
    timer.cancel()
