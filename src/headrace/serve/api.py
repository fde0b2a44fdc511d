"""The reading side as an ASGI application: paths to handlers, and what holds on every path."""

from __future__ import annotations

import logging
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial

import psutil
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from headrace.model.clock import Clock
from headrace.model.errors import Corrupt, HeadraceError, Internal
from headrace.model.layout import Layout
from headrace.model.log import Log
from headrace.model.plan import Plan
from headrace.model.tables import Tables
from headrace.serve.dashboard import Dashboard, asset, dashboard_paths
from headrace.serve.documentation import documentation_page
from headrace.serve.endpoints import Endpoints, NamedQuery, json_response
from headrace.serve.errors import error_response, on_http_exception
from headrace.serve.letters import LetterActs, LetterEndpoints
from headrace.serve.metrics import Metrics
from headrace.serve.openapi import openapi
from headrace.serve.query import Engine
from headrace.serve.reading import Readings
from headrace.serve.relations import Catalog, Snapshots

Handler = Callable[[Request], Awaitable[Response]]

MEMORY_SHARE = 4
"""The query engine may use one part in so many of the machine's memory …"""
MEMORY_BYTES_MAX = 2 << 30
"""… and at most this."""

_log = logging.getLogger("headrace.serve")


def create_app(
    plan: Plan, tables: Tables, log: Log, layout: Layout, clock: Clock, *, alone: bool = False
) -> Starlette:
    """Return the application that answers reads of a data directory.

    `tables` are read; `log` knows what was done about dead letters, and takes what is to be.
    `alone` says that no other role runs beside it here, so readiness depends on none. The
    application's lifespan ends its threads; `app.state.engine` is there to do so at once.
    """
    memory_bytes = min(MEMORY_BYTES_MAX, psutil.virtual_memory().total // MEMORY_SHARE)
    engine = Engine(os.cpu_count() or 1, memory_bytes)
    acts = LetterActs(log, tables, clock)
    catalog = Catalog(plan, Snapshots(layout.root, tables), acts.all)
    readings = Readings(plan, catalog, engine, clock)
    metrics = Metrics(layout.run, clock)
    letters = LetterEndpoints(readings, acts)
    handlers = {
        **_own_handlers(plan, readings, metrics, layout, clock, alone=alone),
        "/v1/dead-letters/{letter}": letters.one,
        **{q.path: NamedQuery(q, readings).__call__ for q in plan.queries},
    }
    actions = {
        "/v1/dead-letters/replay": letters.replay,
        "/v1/dead-letters/discard": letters.discard,
    }

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        yield
        engine.close()

    app = Starlette(
        routes=[
            Route(path, partial(_guarded, handler, path, metrics, clock), methods=[method])
            for method, of_method in (("POST", actions), ("GET", handlers))
            for path, handler in of_method.items()
        ],
        exception_handlers={HTTPException: on_http_exception},
        lifespan=lifespan,
    )
    app.router.redirect_slashes = False
    app.state.engine = engine
    app.state.readings = readings
    return app


def _own_handlers(
    plan: Plan, readings: Readings, metrics: Metrics, layout: Layout, clock: Clock, *, alone: bool
) -> dict[str, Handler]:
    endpoints = Endpoints(readings, metrics, layout, clock, alone=alone)
    described = openapi(plan)
    page = documentation_page(described)
    dashboard = Dashboard(readings, clock)

    async def get_openapi(_: Request) -> Response:
        return json_response(described)

    async def get_documentation(_: Request) -> Response:
        return page

    return {
        "/v1/tables": endpoints.tables,
        "/v1/tables/{table}": endpoints.table,
        "/v1/views": endpoints.views,
        "/v1/views/{view}": endpoints.view,
        "/v1/dead-letters": endpoints.dead_letters,
        "/openapi.json": get_openapi,
        "/docs": get_documentation,
        "/healthz": endpoints.healthz,
        "/ready": endpoints.ready,
        "/metrics": endpoints.metrics,
        **dict.fromkeys(dashboard_paths(plan), dashboard.page),
        "/_/{asset}": asset,
    }


async def _guarded(
    handler: Handler, path: str, metrics: Metrics, clock: Clock, request: Request
) -> Response:
    """Answer a request: errors in their one shape, HEAD without a body, everything counted."""
    started = clock.monotonic_s()
    try:
        response = await handler(request)
    except HeadraceError as e:
        response = error_response(e)
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
        # The length that GET would have stays in the header.
        response.body = b""
    metrics.answered(path, request.method, response.status_code, clock.monotonic_s() - started)
    return response
