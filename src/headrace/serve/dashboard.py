"""`/`: what runs and what it has counted, on one page made here; `/_/…`: its style and script.

The page fetches itself again every two seconds. Its policy allows nothing but the files below,
and every text on it is escaped: rows come from outside.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from html import escape
from pathlib import Path

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from headrace.control.progress import Listed
from headrace.define.types import quoted
from headrace.model.clock import Clock, rfc3339
from headrace.model.plan import Plan
from headrace.serve.freshness import Freshness
from headrace.serve.reading import Reading, Readings
from headrace.serve.relations import Catalog, Relation
from headrace.stage.encode import records

VIEW_ROWS_MAX = 10
"""Rows of a view on the page."""
CELL_CHARACTERS_MAX = 200

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z")
_STATIC = Path(__file__).parent / "static"
_ASSETS = {
    "dashboard.js": "text/javascript; charset=utf-8",
    "style.css": "text/css; charset=utf-8",
    "wheel.svg": "image/svg+xml",
}


def dashboard_paths(plan: Plan) -> tuple[str, ...]:
    """Return where the dashboard is: at `/_/`, and at `/` unless the pipeline declares that."""
    declared = {r.path for r in plan.routes} | {q.path for q in plan.queries}
    return ("/_/",) if "/" in declared else ("/", "/_/")


def html_response(title: str, body: str, *, script: bool = False, class_: str = "") -> Response:
    """Return a page with the strict policy."""
    tag = '<script src="/_/dashboard.js" defer></script>' if script else ""
    page = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        f'<title>{escape(title)}</title><link rel="icon" href="/_/wheel.svg">'
        f'<link rel="stylesheet" href="/_/style.css">{tag}</head>'
        f'<body><main class="{class_}">{body}</main></body></html>'
    )
    headers = {
        "content-security-policy": POLICY,
        "cache-control": "no-cache",
        "referrer-policy": "no-referrer",
    }
    return Response(page, headers=headers, media_type="text/html")


async def asset(request: Request) -> Response:
    """Answer one of the pages' files."""
    name = request.path_params["asset"]
    if name not in _ASSETS:
        raise HTTPException(404)
    content = (_STATIC / name).read_bytes()
    headers = {"content-type": _ASSETS[name], "cache-control": "max-age=60"}
    return Response(content, headers=headers)


class Dashboard:
    """Makes the page."""

    def __init__(
        self, readings: Readings, clock: Clock, sources: Callable[[], Sequence[Listed]]
    ) -> None:
        """`sources` returns those there are, with how they fare."""
        self._readings = readings
        self._clock = clock
        self._sources = sources

    async def page(self, _: Request) -> Response:
        """Answer the page as things stand."""
        plan = self._readings.plan
        sources = await asyncio.to_thread(self._sources)
        body = await self._readings.read(self._relations, lambda r: self._body(r, sources))
        return html_response(plan.name, body, script=True)

    def _relations(self, catalog: Catalog) -> list[Relation]:
        plan = self._readings.plan
        return [
            *(catalog.table(t.name) for t in plan.tables),
            *(catalog.view(v.name) for v in plan.views),
            catalog.dead_letters(),
        ]

    def _body(self, reading: Reading, sources: Sequence[Listed]) -> str:
        plan = self._readings.plan
        last = self._readings.ledger.last()
        relations = list(reading.relations)
        tables, views = relations[: len(plan.tables)], relations[len(plan.tables) : -1]
        open_letters = self._open_letters(reading, relations[-1])
        age_s = (self._clock.now_us() - last.committed_at_us) / 1e6
        when = f"committed {_ago(age_s)}" if last.epoch else "nothing committed yet"
        topics = {
            t.name: sum(n for k, n in last.offsets.items() if k.rpartition("/")[0] == t.name)
            for t in plan.topics
        }
        letters = _counted(open_letters, "open dead letter")
        links = (
            f'<a href="/v1/dead-letters?status=open">{letters}</a> · <a href="/docs">HTTP paths</a>'
        )
        table_rows = {t.name: t.rows for t in tables}
        fresh = {f.name: f for f in reading.fresh}
        sections = [
            _section("Topics", _counts("topic", "records processed", "", topics)),
            _section("Tables", _counts("table", "rows", "/v1/tables/", table_rows)),
            *([_section("Sources", _of_sources(sources), "/v1/sources")] if sources else []),
            *(self._view(reading, view, fresh[view.name]) for view in views),
        ]
        return (
            f"<header><h1>{escape(plan.name)}</h1><p>Epoch {last.epoch:,}, {when} · {links}</p>"
            f'</header><div class="sections">{"".join(sections)}</div>'
        )

    def _open_letters(self, reading: Reading, letters: Relation) -> int:
        if letters.rows == 0:
            return 0
        reading.session.prepare([letters])
        sql = f"SELECT count(*) FROM {quoted(letters.name)} WHERE status = 'open'"
        return int(reading.session.select(sql).column(0)[0].as_py())

    def _view(self, reading: Reading, view: Relation, fresh: Freshness) -> str:
        names = [c.name for c in view.columns]
        order = ", ".join(_order(view))
        sql = f"SELECT * FROM {quoted(view.name)} ORDER BY {order} LIMIT {VIEW_ROWS_MAX}"
        reading.session.prepare([view])
        rows = [list(r.values()) for r in records(reading.session.select(sql))]
        shown = f", the first {VIEW_ROWS_MAX} shown" if view.rows > VIEW_ROWS_MAX else ""
        said = f"{_counted(view.rows, 'row')}{shown}; as of epoch {fresh.epoch:,}"
        note = f'<p class="quiet">{said}</p>'
        return _section(view.name, note + _table(names, rows), f"/v1/views/{view.name}")


