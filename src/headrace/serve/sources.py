"""`/v1/sources`: sources listed with their progress, added, paused, resumed and removed."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

from starlette.requests import Request
from starlette.responses import Response

from headrace.control import sessions, sources
from headrace.control.progress import Listed, list_sources, read_progress
from headrace.control.sources import OptionsOf
from headrace.control.turns import InTurn
from headrace.model.clock import Clock
from headrace.model.errors import Invalid
from headrace.model.log import Log
from headrace.model.plan import Plan
from headrace.serve.arguments import Arguments
from headrace.serve.bodies import read_body
from headrace.serve.endpoints import json_response

_SHAPE = 'Send {"name": "…", "kind": "…", "topic": "…", "options": {}, "counts": "…"}.'


class SourceParts(NamedTuple):
    """What the endpoints of sources need: kinds that may be added, and a log of their own."""

    options_of: OptionsOf
    log: Log
    kinds: Mapping[str, type] = {}
    """The options of each kind that may be added, for the form that asks for them."""


class SourceEndpoints:
    """The handlers."""

    def __init__(self, plan: Plan, parts: SourceParts, run: Path, clock: Clock) -> None:
        """`run` is the folder in which the pull role tells how its sources fare."""
        self._plan = plan
        self._log = InTurn(parts.log)
        self._options_of = parts.options_of
        self._run = run
        self._clock = clock

    async def listed(self, request: Request) -> Response:
        """List every source of the pipeline file and every one added, with its progress."""
        Arguments(request.query_params.multi_items()).finish()
        return json_response({"sources": await asyncio.to_thread(self.read)})

    async def one(self, request: Request) -> Response:
        """Return one source, with its progress."""
        Arguments(request.query_params.multi_items()).finish()
        name: str = request.path_params["source"]
        return json_response(await asyncio.to_thread(self._one, name))

    async def add(self, request: Request) -> Response:
        """Declare a source, to be pulled from within seconds."""
        wanted = await read_body(request, sources.Request, _SHAPE)
        return json_response(await asyncio.to_thread(self._add, wanted), status=201)

    async def remove(self, request: Request) -> Response:
        """Forget a source that was added; what it collected stays."""
        name = _named(request)
        await asyncio.to_thread(sources.remove, self._plan, self._log, name)
        return json_response({"removed": name})

    async def pause(self, request: Request) -> Response:
        """Have a source wait."""
        return json_response(await asyncio.to_thread(self._change, _named(request), sources.pause))

    async def resume(self, request: Request) -> Response:
        """Have a source go on."""
        return json_response(await asyncio.to_thread(self._change, _named(request), sources.resume))

    def read(self) -> list[Listed]:
        """Return every source of the pipeline file and every one added, with its progress."""
        return list_sources(self._plan, self._log, read_progress(self._run, self._clock))

    def _add(self, wanted: sources.Request) -> Listed:
        sources.add(self._plan, self._log, self._options_of, wanted, self._clock)
        return self._one(wanted.name)

    def _change(self, name: str, act: Callable[[Plan, InTurn, str, Clock], None]) -> Listed:
        act(self._plan, self._log, name, self._clock)
        return self._one(name)

    def _one(self, name: str) -> Listed:
        for source in self.read():
            if source.name == name:
                return source
        raise sources.unknown_source(name)


def _named(request: Request) -> str:
    """Return the source that a request without a body is about.

    Such a request a page of another site could send too, through the browser of somebody who
    reaches this server; but browsers then say whose page it is.
    """
    Arguments(request.query_params.multi_items()).finish()
    if sessions.is_foreign(request.headers):
        raise Invalid(
            "A page of another site may not change sources",
            hint="Ask from a program, or from a page of this server.",
            code="forbidden",
        )
    name: str = request.path_params["source"]
    return name
