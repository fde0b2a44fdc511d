"""The reading side as an ASGI application: paths to handlers, and what holds on every path."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import NamedTuple

import psutil
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from headrace.control.admission import OPEN_PATH, Admission
from headrace.model.clock import Clock
from headrace.model.errors import Corrupt, HeadraceError, Internal
from headrace.model.layout import Layout
from headrace.model.log import Log, LogReader
from headrace.model.plan import Plan
from headrace.model.tables_to_read import TablesToRead
from headrace.serve.access import Access, scope_of
from headrace.serve.dashboard.changes import Changes
from headrace.serve.dashboard.handlers import Parts, dashboard_handlers, dashboard_paths
from headrace.serve.dashboard.page import ROOT, Shell
from headrace.serve.dashboard.session import SessionPages, to_sign_in
from headrace.serve.documentation import documentation
from headrace.serve.endpoints import Endpoints, NamedQuery, json_response
from headrace.serve.errors import error_response, on_http_exception
from headrace.serve.letters import LetterActs, LetterEndpoints
from headrace.serve.live import LiveViews
from headrace.serve.metrics import Metrics
from headrace.serve.openapi import openapi
from headrace.serve.query import Engine, Fetch, at_hand
from headrace.serve.reading import Readings
from headrace.serve.relations import Catalog, Snapshots
from headrace.serve.sources import SourceEndpoints, SourceParts
from headrace.serve.sql.endpoint import SqlEndpoint
from headrace.serve.tokens import TokenEndpoints
from headrace.tables.near import NearTables

Handler = Callable[[Request], Awaitable[Response]]


class Tokens(NamedTuple):
    """What tokens need: who judges them, and the log that holds them, for their endpoints alone."""

    admission: Admission
    log: Log


class Stores(NamedTuple):
    """What is read, and where what people decide is kept."""

    tables: TablesToRead
    folder: Path | None
    """Where the tables are if they are files here."""
    log: Log
    """Knows what was done about dead letters, and takes what is to be."""
    reader: LogReader
    """Of the same log, for the pages that show topics."""


class Served(NamedTuple):
    """A path, and by method who answers it and which scope that asks for."""

    path: str
    handlers: dict[str, Handler]
    scopes: dict[str, str]
    is_page: bool = False
    """Whether people look at it."""


class Guard(NamedTuple):
    """What holds on every path."""

    access: Access
    metrics: Metrics
    clock: Clock
    shell: Shell


MEMORY_SHARE = 4
"""The query engine may use one part in so many of the machine's memory …"""
MEMORY_BYTES_MAX = 2 << 30
"""… and at most this."""

_log = logging.getLogger("headrace.serve")


def create_app(
    plan: Plan,
    stores: Stores,
    layout: Layout,
    clock: Clock,
    *,
    alone: bool = False,
    waits_for: Sequence[str] = (),
    tokens: Tokens | None = None,
    sources: SourceParts | None = None,
) -> Starlette:
    """Return the application that answers reads of a data directory.

    `alone` says that clients come without a collector between, `waits_for` on which roles readiness
    depends. `tokens` are there if the plan asks for tokens, `sources` where a pull role may run
    beside it. The application's lifespan ends its threads; `app.state.engine` is there to do so at
    once.
    """
    if plan.options.tokens != (tokens is not None):
        raise Internal("The plan asks for tokens, and there is nothing to judge them by")
    engine = _engine_of(stores.tables)
    acts = LetterActs(stores.log, stores.tables, clock)
    catalog = Catalog(plan, Snapshots(stores.folder, stores.tables), acts.all)
    readings = Readings(plan, catalog, engine, clock)
    metrics = Metrics(layout.run, clock)
    sql, live = SqlEndpoint(readings), LiveViews(readings)
    changes = Changes(plan, catalog.snapshots)
    followed = sources and SourceEndpoints(plan, sources, layout.run, clock)
    access = Access(tokens.admission if tokens is not None else None, alone=alone)
    shell = Shell(plan, has_sources=followed is not None)
    turn = threading.Lock()
    session = tokens and SessionPages(
        shell, tokens.admission, tokens.log, turn, clock, access.client
    )
    kinds = sources.kinds if sources else {}
    parts = Parts(
        shell, readings, acts, stores.reader, layout, clock, waits_for, session, followed, kinds
    )
    handlers: dict[str, dict[str, Handler]] = {
        **_own_handlers(plan, readings, metrics, layout, clock, shell, waits_for),
        **_letter_handlers(LetterEndpoints(readings, acts)),
        **dashboard_handlers(parts, changes),
        "/v1/sql": {"POST": sql.run},
        "/v1/views/{view}/live": {"GET": live.stream},
        **{q.path: {"GET": NamedQuery(q, readings).__call__} for q in plan.queries},
    }
    if tokens is not None:
        handlers |= _token_handlers(TokenEndpoints(tokens.log, turn, clock))
    if followed is not None:
        handlers |= _source_handlers(followed)

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        yield
        live.close()
        changes.close()
        await sql.workers.close()
        engine.close()

    app = _application(plan, handlers, Guard(access, metrics, clock, shell))
    app.router.lifespan_context = lifespan
    app.state.engine = engine
    app.state.readings = readings
    app.state.sql_workers = sql.workers
    app.state.live = live
    app.state.changes = changes
    return app


