"""Delta statistics of a Parquet file, from the statistics that Parquet already has.

Readers use them to pass over files, so every bound must hold: strings are cut to `TEXT_LENGTH`
characters, the minimum down and the maximum up; times are cut to milliseconds in the same way (what
Spark expects); a column gets no bound where none can be told (NaN, infinity, binary, a string so
long that Parquet keeps none). Source: Delta protocol, "Per-file Statistics".
"""

from __future__ import annotations

import datetime as dt
import math
from collections.abc import Callable
from decimal import Context, Decimal
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import types

TEXT_LENGTH = 32
"""Characters of a string that a bound keeps, as in Spark."""

_LAST_CHARACTER = 0x10FFFF
_SURROGATES = range(0xD800, 0xE000)
_EPOCH = dt.datetime(1970, 1, 1)  # noqa: DTZ001 - UTC throughout; the text carries the Z
_YEARS_US = (-62_135_596_800_000_000, 253_402_300_799_000_000)
"""0001-01-01 to 9999-12-31T23:59:59, what a time's text can say."""
_DAY_US = 86_400_000_000
_EXACT = Context(prec=38)
_ENCODER = msgspec.json.Encoder(decimal_format="number")

_Bounds = tuple[Any, Any]


class FileStatistics(msgspec.Struct, rename="camel"):
    """What `DataFile.stats` holds, as JSON."""

    num_records: int = 0
    min_values: dict[str, Any] = {}
    max_values: dict[str, Any] = {}
    null_count: dict[str, int] = {}
    footer_crc32: int | None = None
    """Ours, which other readers pass over: Parquet has checksums of pages, none of its footer."""


def statistics_json(
    metadata: pq.FileMetaData, schema: pa.Schema, *, unbounded: set[str], footer_crc32: int
) -> str:
    """Return the Delta statistics of a file; columns in `unbounded` (with NaN) get no bounds."""
    result = FileStatistics(metadata.num_rows, footer_crc32=footer_crc32)
    positions = {metadata.schema.column(i).path: i for i in range(metadata.num_columns)}
    for field in schema:
        at = positions.get(field.name)
        if at is None:  # nested: its leaves have longer paths
            continue
        chunks = [
            metadata.row_group(g).column(at).statistics for g in range(metadata.num_row_groups)
        ]
        if all(c is not None and c.has_null_count for c in chunks):
            result.null_count[field.name] = sum(c.null_count for c in chunks)
        bounds = None if field.name in unbounded else _bounds(chunks, field.type)
        if bounds is not None:
            low, high = bounds
            if low is not None:
                result.min_values[field.name] = low
            if high is not None:
                result.max_values[field.name] = high
    return _ENCODER.encode(result).decode()


def parse(stats: str) -> FileStatistics:
    """Return what a file's statistics say: nothing of a column, where they are silent."""
    return msgspec.json.decode(stats or "{}", type=FileStatistics)


def columns_with_nan(rows: pa.Table) -> set[str]:
    """Return the floating-point columns in which a NaN stands: no bound holds for it."""
    return {
        field.name
        for field in rows.schema
        if types.is_floating(field.type)
        and pa.compute.any(pa.compute.is_nan(rows.column(field.name))).as_py()
    }


def time_us(text: str) -> int:
    """Return microseconds of a time as it stands in statistics."""
    return (dt.datetime.fromisoformat(text).replace(tzinfo=None) - _EPOCH) // (
        dt.timedelta(microseconds=1)
    )


def _bounds(chunks: list[Any], kind: pa.DataType) -> _Bounds | None:
    """Return the bounds over all row groups, in their JSON form; None if there are none to tell."""
    convert = next((c for matches, c in _CONVERSIONS if matches(kind)), None)
    if convert is None or any(c is None for c in chunks):
        return None
    # A row group without a value has no bounds and needs none; any other without spoils all.
    known = [c for c in chunks if c.num_values > 0]
    if not known or not all(c.has_min_max for c in known):
        return None
    # `min` and `max` convert in Python and sometimes fail for times on two threads.
    raw = [(c.min_raw, c.max_raw) for c in known]
    if types.is_decimal(kind):
        raw = [(_decimal(low, kind), _decimal(high, kind)) for low, high in raw]
    return convert(min(low for low, _ in raw), max(high for _, high in raw))


def _decimal(raw: bytes | int, kind: pa.DataType) -> Decimal:
    unscaled = raw if isinstance(raw, int) else int.from_bytes(raw, "big", signed=True)
    return Decimal(unscaled).scaleb(-kind.scale, _EXACT)


def _same(low: int | Decimal, high: int | Decimal) -> _Bounds:
    return low, high


def _finite(low: float, high: float) -> _Bounds:
    return (low if math.isfinite(low) else None), (high if math.isfinite(high) else None)


def _dates(low: int, high: int) -> _Bounds:
    return _date(low), _date(high)


def _date(days: int) -> str | None:
    if not _YEARS_US[0] <= days * _DAY_US <= _YEARS_US[1]:
        return None
    return (_EPOCH + dt.timedelta(days=days)).date().isoformat()


def _times(low: int, high: int) -> _Bounds:
    return _time(low // 1000), _time(-(-high // 1000))


def _time(milliseconds: int) -> str | None:
    if not _YEARS_US[0] <= milliseconds * 1000 <= _YEARS_US[1]:
        return None
    at = _EPOCH + dt.timedelta(milliseconds=milliseconds)
    return f"{at.isoformat(timespec='milliseconds')}Z"


def _texts(low: bytes, high: bytes) -> _Bounds:
    return low.decode()[:TEXT_LENGTH], _round_up(high.decode())


def _round_up(text: str) -> str | None:
    """Return the shortest text that is not below `text`, or to any text it begins; None if none."""
    if len(text) <= TEXT_LENGTH:
        return text
    for length in range(TEXT_LENGTH, 0, -1):
        following = ord(text[length - 1]) + 1
        if following in _SURROGATES:
            following = _SURROGATES.stop
        if following <= _LAST_CHARACTER:
            return text[: length - 1] + chr(following)
    return None


_CONVERSIONS: list[tuple[Callable[[pa.DataType], bool], Callable[[Any, Any], _Bounds]]] = [
    (types.is_integer, _same),
    (types.is_floating, _finite),
    (types.is_decimal, _same),
    (types.is_string, _texts),
    (types.is_date, _dates),
    (types.is_timestamp, _times),
]
