"""The whole HTTP surface of a pipeline as OpenAPI 3.1, generated from its plan.

The collector's paths are in it too: to a client they are one server on one port.
"""

from __future__ import annotations

import importlib.metadata
import re
from collections.abc import Sequence
from typing import Any

import msgspec

from headrace.control.progress import Listed
from headrace.control.sources import Request
from headrace.control.tokens import LIFETIME_S_DEFAULT, LIFETIME_S_MAX
from headrace.model.plan import DEAD_LETTER_SCHEMA, Column, Plan, Query, QueryParameter, Route, View
from headrace.model.schema import Schema
from headrace.serve import live
from headrace.serve.access import SCHEME, secure
from headrace.serve.arguments import WAIT_S_MAX
from headrace.serve.dashboard.handlers import dashboard_paths
from headrace.serve.formats import MEDIA_TYPES
from headrace.serve.json_schema import column_schema, record_schema
from headrace.serve.letters import IDS_MAX
from headrace.serve.pages import LIMIT_DEFAULT, LIMIT_MAX, SUFFIXES
from headrace.serve.relations import columns_of
from headrace.serve.sql.endpoint import ROWS_DEFAULT, ROWS_MAX

Json = dict[str, Any]

_FILTER = (
    "Rows in which the column has this value. With one of these after the name, compared in "
    f"another way: {', '.join('__' + s for s in SUFFIXES)}."
)


def openapi(plan: Plan) -> Json:
    """Return the OpenAPI document of a pipeline."""
    paths: dict[str, Json] = {}
    for route in plan.routes:
        paths[route.path] = _route(route)
    for topic in plan.topics:
        paths[f"/v1/topics/{topic.name}"] = {"post": _append(topic.name, topic.schema)}
        paths[f"/v1/topics/{topic.name}/records"] = {"get": _read_back(topic.name)}
    for name in plan.change_topics:
        paths[f"/v1/topics/{name}/records"] = {"get": _read_back(name)}
    paths["/v1/topics"] = {"get": _get("List the topics", "topics", _json_content({}))}
    paths["/v1/tables"] = {"get": _listing("tables")}
    for table in plan.tables:
        summary = f"Read rows of the table {table.name}"
        paths[f"/v1/tables/{table.name}"] = {"get": _rows(summary, "tables", table.columns)}
    paths["/v1/views"] = {"get": _listing("views")}
    for view in plan.views:
        summary = f"Read rows of the view {view.name}"
        paths[f"/v1/views/{view.name}"] = {"get": _rows(summary, "views", view.columns)}
        paths[f"/v1/views/{view.name}/live"] = {"get": _live(view)}
    for query in plan.queries:
        paths[query.path] = {"get": _query(query)}
    paths["/v1/sql"] = {"post": _sql()}
    paths.update(_dead_letter_paths())
    paths.update(_server_paths(plan))
    security: Json = {}
    paths.update(_source_paths())
    if plan.options.tokens:
        paths.update(_token_paths())
        security = {"securitySchemes": {SCHEME: {"type": "http", "scheme": "bearer"}}}
        secure(paths, plan)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": plan.name,
            "version": importlib.metadata.version("headrace"),
            "description": "Records in, tables and live counts out. Every answer with rows says in "
            "X-Headrace-Version and X-Headrace-Offsets what it read and up to where that is true.",
        },
        "paths": paths,
        "components": {
            "schemas": {"Error": _error_schema(), "Append": _append_schema()},
            **security,
        },
    }


def _route(route: Route) -> Json:
    names = re.findall(r"\{(\w+)\}", route.path)
    parameters = [
        {"name": n, "in": "path", "required": True, "schema": {"type": "string"}} for n in names
    ]
    methods: Json = {}
    for method in ("get", "post"):
        operation = _operation(f"Append one record to the topic {route.topic}", "routes")
        operation["description"] = _says(route)
        operation["parameters"] = parameters
        operation["responses"]["200"] = {
            "description": "The record is durable",
            "content": {"text/plain": {"schema": {"type": "string"}, "example": route.reply}},
        }
        methods[method] = operation
    methods["post"]["requestBody"] = {"content": _json_content({"type": "object"})}
    return methods


def _says(route: Route) -> str:
    """Return what a route makes of a request."""
    fixed = [f"{name} = {text}" for name, text in route.fixed.items()]
    headers = ["the request's headers"] if route.headers else []
    fields = ", then ".join([*fixed, "the fields of the body, if any", *headers])
    return f"The record has {fields}. The answer is {route.reply.strip()!r}."