def _section(title: str, content: str, link: str = "") -> str:
    heading = escape(title)
    if link:
        heading = f'<a href="{escape(link)}">{heading}</a>'
    return f"<section><h2>{heading}</h2>{content}</section>"


def _of_sources(sources: Sequence[Listed]) -> str:
    names = ("source", "state", "sweep", "records", "remaining", "ETA, s", "goes on", "says")
    rows = [
        (
            *(s.name, s.state, s.sweep, s.records, s.remaining),
            None if s.eta_s is None else round(s.eta_s),
            None if s.goes_on_at_us is None else rfc3339(s.goes_on_at_us // 10**6 * 10**6),
            s.error or s.waiting_for or s.notice,
        )
        for s in sources
    ]
    return _table(names, rows, missing="")


def _order(view: Relation) -> list[str]:
    """Return what a view is shown by: the newest window first, in it the largest of what it counts.

    Windows are keys that are times, counts are whole numbers that are no keys.
    """
    keys = [c for c in view.columns if c.name in view.key]
    counts = [c.name for c in view.columns if c.type == "BIGINT" and c.name not in view.key]
    times = [c.name for c in keys if c.type.startswith("TIMESTAMP")]
    others = [c.name for c in keys if c.name not in times]
    descending = [f"{quoted(name)} DESC NULLS LAST" for name in [*times, *counts[:1]]]
    return [*descending, *(f"{quoted(name)} NULLS LAST" for name in others)] or ["1"]


def _counts(what: str, number: str, link: str, counts: Mapping[str, int]) -> str:
    """Return a table of names and how many each has; a name links to `link` and itself."""
    if not counts:
        return '<p class="none">none declared</p>'
    rows = []
    for name, n in counts.items():
        text = escape(name)
        named = f'<a href="{escape(link)}{text}">{text}</a>' if link else text
        rows.append(f'<tr><td>{named}</td><td class="number">{n:,}</td></tr>')
    head = f'<tr><th>{what}</th><th class="number">{number}</th></tr>'
    return f'<div class="wide"><table>{head}{"".join(rows)}</table></div>'


def _counted(n: int, noun: str) -> str:
    return f"{n:,} {noun}" if n == 1 else f"{n:,} {noun}s"


def _table(names: Sequence[str], rows: Sequence[Sequence[object]], *, missing: str = "null") -> str:
    if not rows:
        return '<p class="none">none yet</p>'
    classes = [_class([row[i] for row in rows]) for i in range(len(names))]
    head = "".join(f"<th{c}>{escape(n)}</th>" for n, c in zip(names, classes, strict=True))
    cell = partial(_cell, missing=missing)
    body = "".join(f"<tr>{''.join(map(cell, row, classes))}</tr>" for row in rows)
    return f'<div class="wide"><table><tr>{head}</tr>{body}</table></div>'


def _class(values: Sequence[object]) -> str:
    """Return how a column is set: numbers to the right, times on one line."""
    there = [v for v in values if v is not None]
    if there and all(isinstance(v, int | float) and not isinstance(v, bool) for v in there):
        return ' class="number"'
    if there and all(isinstance(v, str) and _TIME.fullmatch(v) for v in there):
        return ' class="time"'
    return ""


def _cell(value: object, class_: str, *, missing: str) -> str:
    if value is None:
        return f'<td class="none">{missing}</td>'
    text = str(value).lower() if isinstance(value, bool) else str(value)
    if class_ == ' class="time"':
        # A fraction of zeros tells nothing, and `T` is for machines.
        text = text.removesuffix("Z").removesuffix(".000000").replace("T", " ") + "Z"
    if len(text) > CELL_CHARACTERS_MAX:
        text = text[:CELL_CHARACTERS_MAX] + "…"
    return f"<td{class_}>{escape(text)}</td>"


def _ago(seconds: float) -> str:
    units = ((86400, "days"), (3600, "hours"), (60, "minutes"))
    for size, name in units:
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {name} ago"
    return f"{max(0.0, seconds):.0f} s ago"
