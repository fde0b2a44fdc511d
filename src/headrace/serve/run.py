"""The serve role: the application behind Granian, until it is told to stop."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket as socketlib
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path

import uvloop
from granian.constants import Interfaces
from granian.server.embed import Server
from starlette.applications import Starlette

from headrace.control.admission import Admission
from headrace.control.open_files import allow_open_files
from headrace.control.public_port import PublicPort, reached
from headrace.control.sources import OptionsOf
from headrace.model.clock import Clock
from headrace.model.deployment import HttpSettings
from headrace.model.errors import Unavailable
from headrace.model.plan import Plan
from headrace.model.role import Role
from headrace.model.site import Site
from headrace.serve.api import Stores, Tokens, create_app
from headrace.serve.front import Front
from headrace.serve.query import Engine
from headrace.serve.sources import SourceParts

GRACE_S = 1.0
"""How long queries under way may go on once the role is to stop, seconds."""
STOP_S_MAX = 2
"""How long their answers may take to go out after that, seconds."""
START_S_MAX = 20.0
CONNECT_EVERY_S = 0.02
CONNECTIONS_MAX = 8_192
"""Open connections; further ones wait. More than may listen to live views, so others are served."""
BACKLOG = 1_024
"""Connections that wait to be accepted."""
OTHER_FILES = 512
"""Files of tables and the log that are open at once, about."""

_log = logging.getLogger("headrace.serve")


def run_role(role: Role, options_of: OptionsOf, kinds: Mapping[str, type]) -> None:
    """Run the role `serve`: behind the collector, which has the public port, or at that port.

    `options_of` knows the kinds of sources that may be added while it runs; `kinds` lists them.
    """
    run_serve(
        role.plan,
        role.site,
        role.clock,
        host=None if "collect" in role.beside else role.host,
        port=role.port,
        beside=role.beside,
        stop=role.stop,
        ready=role.ready,
        options_of=options_of,
        kinds=kinds,
    )


def run_serve(
    plan: Plan,
    site: Site,
    clock: Clock,
    *,
    stop: threading.Event,
    ready: Callable[[], None],
    host: str | None = None,
    port: int = 0,
    beside: Sequence[str] = (),
    options_of: OptionsOf | None = None,
    kinds: Mapping[str, type] | None = None,
) -> None:
    """Answer reads until `stop` is set.

    Without `host` on the data directory's Unix socket, to which the collector hands on what is not
    its own; with `host` on a TCP port. Readiness hangs on the roles `beside` it. `ready` is called
    once requests are answered. Without `options_of` there are no paths for sources.
    `Unavailable`: the address cannot be listened on.
    """
    allow_open_files(CONNECTIONS_MAX + OTHER_FILES)
    layout = site.layout
    socket = None if host is not None else layout.serve
    with ExitStack() as stack:
        # A log's reading end is for one thread at a time, so each part that reads has its own.
        log = stack.enter_context(closing(site.log()))
        tokens = sources = None
        if plan.options.tokens:
            reader = stack.enter_context(closing(site.reader()))
            tokens = Tokens(Admission(reader, clock), stack.enter_context(closing(site.log())))
        if options_of is not None:
            own = stack.enter_context(closing(site.log()))
            sources = SourceParts(options_of, own, kinds or {})
        tables = stack.enter_context(site.tables_to_read())
        alone = host is not None
        roles = {"process"} if site.is_shared else {"collect", "process"}
        app = create_app(
            plan,
            Stores(tables, site.tables_folder, log, stack.enter_context(closing(site.reader()))),
            layout,
            clock,
            alone=alone,
            waits_for=sorted(roles.intersection(beside)),
            tokens=tokens,
            sources=sources,
        )
        make: Callable[[], Server | PublicPort]
        if socket is not None:
            make = partial(_at_socket, app, socket)
        else:
            make = partial(_at_port, app, plan, site.deployment.http, host or "", port, clock)
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(_serve(app, make, socket, host or "", port, stop, ready))
    if socket is not None:
        socket.unlink(missing_ok=True)


async def _serve(
    app: Starlette,
    make: Callable[[], Server | PublicPort],
    socket: Path | None,
    host: str,
    port: int,
    stop: threading.Event,
    ready: Callable[[], None],
) -> None:
    server = make()
    serving = asyncio.create_task(server.serve())
    try:
        await _until_listening(serving, socket, host, port)
        ready()
        await _until_set(stop, serving, app.state.engine)
        if not stop.is_set():
            raise Unavailable("The reading side's server or its query engine broke down")
    finally:
        await _end(server, serving, app)


def _check_free(host: str, port: int) -> None:
    """Refuse a port that another process has: it would take our test connection for its own."""
    family, kind, protocol, _, address = socketlib.getaddrinfo(
        host, port, type=socketlib.SOCK_STREAM
    )[0]
    with socketlib.socket(family, kind, protocol) as probe:
        probe.setsockopt(socketlib.SOL_SOCKET, socketlib.SO_REUSEADDR, 1)
        try:
            probe.bind(address)
        except OSError as e:
            raise _cannot_listen(f"{host}:{port}", e) from e


def _cannot_listen(where: str, reason: BaseException | None) -> Unavailable:
    return Unavailable(
        f"The reading side cannot listen at {where}: {reason}",
        hint="Is another process there already?",
        code="cannot_listen",
    )


def _at_socket(app: Starlette, socket: Path) -> Server:
    # One that a killed process left; the directory's lock says that nobody listens on it.
    socket.unlink(missing_ok=True)
    server = Server(
        app,
        uds=socket,
        interface=Interfaces.ASGI,
        websockets=False,
        backlog=BACKLOG,
        backpressure=CONNECTIONS_MAX,
        log_enabled=False,
    )
    server.uds_permissions = 0o600
    server.workers_kill_timeout = GRACE_S + STOP_S_MAX
    return server


def _at_port(
    app: Starlette, plan: Plan, http: HttpSettings, host: str, port: int, clock: Clock
) -> PublicPort:
    for taken in filter(None, (port, http.redirect_port)):
        _check_free(host, taken)
    return PublicPort(
        Front(app, reached(http, host, tokens=plan.options.tokens)),
        # Without lifespan: the application lives longer than the server of one certificate.
        {
            "interface": Interfaces.ASGINL,
            "backlog": BACKLOG,
            "backpressure": CONNECTIONS_MAX,
        },
        http,
        host,
        port,
        clock,
    )


async def _until_listening(
    serving: asyncio.Task[None], socket: Path | None, host: str, port: int
) -> None:
    where = str(socket) if socket is not None else f"{host}:{port}"
    async with asyncio.timeout(START_S_MAX):
        while True:
            if serving.done():
                raise _cannot_listen(where, serving.exception())
            try:
                if socket is not None:
                    _, writer = await asyncio.open_unix_connection(socket)
                else:
                    _, writer = await asyncio.open_connection(host, port)
            except OSError:
                await asyncio.sleep(CONNECT_EVERY_S)
            else:
                writer.close()
                return


async def _until_set(stop: threading.Event, serving: asyncio.Task[None], engine: Engine) -> None:
    """Return once `stop` is set or something has broken; costs nothing meanwhile."""
    loop = asyncio.get_running_loop()
    stopped = asyncio.Event()

    def wake() -> None:
        # The loop is closed if the server has ended by itself.
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(stopped.set)

    def wait() -> None:
        stop.wait()
        wake()

    engine.on_broken = wake
    threading.Thread(target=wait, name="stop", daemon=True).start()
    waiting = asyncio.create_task(stopped.wait())
    await asyncio.wait({waiting, serving}, return_when=asyncio.FIRST_COMPLETED)
    waiting.cancel()


async def _end(server: Server | PublicPort, serving: asyncio.Task[None], app: Starlette) -> None:
    """End the server: answers under way get a moment, then their queries are interrupted."""
    server.stop()
    app.state.live.close()
    app.state.changes.close()
    await asyncio.wait({serving}, timeout=GRACE_S)
    await app.state.sql_workers.close()
    await asyncio.to_thread(app.state.engine.close)
    done, _ = await asyncio.wait({serving}, timeout=STOP_S_MAX)
    if not done:
        _log.warning("Some answers were cut off")
        serving.cancel()
    elif (reason := serving.exception()) is not None:
        _log.warning("Some answers were cut off: %s", type(reason).__name__)