def _append(topic: str, schema: Schema | None) -> Json:
    record = {"type": "object"} if schema is None else record_schema(schema)
    operation = _operation(f"Append records to the topic {topic}", "topics")
    operation["description"] = (
        "A JSON object, a JSON array or NDJSON, each also gzipped, or CloudEvents 1.0. "
        "A record that is not valid becomes a dead letter."
    )
    operation["parameters"] = [
        _parameter("wait", {"type": "boolean"}, "false answers 202 before the records are durable"),
        {
            "name": "Idempotency-Key",
            "in": "header",
            "schema": {"type": "string"},
            "description": "A request repeated with the same key makes duplicates of its records",
        },
    ]
    operation["requestBody"] = {
        "required": True,
        "content": {
            "application/json": {"schema": {"anyOf": [record, {"type": "array", "items": record}]}},
            "application/x-ndjson": {"schema": {"type": "string"}},
            "application/cloudevents+json": {"schema": {"type": "object"}},
            "application/cloudevents-batch+json": {
                "schema": {"type": "array", "items": {"type": "object"}}
            },
        },
    }
    appended = {"content": _json_content({"$ref": "#/components/schemas/Append"})}
    operation["responses"]["200"] = {"description": "The records are durable", **appended}
    operation["responses"]["202"] = {"description": "The records were taken", **appended}
    return operation


def _read_back(topic: str) -> Json:
    operation = _get(f"Read records of the topic {topic} back", "topics", _json_content({}))
    operation["parameters"] = [
        _parameter("partition", {"type": "integer"}, "Which partition"),
        _parameter("offset", {"type": "integer"}, "The first offset to read"),
        _parameter("limit", {"type": "integer"}, "Records at most"),
    ]
    return operation


def _listing(what: str) -> Json:
    item = {
        "type": "object",
        "properties": {
            "name": {"type": "string"},
            "rows": {"type": "integer"},
            "version": {"type": "integer"},
            "columns": {"type": "array", "items": {"type": "object"}},
        },
    }
    body = {"type": "object", "properties": {what: {"type": "array", "items": item}}}
    operation = _get(f"List the {what}", what, _json_content(body))
    operation["parameters"] = _waiting()
    return operation


def _rows(summary: str, tag: str, columns: Sequence[Column]) -> Json:
    operation = _get(summary, tag, _row_content(columns, paged=True))
    limit = {"type": "integer", "minimum": 1, "maximum": LIMIT_MAX, "default": LIMIT_DEFAULT}
    operation["parameters"] = [
        *(_parameter(c.name, _plain(column_schema(c.type)), _FILTER) for c in columns),
        _parameter("order", {"type": "string"}, "Columns, by commas; - before one descends"),
        _parameter("limit", limit, "Rows in the page; more for CSV, Parquet and Arrow"),
        _parameter("cursor", {"type": "string"}, "`next` of the page before"),
        _parameter("columns", {"type": "string"}, "Only these columns, by commas"),
        *_waiting(),
    ]
    return operation


def _live(view: View) -> Json:
    content = {live.MEDIA_TYPE: {"schema": {"type": "string"}}}
    operation = _get(f"Follow the view {view.name}", "views", content)
    operation["description"] = (
        "Server-sent events `rows`: the first at once, another each time the view is published. "
        "Their data are `rows` as the view's own path answers them, `more`, "
        "`version`, `offsets` and `committed_at`. With `Last-Event-ID`, which browsers send when "
        "they come back, what was seen is not sent again."
    )
    limit = {"type": "integer", "default": live.LIMIT_DEFAULT, "maximum": live.LIMIT_MAX}
    paging = {"cursor", "format", "at_least", "timeout", "limit"}
    alike = _rows("", "", view.columns)["parameters"]
    operation["parameters"] = [p for p in alike if p["name"] not in paging]
    operation["parameters"].append(_parameter("limit", limit, "Rows of each event"))
    return operation


def _query(query: Query) -> Json:
    operation = _get(
        f"Query {', '.join(query.reads)}", "queries", _row_content(query.columns, paged=False)
    )
    operation["description"] = f"```sql\n{query.sql.strip()}\n```"
    operation["parameters"] = [*map(_query_parameter, query.parameters), *_waiting()]
    return operation


def _sql() -> Json:
    text: Json = {"type": "string"}
    column = {"type": "object", "properties": {"name": text, "type": text}}
    answer: Json = {
        "columns": {"type": "array", "items": column},
        "truncated": {"type": "boolean", "description": "Whether there were more rows"},
        "rows": {"type": "array", "items": {"type": "object"}},
    }
    others: Json = {m.partition(";")[0]: {} for f, m in MEDIA_TYPES.items() if f != "json"}
    content = {**_json_content({"type": "object", "properties": answer}), **others}
    operation = _get("Run one SELECT over tables and views", "sql", content)
    operation["description"] = (
        "In DuckDB's dialect; `DESCRIBE`, `SUMMARIZE` and `SHOW TABLES` too. It runs in a process "
        "that opens no other file and no network. Answers are cut after `limit` rows, which "
        "X-Headrace-Truncated says; refusals come before the first byte."
    )
    limit = {"type": "integer", "default": ROWS_DEFAULT, "minimum": 1, "maximum": ROWS_MAX}
    operation["parameters"] = [_parameter("limit", limit, "Rows that are answered"), *_waiting()]
    body = {"type": "object", "properties": {"sql": text}, "required": ["sql"]}
    operation["requestBody"] = {"required": True, "content": _json_content(body)}
    return operation


