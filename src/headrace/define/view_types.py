"""Types inside a view's state: kept so that values stay equal, and sort as they did.

`define/types.py` says what a table stores. State has to be stricter: it groups, compares and takes
minima of what it kept, and afterwards hands values back in the type that DuckDB had.
"""

from __future__ import annotations

import duckdb

from headrace.define.types import needs_cast, stored_type
from headrace.model.errors import Invalid

INTEGERS = frozenset(
    ["TINYINT", "SMALLINT", "INTEGER", "BIGINT", "UTINYINT", "USMALLINT", "UINTEGER"]
)
"""Integer types whose every value fits 64 bits with sign."""
WIDE_INTEGERS = frozenset(["UBIGINT", "HUGEINT"])
FLOATS = frozenset(["FLOAT", "DOUBLE"])

_CHANGED_WHEN_STORED = frozenset(["enum", "timestamp_ns", "uhugeint", "array"])
"""Stored as something that sorts otherwise or holds less."""
_NESTED = frozenset(["list", "map", "struct", "array", "union", "variant"])


def kept_type(type_text: str) -> str | None:
    """Return the stored type in which equality and order stay what they were; None without one."""
    kind = duckdb.sqltype(type_text)
    if kind.id in _CHANGED_WHEN_STORED or (kind.id in _NESTED and needs_cast(kind)):
        return None
    try:
        return stored_type(kind)
    except Invalid:
        return None


def is_nested(type_text: str) -> bool:
    """Return whether a type is a list, struct, map, or another with values inside."""
    return duckdb.sqltype(type_text).id in _NESTED


def decimal_digits(type_text: str) -> tuple[int, int] | None:
    """Return precision and scale of a DECIMAL type text, None for other types."""
    if not type_text.startswith("DECIMAL("):
        return None
    precision, scale = type_text[len("DECIMAL(") : -1].split(",")
    return int(precision), int(scale)
