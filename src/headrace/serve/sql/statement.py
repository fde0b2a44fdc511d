"""What may be run: exactly one SELECT, over the tables and views there are, and plain functions.

DuckDB's own tree of the statement is looked at (`json_serialize_sql`), and what runs is the SQL of
that tree, so nothing runs that was not looked at. Functions that read files, run text as SQL, look
at settings or take addresses in memory are none that a result needs: of functions that make tables
only a few are allowed, and of the others some are refused by name.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Collection, Iterator
from typing import NamedTuple

import duckdb

from headrace.define.binder import Node, walk
from headrace.model.errors import Invalid

SQL_BYTES_MAX = 100_000
SCHEMAS = ("main", "tables", "views")
"""What may stand before a name: `tables.events`, `views.per_minute`."""

TABLE_FUNCTIONS = frozenset(
    {"generate_series", "json_each", "json_tree", "range", "repeat", "unnest"}
)
REFUSED = frozenset(
    {
        "combine",
        "current_setting",
        "finalize",
        "getenv",
        "getvariable",
        "pg_sleep",
        "setseed",
        "sleep_ms",
        "to_aggregate_state",
        "variant_bytes_to_variant",
        "write_log",
    }
)
"""They look at settings, wait, write, or take bytes for the inside of a value unchecked."""
_REFUSED_BEFORE = ("__internal_", "duckdb_", "pragma_")

_SERIALIZE = (
    "SELECT json_serialize_sql(?::VARCHAR, skip_null := true, skip_empty := true, "
    "skip_default := true)"
)
_POSITION = re.compile(r"\s*LINE \d+:.*", re.DOTALL)


class Checked(NamedTuple):
    """A statement that may be run."""

    sql: str
    names: list[str]
    """The tables and views that it reads."""


def checked(connection: duckdb.DuckDBPyConnection, sql: str, known: Collection[str]) -> Checked:
    """Return a statement as it may be run over the known tables and views.

    Raises `Invalid`: it is not one SELECT (`not_a_select`), cannot be read (`invalid_sql`), names
    something that is not there (`unknown_table`) or asks for what is not allowed here
    (`not_allowed`).
    """
    if len(sql.encode()) > SQL_BYTES_MAX:
        raise Invalid(
            f"The statement is longer than {SQL_BYTES_MAX} bytes",
            hint="Aggregate or filter by conditions instead of lists.",
            code="invalid_sql",
        )
    if "\0" in sql:
        raise Invalid("The statement holds a NUL", code="invalid_sql")
    tree = _parsed(connection, sql)
    for node in walk(tree):
        _check_functions(node)
    own = set(_common_table_names(tree))
    found = {}
    for node in walk(tree):
        if node.get("type") == "BASE_TABLE":
            name = _name(node, known, own)
            if name is not None:
                found[name] = True
        elif node.get("type") == "SHOW_REF" and "query" not in node:
            found |= dict.fromkeys(known, True)
    document = json.dumps({"error": False, "statements": [{"node": tree}]})
    text = connection.execute("SELECT json_deserialize_sql(?::JSON)", [document]).fetchall()[0][0]
    return Checked(text, list(found))


def _parsed(connection: duckdb.DuckDBPyConnection, sql: str) -> Node:
    try:
        statements = connection.extract_statements(sql)
    except duckdb.Error as e:
        raise invalid_sql(e) from e
    if len(statements) != 1 or statements[0].type != duckdb.StatementType.SELECT:
        raise _not_a_select()
    if statements[0].named_parameters:
        raise Invalid(
            "The statement has parameters, and nothing gives them values",
            hint="Write the values themselves.",
            code="invalid_sql",
        )
    answer = json.loads(connection.execute(_SERIALIZE, [sql]).fetchall()[0][0])
    if answer["error"]:
        raise _not_a_select()
    node: Node = answer["statements"][0]["node"]
    return node


def _not_a_select() -> Invalid:
    return Invalid(
        "This is not one SELECT",
        hint="Data comes in by records only; write one statement that reads.",
        code="not_a_select",
    )


def _check_functions(node: Node) -> None:
    if node.get("type") == "TABLE_FUNCTION":
        name = str(node.get("function", {}).get("function_name", "")).lower()
        if name not in TABLE_FUNCTIONS:
            allowed = ", ".join(sorted(TABLE_FUNCTIONS))
            raise Invalid(
                f"FROM {name}(…) is not allowed here",
                hint=f"Read the pipeline's tables and views; of functions: {allowed}.",
                code="not_allowed",
            )
    name = str(node.get("function_name", "")).lower()
    if name in REFUSED or name.startswith(_REFUSED_BEFORE):
        raise Invalid(f"{name}() is not allowed here", code="not_allowed")


def _common_table_names(tree: Node) -> Iterator[str]:
    for node in walk(tree):
        for entry in node.get("cte_map", {}).get("map", []):
            yield entry["key"].lower()


def _name(node: Node, known: Collection[str], own: Collection[str]) -> str | None:
    """Return the known name that a table in FROM stands for; None if the statement made it."""
    written: str = node["table_name"]
    schema = str(node.get("schema_name", "main")).lower()
    names = {name.lower(): name for name in known}
    if "catalog_name" not in node and schema in SCHEMAS and written.lower() in names:
        return names[written.lower()]
    if "schema_name" not in node and written.lower() in own:
        return None
    near = difflib.get_close_matches(written.lower(), names, n=1)
    guess = f"Did you mean {names[near[0]]}? " if near else ""
    there = f"There are: {', '.join(sorted(known))}." if known else "This pipeline has none."
    raise Invalid(
        f"There is no table or view {written!r}", hint=guess + there, code="unknown_table"
    )


def invalid_sql(error: duckdb.Error) -> Invalid:
    """Return DuckDB's objection to a statement."""
    kind, _, message = _POSITION.sub("", str(error)).strip().partition(": ")
    return Invalid(message or kind, code="invalid_sql")
