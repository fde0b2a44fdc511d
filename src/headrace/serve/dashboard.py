"""`/`: what runs and what it has counted, on one page made here; `/_/…`: its style and script.

The page fetches itself again every two seconds. Its policy allows nothing but the two files below,
and every text on it is escaped: rows come from outside.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from headrace.model.clock import Clock
from headrace.model.plan import Plan
from headrace.serve.formats import records
from headrace.serve.freshness import Freshness
from headrace.serve.reading import Reading, Readings
from headrace.serve.relations import Catalog, Relation, quoted

VIEW_ROWS_MAX = 10
"""Rows of a view on the page."""
CELL_CHARACTERS_MAX = 200

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_STATIC = Path(__file__).parent / "static"
_ASSETS = {"dashboard.js": "text/javascript; charset=utf-8", "style.css": "text/css; charset=utf-8"}


def dashboard_paths(plan: Plan) -> tuple[str, ...]:
    """Return where the dashboard is: at `/_/`, and at `/` unless the pipeline declares that."""
    declared = {r.path for r in plan.routes} | {q.path for q in plan.queries}
    return ("/_/",) if "/" in declared else ("/", "/_/")


def html_response(title: str, body: str, *, script: bool = False) -> Response:
    """Return a page with the strict policy."""
    tag = '<script src="/_/dashboard.js" defer></script>' if script else ""
    page = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        f'<title>{escape(title)}</title><link rel="stylesheet" href="/_/style.css">{tag}</head>'
        f"<body><main>{body}</main></body></html>"
    )
    headers = {
        "content-security-policy": POLICY,
        "cache-control": "no-cache",
        "referrer-policy": "no-referrer",
    }
    return Response(page, headers=headers, media_type="text/html")


async def asset(request: Request) -> Response:
    """Answer one of the page's two files."""
    name = request.path_params["asset"]
    if name not in _ASSETS:
        raise HTTPException(404)
    content = (_STATIC / name).read_bytes()
    headers = {"content-type": _ASSETS[name], "cache-control": "max-age=60"}
    return Response(content, headers=headers)


class Dashboard:
    """Makes the page."""

    def __init__(self, readings: Readings, clock: Clock) -> None:
        self._readings = readings
        self._clock = clock

    async def page(self, _: Request) -> Response:
        """Answer the page as things stand."""
        plan = self._readings.plan
        body = await self._readings.read(self._relations, self._body)
        return html_response(plan.name, body, script=True)

    def _relations(self, catalog: Catalog) -> list[Relation]:
        plan = self._readings.plan
        return [
            *(catalog.table(t.name) for t in plan.tables),
            *(catalog.view(v.name) for v in plan.views),
            catalog.dead_letters(),
        ]

    def _body(self, reading: Reading) -> str:
        plan = self._readings.plan
        last = self._readings.ledger.last()
        relations = list(reading.relations)
        tables, views = relations[: len(plan.tables)], relations[len(plan.tables) : -1]
        dead = relations[-1].rows
        age_s = (self._clock.now_us() - last.committed_at_us) / 1e6
        when = f"committed {_ago(age_s)}" if last.epoch else "nothing committed yet"
        topics = [
            [t.name, sum(n for k, n in last.offsets.items() if k.rpartition("/")[0] == t.name)]
            for t in plan.topics
        ]
        links = f'<a href="/v1/dead-letters">{dead} dead letters</a>. <a href="/docs">HTTP</a>'
        parts = [
            f"<h1>{escape(plan.name)}</h1><p>Epoch {last.epoch}, {when}. {links}</p>",
            _section("Topics", _table(["topic", "records processed"], topics)),
            _section("Tables", _table(["table", "rows"], [[r.name, r.rows] for r in tables])),
        ]
        fresh = {f.name: f for f in reading.fresh}
        parts += [self._view(reading, view, fresh[view.name]) for view in views]
        return "".join(parts)

    def _view(self, reading: Reading, view: Relation, fresh: Freshness) -> str:
        names = [c.name for c in view.columns]
        order = ", ".join(f"{quoted(k)} DESC NULLS LAST" for k in view.key)
        sql = f"SELECT * FROM {quoted(view.name)} ORDER BY {order} LIMIT {VIEW_ROWS_MAX}"
        reading.session.prepare([view])
        rows = [list(r.values()) for r in records(reading.session.select(sql))]
        note = f"<p>{view.rows} rows, true up to epoch {fresh.epoch}.</p>"
        return _section(view.name, note + _table(names, rows), f"/v1/views/{view.name}")


def _section(title: str, content: str, link: str = "") -> str:
    heading = escape(title)
    if link:
        heading = f'<a href="{escape(link)}">{heading}</a>'
    return f"<section><h2>{heading}</h2>{content}</section>"


def _table(names: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    if not rows:
        return '<p class="none">none yet</p>'
    head = "".join(f"<th>{escape(n)}</th>" for n in names)
    body = "".join(f"<tr>{''.join(map(_cell, row))}</tr>" for row in rows)
    return f'<div class="wide"><table><tr>{head}</tr>{body}</table></div>'


def _cell(value: object) -> str:
    if value is None:
        return '<td class="none">null</td>'
    text = str(value)
    if len(text) > CELL_CHARACTERS_MAX:
        text = text[:CELL_CHARACTERS_MAX] + "…"
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return f'<td class="number">{escape(text)}</td>' if number else f"<td>{escape(text)}</td>"


def _ago(seconds: float) -> str:
    units = ((86400, "days"), (3600, "hours"), (60, "minutes"))
    for size, name in units:
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {name} ago"
    return f"{max(0.0, seconds):.0f} s ago"
