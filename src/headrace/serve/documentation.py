"""`/docs`: the OpenAPI document as a page that needs no script and no other host."""

from __future__ import annotations

from html import escape
from typing import Any

from starlette.responses import Response

from headrace.serve.dashboard import html_response

Json = dict[str, Any]


def documentation_page(described: Json) -> Response:
    """Return the page of an OpenAPI document."""
    by_tag: dict[str, list[str]] = {}
    for path, operations in described["paths"].items():
        for method, operation in operations.items():
            tag = operation["tags"][0]
            by_tag.setdefault(tag, []).append(_operation(method, path, operation))
    parts = [
        f"<h2>{escape(tag.capitalize())}</h2>{''.join(operations)}"
        for tag, operations in by_tag.items()
    ]
    info = described["info"]
    head = (
        f"<h1>{escape(info['title'])}</h1><p>{escape(info['description'])}</p>"
        '<p><a href="/openapi.json">openapi.json</a></p>'
    )
    return html_response(f"{info['title']}: HTTP", head + "".join(parts))


def _operation(method: str, path: str, operation: Json) -> str:
    rows = "".join(map(_parameter, operation.get("parameters", [])))
    table = (
        f'<div class="wide"><table><tr><th>parameter</th><th>in</th><th>type</th><th></th></tr>'
        f"{rows}</table></div>"
        if rows
        else ""
    )
    description = escape(operation.get("description", "")).replace("```sql\n", "").rstrip("`\n")
    return (
        f"<details><summary><b>{method.upper()}</b> <code>{escape(path)}</code> "
        f"{escape(operation['summary'])}</summary>"
        f"{f'<pre>{description}</pre>' if description else ''}{table}</details>"
    )


def _parameter(parameter: Json) -> str:
    schema = parameter["schema"]
    kind = schema.get("type", "")
    said = " or ".join(kind) if isinstance(kind, list) else str(kind)
    if "enum" in schema:
        said = " | ".join(map(str, schema["enum"]))
    name = parameter["name"] + (" *" if parameter.get("required") else "")
    cells = (name, parameter["in"], said, parameter.get("description", ""))
    return "<tr>" + "".join(f"<td>{escape(c)}</td>" for c in cells) + "</tr>"
