"""One page of a table or view: filters, order and place from the query string to SQL.

=====================  ==================================================================
parameter              meaning
=====================  ==================================================================
`column=value`         rows in which the column has this value
`column__ne=value`     … another value (not NULL)
`column__lt`, `__le`   … a lower value, a value that is not higher
`column__gt`, `__ge`   … a higher value, a value that is not lower
`column__in=a,b`       … one of these values
`column__prefix=text`  … a text that begins so
`column__null=true`    … NULL, or with `false` any value
`order=a,-b`           by a, then by b descending; ties by the key; NULL comes last
`limit=100`            rows in the page
`cursor=…`             the page after the one that named this cursor
`columns=a,b`          only these columns
=====================  ==================================================================

A cursor holds the place of the page's last row in the order, not a position: rows that are added
before it do not shift the next page. A column named like one of the last four is meant by
`column__eq`.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Sequence

import msgspec
import pyarrow as pa

from headrace.define.types import quoted
from headrace.model.errors import Invalid
from headrace.serve.arguments import Arguments, column_value, unknown_parameter, wrong
from headrace.serve.relations import Relation

LIMIT_DEFAULT = 100
LIMIT_MAX = 10_000
"""Rows of a page that people read: JSON, NDJSON."""
BULK_LIMIT_MAX = 1_000_000
"""Rows of a page in a format for machines: CSV, Parquet, Arrow."""

RESERVED = ("at_least", "columns", "cursor", "format", "limit", "order", "timeout")
COMPARISONS = {"eq": "=", "ne": "<>", "lt": "<", "le": "<=", "gt": ">", "ge": ">="}
SUFFIXES = (*COMPARISONS, "in", "prefix", "null")
_PLACE = "_place_"
"""Prefix of the result's columns that hold a row's place; taken out before it is answered."""


class Page(msgspec.Struct, frozen=True):
    """A page to read, as SQL with the values to bind."""

    sql: str
    values: tuple[str, ...]
    limit: int
    order: tuple[str, ...]
    """Columns of the order, the key included; `-` before those that descend."""


class Cursor(msgspec.Struct, frozen=True, array_like=True):
    """Where a page ended: the order it was in, and its last row's place as texts."""

    order: tuple[str, ...]
    place: tuple[str | None, ...]


def page_of(relation: Relation, arguments: Arguments, limit_default: int, limit_max: int) -> Page:
    """Return the page that a request asks for; takes all that is left of its arguments."""
    types = {c.name: c.type for c in relation.all_columns}
    limit = arguments.take_integer("limit", limit_default, 1, limit_max)
    order = _order(relation, arguments.take("order"), types)
    chosen = _chosen(arguments.take("columns"), types)
    cursor = _cursor(arguments.take("cursor"), order)
    where, values = _filters(arguments.rest(), types)
    if cursor is not None:
        after, place = _after(order, cursor.place, types)
        where.append(after)
        values += place
    columns = [f"r.{quoted(c)}" for c in chosen]
    places = [
        f"CAST(r.{quoted(_bare(c))} AS VARCHAR) AS {quoted(_PLACE + str(i))}"
        for i, c in enumerate(order)
    ]
    directions = ", ".join(
        f"r.{quoted(_bare(c))} {'DESC' if c.startswith('-') else 'ASC'} NULLS LAST" for c in order
    )
    condition = f" WHERE {' AND '.join(where)}" if where else ""
    sql = (
        f"SELECT {', '.join(columns + places)} FROM {quoted(relation.name)} AS r{condition}"
        f" ORDER BY {directions} LIMIT {limit + 1}"
    )
    return Page(sql, tuple(values), limit, order)


def split(page: Page, result: pa.Table) -> tuple[pa.Table, str | None]:
    """Return a page's rows without their places, and the next page's cursor if there is one."""
    at = result.num_columns - len(page.order)
    rows = result.select(list(range(at)))
    if result.num_rows <= page.limit:
        return rows, None
    last = page.limit - 1
    place = tuple(result.column(at + i)[last].as_py() for i in range(len(page.order)))
    return rows.slice(0, page.limit), _encoded(Cursor(page.order, place))


