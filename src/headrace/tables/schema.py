"""Arrow schemas as Delta's `schemaString`, and back.

==================================  ==============================================
Arrow                               Delta
==================================  ==============================================
string, large_string                string
int8, int16, int32, int64           byte, short, integer, long
float32, float64                    float, double
bool                                boolean
date32                              date
timestamp of any unit, with a zone  timestamp (microseconds, UTC)
decimal128(p, s), p ≤ 38            decimal(p,s)
binary, of any kind                 binary
list, map, struct                   array, map, struct
==================================  ==============================================

A dictionary counts as its values. Nothing else can be stored: `Invalid` says which column.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from typing import Any

import pyarrow as pa
from pyarrow import types

from headrace.model.errors import Corrupt, Invalid

_PRIMITIVES: dict[str, pa.DataType] = {
    "string": pa.string(),
    "byte": pa.int8(),
    "short": pa.int16(),
    "integer": pa.int32(),
    "long": pa.int64(),
    "float": pa.float32(),
    "double": pa.float64(),
    "boolean": pa.bool_(),
    "date": pa.date32(),
    "timestamp": pa.timestamp("us", tz="UTC"),
    "binary": pa.binary(),
}
_NAMES = {kind: name for name, kind in _PRIMITIVES.items()}

# Parquet writers of Spark refuse them where a table has no column mapping, as ours have none.
_FORBIDDEN = frozenset(" ,;{}()\n\t=")


def normalise(schema: pa.Schema) -> pa.Schema:
    """Return the schema that comes back after storing `schema`; `Invalid` if it cannot be."""
    _check_names([f.name for f in schema])
    return pa.schema([_field(f, f.name) for f in schema])


def normalise_rows(rows: pa.Table) -> pa.Table:
    """Return rows in the types that are stored; `Invalid` if they cannot be."""
    schema = normalise(rows.schema)
    if schema.equals(rows.schema):
        return rows.replace_schema_metadata(None)
    try:
        return rows.cast(schema)
    except pa.ArrowException as e:
        raise Invalid(f"Rows cannot be stored: {e}") from e


def to_delta(schema: pa.Schema) -> str:
    """Return `schemaString` of a normalised schema."""
    return json.dumps(_struct(schema), separators=(",", ":"))


def from_delta(text: str) -> pa.Schema:
    """Return the Arrow schema of a `schemaString`; `Corrupt` if it is none that we write."""
    try:
        return pa.schema(_arrow_fields(json.loads(text)))
    except (KeyError, TypeError, ValueError) as e:
        raise Corrupt(
            f"A table's schema cannot be read: {e!r}",
            hint="Another program may have altered the table; restore it",
        ) from e


def merge(old: pa.Schema, new: pa.Schema) -> pa.Schema:
    """Return `old` with the columns that only `new` has at its end.

    `Invalid` if a column of `old` is missing or another, or if a new one is not nullable.
    """
    for field in old:
        found = new.field(field.name) if field.name in new.names else None
        if found is None or found.type != field.type:
            now = "missing" if found is None else str(found.type)
            raise Invalid(
                f"Column {field.name} is {field.type} in the table, and now {now}",
                hint="A table only ever gains columns; give the changed column another name",
            )
    added = [f for f in new if f.name not in old.names]
    for field in added:
        if not field.nullable:
            raise Invalid(
                f"Column {field.name} is new and may not be null, but older rows have no value",
                hint="Let it be null",
            )
    merged = pa.schema([*old, *added])
    _check_names(merged.names)
    return merged


def _check_names(names: list[str]) -> None:
    seen: dict[str, str] = {}
    for name in names:
        if not name or _FORBIDDEN & set(name):
            raise Invalid(
                f"{name!r} cannot be a column's name",
                hint="Leave out spaces and the characters , ; { } ( ) =",
            )
        other = seen.setdefault(name.lower(), name)
        if other is not name:
            raise Invalid(
                f"Columns {other} and {name} differ at most in case",
                hint="Delta compares names without case; rename one",
            )


def _field(field: pa.Field, where: str) -> pa.Field:
    return pa.field(field.name, _type(field.type, where), nullable=field.nullable)


def _type(kind: pa.DataType, where: str) -> pa.DataType:
    for matches, convert in _CONVERSIONS:
        if matches(kind):
            return convert(kind, where)
    raise Invalid(
        f"Column {where} is {kind}, which a Delta table cannot hold",
        hint="CAST it: unsigned integers to BIGINT, TIMESTAMP to TIMESTAMPTZ, TIME to VARCHAR",
    )


def _is_zoned(kind: pa.DataType) -> bool:
    return bool(types.is_timestamp(kind)) and kind.tz is not None


def _is_text(kind: pa.DataType) -> bool:
    return bool(types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind))


def _is_bytes(kind: pa.DataType) -> bool:
    return bool(
        types.is_binary(kind)
        or types.is_large_binary(kind)
        or types.is_fixed_size_binary(kind)
        or types.is_binary_view(kind)
    )


def _is_list(kind: pa.DataType) -> bool:
    return bool(types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind))


def _list_type(kind: pa.DataType, where: str) -> pa.DataType:
    item = _type(kind.value_type, f"{where}.element")
    return pa.list_(pa.field("element", item, nullable=kind.value_field.nullable))


def _map_type(kind: pa.DataType, where: str) -> pa.DataType:
    item = pa.field(
        "value", _type(kind.item_type, f"{where}.value"), nullable=kind.item_field.nullable
    )
    return pa.map_(_type(kind.key_type, f"{where}.key"), item)


def _struct_type(kind: pa.DataType, where: str) -> pa.DataType:
    fields = [kind.field(i) for i in range(kind.num_fields)]
    return pa.struct([_field(f, f"{where}.{f.name}") for f in fields])


_CONVERSIONS: list[
    tuple[Callable[[pa.DataType], bool], Callable[[pa.DataType, str], pa.DataType]]
] = [
    (_NAMES.__contains__, lambda kind, _: kind),
    (_is_text, lambda _, __: pa.string()),
    (_is_zoned, lambda _, __: _PRIMITIVES["timestamp"]),
    (types.is_decimal128, lambda kind, _: kind),
    (_is_bytes, lambda _, __: pa.binary()),
    (_is_list, _list_type),
    (types.is_map, _map_type),
    (types.is_struct, _struct_type),
    (types.is_dictionary, lambda kind, where: _type(kind.value_type, where)),
]


def _struct(fields: Iterable[pa.Field]) -> dict[str, Any]:
    return {
        "type": "struct",
        "fields": [
            {"name": f.name, "type": _delta(f.type), "nullable": f.nullable, "metadata": {}}
            for f in fields
        ],
    }


def _delta(kind: pa.DataType) -> str | dict[str, Any]:
    if kind in _NAMES:
        return _NAMES[kind]
    if types.is_decimal(kind):
        return f"decimal({kind.precision},{kind.scale})"
    if types.is_list(kind):
        return {
            "type": "array",
            "elementType": _delta(kind.value_type),
            "containsNull": kind.value_field.nullable,
        }
    if types.is_map(kind):
        return {
            "type": "map",
            "keyType": _delta(kind.key_type),
            "valueType": _delta(kind.item_type),
            "valueContainsNull": kind.item_field.nullable,
        }
    return _struct([kind.field(i) for i in range(kind.num_fields)])


def _arrow_fields(struct: dict[str, Any]) -> list[pa.Field]:
    return [
        pa.field(f["name"], _arrow(f["type"]), nullable=f["nullable"]) for f in struct["fields"]
    ]


def _arrow(kind: str | dict[str, Any]) -> pa.DataType:
    if isinstance(kind, str):
        if kind.startswith("decimal("):
            precision, scale = kind[len("decimal(") : -1].split(",")
            return pa.decimal128(int(precision), int(scale))
        return _PRIMITIVES[kind]
    match kind["type"]:
        case "array":
            item = pa.field("element", _arrow(kind["elementType"]), nullable=kind["containsNull"])
            return pa.list_(item)
        case "map":
            value = pa.field("value", _arrow(kind["valueType"]), nullable=kind["valueContainsNull"])
            return pa.map_(_arrow(kind["keyType"]), value)
        case "struct":
            return pa.struct(_arrow_fields(kind))
        case other:
            raise ValueError(other)
