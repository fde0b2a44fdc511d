"""`/docs`: the OpenAPI document as a page that needs no script and no other host."""

from __future__ import annotations

from html import escape
from typing import Any

Json = dict[str, Any]

_SQL = "```sql\n"
"""How the description of a named query begins."""


def documentation(described: Json) -> str:
    """Return what the page of an OpenAPI document says, as HTML."""
    by_tag: dict[str, list[str]] = {}
    for path, operations in described["paths"].items():
        for methods, operation in distinct(operations):
            tag = operation["tags"][0]
            by_tag.setdefault(tag, []).append(_operation(methods, path, operation))
    parts = [
        f"<section><h2>{escape(tag.capitalize())}</h2>{''.join(operations)}</section>"
        for tag, operations in by_tag.items()
    ]
    info = described["info"]
    head = (
        f"<header><h1>{escape(info['title'])}</h1><p>{escape(info['description'])}</p>"
        '<p><a href="/openapi.json">openapi.json</a></p></header>'
    )
    return head + "".join(parts)


def distinct(operations: Json) -> list[tuple[str, Json]]:
    """Return a path's operations behind their methods; those that say the same are one."""
    found: dict[str, tuple[list[str], Json]] = {}
    for method, operation in operations.items():
        found.setdefault(operation["summary"], ([], operation))[0].append(method.upper())
    return [(", ".join(methods), operation) for methods, operation in found.values()]


def _operation(methods: str, path: str, operation: Json) -> str:
    line = (
        f"<b>{methods}</b> <code>{escape(path)}</code> "
        f'<span class="quiet">{escape(operation["summary"])}</span>'
    )
    details = _description(operation) + _parameters(operation)
    if not details:
        return f'<div class="path">{line}</div>'
    return f"<details><summary>{line}</summary>{details}</details>"


def _description(operation: Json) -> str:
    text = operation.get("description", "")
    if text.startswith(_SQL):
        return f"<pre>{escape(text.removeprefix(_SQL).rstrip('`').strip())}</pre>"
    return f"<p>{escape(text)}</p>" if text else ""


def _parameters(operation: Json) -> str:
    rows = "".join(map(_parameter, operation.get("parameters", [])))
    head = "<tr><th>parameter</th><th>in</th><th>type</th><th></th></tr>"
    return f'<div class="wide"><table>{head}{rows}</table></div>' if rows else ""


def _parameter(parameter: Json) -> str:
    schema = parameter["schema"]
    kind = schema.get("type", "")
    said = " or ".join(kind) if isinstance(kind, list) else str(kind)
    if "enum" in schema:
        said = " | ".join(map(str, schema["enum"]))
    name = parameter["name"] + (" *" if parameter.get("required") else "")
    cells = (name, parameter["in"], said, parameter.get("description", ""))
    return "<tr>" + "".join(f"<td>{escape(c)}</td>" for c in cells) + "</tr>"
