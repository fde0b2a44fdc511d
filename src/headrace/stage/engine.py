"""DuckDB as the stage uses it: in memory, Arrow in and out, nothing reached from outside."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TypeVar

import duckdb
import pyarrow as pa

from headrace.define.types import arrow_schema, columns_of
from headrace.model.errors import Internal, Unavailable
from headrace.model.plan import Column
from headrace.model.tables import Snapshot

SCAN_ROWS = 5_000
"""Rows of a batch that is scanned: DuckDB's threads share a scan by batches."""

_MESSAGE_LENGTH_MAX = 300

_SETTINGS = {
    # Nothing is spilled beside the working directory: what is too large is run in smaller pieces.
    "temp_directory": "",
    "TimeZone": "UTC",
    "preserve_insertion_order": "true",
    "autoinstall_known_extensions": "false",
    "autoload_known_extensions": "false",
    "python_enable_replacements": "false",
    # What a large epoch took goes back to the system; it saves 50 MB and costs nothing measurable.
    "allocator_flush_threshold": "8MB",
    "allocator_bulk_deallocation_flush_threshold": "16MB",
}

_OURS = (
    duckdb.BinderException,
    duckdb.CatalogException,
    duckdb.ParserException,
    duckdb.SyntaxException,
    duckdb.InternalException,
    duckdb.FatalException,
    duckdb.ConnectionException,
    duckdb.NotImplementedException,
)
"""Errors that say nothing of any record: the SQL does not fit, or the engine is broken."""

T = TypeVar("T")


class SqlError(Exception):
    """A statement failed on what is in its rows; `message` is DuckDB's, shortened."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class OutOfMemory(Unavailable):
    """A statement needs more memory than there is: for so many rows, or for any at all."""


class Engine:
    """An in-memory DuckDB. Used from one thread at a time.

    `threads` are DuckDB's own; `memory_limit` is its text, such as "2GB" (None: DuckDB's default,
    four fifths of the machine).
    """

    def __init__(self, threads: int = 2, memory_limit: str | None = None) -> None:
        limit = {"memory_limit": memory_limit} if memory_limit else {}
        self._con = duckdb.connect(config={"threads": str(threads), **limit})
        for name, value in _SETTINGS.items():
            self._con.execute(f"SET {name} = '{value}'")

    def query(self, sql: str, relations: Mapping[str, pa.Table]) -> pa.Table:
        """Return the rows of one SELECT over Arrow tables, each a relation of its name.

        Rows keep their order as far as the SQL does. `SqlError` if a value in the rows makes the
        statement fail; `Internal` if the statement itself or the engine does; `OutOfMemory`.
        """
        try:
            for name, rows in relations.items():
                self._con.register(name, _in_scan_batches(rows))
            return self._con.sql(sql).to_arrow_table()
        except _OURS as error:
            # The process must not go on with an engine in an unknown state.
            raise Internal(f"The engine failed: {shortened(error)}") from error
        except duckdb.OutOfMemoryException as error:
            raise OutOfMemory(
                shortened(error), hint="Give it more memory.", code="out_of_memory"
            ) from error
        except duckdb.Error as error:
            raise SqlError(shortened(error)) from error
        finally:
            for name in relations:
                self._con.unregister(name)

    def arrow_schema(self, columns: Iterable[Column]) -> pa.Schema:
        """Return the Arrow schema of columns, all nullable; timestamps are microseconds in UTC."""
        return arrow_schema(columns, self._con)

    def columns(self, table: Snapshot | pa.Schema) -> tuple[Column, ...]:
        """Return the columns of an existing table."""
        schema = table.schema if isinstance(table, Snapshot) else table
        return columns_of(schema, self._con)

    def close(self) -> None:
        """Release the database and its memory."""
        self._con.close()


def bisect(
    run: Callable[[pa.Table], T], rows: pa.Table
) -> tuple[list[T], list[tuple[int, SqlError]]]:
    """Run a statement over rows, leaving out exactly the rows that it fails on alone.

    Returns the results of the pieces that went well, in order, and (position, error) of the rows
    that did not. When all is well that is one piece and one run; each failing row costs about
    2 × log2(rows) runs more. What needs too much memory is run in smaller pieces. A row that alone
    does fails for it, unless a row of nulls does too: then no row is to blame, and it is
    `OutOfMemory`.
    """
    done: list[T] = []
    failed: list[tuple[int, SqlError]] = []
    pieces = [(0, rows.num_rows)]
    while pieces:
        start, end = pieces.pop()
        try:
            done.append(run(rows.slice(start, end - start)))
        except SqlError as error:
            if end - start <= 1:
                failed.append((start, error))
            else:
                pieces += _halves(start, end)
        except OutOfMemory as error:
            if end - start > 1:
                pieces += _halves(start, end)
            elif start == end or _needs_too_much(run, rows.slice(0, 0)):
                raise
            else:
                failed.append((start, SqlError(error.message)))
    return done, failed


def _halves(start: int, end: int) -> list[tuple[int, int]]:
    """Return the halves of a piece, the one to be run first last."""
    middle = (start + end) // 2
    return [(middle, end), (start, middle)]


def _needs_too_much(run: Callable[[pa.Table], object], no_rows: pa.Table) -> bool:
    """Return whether a statement needs too much memory even for a row of nulls."""
    nulls = [pa.nulls(1, field.type) for field in no_rows.schema]
    try:
        run(pa.Table.from_arrays(nulls, names=no_rows.schema.names))
    except OutOfMemory:
        return True
    except SqlError:
        return False
    return False


def shortened(error: Exception) -> str:
    """Return DuckDB's message in one line, without the statement that it quotes."""
    text = " ".join(str(error).partition("\n\nLINE")[0].split())
    return text if len(text) <= _MESSAGE_LENGTH_MAX else text[: _MESSAGE_LENGTH_MAX - 1] + "…"


def _in_scan_batches(rows: pa.Table) -> pa.Table:
    if all(chunk.num_rows <= SCAN_ROWS for chunk in rows.to_batches()):
        return rows
    return pa.Table.from_batches(rows.to_batches(max_chunksize=SCAN_ROWS), schema=rows.schema)
