"""The page where one writes SQL; `POST /v1/sql` answers it."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response

from headrace.model.samples import SAMPLES_NAME
from headrace.serve.arguments import Arguments
from headrace.serve.dashboard.page import Shell
from headrace.serve.reading import Readings
from headrace.serve.relations import Catalog, Relation


class SqlPage:
    """The handler."""

    def __init__(self, shell: Shell, readings: Readings) -> None:
        self._shell = shell
        self._readings = readings

    async def page(self, request: Request) -> Response:
        """Show the box, and what can be selected from."""
        Arguments(request.query_params.multi_items()).finish()
        relations = await self._readings.read(_relations, lambda r: r.relations)
        first = relations[0].name if relations else "ledger"
        return self._shell.page(
            "sql.html",
            "SQL",
            request,
            relations=relations,
            example=f"SELECT * FROM {first} LIMIT 10",
            every_s=3_600,
        )


def _relations(catalog: Catalog) -> list[Relation]:
    return [*catalog.all(), *([] if catalog.has(SAMPLES_NAME) else [catalog.samples()])]
