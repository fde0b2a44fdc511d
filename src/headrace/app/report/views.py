"""Views: each window as table and chart, the others' top rows, and datasets to cite."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from headrace.app.report.known import Known, Rows
from headrace.app.report.parts import Chart, Grid, Section, Series
from headrace.app.report.scale import SECOND_US
from headrace.app.report.svg import SERIES_MAX
from headrace.define.types import quoted
from headrace.model.plan import Column, View

WINDOWS_MAX = 60
"""The newest so many windows of a view are shown."""
WINDOW_ROWS_MAX = 200
TOP_ROWS = 20
DATASETS_MAX = 500
MEASURES_MAX = 6
"""Charts of one view."""
_WINDOW_COLUMNS = ("window_start", "window_end", "watermark_passed")
_NUMBERS = ("INT", "DECIMAL", "DOUBLE", "FLOAT", "REAL")
_DATASET = "dataset"
_CITE = (
    "Whoever publishes figures made of these records cites the datasets that they come from, under "
    "the terms of each. Identifiers are as the source gives them."
)


def windows(known: Known) -> Section:
    """Each view that has a window: a chart of each measure, and the newest rows."""
    charts: list[Chart] = []
    grids: list[Grid] = []
    for view in _stored(known):
        if view.window is not None:
            rows = known.query(_newest_windows(known, view))
            charts += _of_window(view, rows)
            grids.append(_grid(view, rows[-WINDOW_ROWS_MAX:][::-1], len(rows)))
    notes = () if grids else ("No view of this pipeline has a window.",)
    return Section("windows", "Windows", notes, tuple(charts), tuple(grids))


def top(known: Known) -> Section:
    """Of every other view the rows with most of its first measure."""
    grids = [
        _most(known, view, TOP_ROWS)
        for view in _stored(known)
        if view.window is None and not _is_of_datasets(view)
    ]
    notes = () if grids else ("No other view has been published yet.",)
    return Section("views", "Views", notes, grids=tuple(grids))


def datasets(known: Known) -> Section:
    """What to cite: every view that counts by a column `dataset`."""
    grids = [_most(known, v, DATASETS_MAX) for v in _stored(known) if _is_of_datasets(v)]
    notes = (_CITE,) if grids else ("There are none: no view has a column called dataset.",)
    return Section("datasets", "Datasets to cite", notes, grids=tuple(grids))


def _is_of_datasets(view: View) -> bool:
    return view.window is None and any(c.name == _DATASET for c in view.columns)


def _stored(known: Known) -> Sequence[View]:
    """Return the plan's views that have been published, in the plan's order."""
    if known.plan is None:
        return ()
    stored = set(known.tables.names())
    return [v for v in known.plan.views if f"views/{v.name}" in stored]


def _newest_windows(known: Known, view: View) -> str:
    name = f"views.{quoted(view.name)}"
    return (
        f"SELECT * FROM {name} WHERE window_start IN (SELECT DISTINCT window_start FROM {name} "
        f"WHERE epoch_us(window_end) > {known.begin_us} AND epoch_us(window_start) <= "
        f"{known.end_us} ORDER BY window_start DESC LIMIT {WINDOWS_MAX}) ORDER BY ALL"
    )


def _of_window(view: View, rows: Rows) -> list[Chart]:
    """Return a chart of each measure, with bars for each combination of the other columns."""
    assert view.window is not None
    if not rows:
        return []
    measures = _measures(view)
    own = {c.name for c in measures} | set(_WINDOW_COLUMNS)
    keys = [c.name for c in view.columns if c.name not in own]
    begin_us = min(_us(row["window_start"]) for row in rows)
    end_us = max(_us(row["window_end"]) for row in rows)
    values: dict[str, dict[str, dict[int, float | None]]] = {m.name: {} for m in measures}
    for row in rows:
        name = ", ".join("none" if row[k] is None else str(row[k]) for k in keys)
        for measure, lines in values.items():
            value = row[measure]
            line = lines.setdefault(name or measure, {})
            line[_us(row["window_start"])] = None if value is None else float(str(value))
    charts = []
    most: list[str] = []
    for measure, lines in list(values.items())[:MEASURES_MAX]:
        # One order for all of a view's charts, so that a colour means the same in each.
        if not most or not keys:
            most = sorted(lines, key=lambda name: -sum(v or 0 for v in lines[name].values()))
        charts.append(
            Chart(
                title=f"{view.name}: {measure}",
                unit="",
                series=tuple(
                    Series(name, tuple(sorted(lines[name].items()))) for name in most[:SERIES_MAX]
                ),
                begin_us=begin_us,
                end_us=end_us,
                bar_us=view.window.every_us,
                left_out=max(0, len(most) - SERIES_MAX),
            )
        )
    return charts


def _measures(view: View) -> list[Column]:
    """Return the columns that count something: numbers that are no part of the key."""
    return [
        c
        for c in view.columns
        if c.name not in view.key
        and c.name not in _WINDOW_COLUMNS
        and any(word in c.type for word in _NUMBERS)
        and not c.type.endswith("]")
        and not c.type.startswith(("MAP", "STRUCT", "INTERVAL"))
    ]


def _most(known: Known, view: View, rows_max: int) -> Grid:
    """Return the rows of a view with most of its first measure, the others by their key."""
    name = f"views.{quoted(view.name)}"
    order = [f"{quoted(c.name)} DESC NULLS LAST" for c in _measures(view)[:1]]
    order += [quoted(c.name) for c in view.columns]
    rows = known.query(f"SELECT * FROM {name} ORDER BY {', '.join(order)} LIMIT {rows_max}")
    total = known.query(f"SELECT count(*) AS n FROM {name}")[0]["n"]
    return _grid(view, rows, int(str(total)))


def _grid(view: View, rows: Rows, total: int) -> Grid:
    return Grid(
        tuple(c.name for c in view.columns),
        tuple(tuple(row[c.name] for c in view.columns) for row in rows),
        title=view.name,
        left_out=max(0, total - len(rows)),
    )


def _us(value: object) -> int:
    assert isinstance(value, datetime)
    return round(value.timestamp() * SECOND_US)
