"""`POST /v1/sql`: a SELECT over the newest tables and views, with how far they have come."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack

import msgspec
import psutil
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from headrace.model.errors import Invalid
from headrace.model.samples import SAMPLES_NAME
from headrace.serve import formats
from headrace.serve.bodies import read_json
from headrace.serve.endpoints import asked
from headrace.serve.freshness import Freshness
from headrace.serve.reading import Reading, Readings, freshness_headers
from headrace.serve.relations import DEAD_LETTERS_NAME, Catalog, Relation, path_of
from headrace.serve.sql.wire import Ask, Give
from headrace.serve.sql.workers import Workers

ROWS_DEFAULT, ROWS_MAX = 10_000, 1_000_000
TIMEOUT_S_MIN = 1.0
"""`timeout` bounds how long to wait for `at_least`, and then the query; this is its least."""
WORKERS = 2
MEMORY_SHARE = 8
"""A worker may use one part in so many of the machine's memory …"""
MEMORY_BYTES_MAX = 1 << 30
"""… and at most this."""

REFUSED_S = 0.02
"""A statement that cannot be run is told so after a moment: refusals cost little here, but each
passes the collector, and as fast as they could be asked for they would be in its way."""

_SHAPE = 'Send {"sql": "SELECT …"}.'


class Statement(msgspec.Struct, forbid_unknown_fields=True):
    """The body."""

    sql: str


class SqlEndpoint:
    """The handler, with its workers."""

    def __init__(self, readings: Readings) -> None:
        """Start no worker yet."""
        self._readings = readings
        memory_bytes = min(MEMORY_BYTES_MAX, psutil.virtual_memory().total // MEMORY_SHARE)
        threads = max(1, (os.cpu_count() or 1) // 2)
        self.workers = Workers(WORKERS, threads, memory_bytes)

    async def run(self, request: Request) -> Response:
        """Answer a statement's rows: `X-Headrace-Truncated` says whether there were more."""
        wanted = asked(request)
        rows_max = wanted.arguments.take_integer("limit", ROWS_DEFAULT, 1, ROWS_MAX)
        wanted.arguments.finish()
        statement = await read_json(request, Statement, _SHAPE)
        plan = self._readings.plan
        named = (*(t.name for t in plan.tables), *(v.name for v in plan.views))
        # A table of the pipeline that is called as one of ours goes first.
        names = [*dict.fromkeys((*named, DEAD_LETTERS_NAME, SAMPLES_NAME))]
        ask = Ask(
            statement.sql, wanted.format, rows_max, max(wanted.timeout_s, TIMEOUT_S_MIN), names
        )
        fresh: list[Freshness] = []

        async def resolve(needed: list[str]) -> Give:
            reading = await self._readings.read(
                lambda catalog: [_find(catalog, name) for name in needed],
                _fetched,
                wanted.at_least,
                wanted.timeout_s,
            )
            fresh.extend(reading.fresh)
            return _give(reading.relations)

        async with AsyncExitStack() as stack:
            try:
                result = await stack.enter_async_context(self.workers.ask(ask, resolve))
            except Invalid:
                await asyncio.sleep(REFUSED_S)
                raise
            later = stack.pop_all()
        headers = {"cache-control": "no-cache", **freshness_headers(fresh)}
        headers["x-headrace-truncated"] = "true" if result.head.truncated else "false"
        return _Lent(result.body, later, headers, formats.MEDIA_TYPES[wanted.format])


class _Lent(StreamingResponse):
    """A result on its way; when it is out, or the client is gone, the worker is given back."""

    def __init__(
        self,
        body: AsyncIterator[bytes],
        lent: AsyncExitStack,
        headers: Mapping[str, str],
        media_type: str,
    ) -> None:
        super().__init__(body, headers=headers, media_type=media_type)
        self._lent = lent

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with self._lent:
            await super().__call__(scope, receive, send)


def _find(catalog: Catalog, name: str) -> Relation:
    if name == DEAD_LETTERS_NAME:
        return catalog.dead_letters()
    if name == SAMPLES_NAME and not catalog.has(SAMPLES_NAME):
        return catalog.samples()
    return catalog.find(name)


def _fetched(reading: Reading) -> Reading:
    """Bring the files of tables far away to where they can be read."""
    for relation in reading.relations:
        if relation.snapshot is not None:
            reading.session.fetch(relation.snapshot, relation.snapshot.files)
    return reading


def _give(relations: Sequence[Relation]) -> Give:
    snapshots = [r.snapshot for r in relations if r.snapshot is not None]
    paths = [path_of(s, f) for s in snapshots for f in s.files]
    return Give({r.name: r.select() for r in relations}, paths)
