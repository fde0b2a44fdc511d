"""Data files: Parquet, written durably with statistics and read back with nothing on trust."""

from __future__ import annotations

import uuid
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pyarrow import types

from headrace.model.clock import Clock
from headrace.model.errors import Corrupt
from headrace.model.tables import DataFile
from headrace.tables import statistics
from headrace.tables.storage import Storage

_PREFIX, _SUFFIX = "part-", ".parquet"
_TAIL_BYTES = 8
"""A Parquet file ends with its footer's length and the letters PAR1."""
_ROW_GROUP_ROWS = 1 << 20
_ROW_GROUP_BYTES = 64 << 20
_BATCH_ROWS = 1 << 17
_SAMPLE_ROWS = 1000
_REPEATED_AT_MOST = 0.5
"""A dictionary pays when fewer than this part of a sample's values are distinct."""


def new_file_name(clock: Clock) -> str:
    """Return a name that no other file has; names sort by when they were made."""
    return f"{_PREFIX}{uuid.UUID(bytes=clock.new_id())}{_SUFFIX}"


def made_at_us(file_name: str) -> int | None:
    """Return when a data file was named, to the millisecond; None if the name is not ours."""
    try:
        identity = uuid.UUID(file_name.removeprefix(_PREFIX).removesuffix(_SUFFIX))
    except ValueError:
        return None
    ours = file_name == f"{_PREFIX}{identity}{_SUFFIX}"
    return int.from_bytes(identity.bytes[:6], "big") * 1000 if ours else None


def write(
    storage: Storage,
    folder: str,
    file_name: str,
    schema: pa.Schema,
    pieces: Iterable[pa.Table],
    *,
    unique: Sequence[str],
    tags: Mapping[str, str],
) -> DataFile:
    """Write rows of a normalised schema as a durable Parquet file, row group by row group.

    The memory it takes is bounded by a piece and a row group, whatever the file's size.
    """
    path = f"{folder}/{file_name}"
    collected: list[pq.FileMetaData] = []
    with_nan: set[str] = set()
    writer = None
    with storage.create(path) as file:
        for group in _row_groups(pieces):
            writer = writer or _writer(file, schema, group, unique, collected)
            with_nan |= statistics.columns_with_nan(group)
            writer.write_table(group, row_group_size=_ROW_GROUP_ROWS)
        writer = writer or _writer(file, schema, schema.empty_table(), unique, collected)
        writer.close()
        size_bytes = file.tell()
    with storage.open(path) as written:
        crc32 = _footer_crc32(written, size_bytes)
    stats = statistics.statistics_json(collected[0], schema, unbounded=with_nan, footer_crc32=crc32)
    return DataFile(file_name, collected[0].num_rows, size_bytes, stats, dict(tags))


def read(storage: Storage, folder: str, file: DataFile, schema: pa.Schema) -> Iterator[pa.Table]:
    """Yield a file's rows in the table's schema, some at a time.

    FileNotFoundError if it is gone; `Corrupt` if its size, or the checksum of its footer or of a
    page, is not as written, or if it cannot be read as `schema`. Columns that it lacks are null.
    """
    path = f"{folder}/{file.path}"
    size_bytes = storage.size(path)
    if size_bytes is None:
        raise FileNotFoundError(path)
    if size_bytes != file.size_bytes:
        raise Corrupt(
            f"{path} has {size_bytes} bytes; the table says {file.size_bytes}",
            hint="Restore the table, or read it at an earlier version",
        )
    rows = 0
    try:
        with storage.open(path) as source:
            _check_footer(path, source, file)
            parquet = pq.ParquetFile(source, page_checksum_verification=True)
            names = parquet.schema_arrow.names
            columns = [n for n in schema.names if n in names]
            for batch in parquet.iter_batches(_BATCH_ROWS, columns=columns):
                rows += batch.num_rows
                yield _in_schema(pa.Table.from_batches([batch]), schema)
    except FileNotFoundError:
        raise
    except (OSError, pa.ArrowException) as e:
        raise Corrupt(f"{path} cannot be read: {e}", hint="Restore the table") from e
    if file.stats and rows != file.rows:
        raise Corrupt(f"{path} has {rows} rows; the table says {file.rows}", hint="Restore it")


