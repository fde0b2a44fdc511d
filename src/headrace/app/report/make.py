"""Makes a report of a data directory: each section on its own, so that one that fails says so."""

from __future__ import annotations

from collections.abc import Callable

from headrace.app.report import flow, machines, state, views
from headrace.app.report.known import Known
from headrace.app.report.parts import Report, Section
from headrace.app.report.scale import moment
from headrace.model.errors import HeadraceError

_SECTIONS: tuple[tuple[str, str, Callable[[Known], Section]], ...] = (
    ("throughput", "Throughput", flow.throughput),
    ("freshness", "Freshness", flow.freshness),
    ("windows", "Windows", views.windows),
    ("views", "Views", views.top),
    ("machines", "CPU and memory", machines.machines),
    ("dead-letters", "Dead letters", state.dead_letters),
    ("sources", "Sources", state.sources),
    ("datasets", "Datasets to cite", views.datasets),
    ("totals", "Totals and accounting", state.totals),
)


def make(known: Known) -> Report:
    """Return the report; what cannot be read, such as a log that is away, is told in its place."""
    name = known.plan.name if known.plan else "No pipeline yet"
    return Report(
        title=name,
        made_at_us=known.clock.now_us(),
        begin_us=known.begin_us,
        end_us=known.end_us,
        figures=_figures(known),
        sections=tuple(_section(known, *each) for each in _SECTIONS),
    )


def _section(known: Known, name: str, title: str, of: Callable[[Known], Section]) -> Section:
    try:
        return of(known)
    except HeadraceError as error:
        return Section(name, title, (f"This could not be read: {error.message}", error.hint))


def _figures(known: Known) -> tuple[tuple[str, object], ...]:
    last = known.last
    topics = last.topic_totals.values() if last else ()
    return (
        ("state", "running" if known.is_running else "not running"),
        ("epochs", last.epoch if last else 0),
        ("last committed", moment(last.committed_at_us) if last else None),
        ("records", sum(t.read for t in topics)),
        ("dead", sum(t.dead for t in topics)),
        ("duplicates", sum(t.duplicates for t in topics)),
        ("rows in tables", sum(t.rows for t in last.table_totals.values()) if last else 0),
    )
