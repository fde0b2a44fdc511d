"""Apply rows to a keyed table: which rows hold now, which no longer do. Pure.

Of the rows of a key in an epoch only the latest counts, and only if it is later than what the key
had. What comes out are the rows of the changelog (see `model.plan.Keyed`): net changes, so neither
the table nor its views depend on how the input was cut into epochs.

What a key had comes from an index of old rows, as text: the columns that the views read, each as
VARCHAR, in one JSON array. Every type that a table can store goes there and back unchanged, lists,
structs and maps too: DuckDB quotes what is inside them. (As JSON a BLOB inside would not.)
"""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa
import pyarrow.compute as pc

from headrace.define.types import quoted
from headrace.model.errors import Internal
from headrace.model.plan import CHANGED_IN, WEIGHT, Table, View
from headrace.stage.engine import Engine
from headrace.stage.fold import partials_of

ENTRIES = pa.schema(
    [("key", pa.string()), ("live", pa.bool_()), ("row", pa.string()), ("epoch", pa.int64())]
)
"""What an index keeps of a key: its text, whether it has a row, the columns kept of it, and the
epoch since which it is so."""

_KEY, _LIVE = '"old key"', '"old live"'
_TEXT = '"key text"'
"""Names that no column of a table can have, for a space is in them."""


class Apply:
    """A keyed table, and the views over it, made ready. Used from one thread."""

    def __init__(self, table: Table, views: Sequence[View], engine: Engine) -> None:
        if table.keyed is None:
            raise Internal(f"{table.name} is not a keyed table")
        self._keyed = table.keyed
        self._views = views
        self._engine = engine
        self._made = table.made
        self.schema = engine.arrow_schema(table.log_columns)
        """Of the changelog."""
        reads = {name for view in views for name in view.reads}
        needed = {*table.keyed.key, "event_id", table.keyed.version, *reads}
        self.kept = tuple(c for c in table.made if c.name in needed)
        """Columns whose old values are kept."""
        self._latest = "_offset DESC"
        if table.keyed.version is not None:
            # A client's id that comes back past the horizon is a row again: the first one stays,
            # as it does where an epoch lies between the two.
            self._latest = f"{quoted(table.keyed.version)} DESC NULLS LAST, event_id DESC, _offset"

    @property
    def key_sql(self) -> str:
        """SQL of a key's text: a JSON array of its columns as VARCHAR."""
        return key_text(self._keyed.key)

    def keys(self, rows: pa.Table) -> list[str]:
        """Return the texts of the keys of some rows, each once, in order."""
        sql = f"SELECT DISTINCT {self.key_sql} AS k FROM rows ORDER BY k"
        found: list[str] = self._engine.query(sql, {"rows": rows}).column("k").to_pylist()
        return found

    def changes(self, rows: pa.Table, old: pa.Table, epoch: int) -> pa.Table:
        """Return the changelog's rows of an epoch.

        `rows` have the table's `made` columns; `old` is of schema `ENTRIES`, a row for each of
        their keys that had one before.
        """
        deleted = quoted(self._keyed.deleted) if self._keyed.deleted else "false"
        names = [quoted(c.name) for c in self._made]
        live = f"coalesce({deleted}, false)"
        new = [f"accepted.{name}" for name in names]
        gone = {c.name: f"accepted.{quoted('old ' + c.name)}" for c in self.kept}
        old_row = [f"{gone.get(c.name, f'CAST(NULL AS {c.type})')}" for c in self._made]
        sql = (
            f"WITH keyed AS (SELECT *, {self.key_sql} AS {_TEXT} FROM rows), "
            f"newest AS (SELECT * FROM keyed QUALIFY row_number() OVER "
            f"(PARTITION BY {_TEXT} ORDER BY {self._latest}) = 1), "
            f"held AS ({self._decoded()}), "
            f"accepted AS MATERIALIZED (SELECT newest.*, held.* FROM newest "
            f"LEFT JOIN held ON {_KEY} = {_TEXT} WHERE {self._is_later()}) "
            f"SELECT {', '.join(new)}, CASE WHEN {live} THEN 0 ELSE 1 END AS {WEIGHT}, "
            f"{epoch} AS {CHANGED_IN} FROM accepted UNION ALL "
            f"SELECT {', '.join(old_row)}, -1, {epoch} FROM accepted WHERE {_LIVE}"
        )
        return self._engine.query(sql, {"rows": rows, "old": old}).cast(self.schema)

    def entries(self, changes: pa.Table) -> pa.Table:
        """Return what an index keeps of the keys in some of the changelog's rows.

        Of several rows of a key that of the latest epoch counts.
        """
        texts = ", ".join(f"CAST({quoted(c.name)} AS VARCHAR)" for c in self.kept)
        sql = (
            f"SELECT {self.key_sql} AS key, {WEIGHT} = 1 AS live, "
            f"CAST(to_json([{texts}]) AS VARCHAR) AS row, {CHANGED_IN} AS epoch "
            f"FROM changes WHERE {WEIGHT} >= 0 "
            f"QUALIFY row_number() OVER (PARTITION BY {self.key_sql} ORDER BY {CHANGED_IN} DESC) "
            "= 1 ORDER BY 1"
        )
        return self._engine.query(sql, {"changes": changes}).cast(ENTRIES)

    def partials(self, changes: pa.Table) -> dict[str, dict[str, pa.Table]]:
        """Return view → part → what some of the changelog's rows add to it and take from it."""
        return {view.name: partials_of_changes(view, changes, self._engine) for view in self._views}

    def _decoded(self) -> str:
        values = [
            f"CAST(l[{i}] AS {c.type}) AS {quoted('old ' + c.name)}"
            for i, c in enumerate(self.kept, 1)
        ]
        return (
            f"SELECT key AS {_KEY}, live AS {_LIVE}, {', '.join(values)} FROM "
            "(SELECT key, live, from_json(row, '[\"VARCHAR\"]') AS l FROM old)"
        )

    def _is_later(self) -> str:
        if self._keyed.version is None:
            # A key lives in one partition, whose records are read in order and once.
            return "true"
        new, old = quoted(self._keyed.version), quoted("old " + self._keyed.version)
        return (
            f"{_LIVE} IS NULL OR {new} > {old} OR ({old} IS NULL AND {new} IS NOT NULL) OR "
            f'({new} IS NOT DISTINCT FROM {old} AND event_id > "old event_id")'
        )


