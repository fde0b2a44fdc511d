"""Sources: how they fare, and the form that adds one."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from headrace.model import options
from headrace.model.plan import Plan
from headrace.serve.arguments import Arguments
from headrace.serve.dashboard.page import Shell
from headrace.serve.sources import SourceEndpoints


class Kind(msgspec.Struct, frozen=True):
    """A kind of source that may be added, with the options that whoever adds it may give."""

    name: str
    options: Sequence[options.Declared]


class SourcePages:
    """The handler."""

    def __init__(
        self,
        shell: Shell,
        endpoints: SourceEndpoints,
        plan: Plan,
        kinds: Mapping[str, type],
    ) -> None:
        self._shell = shell
        self._endpoints = endpoints
        self._is_open = plan.options.add_sources
        self._topics = [t.name for t in plan.topics]
        self._kinds = [
            Kind(name, [o for o in options.declared(kind) if not o.owner])
            for name, kind in sorted(kinds.items())
        ]

    async def page(self, request: Request) -> Response:
        """Show every source with its progress."""
        Arguments(request.query_params.multi_items()).finish()
        sources = await asyncio.to_thread(self._endpoints.read)
        return self._shell.page(
            "sources.html",
            "Sources",
            request,
            sources=sources,
            topics=self._topics,
            kinds=self._kinds,
            is_open=self._is_open,
            every_s=2,
        )
