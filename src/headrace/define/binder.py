"""What DuckDB says of a SELECT before it runs: its tree, its functions, its columns and types.

The tree is DuckDB's own (`json_serialize_sql`), not another parser's, so what is checked is what
will run, and a tree turned back into text means the same.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Iterator, Mapping
from typing import Any, Literal

import duckdb
from duckdb.sqltypes import DuckDBPyType

from headrace.define.types import open_duckdb, quoted
from headrace.model.errors import Invalid

Node = dict[str, Any]
"""A node of DuckDB's tree: expressions have `class`, relations and selects have `type`."""

FunctionKind = Literal["row", "aggregate", "volatile", "unknown"]

SESSION_WORDS = frozenset(
    {
        "current_catalog",
        "current_date",
        "current_role",
        "current_schema",
        "current_time",
        "current_timestamp",
        "current_user",
        "localtime",
        "localtimestamp",
        "session_user",
        "user",
    }
)
"""Words that, where no column has the name, stand for the time or the session."""

# What the catalog does not say: these read the clock or the environment but count as constant.
_VOLATILE = frozenset({"age", "current_localtime", "current_localtimestamp", "getenv", "ago"})
_CONSTANT = frozenset({"error"})
"""Marked volatile only so that it is not evaluated early; it fails its own record, always."""


class SqlFault(Invalid):
    """SQL that cannot be used; `position` is the character where, or 0."""

    def __init__(self, message: str, *, hint: str = "", code: str = "", position: int = 0) -> None:
        """Keep where in the SQL the fault is."""
        super().__init__(message, hint=hint, code=code)
        self.position = position


class Binder:
    """An in-memory DuckDB with empty relations, asked what SQL means; close it after use."""

    def __init__(self) -> None:
        self._con = open_duckdb()
        self._kinds: dict[str, FunctionKind] = {}
        self._macros: dict[str, list[str]] = {}
        self._read_catalog()

    def close(self) -> None:
        """Release the database."""
        self._con.close()

    def put(self, relation: str, columns: Mapping[str, str]) -> None:
        """Make an empty relation with columns by name and type, in place of one of that name."""
        items = ", ".join(f"{quoted(name)} {kind}" for name, kind in columns.items())
        self._con.execute(f"CREATE OR REPLACE TABLE {quoted(relation)} ({items})")

    def drop(self, relation: str) -> None:
        """Remove a relation."""
        self._con.execute(f"DROP TABLE IF EXISTS {quoted(relation)}")

    def parse(self, sql: str) -> Node:
        """Return the tree of one SELECT (a set operation too); `SqlFault` if it is not one."""
        text = _SERIALIZE.format("?")
        answer = json.loads(self._con.execute(text, [sql]).fetchall()[0][0])
        if answer["error"]:
            raise _unparsed(answer)
        statements = answer["statements"]
        if len(statements) != 1:
            raise SqlFault(
                f"This is {len(statements)} statements; write one SELECT", code="not_select"
            )
        node: Node = statements[0]["node"]
        return node

    def text(self, node: Node) -> str:
        """Return the SQL of a tree, with names quoted where needed."""
        document = json.dumps({"error": False, "statements": [{"node": node}]})
        found = self._con.execute("SELECT json_deserialize_sql(?::JSON)", [document]).fetchall()
        return str(found[0][0])

    def describe(
        self, sql: str, values: Mapping[str, object] | None = None
    ) -> list[tuple[str, DuckDBPyType]]:
        """Return the columns that a SELECT yields; `SqlFault` with what DuckDB has against it.

        `values` stand for the SQL's named parameters.
        """
        try:
            relation = self._con.sql(sql, params=dict(values)) if values else self._con.sql(sql)
            return list(zip(relation.columns, relation.types, strict=True))
        except duckdb.Error as error:
            raise _unbound(error) from error

    def function(self, name: str) -> FunctionKind:
        """Return what a function of this name does: work row by row, aggregate, or vary."""
        name = name.lower()
        if name in self._macros and name not in self._kinds:
            self._kinds[name] = self._macro(name)
        return self._kinds.get(name, "unknown")

    def _macro(self, name: str) -> FunctionKind:
        """Return the kind of a macro: the worst of what its definitions call."""
        self._kinds[name] = "row"  # also ends a definition that calls itself
        kinds: set[FunctionKind] = set()
        for definition in self._macros[name]:
            answer = self._con.execute(_SERIALIZE.format("?"), [f"SELECT {definition}"])
            tree = json.loads(answer.fetchall()[0][0])
            for node in walk(tree):
                if node.get("class") in {"FUNCTION", "WINDOW"}:
                    kinds.add(self.function(node["function_name"]))
                elif is_session_word(node):
                    kinds.add("volatile")
        return next((k for k in _WORST_FIRST if k in kinds), "row")

    def _read_catalog(self) -> None:
        for name, kind, stability, macro in _catalog():
            if kind == "macro":
                self._macros.setdefault(name, []).append(macro)
            elif kind == "aggregate":
                self._kinds[name] = "aggregate"
            elif stability != "CONSISTENT" and name not in _CONSTANT:
                self._kinds[name] = "volatile"
            else:
                self._kinds.setdefault(name, "row")
        self._kinds.update(dict.fromkeys(_VOLATILE, "volatile"))


