"""SELECTs over relations with DuckDB, in memory, on threads of their own.

One database is shared, each thread has a connection to it, and what a connection has been told
about a relation (a temporary view) it keeps until the relation's version changes. Nothing of users
gets here as SQL: statements come from the plan, values are bound.
"""

from __future__ import annotations

import asyncio
import re
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Generic, Literal, TypeVar

import duckdb
import pyarrow as pa

from headrace.define.types import quoted
from headrace.model.errors import Closed, Corrupt, HeadraceError, Internal, Invalid, Unavailable
from headrace.model.tables import DataFile, Snapshot
from headrace.serve.relations import Identity, Relation

T = TypeVar("T")

SETTINGS = {
    "autoinstall_known_extensions": "false",
    "autoload_known_extensions": "false",
    # Otherwise a table that does not exist is looked for among the variables of the caller's frame.
    "python_enable_replacements": "false",
}

Kind = Literal["VIEW", "TABLE"]

HELD_BYTES_MAX = 1 << 20
"""Size of a relation's files up to which a thread keeps its rows in memory …"""
HELD_ROWS_MAX = 100_000
"""… if they are no more than this: files of equal rows are tiny, whatever their number."""

INTERRUPT_EVERY_S = 0.05

_GONE = re.compile("No such file|No files found")
_DAMAGED = re.compile("parquet|magic bytes", re.IGNORECASE)

WAITING_MAX = 512
"""Requests that wait for a thread at once; more are told to come back."""


Fetch = Callable[[Snapshot, Sequence[DataFile]], None]
"""Makes files of a snapshot readable under its `root`, before DuckDB is told to read them."""


def at_hand(_snapshot: Snapshot, _files: Sequence[DataFile]) -> None:
    """Do nothing: files of tables on the local disk are where they are read."""


class Session:
    """A connection of one thread, and the work that may be interrupted on it."""

    def __init__(self, connection: duckdb.DuckDBPyConnection, fetch: Fetch) -> None:
        self.connection = connection
        self.fetch = fetch
        self._known: dict[str, tuple[Identity, Kind]] = {}

    def prepare(self, relations: Sequence[Relation]) -> None:
        """Make each relation readable by its bare name, at its version.

        At first as a view over its files; if the same version is asked for again and it is small,
        its rows are read into memory, which makes the next queries about three times faster.
        """
        for relation in relations:
            identity, kind = self._known.get(relation.name, (None, None))
            if identity != relation.identity:
                self._make(relation, "VIEW")
            elif kind == "VIEW" and _is_small(relation):
                self._make(relation, "TABLE")

    def _make(self, relation: Relation, kind: Kind) -> None:
        name = quoted(relation.name)
        if relation.snapshot is not None:
            self.fetch(relation.snapshot, relation.snapshot.files)
        try:
            if relation.name in self._known:
                self.connection.execute(f"DROP {self._known[relation.name][1]} temp.{name}")
                del self._known[relation.name]
            self.connection.execute(f"CREATE TEMP {kind} {name} AS {relation.select()}")
        except duckdb.Error as e:
            raise failure(e) from e
        self._known[relation.name] = (relation.identity, kind)

    def select(
        self,
        sql: str,
        values: Mapping[str, object] | Sequence[object] = (),
        rows_max: int | None = None,
    ) -> pa.Table:
        """Run one SELECT; `result_too_large` if it has more than `rows_max` rows.

        `Invalid`: a value cannot be used (a cast of it, an overflow). `Unavailable`: a file of a
        snapshot is gone, or the time limit passed.
        """
        try:
            relation = self.connection.sql(sql, params=values or None)
            if rows_max is not None:
                relation = relation.limit(rows_max + 1)
            table: pa.Table = relation.to_arrow_table()
        except duckdb.BinderException as e:
            if not values:
                raise failure(e) from e
            # The statement was bound when the pipeline was checked, so it is a value that is wrong.
            raise Invalid(
                f"The query failed on its values: {first_line(e)}", code="invalid_value"
            ) from e
        except duckdb.Error as e:
            raise failure(e) from e
        if rows_max is not None and table.num_rows > rows_max:
            raise Invalid(
                f"The result has more than {rows_max} rows",
                hint="Aggregate or filter in the query, or read the table page by page.",
                code="result_too_large",
            )
        return with_distinct_names(table)


