"""What each path of the reading side answers."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from urllib.parse import urlencode

import duckdb
import msgspec
from starlette.requests import Request
from starlette.responses import Response

from headrace.define.query_sql import splice
from headrace.model.clock import Clock
from headrace.model.errors import Internal, Invalid
from headrace.model.layout import Layout
from headrace.model.plan import Query, QueryParameter
from headrace.serve import formats, health
from headrace.serve.answers import Answer, Answers
from headrace.serve.arguments import WAIT_S_MAX, Arguments, query_value
from headrace.serve.errors import error_body
from headrace.serve.freshness import Freshness
from headrace.serve.metrics import CONTENT_TYPE, Metrics
from headrace.serve.pages import BULK_LIMIT_MAX, LIMIT_DEFAULT, LIMIT_MAX, page_of, split
from headrace.serve.reading import Find, Reading, Readings, freshness_headers
from headrace.serve.relations import Catalog, Relation

About = Callable[[Relation], dict[str, object]]
"""What a list says of a relation beside what it says of every one."""

WAIT_S_DEFAULT = 10.0
"""How long `at_least` waits when the request does not say."""

QUERY_ROWS_MAX = 100_000
"""Rows that a named query may answer with."""


@dataclass(frozen=True, slots=True)
class Asked:
    """What a request for rows asks beside the rows themselves."""

    arguments: Arguments
    format: str
    at_least: dict[str, int]
    timeout_s: float


def asked(request: Request, own: Collection[str] = ()) -> Asked:
    """Return what a request asks for; what else it says stays in the arguments.

    `own` are parameters that a named query declares itself: they are the query's.
    """
    arguments = Arguments(request.query_params.multi_items())
    format_ = None if "format" in own else arguments.take("format")
    at_least = {} if "at_least" in own else arguments.take_at_least()
    timeout_s = WAIT_S_DEFAULT
    if "timeout" not in own:
        timeout_s = arguments.take_seconds("timeout", WAIT_S_DEFAULT, WAIT_S_MAX)
    chosen = formats.chosen(format_, request.headers.get("accept"))
    return Asked(arguments, chosen, at_least, timeout_s)


def rows_response(
    body: bytes, format_: str, fresh: Sequence[Freshness], link: str | None = None
) -> Response:
    """Return rows with the headers that say what they are."""
    headers = {"cache-control": "no-cache", **freshness_headers(fresh)}
    if link is not None:
        headers["link"] = f'<{link}>; rel="next"'
    return Response(body, headers=headers, media_type=formats.MEDIA_TYPES[format_])


def json_response(value: object, fresh: Sequence[Freshness] = (), status: int = 200) -> Response:
    """Return a value as JSON."""
    headers = {"cache-control": "no-cache", **(freshness_headers(fresh) if fresh else {})}
    body = msgspec.json.encode(value)
    return Response(body, status, headers=headers, media_type="application/json")


class Endpoints:
    """The handlers, over what they share."""

    def __init__(
        self,
        readings: Readings,
        metrics: Metrics,
        layout: Layout,
        clock: Clock,
        waits_for: Sequence[str],
    ) -> None:
        self._readings = readings
        self._metrics = metrics
        self._layout = layout
        self._clock = clock
        self._waits_for = waits_for
        self._answers = Answers()

    async def tables(self, request: Request) -> Response:
        """List the tables."""
        plan = self._readings.plan
        retention = {t.name: t.retention_s for t in plan.tables}
        return await self._list(
            request,
            "tables",
            lambda catalog: [catalog.table(t.name) for t in plan.tables],
            lambda r: {"topics": r.topics, "retention_s": retention[r.name]},
        )

    async def views(self, request: Request) -> Response:
        """List the views."""
        plan = self._readings.plan
        views = {v.name: v for v in plan.views}
        return await self._list(
            request,
            "views",
            lambda catalog: [catalog.view(v.name) for v in plan.views],
            lambda r: {
                "table": views[r.name].table,
                "key": r.key,
                "sql": views[r.name].sql,
                "window": views[r.name].window,
            },
        )

    async def table(self, request: Request) -> Response:
        """Answer a page of a table's rows."""
        name = request.path_params["table"]
        return await self._page(request, lambda catalog: [catalog.table(name)])

    async def view(self, request: Request) -> Response:
        """Answer a page of a view's rows."""
        name = request.path_params["view"]
        return await self._page(request, lambda catalog: [catalog.view(name)])

    async def dead_letters(self, request: Request) -> Response:
        """Answer a page of the dead letters."""
        return await self._page(request, lambda catalog: [catalog.dead_letters()])

    async def healthz(self, request: Request) -> Response:
        """Answer whether this server can query."""
        Arguments(request.query_params.multi_items()).finish()
        snapshots = self._readings.catalog.snapshots
        return json_response(
            await self._readings.engine.run(
                lambda session: health.query_health(session, snapshots),
                health.QUERY_S_MAX,
                urgent=True,
            )
        )

    async def ready(self, request: Request) -> Response:
        """Answer whether the pipeline takes records and makes rows of them."""
        Arguments(request.query_params.multi_items()).finish()
        checks = await health.readiness(self._layout, self._clock, self._waits_for)
        wrong = {name: said for name, said in checks.items() if said != "ok"}
        if not wrong:
            return json_response({"ready": True, "checks": checks})
        message = "; ".join(f"{name}: {said}" for name, said in wrong.items())
        hint = "`headrace status` says more; a role that has just started needs a moment."
        headers = {"cache-control": "no-store", "retry-after": "1"}
        return error_body(503, "not_ready", message, hint, headers, ready=False, checks=checks)

    async def metrics(self, request: Request) -> Response:
        """Answer every role's metrics."""
        Arguments(request.query_params.multi_items()).finish()
        engine = self._readings.engine
        waiting = engine.waiting
        text = await engine.run(
            lambda _: self._metrics.text(waiting, self._readings.ledger.last().epoch),
            health.QUERY_S_MAX,
            urgent=True,
        )
        return Response(text, headers={"content-type": CONTENT_TYPE, "cache-control": "no-store"})

    async def _list(self, request: Request, what: str, find: Find, about: About) -> Response:
        wanted = asked(request)
        wanted.arguments.finish()
        relations, fresh = await self._readings.read(
            find, lambda r: (r.relations, r.fresh), wanted.at_least, wanted.timeout_s
        )
        listed = [
            {
                "name": r.name,
                "rows": r.rows,
                "version": r.version,
                "columns": r.all_columns,
                **about(r),
            }
            for r in relations
        ]
        return json_response({what: listed}, fresh)

    async def _page(self, request: Request, find: Find) -> Response:
        wanted = asked(request)
        bulk = wanted.format in formats.BULK
        limits = (BULK_LIMIT_MAX, BULK_LIMIT_MAX) if bulk else (LIMIT_DEFAULT, LIMIT_MAX)

        def make(reading: Reading) -> Answer:
            page = page_of(reading.relations[0], wanted.arguments, *limits)
            reading.session.prepare(reading.relations)
            rows, cursor = split(page, reading.session.select(page.sql, page.values))
            return Answer(formats.encode(rows, wanted.format, next_=cursor, paged=True), cursor)

        def work(reading: Reading) -> tuple[Answer, Sequence[Freshness]]:
            relation = reading.relations[0]
            asked_for = tuple(wanted.arguments.items)
            key = (relation.name, relation.identity, wanted.format, asked_for)
            return self._answers.get(key, lambda: make(reading)), reading.fresh

        answer, fresh = await self._readings.read(find, work, wanted.at_least, wanted.timeout_s)
        link = _next_link(request, answer.cursor)
        return rows_response(answer.body, wanted.format, fresh, link)