def _order(relation: Relation, text: str | None, types: dict[str, str]) -> tuple[str, ...]:
    order = [c for c in (text or "").split(",") if c]
    for column in order:
        if _bare(column) not in types:
            raise wrong("order", column, f"columns of {relation.name}: {', '.join(types)}")
    named = {_bare(c) for c in order}
    if len(named) < len(order):
        raise wrong("order", text or "", "each column once")
    return (*order, *(k for k in relation.key if k not in named))


def _bare(column: str) -> str:
    return column.removeprefix("-")


def _chosen(text: str | None, types: dict[str, str]) -> list[str]:
    chosen = list(dict.fromkeys(c for c in (text or "").split(",") if c)) or list(types)
    for column in chosen:
        if column not in types:
            raise wrong("columns", column, f"some of {', '.join(types)}")
    return chosen


def _filters(
    items: Sequence[tuple[str, str]], types: dict[str, str]
) -> tuple[list[str], list[str]]:
    where: list[str] = []
    values: list[str] = []
    for name, text in items:
        column, suffix = (name, "eq") if name in types else _split_name(name, types)
        condition, bound = _filter(name, column, suffix, text, types[column])
        where.append(condition)
        values += bound
    return where, values


def _split_name(name: str, types: dict[str, str]) -> tuple[str, str]:
    column, _, suffix = name.rpartition("__")
    if column not in types:
        raise unknown_parameter(name, sorted({*types, *RESERVED}))
    if suffix not in SUFFIXES:
        raise Invalid(
            f"Parameter {name} compares in an unknown way",
            hint=f"Put one of these after {column}__: {', '.join(SUFFIXES)}.",
            code="unknown_parameter",
        )
    return column, suffix


def _filter(name: str, column: str, suffix: str, text: str, type_: str) -> tuple[str, list[str]]:
    it = f"r.{quoted(column)}"
    if suffix == "null":
        if text not in {"true", "false"}:
            raise wrong(name, text, "true or false")
        return f"{it} IS {'' if text == 'true' else 'NOT '}NULL", []
    if suffix == "prefix":
        if type_.upper() != "VARCHAR":
            raise Invalid(f"Column {column} is no text", code="invalid_filter")
        return f"starts_with({it}, ?)", [text]
    if suffix == "in":
        values = [column_value(name, part, type_) for part in text.split(",")]
        casts = ", ".join([f"CAST(? AS {type_})"] * len(values))
        return f"{it} IN ({casts})", values
    return f"{it} {COMPARISONS[suffix]} CAST(? AS {type_})", [column_value(name, text, type_)]


def _after(
    order: Sequence[str], place: Sequence[str | None], types: dict[str, str]
) -> tuple[str, list[str]]:
    """Return the condition that a row comes after a place in an order with NULL last."""
    ways: list[str] = []
    values: list[str] = []
    same: list[str] = []
    same_values: list[str] = []
    for column, text in zip(order, place, strict=True):
        it, cast = f"r.{quoted(_bare(column))}", f"CAST(? AS {types[_bare(column)]})"
        if text is None:
            # Nothing comes after NULL but what is equal to it so far.
            same.append(f"{it} IS NULL")
            continue
        sign = "<" if column.startswith("-") else ">"
        ways.append(" AND ".join([*same, f"({it} {sign} {cast} OR {it} IS NULL)"]))
        values += [*same_values, text]
        same.append(f"{it} = {cast}")
        same_values.append(text)
    return "(" + " OR ".join(f"({w})" for w in ways) + ")" if ways else "false", values


def _encoded(cursor: Cursor) -> str:
    return base64.urlsafe_b64encode(msgspec.json.encode(cursor)).decode().rstrip("=")


def _cursor(text: str | None, order: tuple[str, ...]) -> Cursor | None:
    if text is None:
        return None
    try:
        padded = text + "=" * (-len(text) % 4)
        cursor = msgspec.json.decode(
            base64.b64decode(padded, altchars=b"-_", validate=True), type=Cursor
        )
    except (binascii.Error, ValueError, msgspec.MsgspecError) as e:
        raise wrong("cursor", text, "what `next` of the page before says, unchanged") from e
    if cursor.order != order or len(cursor.place) != len(order):
        raise Invalid(
            "The cursor is of another order",
            hint="Repeat the parameters of the page that named it.",
            code="invalid_cursor",
        )
    return cursor
