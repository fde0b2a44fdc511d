"""Charts as PNG files, drawn by matplotlib."""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from typing import Any

from headrace.app.report.parts import Chart, Report
from headrace.app.report.scale import SECOND_US, moment, value_text
from headrace.app.report.svg import highest
from headrace.model.errors import Invalid

_INCHES, _DOTS_PER_INCH = (9.0, 3.4), 120
_DAY_S = 86_400
_NOT_IN_NAMES = re.compile(r"[^a-z0-9]+")
_NAME_LENGTH_MAX = 80


def require() -> None:
    """Return if there is matplotlib, else raise `Invalid`."""
    try:
        importlib.import_module("matplotlib")
    except ModuleNotFoundError as error:
        raise Invalid(
            "PNG plots are drawn by matplotlib, which is not installed",
            hint="pip install 'headrace[report]', or leave --png out: the page has its own plots",
            code="not_installed",
        ) from error


def write_plots(report: Report, folder: Path) -> list[Path]:
    """Write each chart that has values into a folder, which is made; return the files."""
    require()
    folder.mkdir(parents=True, exist_ok=True)
    charts = [(s.name, c) for s in report.sections for c in s.charts if c.series]
    files = []
    for number, (section, chart) in enumerate(charts, 1):
        path = folder / f"{number:02d}-{_file_name(f'{section} {chart.title}')}.png"
        _draw(chart, path)
        files.append(path)
    return files


def _file_name(words: str) -> str:
    return _NOT_IN_NAMES.sub("-", words.lower()).strip("-")[:_NAME_LENGTH_MAX]


def _draw(chart: Chart, path: Path) -> None:
    # A figure of its own, not pyplot's: that keeps every figure in memory, and wants a display.
    figure = importlib.import_module("matplotlib.figure").Figure(_INCHES, layout="constrained")
    axes = figure.add_subplot()
    for number, series in enumerate(chart.series):
        values = [float("nan") if v is None else v for _, v in series.points]
        # A name that begins with a line below would not be shown.
        label = f"\u200b{series.name}"
        if chart.bar_us:
            width_s = chart.bar_us / SECOND_US * 0.8 / len(chart.series)
            days = width_s / _DAY_S
            begins = [
                moment(us + round((number * width_s + 0.1 * chart.bar_us / SECOND_US) * SECOND_US))
                for us, _ in series.points
            ]
            axes.bar(begins, values, width=days, align="edge", label=label)
        else:
            axes.plot([moment(us) for us, _ in series.points], values, label=label, linewidth=1.2)
    _dress(axes, chart)
    figure.savefig(path, dpi=_DOTS_PER_INCH)


def _dress(axes: Any, chart: Chart) -> None:  # noqa: ANN401 - matplotlib has no types here
    # Names come from records: they are no formulas.
    axes.set_title(chart.title, loc="left", fontsize=10, parse_math=False)
    # A report of a single moment shows the second after it too.
    axes.set_xlim(moment(chart.begin_us), moment(max(chart.end_us, chart.begin_us + 1_000_000)))
    axes.set_ylim(0, highest(chart) * 1.05 or 1)
    axes.yaxis.set_major_formatter(lambda value, _: value_text(value, chart.unit))
    axes.grid(visible=True, alpha=0.3)
    if len(chart.series) > 1:
        for text in axes.legend(fontsize=8, ncols=2).get_texts():
            text.set_parse_math(False)
    axes.set_xlabel("UTC", fontsize=8)
