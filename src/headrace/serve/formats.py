"""Rows as bytes: JSON, NDJSON, CSV, Parquet and Arrow.

In JSON values are what `stage/encode.py` says. CSV writes lists, maps and structs as JSON text, and
binary as base64.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator, Mapping

import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

from headrace.model.errors import HeadraceError, Invalid
from headrace.stage.encode import ENCODER, encoded, records, values_of

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

PIECE_ROWS = 10_000
"""Rows that are encoded at a time."""


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
            return _ndjson(rows)
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


def pieces(rows: pa.Table, format_: str, head: Mapping[str, object]) -> Iterator[bytes]:
    """Yield rows in a format, piece by piece; JSON is `head`'s members and then `rows`."""
    if format_ == "json":
        yield ENCODER.encode(head)[:-1] + b',"rows":['
        for start in range(0, rows.num_rows, PIECE_ROWS):
            listed = _listed(rows.slice(start, PIECE_ROWS))
            yield (b"," if start else b"") + listed[1:-1]
        yield b"]}"
    elif format_ in {"ndjson", "csv"} and rows.num_rows:
        for start in range(0, rows.num_rows, PIECE_ROWS):
            some = rows.slice(start, PIECE_ROWS)
            yield (
                _csv(some, header=start == 0)
                if format_ == "csv"
                else encode(some, format_, next_=None, paged=False)
            )
    else:
        yield encode(rows, format_, next_=None, paged=False)


def _ndjson(rows: pa.Table) -> bytes:
    return b"".join(ENCODER.encode(r) + b"\n" for r in records(rows))


def _listed(rows: pa.Table) -> bytes:
    return encoded(lambda: ENCODER.encode(records(rows)))


def _json(rows: pa.Table, next_: str | None, *, paged: bool) -> bytes:
    body: dict[str, object] = {"rows": records(rows)}
    if paged:
        body["next"] = next_
    return encoded(lambda: ENCODER.encode(body))


def _csv(rows: pa.Table, *, header: bool = True) -> bytes:
    columns = []
    for column in rows.columns:
        if pa.types.is_nested(column.type):
            texts = [None if v is None else ENCODER.encode(v).decode() for v in values_of(column)]
            columns.append(pa.array(texts, pa.string()))
        elif pa.types.is_binary(column.type) or pa.types.is_fixed_size_binary(column.type):
            texts = [
                None if v is None else base64.b64encode(v).decode() for v in column.to_pylist()
            ]
            columns.append(pa.array(texts, pa.string()))
        elif _is_shown_as_text(column.type):
            columns.append(pa.array(values_of(column), pa.string()))
        else:
            columns.append(column)
    buffer = io.BytesIO()
    options = pa_csv.WriteOptions(include_header=header)
    pa_csv.write_csv(pa.Table.from_arrays(columns, rows.column_names), buffer, options)
    return buffer.getvalue()


def _is_shown_as_text(kind: pa.DataType) -> bool:
    types = pa.types
    return types.is_timestamp(kind) or types.is_dictionary(kind) or types.is_interval(kind)
