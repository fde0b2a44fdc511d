"""`headrace sql`: any SELECT of the owner's, over the tables of a data directory as they stand.

Nothing is sandboxed here: who can run this can read the files anyway.
"""

from __future__ import annotations

import contextlib
import difflib

import duckdb
import pyarrow as pa

from headrace.define.types import quoted
from headrace.model.errors import HeadraceError, Invalid
from headrace.model.plan import DEAD_LETTERS, KNOWN_IDS, LEDGER
from headrace.model.samples import SAMPLES, SAMPLES_NAME
from headrace.model.site import Site
from headrace.serve.query import SETTINGS, failure, with_distinct_names
from headrace.serve.relations import Relation, columns_of
from headrace.tables.near import NearTables

SYSTEM = {
    "dead_letters": DEAD_LETTERS,
    "known_ids": KNOWN_IDS,
    "ledger": LEDGER,
    SAMPLES_NAME: SAMPLES,
}
"""Bare name → storage name of the pipeline's own tables."""
SCHEMAS = ("tables", "views")
OWN_SCHEMA = "headrace"
"""Where the pipeline's own tables are whatever a table of its user's is called."""


class OwnerSql:
    """One in-memory database in which a data directory's tables can be read by name.

    A name is `tables.purchases`, `views.per_minute`, or the bare name of either; `dead_letters`,
    `ledger`, `known_ids` and `samples` are the pipeline's own, also as `headrace.samples`
    and so on. Every query sees the newest versions. Not for use from two threads, except
    `interrupt`.
    """

    def __init__(self, site: Site) -> None:
        self._open = contextlib.ExitStack()
        self._tables = self._open.enter_context(site.tables_to_read())
        self._connection = duckdb.connect(":memory:", config=SETTINGS)
        self._connection.execute("SET TimeZone = 'UTC'")
        for schema in (*SCHEMAS, OWN_SCHEMA):
            self._connection.execute(f"CREATE SCHEMA {quoted(schema)}")
        self._made: dict[str, tuple[str, int]] = {}

    def names(self) -> list[str]:
        """Return what can be read, as it can be written in SQL: `tables.events`, `ledger`, …"""
        stored = self._tables.names()
        named = [
            f"{schema}.{_plain(name)}"
            for schema, _, name in (s.partition("/") for s in stored)
            if schema in SCHEMAS
        ]
        return named + [name for name, storage in SYSTEM.items() if storage in stored]

    def query(self, sql: str) -> pa.Table:
        """Return the rows of one SELECT.

        `Invalid` says what is wrong with it: not one SELECT, a name that is not there, what DuckDB
        objects to.
        """
        self._check(sql)
        self._make_named(sql.lower())
        try:
            return with_distinct_names(self._connection.sql(sql).to_arrow_table())
        except duckdb.CatalogException as e:
            raise self._unknown(e) from e
        except duckdb.Error as e:
            raise _refusal(e) from e

    def interrupt(self) -> None:
        """Stop the query that runs on another thread."""
        self._connection.interrupt()

    def close(self) -> None:
        """Release what is held."""
        self._connection.close()
        self._open.close()

    def _check(self, sql: str) -> None:
        try:
            statements = self._connection.extract_statements(sql)
        except duckdb.Error as e:
            raise _refusal(e) from e
        if len(statements) != 1 or statements[0].type != duckdb.StatementType.SELECT:
            raise Invalid(
                "This is not one SELECT",
                hint="Data comes in by records only; write one statement that reads.",
                code="not_a_select",
            )

    def _make_named(self, text: str) -> None:
        """Make every relation readable whose name occurs in the text of a query.

        More than the query reads may be made, which costs little; to look for names in what it
        binds to would need them made before.
        """
        wanted = {
            written: storage
            for written, storage in self._written().items()
            if _bare(storage) in text
        }
        for written in self._made.keys() - self._written().keys():
            self._connection.execute(f"DROP VIEW {written}")
            del self._made[written]
        for written, storage in wanted.items():
            self._make(written, storage)

    def _written(self) -> dict[str, str]:
        """Return every name as SQL → storage name; the pipeline's own come before others."""
        stored = self._tables.names()
        own = {s.partition("/")[2] for s in stored if s.partition("/")[0] in SCHEMAS}
        named = {
            f"main.{quoted(n)}": s
            for n, s in SYSTEM.items()
            if s in stored and (n != SAMPLES_NAME or n not in own)
        }
        named |= {f"{OWN_SCHEMA}.{quoted(n)}": s for n, s in SYSTEM.items() if s in stored}
        for storage in stored:
            schema, _, name = storage.partition("/")
            if schema in SCHEMAS:
                named[f"{quoted(schema)}.{quoted(name)}"] = storage
                named.setdefault(f"main.{quoted(name)}", storage)
        return named

    def _make(self, written: str, storage: str) -> None:
        snapshot = self._tables.snapshot(storage)
        if snapshot is None:
            return
        identity = (snapshot.table_id, snapshot.version)
        if self._made.get(written) == identity:
            return
        if isinstance(self._tables, NearTables):
            self._tables.fetch(snapshot)
        columns = columns_of(snapshot.schema)
        select = Relation(written, storage, storage, (), columns, (), snapshot).select()
        self._connection.execute(f"CREATE OR REPLACE VIEW {written} AS {select}")
        self._made[written] = identity

    def _unknown(self, error: duckdb.Error) -> HeadraceError:
        message = str(error).partition("\n")[0].removeprefix("Catalog Error: ")
        known = self.names()
        words = message.replace('"', "").split()
        bare = {name.rpartition(".")[2]: name for name in known}
        near = [n for word in words for n in difflib.get_close_matches(word, bare, n=1)]
        guess = f"Did you mean {bare[near[0]]}? " if near else ""
        there = f"There are: {', '.join(known)}." if known else "Nothing was committed here yet."
        return Invalid(message, hint=guess + there, code="unknown_table")


def _refusal(error: duckdb.Error) -> HeadraceError:
    if isinstance(error, duckdb.InterruptException | duckdb.IOException):
        return failure(error)
    kind, _, message = str(error).partition(": ")
    return Invalid(message or kind, code="invalid_sql")


def _plain(name: str) -> str:
    """Return a name as one would write it: quoted only if it has to be."""
    simple = name.isascii() and name.isidentifier() and name == name.lower()
    return name if simple else quoted(name)


def _bare(storage: str) -> str:
    return storage.rpartition("/")[2].lower()