def _application(plan: Plan, handlers: dict[str, dict[str, Handler]], guard: Guard) -> Starlette:
    """Return the application that asks each path's scope before it answers."""
    pages = {*dashboard_paths(plan), "/docs"}

    def endpoint(path: str, by_method: dict[str, Handler]) -> Handler:
        scopes = {method: scope_of(method, path, plan) for method in by_method}
        is_page = path in pages or path.startswith(ROOT)
        served = Served(path, by_method, scopes, is_page)
        return partial(_guarded, served, guard)

    app = Starlette(
        routes=[
            Route(path, endpoint(path, by_method), methods=list(by_method))
            for path, by_method in handlers.items()
        ],
        exception_handlers={HTTPException: partial(_on_unknown, guard.access)},
    )
    app.router.redirect_slashes = False
    return app


def _refusal(served: Served, shell: Shell, error: HeadraceError, request: Request) -> Response:
    """Return the answer for an error: a page where people look, JSON elsewhere."""
    if not served.is_page or "text/html" not in request.headers.get("accept", ""):
        return error_response(error)
    return to_sign_in(request) if error.code == "unauthorized" else shell.fault(error, request)


def _head_of(response: Response) -> Response:
    """Return a response without its body; the length that GET would have stays in the header."""
    if isinstance(response, StreamingResponse):
        return Response(status_code=response.status_code, headers=dict(response.headers))
    response.body = b""
    return response


async def _on_unknown(access: Access, request: Request, error: Exception) -> Response:
    """Tell what is not served only to those who may know."""
    try:
        access.check(request)
    except HeadraceError as refused:
        return error_response(refused)
    return await on_http_exception(request, error)


def _engine_of(tables: TablesToRead) -> Engine:
    memory_bytes = min(MEMORY_BYTES_MAX, psutil.virtual_memory().total // MEMORY_SHARE)
    return Engine(os.cpu_count() or 1, memory_bytes, _fetch_of(tables))


def _letter_handlers(letters: LetterEndpoints) -> dict[str, dict[str, Handler]]:
    return {
        "/v1/dead-letters/replay": {"POST": letters.replay},
        "/v1/dead-letters/discard": {"POST": letters.discard},
        "/v1/dead-letters/{letter}": {"GET": letters.one},
    }


def _fetch_of(tables: TablesToRead) -> Fetch:
    """Return what brings the files of snapshots to where they are read."""
    return tables.fetch if isinstance(tables, NearTables) else at_hand


def _own_handlers(
    plan: Plan,
    readings: Readings,
    metrics: Metrics,
    layout: Layout,
    clock: Clock,
    shell: Shell,
    waits_for: Sequence[str],
) -> dict[str, dict[str, Handler]]:
    endpoints = Endpoints(readings, metrics, layout, clock, waits_for)
    described = openapi(plan)
    described_html = documentation(described)

    async def get_openapi(_: Request) -> Response:
        return json_response(described)

    async def get_documentation(request: Request) -> Response:
        return shell.plain("HTTP", described_html, request)

    reading = {
        "/v1/tables": endpoints.tables,
        "/v1/tables/{table}": endpoints.table,
        "/v1/views": endpoints.views,
        "/v1/views/{view}": endpoints.view,
        "/v1/dead-letters": endpoints.dead_letters,
        "/openapi.json": get_openapi,
        "/docs": get_documentation,
        OPEN_PATH: endpoints.healthz,
        "/ready": endpoints.ready,
        "/metrics": endpoints.metrics,
    }
    return {path: {"GET": handler} for path, handler in reading.items()}


def _token_handlers(tokens: TokenEndpoints) -> dict[str, dict[str, Handler]]:
    return {
        "/v1/tokens": {"GET": tokens.listed, "POST": tokens.create},
        "/v1/tokens/{token}": {"DELETE": tokens.revoke},
    }


def _source_handlers(sources: SourceEndpoints) -> dict[str, dict[str, Handler]]:
    return {
        "/v1/sources": {"GET": sources.listed, "POST": sources.add},
        "/v1/sources/{source}": {"GET": sources.one, "DELETE": sources.remove},
        "/v1/sources/{source}/pause": {"POST": sources.pause},
        "/v1/sources/{source}/resume": {"POST": sources.resume},
    }


async def _guarded(served: Served, guard: Guard, request: Request) -> Response:
    """Answer a request: only those let in, errors in their one shape, HEAD without a body."""
    access, metrics, clock = guard.access, guard.metrics, guard.clock
    started = clock.monotonic_s()
    path = served.path
    method = "GET" if request.method == "HEAD" else request.method
    try:
        if scope := served.scopes[method]:
            access.check(request, scope)
        response = await served.handlers[method](request)
    except HeadraceError as e:
        response = _refusal(served, guard.shell, e, request)
        if isinstance(e, Internal | Corrupt):
            _log.exception("%s %s", request.method, path)
    except HTTPException as e:
        response = await on_http_exception(request, e)
    except Exception:  # noqa: BLE001 - a request never ends without an answer of the one shape
        _log.exception("%s %s", request.method, path)
        hint = "The server's log has the reason; please report it as a bug."
        response = error_response(Internal("The request failed", hint=hint))
    response.headers.setdefault("x-content-type-options", "nosniff")
    if request.method == "HEAD":
        response = _head_of(response)
    metrics.answered(path, request.method, response.status_code, clock.monotonic_s() - started)
    return response
