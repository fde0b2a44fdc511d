"""Runs users' SELECTs, one at a time, in the process that `process.py` starts.

Each has a database of its own that knows the tables it names and nothing else. `wire.py`'s frames
come over a socket, and the process ends when that is closed. A result is whole before its first
byte goes out, so an error never comes in the middle.
"""

from __future__ import annotations

import socket
import threading
from contextlib import closing
from typing import TypeVar

import duckdb
import msgspec
import pyarrow as pa

from headrace.define.types import quoted
from headrace.model.errors import HeadraceError, Internal, Invalid
from headrace.serve import formats
from headrace.serve.query import SETTINGS, failure, with_distinct_names
from headrace.serve.relations import literal
from headrace.serve.sql.statement import SCHEMAS, checked, invalid_sql
from headrace.serve.sql.wire import (
    BODY_BYTES_MAX,
    FRAME,
    Ask,
    Column,
    Failed,
    Give,
    Head,
    Kind,
    Need,
    frame,
)

T = TypeVar("T")

_OPEN = {**SETTINGS, "allow_community_extensions": "false", "max_temp_directory_size": "0B"}
_CLOSE = (
    "SET temp_directory = ''",
    "SET enable_external_access = false",
    "SET lock_configuration = true",
)
_CHUNK_BYTES = 1 << 16


class _Ended(Exception):
    """The other side has closed the socket."""


class Worker:
    """Answers over a socket until that is closed."""

    def __init__(self, connection: socket.socket, threads: int, memory_bytes: int) -> None:
        """Let each database have so many threads and so much memory."""
        self._socket = connection
        self._config = {
            **_OPEN,
            "threads": str(threads),
            "memory_limit": f"{memory_bytes}B",
        }

    def run(self) -> None:
        """Answer one after another."""
        while True:
            try:
                self._answer(self._receive(Kind.ASK, Ask))
            except _Ended:
                return
            except HeadraceError as e:
                self._fail(e)
            except (MemoryError, pa.ArrowMemoryError):
                self._fail(_too_much_memory())

    def _answer(self, ask: Ask) -> None:
        with closing(duckdb.connect(":memory:", config=self._config)) as connection:
            connection.execute("SET TimeZone = 'UTC'")
            statement = checked(connection, ask.sql, ask.names)
            self._send(Kind.NEED, Need(statement.names))
            _make(connection, self._receive(Kind.GIVE, Give))
            timer = threading.Timer(ask.timeout_s, connection.interrupt)
            timer.start()
            try:
                columns, rows = _result(connection, statement.sql, ask.rows_max)
            finally:
                timer.cancel()
        head = Head(columns, rows.num_rows > ask.rows_max, min(rows.num_rows, ask.rows_max))
        shown = {"columns": columns, "truncated": head.truncated}
        # Whole before the first byte goes out: a value may be one that JSON cannot say.
        pieces = list(formats.pieces(rows.slice(0, ask.rows_max), ask.format, shown))
        self._send(Kind.HEAD, head)
        for piece in pieces:
            for start in range(0, len(piece), BODY_BYTES_MAX):
                self._send(Kind.BODY, piece[start : start + BODY_BYTES_MAX])
        self._send(Kind.END)

    def _fail(self, error: HeadraceError) -> None:
        told = Failed(error.kind_code, error.message, error.hint, error.code)
        self._send(Kind.FAILED, told)

    def _receive(self, kind: Kind, type_: type[T]) -> T:
        found, length = FRAME.unpack(self._read(FRAME.size))
        body = self._read(length)
        if found != kind:
            raise Internal(f"An SQL worker was sent {found}, not {kind}")
        return msgspec.json.decode(body, type=type_)

    def _read(self, count: int) -> bytes:
        found = bytearray()
        while len(found) < count:
            some = self._socket.recv(min(_CHUNK_BYTES, count - len(found)))
            if not some:
                raise _Ended
            found += some
        return bytes(found)

    def _send(self, kind: Kind, body: bytes | msgspec.Struct = b"") -> None:
        try:
            self._socket.sendall(frame(kind, body))
        except OSError as e:
            raise _Ended from e


def _make(connection: duckdb.DuckDBPyConnection, give: Give) -> None:
    """Make the relations, and let nothing else be opened from here on."""
    for schema in SCHEMAS[1:]:
        connection.execute(f"CREATE SCHEMA {quoted(schema)}")
    paths = ", ".join(map(literal, give.paths))
    connection.execute(f"SET allowed_paths = [{paths}]")
    try:
        for name, select in give.selects.items():
            for schema in SCHEMAS:
                connection.execute(f"CREATE VIEW {schema}.{quoted(name)} AS {select}")
    except duckdb.Error as e:
        raise failure(e) from e
    for statement in _CLOSE:
        connection.execute(statement)


def _result(
    connection: duckdb.DuckDBPyConnection, sql: str, rows_max: int
) -> tuple[list[Column], pa.Table]:
    """Return columns and rows, one more than `rows_max` if there are."""
    try:
        relation = connection.sql(sql)
        rows = with_distinct_names(relation.limit(rows_max + 1).to_arrow_table())
    except duckdb.OutOfMemoryException as e:
        raise _too_much_memory() from e
    except duckdb.PermissionException as e:
        raise Invalid("SQL here opens no files", code="not_allowed") from e
    except duckdb.Error as e:
        meant = failure(e)
        # What it has against the statement itself: names, types.
        raise invalid_sql(e) if isinstance(meant, Internal) else meant from e
    types = map(str, relation.types)
    return [Column(n, t) for n, t in zip(rows.column_names, types, strict=True)], rows


def _too_much_memory() -> Invalid:
    return Invalid(
        "The query needs more memory than it may have",
        hint="Filter or aggregate earlier, or read the table page by page.",
        code="query_memory",
    )
