"""Columns and records as JSON schemas, for the OpenAPI document."""

from __future__ import annotations

import re
from typing import Any

from headrace.model.schema import Schema, Type

Json = dict[str, Any]


def column_schema(type_: str) -> Json:
    """Return the JSON schema of a column's values, by its DuckDB type; all may be null."""
    kind = type_.upper()
    if kind.endswith("]"):
        return {"type": ["array", "null"]}
    if kind.startswith(("MAP", "STRUCT")):
        return {"type": ["object", "null"]}
    if kind.startswith("TIMESTAMP"):
        return {"type": ["string", "null"], "format": "date-time"}
    if kind.endswith("INT") or kind == "INTEGER" or re.fullmatch(r"DECIMAL\(\d+,\s*0\)", kind):
        return {"type": ["integer", "null"]}
    if kind in {"DOUBLE", "FLOAT"} or kind.startswith("DECIMAL"):
        return {"type": ["number", "null"]}
    more: dict[str, Json] = {"DATE": {"format": "date"}, "BLOB": {"contentEncoding": "base64"}}
    name = "boolean" if kind == "BOOLEAN" else "string"
    return {"type": [name, "null"], **more.get(kind, {})}


def record_schema(schema: Schema) -> Json:
    """Return the JSON schema of a topic's records."""
    return {"title": schema.name, **_object(Type(kind="struct", fields=schema.fields))}


def type_schema(type_: Type) -> Json:
    """Return the JSON schema of a value of a record."""
    if type_.kind == "struct":
        return _object(type_)
    if type_.kind in {"list", "map"}:
        item = type_schema(type_.item) if type_.item else {}
        if type_.item_nullable:
            item = {"anyOf": [item, {"type": "null"}]}
        as_list = {"type": "array", "items": item}
        return as_list if type_.kind == "list" else {"type": "object", "additionalProperties": item}
    if type_.kind == "timestamp" and type_.unit is not None:
        return {"type": "number", "description": f"Since 1970-01-01 UTC, in {type_.unit}"}
    simple: dict[str, Json] = {
        "string": {"type": "string"},
        "integer": {"type": "integer", "format": "int64"},
        "text": {"type": ["string", "integer"]},
        "number": {"type": "number"},
        "boolean": {"type": "boolean"},
        "timestamp": {"type": "string", "format": "date-time"},
        "date": {"type": "string", "format": "date"},
        "decimal": {"type": ["number", "string"]},
        "json": {},
    }
    words = {
        "ge": "minimum",
        "gt": "exclusiveMinimum",
        "le": "maximum",
        "lt": "exclusiveMaximum",
        "min_length": "minLength",
        "max_length": "maxLength",
        "pattern": "pattern",
    }
    limits = {words[k]: v for k, v in type_.limits.items() if k in words}
    choices = {"enum": list(type_.choices)} if type_.choices else {}
    return {**simple[type_.kind], **limits, **choices}


def _object(type_: Type) -> Json:
    properties: Json = {}
    for field in type_.fields:
        value = type_schema(field.type)
        properties[field.alias] = {"anyOf": [value, {"type": "null"}]} if field.nullable else value
    required = [f.alias for f in type_.fields if f.required]
    return {"type": "object", "properties": properties, "required": required}