def _query_parameter(parameter: QueryParameter) -> Json:
    types: dict[str, Json] = {
        "choice": {"type": "string"},
        "timestamp": {"type": "string", "format": "date-time"},
    }
    schema = dict(types.get(parameter.type, {"type": parameter.type}))
    if parameter.choices:
        schema["enum"] = list(parameter.choices)
    if parameter.default is not None:
        schema["default"] = parameter.default
    required = parameter.required and parameter.default is None
    return {**_parameter(parameter.name, schema, ""), "required": required}


def _dead_letter_paths() -> dict[str, Json]:
    columns = (
        *columns_of(DEAD_LETTER_SCHEMA),
        Column("status", "VARCHAR"),
        Column("text", "VARCHAR"),
    )
    acted = (Column("acted_at", "TIMESTAMP WITH TIME ZONE"), Column("why", "VARCHAR"))
    one = _get(
        "Read one dead letter",
        "dead letters",
        _json_content({"type": "object", "properties": _properties((*columns, *acted))}),
    )
    one["parameters"] = [
        {"name": "letter", "in": "path", "required": True, "schema": {"type": "string"}}
    ]
    return {
        "/v1/dead-letters": {"get": _rows("Read dead letters", "dead letters", columns)},
        "/v1/dead-letters/{letter}": {"get": one},
        "/v1/dead-letters/replay": {
            "post": _act("replayed", "Append the records of dead letters again", {})
        },
        "/v1/dead-letters/discard": {
            "post": _act(
                "discarded",
                "Record that nothing will be done about dead letters",
                {"why": {"type": "string", "description": "The reason, which is kept"}},
            )
        },
    }


def _act(done: str, summary: str, more: Json) -> Json:
    ids = {"type": "array", "items": {"type": "string"}}
    answer = _json_content({"type": "object", "properties": {done: ids}})
    operation = _get(summary, "dead letters", answer)
    operation["description"] = (
        "All of them or, if one is not there (404) or not open any more (409), none."
    )
    properties = {"ids": {**ids, "minItems": 1, "maxItems": IDS_MAX}, **more}
    body = {"type": "object", "properties": properties, "required": ["ids"]}
    operation["requestBody"] = {"required": True, "content": _json_content(body)}
    return operation


def _source_paths() -> dict[str, Json]:
    listed = _schema(Listed)
    listing = {"type": "object", "properties": {"sources": {"type": "array", "items": listed}}}
    name = {"name": "source", "in": "path", "required": True, "schema": {"type": "string"}}
    add = _operation("Add a source", "sources")
    add["description"] = (
        "It is pulled from within two seconds, and again after a restart. Only where the pipeline "
        "says `add_sources=True`; kinds that read files are refused, and URLs that lead inside."
    )
    add["requestBody"] = {"required": True, "content": _json_content(_schema(Request))}
    add["responses"]["201"] = {"description": "Declared", "content": _json_content(listed)}
    pause = _get("Have a source wait until it is resumed", "sources", _json_content(listed))
    resume = _get("Have a source go on, or try again", "sources", _json_content(listed))
    removed = {"type": "object", "properties": {"removed": {"type": "string"}}}
    remove = _get("Remove a source that was added", "sources", _json_content(removed))
    remove["description"] = "What it collected stays. One of the pipeline file can only be paused."
    one = _get("Return a source with its progress", "sources", _json_content(listed))
    for operation in (one, pause, resume, remove):
        operation["parameters"] = [name]
    return {
        "/v1/sources": {
            "get": _get("List sources with their progress", "sources", _json_content(listing)),
            "post": add,
        },
        "/v1/sources/{source}": {"get": one, "delete": remove},
        "/v1/sources/{source}/pause": {"post": pause},
        "/v1/sources/{source}/resume": {"post": resume},
    }


def _schema(kind: type) -> Json:
    """Return the JSON schema of a type of ours."""
    schema: Json = msgspec.json.schema(kind)["$defs"][kind.__name__]
    return schema