def partials_of_changes(view: View, changes: pa.Table, engine: Engine) -> dict[str, pa.Table]:
    """Return part name → partial aggregates of a changelog's rows: new rows in, old ones out.

    `changes` have the columns that the view reads and `WEIGHT`.
    """
    weights = changes.column(WEIGHT)
    new = partials_of(view, changes.filter(pc.equal(weights, 1)), engine)
    old = partials_of(view, changes.filter(pc.equal(weights, -1)), engine)
    return {
        part.name: pa.concat_tables(
            [new[part.name], _retracted(part.retract_sql, old[part.name], engine)]
        )
        for part in view.parts
    }


def still_said(changes: pa.Table, epochs: Sequence[int | None]) -> pa.Table:
    """Return those of a changelog's rows that still say something once all followers are past them.

    `epochs` are those of the index's entries for the rows' keys. What holds is the newest row of a
    key of weight 0 or +1; whoever starts over asks for nothing else, so those that came before an
    entry and those of weight -1 are left out. The index may not yet have what was committed last.
    """
    newest = pa.array(epochs, pa.int64())
    is_newest = pc.fill_null(pc.greater_equal(changes.column(CHANGED_IN), newest), fill_value=True)
    return changes.filter(pc.and_(pc.greater_equal(changes.column(WEIGHT), 0), is_newest))


def key_text(key: Sequence[str]) -> str:
    """Return SQL of a key's text: a JSON array of its columns as VARCHAR."""
    texts = ", ".join(f"CAST({quoted(name)} AS VARCHAR)" for name in key)
    return f"CAST(to_json([{texts}]) AS VARCHAR)"


def _retracted(sql: str | None, rows: pa.Table, engine: Engine) -> pa.Table:
    if sql is None:
        raise Internal("A view over a keyed table has a state that nothing can be taken out of")
    return engine.query(sql, {"parts": rows}).cast(rows.schema) if rows.num_rows else rows
