"""Rows as bytes: JSON, NDJSON, CSV, Parquet and Arrow.

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

CSV writes lists, maps and structs as JSON text, and binary as base64.
"""

from __future__ import annotations

import base64
import datetime as dt
import io
from collections.abc import Callable
from decimal import Decimal
from typing import TypeVar

import msgspec
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

from headrace.model.errors import HeadraceError, Invalid

MEDIA_TYPES = {
    "json": "application/json",
    "ndjson": "application/x-ndjson",
    "csv": "text/csv; charset=utf-8",
    "parquet": "application/vnd.apache.parquet",
    "arrow": "application/vnd.apache.arrow.stream",
}
"""Format → media type of the answer."""

BULK = ("csv", "parquet", "arrow")
"""Formats whose pages may be large."""

T = TypeVar("T")

_ENCODER = msgspec.json.Encoder(decimal_format="number", enc_hook=str)
_UTC = pa.timestamp("us", tz="UTC")
_FIRST = pa.scalar(dt.datetime(1, 1, 1, tzinfo=dt.UTC), _UTC)
_LAST = pa.scalar(dt.datetime(9999, 12, 31, 23, 59, 59, 999999, tzinfo=dt.UTC), _UTC)


def chosen(format_: str | None, accept: str | None) -> str:
    """Return the format that a request wants: `format=` before the Accept header."""
    if format_ is not None:
        if format_ not in MEDIA_TYPES:
            raise Invalid(
                f"Format {format_!r} is unknown",
                hint=f"Choose one of {', '.join(MEDIA_TYPES)}.",
                code="invalid_parameter",
            )
        return format_
    media = {m.partition(";")[0]: f for f, m in MEDIA_TYPES.items()}
    for wanted in _by_quality(accept or "*/*"):
        if wanted in {"*/*", "application/*"}:
            return "json"
        if wanted == "text/*":
            return "csv"
        if wanted in media:
            return media[wanted]
    raise HeadraceError(
        "No format that the Accept header names can be answered",
        hint=f"Accept one of {', '.join(media)}, or say format=.",
        code="not_acceptable",
    )


def _by_quality(accept: str) -> list[str]:
    """Return the media ranges of an Accept header, the most wanted first."""
    ranges: list[tuple[float, int, str]] = []
    for part in accept.split(","):
        media, *parameters = (p.strip().lower() for p in part.split(";"))
        quality = next((p[2:] for p in parameters if p.startswith("q=")), "1")
        try:
            weight = float(quality)
        except ValueError:
            weight = 0.0
        if media and weight > 0:
            ranges.append((-weight, len(ranges), media))
    return [media for _, _, media in sorted(ranges)]


def encode(rows: pa.Table, format_: str, *, next_: str | None, paged: bool) -> bytes:
    """Return rows in a format; JSON is `{"rows": […]}`, of a page with `next` beside it."""
    match format_:
        case "json":
            return _json(rows, next_, paged=paged)
        case "ndjson":
            return b"".join(_ENCODER.encode(r) + b"\n" for r in records(rows))
        case "csv":
            return _csv(rows)
        case "parquet":
            buffer = io.BytesIO()
            pq.write_table(rows, buffer, compression="zstd")
            return buffer.getvalue()
        case _:
            sink = pa.BufferOutputStream()
            with pa.ipc.new_stream(sink, rows.schema) as writer:
                writer.write_table(rows)
            return bytes(sink.getvalue())


def _json(rows: pa.Table, next_: str | None, *, paged: bool) -> bytes:
    body: dict[str, object] = {"rows": records(rows)}
    if paged:
        body["next"] = next_
    return _encoded(lambda: _ENCODER.encode(body))


def encode_record(record: dict[str, object]) -> bytes:
    """Return one of `records` as JSON."""
    return _encoded(lambda: _ENCODER.encode(record))


def records(rows: pa.Table) -> list[dict[str, object]]:
    """Return rows as objects of values that JSON has, or that the encoder knows."""
    columns = [_values(c) for c in rows.columns]
    names = rows.column_names
    return [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]


def _values(column: pa.ChunkedArray) -> list[object]:
    kind = column.type
    if pa.types.is_dictionary(kind):
        return _values(column.cast(kind.value_type))
    utc = _in_utc(kind)
    if utc != kind:
        column = column.cast(utc, safe=False)
    if pa.types.is_timestamp(column.type):
        # As text at once, which is faster than by way of Python's datetime.
        inside = pc.and_(pc.greater_equal(column, _FIRST), pc.less_equal(column, _LAST))
        column = pc.strftime(pc.if_else(inside, column, None), format="%Y-%m-%dT%H:%M:%SZ")
    if pa.types.is_interval(column.type):
        return [None if v is None else _duration(*v) for v in column.to_pylist()]
    return _encoded(lambda: column.to_pylist(maps_as_pydicts="lossy"))


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


def _encoded(make: Callable[[], T]) -> T:
    try:
        return make()
    except (OverflowError, ValueError) as e:
        raise Invalid(
            "The result has a value that JSON and CSV cannot show",
            hint="Ask for format=parquet or format=arrow.",
            code="not_representable",
        ) from e


def _csv(rows: pa.Table) -> bytes:
    columns = []
    for column in rows.columns:
        if pa.types.is_nested(column.type):
            texts = [None if v is None else _ENCODER.encode(v).decode() for v in _values(column)]
            columns.append(pa.array(texts, pa.string()))
        elif pa.types.is_binary(column.type) or pa.types.is_fixed_size_binary(column.type):
            texts = [
                None if v is None else base64.b64encode(v).decode() for v in column.to_pylist()
            ]
            columns.append(pa.array(texts, pa.string()))
        elif _is_shown_as_text(column.type):
            columns.append(pa.array(_values(column), pa.string()))
        else:
            columns.append(column)
    buffer = io.BytesIO()
    pa_csv.write_csv(pa.Table.from_arrays(columns, rows.column_names), buffer)
    return buffer.getvalue()


def _is_shown_as_text(kind: pa.DataType) -> bool:
    types = pa.types
    return types.is_timestamp(kind) or types.is_dictionary(kind) or types.is_interval(kind)
