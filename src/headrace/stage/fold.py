"""Fold partial aggregates into a view's state, and take the view's rows from it.

Partials are kept as they come and folded together with the state by one GROUP BY, before rows are
wanted or when many wait. In which order, pieces and groups they are folded makes no difference.
"""

from __future__ import annotations

from collections.abc import Mapping

import pyarrow as pa
import pyarrow.compute as pc

from headrace.define.view_sql import final_sql
from headrace.model.errors import Internal
from headrace.model.plan import StatePart, View
from headrace.stage.engine import Engine

PENDING_ROWS_MAX = 200_000
"""Rows of partials that may wait to be folded; half the state's rows if that is more."""

_WINDOW_KEY = "w"


def partials_of(view: View, rows: pa.Table, engine: Engine) -> dict[str, pa.Table]:
    """Return part name → partial aggregates of some of the table's rows.

    `rows` have at least the columns that the view reads. `SqlError` if a value makes the view's SQL
    fail.
    """
    return {p.name: engine.query(p.partial_sql, {"rows": rows}) for p in view.parts}


class ViewState:
    """The merged state of one view, and the partials that wait to be merged into it."""

    def __init__(
        self, view: View, engine: Engine, parts: Mapping[str, pa.Table] | None = None
    ) -> None:
        """Begin with `parts`, as `fold` returned them once (missing: empty), or with no rows."""
        self.view = view
        self._engine = engine
        self._parts = {p.name: _empty(p, engine) for p in view.parts}
        self._schemas = {name: rows.schema for name, rows in self._parts.items()}
        self._pending: dict[str, list[pa.Table]] = {n: [] for n in self._schemas}
        self._pending_rows = 0
        if parts is None:
            # A view without GROUP BY has one row even over an empty table.
            self._merge_part(view.parts[0])
        else:
            self._parts |= {n: self._in_schema(n, rows) for n, rows in parts.items()}

    @property
    def rows(self) -> int:
        """Rows of all parts together, those that wait not counted."""
        return sum(part.num_rows for part in self._parts.values())

    def add(self, partials: Mapping[str, pa.Table]) -> None:
        """Take in partials: part name → rows of `partial_sql` or `merge_sql`."""
        if partials.keys() != self._schemas.keys():
            raise Internal(f"Partials of {self.view.name} are of parts {sorted(partials)}")
        for name, rows in partials.items():
            if rows.num_rows:
                self._pending[name].append(self._in_schema(name, rows))
                self._pending_rows += rows.num_rows
        if self._pending_rows > max(PENDING_ROWS_MAX, self.rows // 2):
            self._merge()

    def fold(self) -> dict[str, pa.Table]:
        """Merge what waits and return the whole state, part name → rows."""
        if self._pending_rows:
            self._merge()
        return dict(self._parts)

    def final(self, watermark_us: int | None = None) -> pa.Table:
        """Return the view's rows; a window has passed if its end and lateness are ≤ watermark."""
        return self._engine.query(final_sql(self.view, watermark_us), self.fold())

    def window_starts(self) -> pa.Array:
        """Return the distinct starts of windows in the state, microseconds, in no order."""
        return pc.unique(pc.cast(self.fold()["groups"].column(_WINDOW_KEY), pa.int64()))

    def latest_us(self) -> int | None:
        """Return the greatest time that a windowed view has seen, microseconds.

        Where rows may be taken out, times are not kept: it is the start of the latest window.
        """
        part = self.view.parts[0]
        column = _WINDOW_KEY if part.retract_sql else part.columns[-1].name
        latest = pc.max(pc.cast(self.fold()["groups"].column(column), pa.int64()))
        return latest.as_py()

    def _merge(self) -> None:
        for part in self.view.parts:
            if self._pending[part.name]:
                self._merge_part(part)
        self._pending_rows = 0

    def _merge_part(self, part: StatePart) -> None:
        waiting = self._pending[part.name]
        together = pa.concat_tables([self._parts[part.name], *waiting])
        merged = self._engine.query(part.merge_sql, {"parts": together})
        self._parts[part.name] = self._in_schema(part.name, merged)
        waiting.clear()

    def _in_schema(self, name: str, rows: pa.Table) -> pa.Table:
        schema = self._schemas[name]
        if rows.schema.equals(schema):
            return rows
        return rows.select(schema.names).cast(schema)


def _empty(part: StatePart, engine: Engine) -> pa.Table:
    columns = ", ".join(f"CAST(NULL AS {c.type}) AS {c.name}" for c in part.columns)
    return engine.query(f"SELECT {columns} WHERE false", {})