def _token_paths() -> dict[str, Json]:
    text, texts = {"type": "string"}, {"type": "array", "items": {"type": "string"}}
    lifetime = {"type": "number", "default": LIFETIME_S_DEFAULT, "maximum": LIFETIME_S_MAX}
    kind = {"type": "string", "enum": ["api", "browser"], "default": "api"}
    asked = {"scopes": texts, "name": text, "kind": kind, "origins": texts, "lifetime_s": lifetime}
    times = {n: {"type": ["string", "null"]} for n in ("created_at", "expires_at", "revoked_at")}
    kept: Json = {"id": text, "name": text, "kind": text, "state": text, **times}
    kept |= {"scopes": texts, "origins": texts}
    token = {"type": "object", "properties": kept}
    made = {"type": "object", "properties": {**kept, "token": text}}
    create = _operation("Make a token", "tokens")
    create["description"] = (
        "The answer is the only one that holds it. It ends by itself, at the latest with the token "
        "that asks for it."
    )
    body = {"type": "object", "properties": asked, "required": ["scopes"]}
    create["requestBody"] = {"required": True, "content": _json_content(body)}
    create["responses"]["201"] = {"description": "Made", "content": _json_content(made)}
    listing = {"type": "object", "properties": {"tokens": {"type": "array", "items": token}}}
    revoke = _get("Revoke a token, and those that it made", "tokens", _json_content(token))
    revoke["description"] = "It is refused everywhere within two seconds."
    revoke["parameters"] = [{"name": "token", "in": "path", "required": True, "schema": text}]
    return {
        "/v1/tokens": {
            "get": _get("List the tokens", "tokens", _json_content(listing)),
            "post": create,
        },
        "/v1/tokens/{token}": {"delete": revoke},
    }


def _server_paths(plan: Plan) -> dict[str, Json]:
    html = {"text/html": {"schema": {"type": "string"}}}
    text = {"text/plain": {"schema": {"type": "string"}}}
    anything = _json_content({"type": "object"})
    paths = {
        "/openapi.json": _get("This document", "server", anything),
        "/docs": _get("This document for people", "server", html),
        "/healthz": _get("Whether this server can query", "server", anything),
        "/ready": _get("Whether records are taken and processed", "server", anything),
        "/metrics": _get("Prometheus metrics of every role", "server", text),
        **{path: _get("The dashboard", "server", html) for path in dashboard_paths(plan)},
    }
    return {path: {"get": operation} for path, operation in paths.items()}


def _operation(summary: str, tag: str) -> Json:
    error = {"content": _json_content({"$ref": "#/components/schemas/Error"})}
    return {
        "summary": summary,
        "tags": [tag],
        "responses": {"default": {"description": "What is wrong, and what to do", **error}},
    }


def _get(summary: str, tag: str, content: Json) -> Json:
    operation = _operation(summary, tag)
    operation["responses"]["200"] = {"description": "As asked", "content": content}
    return operation


def _parameter(name: str, schema: Json, description: str) -> Json:
    return {"name": name, "in": "query", "schema": schema, "description": description}


def _waiting() -> list[Json]:
    seconds = {"type": "number", "minimum": 0, "maximum": WAIT_S_MAX}
    return [
        _parameter("format", {"type": "string", "enum": list(MEDIA_TYPES)}, "Instead of Accept"),
        _parameter(
            "at_least",
            {"type": "string", "examples": ["events/0:42"]},
            "Wait until the answer contains the log up to here: topic/partition:offset, by commas",
        ),
        _parameter(
            "timeout", seconds, "How long to wait for at_least, seconds; SQL may run as long"
        ),
    ]


def _json_content(schema: Json) -> Json:
    return {"application/json": {"schema": schema}}


def _row_content(columns: Sequence[Column], *, paged: bool) -> Json:
    row = {"type": "object", "properties": _properties(columns)}
    body: Json = {"rows": {"type": "array", "items": row}}
    if paged:
        body["next"] = {"type": ["string", "null"], "description": "Cursor of the next page"}
    others: Json = {m.partition(";")[0]: {} for f, m in MEDIA_TYPES.items() if f != "json"}
    return {**_json_content({"type": "object", "properties": body}), **others}


def _properties(columns: Sequence[Column]) -> Json:
    return {c.name: column_schema(c.type) for c in columns}


def _plain(schema: Json) -> Json:
    """Return a schema without its null: a query string has none."""
    return {**schema, "type": schema["type"][0]}


def _error_schema() -> Json:
    text = {"type": "string"}
    error = {"type": "object", "properties": {"code": text, "message": text, "hint": text}}
    return {"type": "object", "properties": {"error": error}, "required": ["error"]}


def _append_schema() -> Json:
    count = {"type": "integer"}
    text = {"type": "string"}
    fault = {"type": "object", "properties": {"index": count, "code": text, "message": text}}
    return {
        "type": "object",
        "properties": {
            "accepted": count,
            "dead": count,
            "errors": {"type": "array", "items": fault},
        },
    }