class Engine:
    """Threads with a session each; used from one event loop."""

    def __init__(self, threads: int, memory_bytes: int, fetch: Fetch = at_hand) -> None:
        self._fetch = fetch
        self._database = duckdb.connect(
            ":memory:",
            config={**SETTINGS, "threads": str(threads), "memory_limit": f"{memory_bytes}B"},
        )
        self._database.execute("SET GLOBAL TimeZone = 'UTC'")
        # Some more than cores: a query waits for the disk now and then.
        self._pool = ThreadPoolExecutor(threads + 2, "query")
        # Health and metrics must not wait behind long queries.
        self._urgent = ThreadPoolExecutor(1, "urgent")
        self._local = threading.local()
        self._idle = threading.Condition()
        self._running: set[Session] = set()
        self._waiting = 0
        self._closed = False
        self.on_broken: Callable[[], None] = lambda: None
        """Called, on any thread, once nothing can be queried any more."""

    @property
    def waiting(self) -> int:
        """Return how many requests wait or run."""
        return self._waiting

    async def run(
        self, work: Callable[[Session], T], timeout_s: float, *, urgent: bool = False
    ) -> T:
        """Return `work`'s result from a thread; `query_timeout` and interrupted after a while.

        `urgent` work, which must be short, has a thread of its own.
        """
        if self._closed:
            raise stopping()
        if self._waiting >= WAITING_MAX:
            raise busy()
        self._waiting += 1
        task = _Task(work)
        pool = self._urgent if urgent else self._pool
        future = asyncio.get_running_loop().run_in_executor(pool, self._on_thread, task)
        try:
            done, _ = await asyncio.wait([future], timeout=timeout_s)
            if not done:
                task.interrupt()
                await asyncio.wait([future])
            if future.cancelled():
                raise stopping()
            return future.result()
        except asyncio.CancelledError:
            # The client is gone, or the server ends: nobody waits for the result any more.
            task.interrupt()
            future.add_done_callback(lambda f: f.cancelled() or f.exception())
            raise
        finally:
            self._waiting -= 1

    def close(self) -> None:
        """Interrupt what runs and end the threads; again does nothing."""
        self._closed = True
        pools = (self._pool, self._urgent)
        for pool in pools:
            pool.shutdown(wait=False, cancel_futures=True)
        with self._idle:
            while self._running:
                for session in self._running:
                    session.connection.interrupt()
                # Again, for work that was between two statements.
                self._idle.wait(INTERRUPT_EVERY_S)
        for pool in pools:
            pool.shutdown(wait=True)
        self._database.close()

    def _on_thread(self, task: _Task[T]) -> T:
        session = getattr(self._local, "session", None)
        if session is None:
            session = self._local.session = Session(self._database.cursor(), self._fetch)
        with self._idle:
            if self._closed:
                raise stopping()
            self._running.add(session)
        try:
            return task.run(session)
        except HeadraceError as e:
            if isinstance(e.__cause__, duckdb.FatalException):
                # The database refuses everything from here on: a new process is the way out.
                self.on_broken()
            raise
        finally:
            with self._idle:
                self._running.discard(session)
                self._idle.notify_all()


class _Task(Generic[T]):
    """Work for a session that can be interrupted while, and only while, it runs."""

    def __init__(self, work: Callable[[Session], T]) -> None:
        self._work = work
        self._lock = threading.Lock()
        self._session: Session | None = None
        self._interrupted = False

    def run(self, session: Session) -> T:
        with self._lock:
            if self._interrupted:
                raise timed_out()
            self._session = session
        try:
            return self._work(session)
        finally:
            with self._lock:
                self._session = None

    def interrupt(self) -> None:
        with self._lock:
            self._interrupted = True
            if self._session is not None:
                self._session.connection.interrupt()


def _is_small(relation: Relation) -> bool:
    return relation.size_bytes <= HELD_BYTES_MAX and relation.rows <= HELD_ROWS_MAX


def failure(error: duckdb.Error) -> HeadraceError:
    """Return what an error of DuckDB's means to whoever asked."""
    message = first_line(error)
    if isinstance(error, duckdb.InterruptException):
        return timed_out()
    if isinstance(error, duckdb.OutOfMemoryException):
        return Unavailable("The query needs more memory than it may have", code="query_memory")
    if isinstance(error, duckdb.IOException) and _GONE.search(message):
        return Unavailable("A file of the table is not there now", code="file_gone")
    invalid = isinstance(error, duckdb.InvalidInputException)
    if isinstance(error, duckdb.IOException) or (invalid and _DAMAGED.search(message)):
        return Corrupt(
            "A file of the table cannot be read",
            hint="The server's log says which; restore it from a backup.",
        )
    if invalid or isinstance(error, duckdb.DataError):
        return Invalid(f"The query failed on its values: {message}", code="invalid_value")
    return Internal(f"The query failed: {message}", code="query_failed")


def first_line(error: duckdb.Error) -> str:
    """Return DuckDB's message without the statement that it quotes."""
    return str(error).partition("\n\nLINE ")[0].partition("\n")[0]


def stopping() -> Closed:
    """Return the error for whoever asks while the server ends."""
    return Closed("The server is stopping", hint="Ask again in a moment.", code="stopping")


def busy() -> Unavailable:
    """Return the error for whoever asks while too many wait."""
    return Unavailable("Too many queries wait already", code="busy", hint="Try again soon.")


def timed_out() -> Unavailable:
    """Return the error of a query that was interrupted."""
    return Unavailable(
        "The query took longer than it may",
        hint="Filter it, or ask for fewer rows.",
        code="query_timeout",
    )


def with_distinct_names(table: pa.Table) -> pa.Table:
    """Return a result whose column names differ: the second `n` is `n_1`, and so on."""
    taken: set[str] = set()
    names = []
    for name in table.column_names:
        distinct, number = name, 0
        while distinct in taken:
            number += 1
            distinct = f"{name}_{number}"
        taken.add(distinct)
        names.append(distinct)
    return table.rename_columns(names) if names != table.column_names else table
