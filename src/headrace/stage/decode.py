"""SQL that makes the fields of valid records columns: DuckDB's `from_json`, made exact.

`from_json` alone is lenient, but nothing that it is lenient about passes `validate`. What it cannot
do exactly is done by casts around it: it reads timestamps, epochs and decimals as text or numbers
(the *wire* type), and SQL makes the column of them. A fraction of a microsecond is cut off in text,
and rounded in an epoch number (half up).

The value of a field is then the same as msgspec's, for every value that is valid.
"""

from __future__ import annotations

from collections.abc import Collection

import msgspec

from headrace.define.types import quoted
from headrace.model.plan import RECORD_COLUMNS
from headrace.model.schema import Field, Schema, Type
from headrace.model.source import DELETED_HEADER, SEEN_AT_HEADER

RELATION = "records"
"""Name of the relation that the SQL reads: `value` VARCHAR beside the record columns asked for."""

_WIRE = {
    "string": "VARCHAR",
    "integer": "BIGINT",
    "text": "VARCHAR",
    "number": "DOUBLE",
    "boolean": "BOOLEAN",
    "date": "DATE",
    "decimal": "VARCHAR",
    "json": "JSON",
}
_MADE_OF = {"_seen_at": ("received_at", "_headers"), "_deleted": ("_headers",)}
"""Record columns that are not stored with a record, and what they are made of."""
_AS_IS = {"string", "integer", "text", "number", "boolean", "date"}


def decode_sql(schema: Schema | None, fields: Collection[str]) -> str:
    """Return a SELECT over `RELATION` that yields the columns `fields`.

    `fields` are names of the schema's fields and of `RECORD_COLUMNS`; record columns are expected
    in the relation under their own names, `event_id` as UUID. Fields that are not asked for are
    not decoded.
    """
    wanted = [f for f in schema.fields if f.name in fields] if schema else []
    columns = [_record_column(name) for name in RECORD_COLUMNS if name in fields]
    columns += [f"{_field(f, '__fields')} AS {quoted(f.name)}" for f in wanted]
    if not wanted:
        return f"SELECT {', '.join(columns) or '1 AS __record'} FROM {RELATION}"
    source = f"SELECT *, {_from_json('value', wanted)} AS __fields FROM {RELATION}"
    return f"SELECT {', '.join(columns)} FROM ({source})"


def _record_column(name: str) -> str:
    match name:
        case "event_id":
            return "CAST(event_id AS VARCHAR) AS event_id"
        case "_seen_at":
            said = f"TRY_CAST({_header(SEEN_AT_HEADER)} AS TIMESTAMPTZ)"
            return f"COALESCE({said}, received_at) AS _seen_at"
        case "_deleted":
            return f"COALESCE({_header(DELETED_HEADER)} = 'true', false) AS _deleted"
        case _:
            return quoted(name)


def stored_columns(fields: Collection[str]) -> list[str]:
    """Return the record columns that a relation must have for `decode_sql` to make `fields`."""
    needed = {n for name in fields for n in _MADE_OF.get(name, (name,))}
    return [c for c in RECORD_COLUMNS if c in needed]


def _header(name: str) -> str:
    path = f'$."{name}"'
    return f"TRY(json_extract_string(_headers, {literal(path)}))"


def _from_json(value: str, fields: Collection[Field]) -> str:
    wires = {f.alias: _wire(f.type) for f in fields}
    return f"from_json({value}, {literal(msgspec.json.encode(wires).decode())})"


def _field(field: Field, record: str) -> str:
    """Return a top-level field as its column, out of what `from_json` gave."""
    column = _column(field.type, f"{record}.{quoted(field.alias)}", 0)
    if field.default is None:
        return column
    default = _default(field)
    if not field.nullable:
        return f"COALESCE({column}, {default})"
    # An explicit null is a value of the field; only a missing one gets the default.
    pointer = "/" + field.alias.replace("~", "~0").replace("/", "~1")
    is_null = f"json_type(value, {literal(pointer)}) = 'NULL'"
    return f"CASE WHEN {is_null} THEN NULL ELSE COALESCE({column}, {default}) END"