_WORST_FIRST: tuple[FunctionKind, ...] = ("volatile", "aggregate")
_SERIALIZE = (
    "SELECT json_serialize_sql({}::VARCHAR, skip_null := true, skip_empty := true, "
    "skip_default := true)"
)
_CATALOG = """
    SELECT DISTINCT function_name, function_type, stability, macro_definition
    FROM duckdb_functions() WHERE function_type IN ('scalar', 'aggregate', 'macro')
"""


@functools.cache
def _catalog() -> tuple[tuple[str, str, str | None, str], ...]:
    """Return the functions of this DuckDB, which are the same in every database."""
    with open_duckdb() as con:
        return tuple(con.execute(_CATALOG).fetchall())


def walk(node: object) -> Iterator[Node]:
    """Yield every node of a tree, outer before inner, in the order of the text."""
    if isinstance(node, dict):
        yield node
        for child in node.values():
            yield from walk(child)
    elif isinstance(node, list):
        for child in node:
            yield from walk(child)


def is_session_word(node: Node) -> bool:
    """Return whether a node is a bare word such as current_date (if no column has the name)."""
    names = node.get("column_names", ())
    return (
        node.get("class") == "COLUMN_REF" and len(names) == 1 and names[0].lower() in SESSION_WORDS
    )


def position(node: Node) -> int:
    """Return the character of the SQL at which a node starts."""
    at: int = node.get("query_location", 0)
    return at


def _unparsed(answer: Node) -> SqlFault:
    message = answer["error_message"]
    if answer["error_type"] == "not implemented":
        if message.startswith("Only SELECT"):
            message = "Only a SELECT can stand here"
        return SqlFault(message, code="not_select")
    return SqlFault(
        f"The SQL does not parse: {message}", code="bad_sql", position=int(answer["position"])
    )


_KIND_OF_ERROR = re.compile(r"^(?:\w+ )+Error: ")
_TYPES_LISTED_MAX = 3


def _unbound(error: duckdb.Error) -> SqlFault:
    """Return DuckDB's own complaint: its first line, and what it suggests as the hint."""
    first, *rest = [line.strip() for line in str(error).splitlines() if line.strip()]
    details = [line for line in rest if line[:5] != "LINE " and set(line) != {"^"}]
    details = [line for line in details if "^" not in line][:_TYPES_LISTED_MAX]
    return SqlFault(_KIND_OF_ERROR.sub("", first), hint=" ".join(details), code="bad_sql")
