"""`headrace sql`: any SELECT of the owner's, over the tables of a data directory as they stand.

Nothing is sandboxed here: who can run this can read the files anyway.
"""

from __future__ import annotations

import difflib
from pathlib import Path

import duckdb
import pyarrow as pa

from headrace.model.clock import Clock
from headrace.model.errors import HeadraceError, Invalid
from headrace.model.plan import DEAD_LETTERS, KNOWN_IDS, LEDGER
from headrace.serve.query import SETTINGS, failure, with_distinct_names
from headrace.serve.relations import Relation, columns_of, quoted
from headrace.tables.delta import DeltaTables

SYSTEM = {"dead_letters": DEAD_LETTERS, "known_ids": KNOWN_IDS, "ledger": LEDGER}
"""Bare name → storage name of the pipeline's own tables."""
SCHEMAS = ("tables", "views")


class OwnerSql:
    """One in-memory database in which a data directory's tables can be read by name.

    A name is `tables.purchases`, `views.per_minute`, or the bare name of either; `dead_letters`,
    `ledger` and `known_ids` are the pipeline's own. Every query sees the newest versions. Not for
    use from two threads, except `interrupt`.
    """

    def __init__(self, data_dir: Path, clock: Clock) -> None:
        self._tables = DeltaTables(data_dir, clock)
        self._connection = duckdb.connect(":memory:", config=SETTINGS)
        self._connection.execute("SET TimeZone = 'UTC'")
        for schema in SCHEMAS:
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
        try:
            named = self._connection.get_table_names(sql, qualified=True)
        except duckdb.Error as e:
            raise _refusal(e) from e
        for name in sorted(named):
            self._make(name)
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

    def _make(self, name: str) -> None:
        """Make the relation that a query names readable; leave what we do not know to DuckDB."""
        storage = self._storage(_unquoted(name))
        if storage is None:
            return
        snapshot = self._tables.snapshot(storage)
        if snapshot is None:
            return
        identity = (snapshot.table_id, snapshot.version)
        if self._made.get(name) == identity:
            return
        columns = columns_of(snapshot.schema)
        select = Relation(name, storage, storage, (), columns, (), snapshot).select()
        self._connection.execute(f"CREATE OR REPLACE VIEW {name} AS {select}")
        self._made[name] = identity

    def _storage(self, parts: list[str]) -> str | None:
        """Return the storage name of `schema.name` or a bare name, letter case aside."""
        stored = {s.lower(): s for s in self._tables.names()}
        if len(parts) > 1:
            schema, name = parts[-2].lower(), parts[-1].lower()
            return stored.get(f"{schema}/{name}") if schema in SCHEMAS else None
        name = parts[-1].lower()
        candidates = (SYSTEM.get(name, ""), *(f"{schema}/{name}" for schema in SCHEMAS))
        return next((stored[c] for c in candidates if c in stored), None)

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


def _unquoted(name: str) -> list[str]:
    """Return the parts of a name that DuckDB quoted where needed."""
    parts: list[str] = [""]
    inside = False
    for sign in name.replace('""', "\0"):
        if sign == '"':
            inside = not inside
        elif sign == "." and not inside:
            parts.append("")
        else:
            parts[-1] += sign
    return [p.replace("\0", '"') for p in parts]
