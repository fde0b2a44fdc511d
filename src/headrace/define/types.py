"""Types of columns: what a field becomes in DuckDB, and what of DuckDB a Delta table can store.

The text of a type is canonical: two columns have the same type exactly if their texts are equal.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import nullcontext

import duckdb
import pyarrow as pa
from duckdb.sqltypes import DuckDBPyType

from headrace.model.errors import Invalid
from headrace.model.plan import Column
from headrace.model.schema import Field, Schema, Type

SYSTEM_TYPES = {
    "event_id": "VARCHAR",
    "received_at": "TIMESTAMPTZ",
    "_topic": "VARCHAR",
    "_partition": "INTEGER",
    "_offset": "BIGINT",
}
RECORD_TYPES = {
    **SYSTEM_TYPES,
    "_key": "VARCHAR",
    "_headers": "VARCHAR",
    "_value": "VARCHAR",
    "_seen_at": "TIMESTAMPTZ",
    "_deleted": "BOOLEAN",
}
"""Types of the columns that row SQL may read of any record beside its fields."""

_PLAIN = {
    "string": "VARCHAR",
    "integer": "BIGINT",
    "text": "VARCHAR",
    "number": "DOUBLE",
    "boolean": "BOOLEAN",
    "timestamp": "TIMESTAMPTZ",
    "date": "DATE",
    "json": "VARCHAR",
}

_KEPT = {
    "boolean": "BOOLEAN",
    "tinyint": "TINYINT",
    "smallint": "SMALLINT",
    "integer": "INTEGER",
    "bigint": "BIGINT",
    "float": "FLOAT",
    "double": "DOUBLE",
    "varchar": "VARCHAR",
    "blob": "BLOB",
    "date": "DATE",
    "timestamp with time zone": "TIMESTAMPTZ",
}
"""Types that Delta stores as they are, by DuckDB's lower-case names."""

_WIDENED = {
    "enum": "VARCHAR",
    "uuid": "VARCHAR",
    "timestamp": "TIMESTAMPTZ",
    "timestamp_s": "TIMESTAMPTZ",
    "timestamp_ms": "TIMESTAMPTZ",
    "timestamp_ns": "TIMESTAMPTZ",
    "utinyint": "SMALLINT",
    "usmallint": "INTEGER",
    "uinteger": "BIGINT",
    "ubigint": "DECIMAL(20,0)",
    "hugeint": "DECIMAL(38,0)",
    "uhugeint": "DECIMAL(38,0)",
}
"""What Delta has no type for, and what holds all of its values. A HUGEINT past 38 digits fails its
CAST, so that record becomes a dead letter and no value is ever changed."""

_HINTS = {
    "time": "CAST it to VARCHAR, or keep the whole timestamp.",
    "time with time zone": "CAST it to VARCHAR, or keep the whole timestamp.",
    "interval": "Store a number: epoch(x) gives the seconds of an interval, or CAST it to VARCHAR.",
    "bit": "CAST it to VARCHAR.",
    "bignum": "CAST it to DECIMAL(38, 0) or DOUBLE.",
    "null": "Say which type the NULLs have: CAST(NULL AS VARCHAR).",
}


def quoted(name: str) -> str:
    """Return a name as a quoted SQL identifier."""
    return '"' + name.replace('"', '""') + '"'


def open_duckdb() -> duckdb.DuckDBPyConnection:
    """Return an empty in-memory database that reaches no file, network or Python variable.

    TIMESTAMPs without a zone count as UTC, as they do in every connection that runs compiled SQL.
    """
    con = duckdb.connect(
        config={
            "enable_external_access": "false",
            "python_enable_replacements": "false",
            "threads": "1",
        }
    )
    con.execute("SET TimeZone = 'UTC'")
    return con


def duckdb_type(kind: Type) -> str:
    """Return the canonical DuckDB type of a field."""
    if kind.kind == "decimal":
        return f"DECIMAL({kind.precision},{kind.scale})"
    if kind.kind == "list" and kind.item:
        return duckdb_type(kind.item) + "[]"
    if kind.kind == "map" and kind.item:
        return f"MAP(VARCHAR, {duckdb_type(kind.item)})"
    if kind.kind == "struct":
        return _struct((f.name, duckdb_type(f.type)) for f in kind.fields)
    return _PLAIN[kind.kind]


def record_columns(schema: Schema | None) -> dict[str, str]:
    """Return the columns of a topic's relation and their types, in the order that `*` gives.

    event_id, received_at, the fields, _topic, _partition, _offset; `*` leaves out what comes last:
    _key, _headers, _value.
    """
    fields: Sequence[Field] = schema.fields if schema else ()
    first = ("event_id", "received_at")
    return {
        **{name: RECORD_TYPES[name] for name in first},
        **{field.name: duckdb_type(field.type) for field in fields},
        **{name: kind for name, kind in RECORD_TYPES.items() if name not in first},
    }


def stored_type(kind: DuckDBPyType) -> str:
    """Return the type in which Delta stores values of a DuckDB type; `Invalid` if it has none."""
    name = kind.id
    plain = _KEPT.get(name) or _WIDENED.get(name)
    if plain:
        return plain
    if name == "decimal":
        return str(kind).replace(" ", "")
    if name in {"list", "array"}:
        return stored_type(kind.children[0][1]) + "[]"
    if name == "map":
        (_, key), (_, value) = kind.children
        return f"MAP({stored_type(key)}, {stored_type(value)})"
    if name == "struct":
        return _struct((field, stored_type(child)) for field, child in kind.children)
    hint = _HINTS.get(name, "CAST it to a type such as VARCHAR, BIGINT, DOUBLE or TIMESTAMPTZ.")
    raise Invalid(f"{kind} cannot be stored in a Delta table", hint=hint, code="type_not_stored")


def needs_cast(kind: DuckDBPyType) -> bool:
    """Return whether values of a DuckDB type must be CAST to `stored_type` before they are kept."""
    name = kind.id
    if name in _WIDENED or name == "array" or str(kind) == "JSON":
        return True
    inner = [child for _, child in kind.children] if name in {"list", "map", "struct"} else []
    return any(needs_cast(child) for child in inner)


def arrow_schema(
    columns: Iterable[Column], con: duckdb.DuckDBPyConnection | None = None
) -> pa.Schema:
    """Return the Arrow schema of columns, all nullable; timestamps are microseconds in UTC.

    `con` is a database to ask, whose time zone is UTC: opening one takes most of the time.
    """
    items = [f"CAST(NULL AS {c.type}) AS {quoted(c.name)}" for c in columns]
    with nullcontext(con) if con else open_duckdb() as asked:
        return asked.sql(f"SELECT {', '.join(items)}").to_arrow_table().schema


def columns_of(
    schema: pa.Schema, con: duckdb.DuckDBPyConnection | None = None
) -> tuple[Column, ...]:
    """Return the columns of an Arrow schema, such as an existing table's; `con` as above."""
    with nullcontext(con) if con else open_duckdb() as asked:
        relation = asked.from_arrow(schema.empty_table())
        pairs = zip(relation.columns, relation.types, strict=True)
        return tuple(Column(name, stored_type(kind)) for name, kind in pairs)


def _struct(fields: Iterable[tuple[str, str]]) -> str:
    return "STRUCT(" + ", ".join(f"{quoted(name)} {kind}" for name, kind in fields) + ")"
