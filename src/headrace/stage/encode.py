"""Rows as JSON: what decoding JSON to rows does, the other way round.

=================  =========================================================================
value              in JSON
=================  =========================================================================
integers           a number, also beyond 2⁵³ and for DECIMAL of scale 0
decimals           a number with all its digits
NaN, infinities    null
timestamps         RFC 3339 in UTC with `Z` and six digits of fraction; null outside the years
                   1 to 9999, infinities among them
dates, times       `YYYY-MM-DD`, `HH:MM:SS`
intervals          ISO 8601 in months, days and seconds: `P1M2DT120S`; within others, the three
                   numbers, of nanoseconds the last
binary             base64
maps, structs      an object
lists              an array
=================  =========================================================================
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from decimal import Decimal
from typing import TypeVar

import msgspec
import pyarrow as pa
import pyarrow.compute as pc

from headrace.model.errors import Invalid

ENCODER = msgspec.json.Encoder(decimal_format="number", enc_hook=str)
"""Encodes what `records` returns."""

T = TypeVar("T")

_UTC = pa.timestamp("us", tz="UTC")
_FIRST = pa.scalar(dt.datetime(1, 1, 1, tzinfo=dt.UTC), _UTC)
_LAST = pa.scalar(dt.datetime(9999, 12, 31, 23, 59, 59, 999999, tzinfo=dt.UTC), _UTC)


def encode_record(record: dict[str, object]) -> bytes:
    """Return one of `records` as JSON."""
    return encoded(lambda: ENCODER.encode(record))


def records(rows: pa.Table) -> list[dict[str, object]]:
    """Return rows as objects of values that JSON has, or that the encoder knows."""
    columns = [values_of(c) for c in rows.columns]
    names = rows.column_names
    return [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]


def values_of(column: pa.ChunkedArray) -> list[object]:
    """Return the values of a column, each one that JSON has or that the encoder knows."""
    kind = column.type
    if pa.types.is_dictionary(kind):
        return values_of(column.cast(kind.value_type))
    utc = _in_utc(kind)
    if utc != kind:
        column = column.cast(utc, safe=False)
    if pa.types.is_timestamp(column.type):
        # As text at once, which is faster than by way of Python's datetime.
        inside = pc.and_(pc.greater_equal(column, _FIRST), pc.less_equal(column, _LAST))
        column = pc.strftime(pc.if_else(inside, column, None), format="%Y-%m-%dT%H:%M:%SZ")
    if pa.types.is_interval(column.type):
        return [None if v is None else _duration(*v) for v in column.to_pylist()]
    return encoded(lambda: column.to_pylist(maps_as_pydicts="lossy"))


def _duration(months: int, days: int, nanoseconds: int) -> str:
    seconds = Decimal(nanoseconds).scaleb(-9).normalize()
    date = (f"{months}M" if months else "") + (f"{days}D" if days else "")
    time = f"T{seconds:f}S" if seconds or not date else ""
    return f"P{date}{time}"


def _in_utc(kind: pa.DataType) -> pa.DataType:
    """Return a type in which every timestamp is of microseconds in UTC."""
    if pa.types.is_timestamp(kind):
        return _UTC
    if pa.types.is_list(kind):
        return pa.list_(kind.value_field.with_type(_in_utc(kind.value_type)))
    if pa.types.is_map(kind):
        return pa.map_(kind.key_type, kind.item_field.with_type(_in_utc(kind.item_type)))
    if pa.types.is_struct(kind):
        return pa.struct([f.with_type(_in_utc(f.type)) for f in kind])
    return kind


def encoded(make: Callable[[], T]) -> T:
    """Return what `make` does; `Invalid` for a value that no JSON shows."""
    try:
        return make()
    except (OverflowError, ValueError) as e:
        raise Invalid(
            "The result has a value that JSON and CSV cannot show",
            hint="Ask for format=parquet or format=arrow.",
            code="not_representable",
        ) from e