class NamedQuery:
    """The handler of one `pipeline.query` path."""

    def __init__(self, query: Query, readings: Readings) -> None:
        self._query = query
        self._readings = readings
        self._bound = bound_names(query)

    async def __call__(self, request: Request) -> Response:
        """Answer the query with the request's parameters."""
        wanted = asked(request, {p.name for p in self._query.parameters})
        sql, values = fill(self._query, wanted.arguments)
        values = {name: value for name, value in values.items() if name in self._bound}

        def find(catalog: Catalog) -> Sequence[Relation]:
            return [catalog.find(name) for name in self._query.reads]

        def work(reading: Reading) -> tuple[bytes, Sequence[Freshness]]:
            reading.session.prepare(reading.relations)
            rows = reading.session.select(sql, values, QUERY_ROWS_MAX)
            body = formats.encode(rows, wanted.format, next_=None, paged=False)
            return body, reading.fresh

        body, fresh = await self._readings.read(find, work, wanted.at_least, wanted.timeout_s)
        return rows_response(body, wanted.format, fresh)


def fill(query: Query, arguments: Arguments) -> tuple[str, dict[str, object]]:
    """Return a query's SQL with its choices in place, and the values to bind.

    A choice gets into SQL only if it is one of those that the plan lists, as a quoted name.
    """
    names: dict[str, str] = {}
    values: dict[str, object] = {}
    for parameter in query.parameters:
        text = arguments.take(parameter.name)
        text = parameter.default if text is None else text
        if text is None and parameter.required:
            raise Invalid(
                f"Parameter {parameter.name} is missing",
                hint=_expected(parameter),
                code="missing_parameter",
            )
        if parameter.choices and text is not None and text not in parameter.choices:
            raise Invalid(
                f"Parameter {parameter.name} cannot be {text[:80]!r}",
                hint=_expected(parameter),
                code="invalid_parameter",
            )
        if parameter.type == "choice":
            names[parameter.name] = text if text is not None else parameter.choices[0]
        else:
            values[parameter.name] = (
                None if text is None else query_value(parameter.name, text, parameter.type)
            )
    arguments.finish()
    return splice(query.sql, names), values


def bound_names(query: Query) -> set[str]:
    """Return the names of the values that a query's SQL binds as `$name`."""
    choices = {p.name: (p.choices or ("",))[0] for p in query.parameters if p.type == "choice"}
    try:
        with duckdb.connect(":memory:") as connection:
            statement, *others = connection.extract_statements(splice(query.sql, choices))
    except (duckdb.Error, ValueError) as e:
        raise Internal(f"The SQL of query {query.path} does not parse: {e}") from e
    if others:
        raise Internal(f"The SQL of query {query.path} is more than one statement")
    return set(statement.named_parameters)


def _expected(parameter: QueryParameter) -> str:
    if parameter.choices:
        return f"Choose one of: {', '.join(parameter.choices)}."
    return f"Give a value of type {parameter.type}."


def _next_link(request: Request, cursor: str | None) -> str | None:
    if cursor is None:
        return None
    kept = [(k, v) for k, v in request.query_params.multi_items() if k != "cursor"]
    return f"{request.url.path}?{urlencode([*kept, ('cursor', cursor)])}"
