"""Tables and views: what there are, and the rows of one, filtered, ordered, charted."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any
from urllib.parse import urlencode

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from headrace.define.types import quoted
from headrace.model.clock import Clock
from headrace.model.errors import Invalid
from headrace.model.plan import Column, View
from headrace.serve.arguments import Arguments
from headrace.serve.dashboard.page import ROOT, Shell
from headrace.serve.dashboard.shown import Grid, grid
from headrace.serve.freshness import Freshness
from headrace.serve.pages import SUFFIXES, page_of, split
from headrace.serve.reading import Reading, Readings
from headrace.serve.relations import Catalog, Relation, literal
from headrace.stage.encode import records

SHOWN = 50
"""Rows of a page."""
FORMATS = ("csv", "json", "parquet", "arrow")
COMPARISONS = {
    "eq": "is",
    "ne": "is not",
    "lt": "is less than",
    "le": "is at most",
    "gt": "is more than",
    "ge": "is at least",
    "in": "is one of (by commas)",
    "prefix": "begins with",
    "null": "is null (true or false)",
}
WINDOWS_MAX, LINES_MAX = 120, 6
"""Windows and lines of a chart."""


class Held(msgspec.Struct, frozen=True):
    """A table or view in a list."""

    name: str
    kind: str
    rows: int
    files: int
    size_bytes: int
    version: int
    fresh: Freshness
    about: str

    @property
    def path(self) -> str:
        """Where it is shown."""
        return f"{ROOT}{self.kind}s/{self.name}"


class Asked(msgspec.Struct, frozen=True):
    """What the form above the rows asks."""

    column: str = ""
    compare: str = "eq"
    value: str = ""
    order: str = ""
    cursor: str = ""

    @property
    def filters(self) -> dict[str, str]:
        """The parameters of `GET /v1/tables/{table}` that say the same."""
        found = {f"{self.column}__{self.compare}": self.value} if self.column else {}
        return {**found, "order": self.order} if self.order else found


class RelationPages:
    """The handlers."""

    def __init__(self, shell: Shell, readings: Readings, clock: Clock) -> None:
        self._shell = shell
        self._readings = readings
        self._clock = clock

    async def listed(self, request: Request) -> Response:
        """Show every table and view."""
        Arguments(request.query_params.multi_items()).finish()
        held = await self._readings.read(lambda catalog: catalog.all()[:-1], self._held)
        return self._shell.page(
            "tables.html", "Tables and views", request, held=held, now_us=self._clock.now_us()
        )

    async def table(self, request: Request) -> Response:
        """Show rows of a table, the newest first."""
        name = request.path_params["table"]
        return await self._rows(request, "table", lambda catalog: [catalog.table(name)])

    async def view(self, request: Request) -> Response:
        """Show rows of a view, with a chart if it has windows."""
        name = request.path_params["view"]
        return await self._rows(request, "view", lambda catalog: [catalog.view(name)])

    def _held(self, reading: Reading) -> list[Held]:
        plan = self._readings.plan
        keys = {t.name: t.keyed.key for t in plan.tables if t.keyed}
        of = {v.name: v.table for v in plan.views}
        held = []
        for relation, fresh in zip(reading.relations, reading.fresh, strict=True):
            name = relation.name
            is_view = relation.storage.startswith("views/")
            key = ", ".join(keys.get(name, ()))
            about = f"over {of[name]}" if is_view else f"latest by {key}" if key else ""
            files = len(relation.snapshot.files) if relation.snapshot else 0
            held.append(
                Held(
                    name=name,
                    kind="view" if is_view else "table",
                    rows=relation.rows,
                    files=files,
                    size_bytes=relation.size_bytes,
                    version=relation.version,
                    fresh=fresh,
                    about=about,
                )
            )
        return held

    async def _rows(
        self, request: Request, kind: str, find: Callable[[Catalog], Sequence[Relation]]
    ) -> Response:
        asked = _asked(request)
        found = await self._readings.read(find, lambda reading: self._found(reading, kind, asked))
        name = found["relation"].name
        here = f"{ROOT}{kind}s/{name}"
        filters = asked.filters
        next_ = found.pop("cursor")
        form = {n: v for n, v in msgspec.structs.asdict(asked).items() if v and n != "cursor"}
        return self._shell.page(
            "relation.html",
            name,
            request,
            kind=kind,
            asked=asked,
            comparisons=COMPARISONS,
            now_us=self._clock.now_us(),
            next=f"{here}?{urlencode({**form, 'cursor': next_})}" if next_ else "",
            exports=[
                (f, f"/v1/{kind}s/{name}?{urlencode({**filters, 'format': f})}") for f in FORMATS
            ],
            status=400 if found["error"] else 200,
            **found,
        )

    def _found(self, reading: Reading, kind: str, asked: Asked) -> dict[str, Any]:
        relation = reading.relations[0]
        reading.session.prepare(reading.relations)
        view = next((v for v in self._readings.plan.views if v.name == relation.name), None)
        found: dict[str, Any] = {
            "relation": relation,
            "fresh": reading.fresh[0],
            "sql": view.sql if view and kind == "view" else "",
            "chart": chart_of(reading, relation, view) if view and kind == "view" else None,
            "rows": None,
            "cursor": None,
            "error": None,
        }
        items = [*asked.filters.items()]
        if not asked.order:
            items.append(("order", ",".join(order_of(relation))))
        if asked.cursor:
            items.append(("cursor", asked.cursor))
        try:
            page = page_of(relation, Arguments(items), SHOWN, SHOWN)
            table, found["cursor"] = split(page, reading.session.select(page.sql, page.values))
        except Invalid as e:
            found["error"] = e
            return found
        found["rows"] = rows_of(records(table), table.column_names)
        return found


def rows_of(rows: Sequence[Mapping[str, object]], names: Sequence[str]) -> Grid:
    """Return rows ready to be shown."""
    return grid(names, [[row[n] for n in names] for row in rows])


def order_of(relation: Relation) -> list[str]:
    """Return what rows are shown by: the newest first, of a view the largest of what it counts.

    Windows are keys that are times, counts are whole numbers that are no keys.
    """
    if not relation.storage.startswith("views/"):
        names = {c.name for c in relation.columns}
        return ["-received_at"] if "received_at" in names else []
    times = [c.name for c in _keys(relation) if c.type.startswith("TIMESTAMP")]
    return [f"-{name}" for name in [*times, *(c.name for c in _counts(relation)[:1])]]


def chart_of(reading: Reading, relation: Relation, view: View) -> dict[str, object] | None:
    """Return the chart of a windowed view: its first count by window, a line a group.

    The largest groups have lines; the others are left to the rows below.
    """
    times = [c for c in _keys(relation) if c.type.startswith("TIMESTAMP")]
    counts = _counts(relation)
    if view.window is None or not times or not counts or not relation.rows:
        return None
    at, count = quoted(times[0].name), counts[0]
    others = [c for c in _keys(relation) if not c.type.startswith("TIMESTAMP")]
    parts = ", ".join(f"coalesce(CAST({quoted(c.name)} AS VARCHAR), 'null')" for c in others)
    line = f"concat_ws(' · ', {parts})" if others else literal(count.name)
    name = quoted(relation.name)
    sql = f"""
        WITH windows AS (
            SELECT DISTINCT {at} AS begin_at FROM {name} ORDER BY begin_at DESC LIMIT {WINDOWS_MAX}
        ), points AS (
            SELECT epoch({at})::BIGINT AS second, {line} AS line, sum({quoted(count.name)}) AS n
            FROM {name} WHERE {at} >= (SELECT min(begin_at) FROM windows) GROUP BY ALL
        ), largest AS (
            SELECT line FROM points GROUP BY line ORDER BY sum(n) DESC, line LIMIT {LINES_MAX}
        )
        SELECT second, line, n FROM points WHERE line IN (FROM largest) ORDER BY second, line
    """
    rows = records(reading.session.select(sql))
    x = sorted({int(str(r["second"])) for r in rows})
    place = {second: i for i, second in enumerate(x)}
    lines: dict[str, list[float | None]] = {}
    for row in rows:
        y = lines.setdefault(str(row["line"]), [None] * len(x))
        # A count of the owner's may be null in all of a window, such as the least of no values.
        n = row["n"]
        y[place[int(str(row["second"]))]] = None if n is None else float(str(n))
    series = [{"name": n, "y": y} for n, y in sorted(lines.items())]
    return {"x": x, "series": series, "unit": "", "title": count.name}


def _keys(relation: Relation) -> list[Column]:
    return [c for c in relation.columns if c.name in relation.key]


def _counts(relation: Relation) -> list[Column]:
    return [c for c in relation.columns if c.type == "BIGINT" and c.name not in relation.key]


def _asked(request: Request) -> Asked:
    arguments = Arguments(request.query_params.multi_items())
    asked = Asked(**{n: arguments.take(n) or d for n, d in _DEFAULTS.items()})
    arguments.finish()
    if asked.compare not in SUFFIXES:
        raise Invalid(
            "compare has to be a way to compare",
            hint=f"One of: {', '.join(SUFFIXES)}.",
            code="invalid_parameter",
        )
    return asked


_DEFAULTS = msgspec.structs.asdict(Asked())
