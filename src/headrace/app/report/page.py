"""A report as one HTML file: nothing in it asks for anything elsewhere, and all text is escaped."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

import jinja2
from markupsafe import Markup

from headrace.app.cli.printing import cell
from headrace.app.report.parts import Grid, Report
from headrace.app.report.scale import moment, value_text
from headrace.app.report.svg import svg

_TEMPLATE = Path(__file__).with_name("page.html")


def html(report: Report) -> str:
    """Return the page."""
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {
        "shown": _shown,
        "kinds": _kinds,
        "utc": lambda us: f"{moment(us):%Y-%m-%d %H:%M:%S} UTC",
        # Our own element, in which every name is escaped.
        "svg": lambda chart: Markup(svg(chart)),  # noqa: S704
        "value": value_text,
    }
    template = environment.from_string(_TEMPLATE.read_text(encoding="utf-8"))
    return template.render(report=report)


def _shown(value: object) -> str:
    if isinstance(value, bool) or value is None:
        return cell(value)
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.6g}"
    # Milliseconds say enough of a time.
    words = cell(value)
    return f"{value:%Y-%m-%d %H:%M:%S}" if isinstance(value, datetime) else words


def _kinds(grid: Grid) -> list[str]:
    """Return for each column whether it holds numbers, which stand to the right."""
    return [
        "number"
        if all(isinstance(v, int | float) and not isinstance(v, bool) for v in seen)
        and any(v is not None for v in seen)
        else "words"
        for seen in (
            [row[i] for row in grid.rows if row[i] is not None] for i in range(len(grid.columns))
        )
    ]