def _default(field: Field) -> str:
    """Return the default as an expression that DuckDB folds into a constant."""
    assert field.default is not None
    key = msgspec.json.encode(field.alias).decode()
    parsed = _from_json(literal(f"{{{key}:{field.default}}}"), [field])
    return _column(field.type, f"({parsed}).{quoted(field.alias)}", 0)


def _wire(kind: Type) -> str:
    """Return the DuckDB type as which `from_json` reads a value, named by JSON names."""
    match kind.kind:
        case "timestamp":
            return {None: "VARCHAR", "us": "BIGINT"}.get(kind.unit, "DOUBLE")
        case "list":
            assert kind.item is not None
            return _wire(kind.item) + "[]"
        case "map":
            assert kind.item is not None
            return f"MAP(VARCHAR, {_wire(kind.item)})"
        case "struct":
            members = ", ".join(f"{quoted(f.alias)} {_wire(f.type)}" for f in kind.fields)
            return f"STRUCT({members})"
        case plain:
            return _WIRE[plain]


def _is_as_is(kind: Type) -> bool:
    """Return whether the wire type already is the column's type."""
    if kind.kind in {"list", "map"}:
        assert kind.item is not None
        return _is_as_is(kind.item)
    if kind.kind == "struct":
        return all(
            f.alias == f.name and f.default is None and _is_as_is(f.type) for f in kind.fields
        )
    return kind.kind in _AS_IS


def _column(kind: Type, wire: str, depth: int) -> str:
    """Return an expression of the column's type over one of the wire type; null stays null."""
    if _is_as_is(kind):
        return wire
    match kind.kind:
        case "timestamp":
            return _timestamp(kind, wire)
        case "decimal":
            return f"CAST({wire} AS DECIMAL({kind.precision}, {kind.scale}))"
        case "list":
            assert kind.item is not None
            item = f"__item{depth}"
            return f"list_transform({wire}, lambda {item}: {_column(kind.item, item, depth + 1)})"
        case "map":
            assert kind.item is not None
            entry = f"__entry{depth}"
            value = _column(kind.item, f"{entry}.value", depth + 1)
            pair = f"{{'k': {entry}.key, 'v': {value}}}"
            return f"map_from_entries(list_transform(map_entries({wire}), lambda {entry}: {pair}))"
        case "struct":
            members = ", ".join(_member(f, wire, depth) for f in kind.fields)
            return f"CASE WHEN {wire} IS NULL THEN NULL ELSE struct_pack({members}) END"
        case _:
            return f"CAST({wire} AS VARCHAR)"


def _member(field: Field, struct: str, depth: int) -> str:
    column = _column(field.type, f"{struct}.{quoted(field.alias)}", depth)
    if field.default is not None:
        column = f"COALESCE({column}, {_default(field)})"
    return f"{quoted(field.name)} := {column}"


def _timestamp(kind: Type, wire: str) -> str:
    match kind.unit:
        case None:
            # RFC 3339 allows a small t and z, DuckDB does not.
            return f"CAST(upper({wire}) AS TIMESTAMPTZ)"
        case "us":
            return f"make_timestamptz({wire})"
        case unit:
            # Whole units first: the product of a large double would lose microseconds.
            micros = {"s": 1_000_000, "ms": 1_000}[unit]
            whole = f"CAST(floor({wire}) AS BIGINT) * {micros}"
            rest = f"CAST(floor(({wire} - floor({wire})) * {micros} + 0.5) AS BIGINT)"
            return f"make_timestamptz({whole} + {rest})"


def literal(text: str) -> str:
    """Return text as an SQL string literal."""
    return "'" + text.replace("'", "''") + "'"