def _check_footer(path: str, source: pa.NativeFile, file: DataFile) -> None:
    wanted = statistics.parse(file.stats).footer_crc32
    # None: another program wrote the file.
    if wanted is not None and _footer_crc32(source, file.size_bytes) != wanted:
        raise Corrupt(f"The footer of {path} is damaged", hint="Restore the table")


def _footer_crc32(source: pa.NativeFile, size_bytes: int) -> int:
    """Return the CRC-32 of a file from its footer on: schema, places of pages, lengths."""
    tail = source.read_at(_TAIL_BYTES, size_bytes - _TAIL_BYTES)
    footer_bytes = int.from_bytes(tail[:4], "little") + _TAIL_BYTES
    return zlib.crc32(source.read_at(footer_bytes, max(size_bytes - footer_bytes, 0)))


def _in_schema(piece: pa.Table, schema: pa.Schema) -> pa.Table:
    columns = []
    for field in schema:
        if field.name not in piece.schema.names:
            columns.append(pa.nulls(piece.num_rows, field.type))
            continue
        column = piece.column(field.name)
        columns.append(column if column.type == field.type else column.cast(field.type))
    return pa.Table.from_arrays(columns, schema=schema)


def _row_groups(pieces: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """Gather pieces until they make a row group that reads well."""
    gathered: list[pa.Table] = []
    rows = size_bytes = 0
    for piece in pieces:
        if not piece.num_rows:
            continue
        gathered.append(piece)
        rows += piece.num_rows
        size_bytes += piece.nbytes
        if rows >= _ROW_GROUP_ROWS or size_bytes >= _ROW_GROUP_BYTES:
            yield pa.concat_tables(gathered)
            gathered, rows, size_bytes = [], 0, 0
    if gathered:
        yield pa.concat_tables(gathered)


def _writer(
    file: pa.NativeFile,
    schema: pa.Schema,
    sample: pa.Table,
    unique: Sequence[str],
    collected: list[pq.FileMetaData],
) -> pq.ParquetWriter:
    return pq.ParquetWriter(
        file,
        schema,
        compression="zstd",
        use_dictionary=_dictionary_columns(schema, sample, unique),
        # Other readers need no Arrow schema, and a file of few rows is mostly footer.
        store_schema=False,
        # A flipped bit is found when it is read.
        write_page_checksum=True,
        metadata_collector=collected,
    )


def _dictionary_columns(
    schema: pa.Schema, sample: pa.Table, unique: Sequence[str]
) -> list[str] | bool:
    """Return the columns, by Parquet path, for which a dictionary is worth trying."""
    head = sample.slice(0, _SAMPLE_ROWS)
    repeated = []
    for field in schema:
        if types.is_nested(field.type):
            repeated += _leaves(field.name, field.type)
        elif field.name not in unique and _repeats(head.column(field.name)):
            repeated.append(field.name)
    return repeated or False


def _repeats(column: pa.ChunkedArray) -> bool:
    if len(column) < _SAMPLE_ROWS:
        return True  # too few to tell, and too few to matter
    if types.is_boolean(column.type):
        return False
    return bool(pc.count_distinct(column).as_py() < _REPEATED_AT_MOST * len(column))


def _leaves(path: str, kind: pa.DataType) -> list[str]:
    """Return the Parquet paths of a nested column's leaves."""
    if types.is_struct(kind):
        fields = [kind.field(i) for i in range(kind.num_fields)]
        return [leaf for f in fields for leaf in _leaves(f"{path}.{f.name}", f.type)]
    if types.is_map(kind):
        entry = f"{path}.key_value"
        return _leaves(f"{entry}.key", kind.key_type) + _leaves(f"{entry}.value", kind.item_type)
    if types.is_list(kind):
        return _leaves(f"{path}.list.element", kind.value_type)
    return [path]
