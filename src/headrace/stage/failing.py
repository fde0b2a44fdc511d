"""Finds the records that row SQL fails on, at the cost of a few statements however many they are.

Bisection alone costs some statements a record: a table whose SQL fails on every record would stand
still for minutes. So the SQL's own expressions are asked first, each within DuckDB's TRY.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa

from headrace.define.binder import walk
from headrace.define.types import quoted
from headrace.model.plan import Column
from headrace.stage.decode import literal
from headrace.stage.engine import Engine, OutOfMemory, SqlError, bisect

SPELT_OUT = 50
"""Records of an epoch and table whose own message is asked for; more get that of the first."""

_EMPTY_TABLE = {"type": "EMPTY", "alias": ""}
_FAILS_TOO = "json_serialize_sql('SELECT CAST(CAST(concat(''error'', 0) AS INTEGER) AS \"NULL\")')"
_PLAIN = ("group_expressions", "group_sets", "having", "sample", "qualify", "modifiers")


class RowSql:
    """A table's row SQL over one topic's relation. `sql` yields exactly the table's `columns`."""

    def __init__(
        self, engine: Engine, relation: str, made: str, sql: str, columns: Sequence[Column]
    ) -> None:
        self._engine = engine
        self._relation = relation
        self._made = made
        self._sql = sql
        self._types = [c.type for c in columns]
        self._asks: str | None = None

    def run(self, records: pa.Table) -> tuple[list[pa.Table], list[tuple[int, str]]]:
        """Return the rows, in pieces, and (position, message) of the records that fail."""
        try:
            return [self._query(records)], []
        except (SqlError, OutOfMemory):
            failing = self._find_failing(records)
        left = np.setdiff1d(np.arange(records.num_rows), failing)
        pieces, failed = self._bisect(records, left)
        shown, rest = failing[:SPELT_OUT], failing[SPELT_OUT:]
        for at in shown:
            # One by one: should the question be wrong about a record, its row is not lost.
            more, errors = self._bisect(records, np.array([at]))
            pieces += more
            failed += errors
        if failed:
            known = f"As at least {len(failed)} others in the epoch, of which one: {failed[0][1]}"
            failed += [(int(at), known) for at in rest]
        elif len(rest):
            more, errors = self._bisect(records, rest)
            pieces += more
            failed += errors
        return pieces, sorted(failed)

    def _bisect(
        self, records: pa.Table, at: np.ndarray
    ) -> tuple[list[pa.Table], list[tuple[int, str]]]:
        if not len(at):
            return [], []
        pieces, failed = bisect(self._query, records.take(pa.array(at)))
        return pieces, [(int(at[i]), error.message) for i, error in failed]

    def _query(self, records: pa.Table) -> pa.Table:
        return self._engine.query(self._sql, {self._relation: records})

    def _find_failing(self, records: pa.Table) -> np.ndarray:
        """Return the positions of records that fail as far as TRY can tell; may be none."""
        if self._asks is None:
            self._asks = self._compile()
        if not self._asks:
            return np.empty(0, np.int64)
        try:
            asked = self._engine.query(self._asks, {self._relation: records})
        except (SqlError, OutOfMemory):
            return np.empty(0, np.int64)
        return np.flatnonzero(asked.column("failed").to_numpy())

    def _compile(self) -> str:
        """Return SQL that says of each record whether it fails; empty if the SQL is not plain."""
        parsed = self._parse()
        nodes = [s["node"] for s in parsed.get("statements", [])]
        if len(nodes) != 1 or nodes[0]["type"] != "SELECT_NODE":
            return ""
        node = nodes[0]
        self._replace_errors(node)
        is_plain = not any(node.get(name) for name in _PLAIN) and not node["cte_map"]["map"]
        source = node["from_table"]
        is_plain &= source["type"] == "BASE_TABLE" and source["alias"] in {"", self._relation}
        if not is_plain or len(node["select_list"]) != len(self._types):
            return ""
        values = [self._text(parsed, e) for e in node["select_list"]]
        casts = [f"CAST({v} AS {t})" for v, t in zip(values, self._types, strict=True)]
        fails = " OR ".join(f"TRY(({c}) IS NULL) IS NULL" for c in casts)
        if node["where_clause"] is not None:
            where = self._text(parsed, node["where_clause"])
            fails = (
                f"CASE WHEN TRY(({where}) IS NULL) IS NULL THEN true"
                f" WHEN {where} THEN {fails} ELSE false END"
            )
        return f"SELECT {fails} AS failed FROM {quoted(self._relation)}"

    def _parse(self) -> dict[str, Any]:
        text = self._scalar(f"json_serialize_sql({literal(self._made)})")
        return msgspec.json.decode(text)

    def _replace_errors(self, node: dict[str, Any]) -> None:
        """Put in place of each error(…) what fails too: TRY does not take what may vary."""
        for call in list(walk(node)):
            if call.get("class") == "FUNCTION" and call["function_name"] == "error":
                made = msgspec.json.decode(self._scalar(_FAILS_TOO))
                (replacement,) = made["statements"][0]["node"]["select_list"]
                text = next(n for n in walk(replacement) if n.get("class") == "FUNCTION")
                text["arguments"][1:] = call["arguments"]
                call.clear()
                call.update(replacement)

    def _text(self, parsed: dict[str, Any], expression: dict[str, Any]) -> str:
        """Return the SQL of one expression, as DuckDB itself writes it."""
        node = parsed["statements"][0]["node"]
        alone = {
            **node,
            "select_list": [{**expression, "alias": ""}],
            "where_clause": None,
            "from_table": _EMPTY_TABLE,
        }
        return self._deserialize(parsed, alone).removeprefix("SELECT ")

    def _deserialize(self, parsed: dict[str, Any], node: dict[str, Any]) -> str:
        statement = {**parsed["statements"][0], "node": node}
        text = msgspec.json.encode({**parsed, "statements": [statement]}).decode()
        return self._scalar(f"json_deserialize_sql({literal(text)})")

    def _scalar(self, expression: str) -> str:
        value: str = self._engine.query(f"SELECT {expression} AS x", {}).column("x")[0].as_py()
        return value
