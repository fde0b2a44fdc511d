"""Charts as SVG within a page, whose style sheet gives the colours: `.s0` to `.s7`."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape

from headrace.app.report.parts import Chart, Series
from headrace.app.report.scale import moment, time_ticks, value_text, value_ticks

SERIES_MAX = 8
WIDTH, HEIGHT = 540, 200
_LEFT, _RIGHT, _TOP, _BOTTOM = 62, 28, 10, 26
_TIME_TICKS_MAX = 6
_BAR_SHARE = 0.8
"""Part of a window's width that its bars take together."""
_BAR_MIN = 1.0


def svg(chart: Chart) -> str:
    """Return a chart as one element; its legend is the page's."""
    axes = _Axes(chart)
    marks = _bars(chart, axes) if chart.bar_us else _lines(chart, axes)
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(_words(chart))}">'
        f"{''.join(axes.drawn())}{''.join(marks)}</svg>"
    )


def highest(chart: Chart) -> float:
    """Return the highest value of a chart; 0 if there is none."""
    return max((v for s in chart.series for _, v in s.points if v is not None), default=0.0)


class _Axes:
    """Where times and values are drawn."""

    def __init__(self, chart: Chart) -> None:
        self._chart = chart
        self._ticks = value_ticks(highest(chart))

    def x(self, us: float) -> float:
        """Return how far to the right a time is."""
        span = max(1, self._chart.end_us - self._chart.begin_us)
        return _LEFT + (us - self._chart.begin_us) / span * (WIDTH - _LEFT - _RIGHT)

    def y(self, value: float) -> float:
        """Return how far down a value is."""
        share = max(0.0, value) / self._ticks[-1]
        return HEIGHT - _BOTTOM - share * (HEIGHT - _TOP - _BOTTOM)

    def drawn(self) -> Iterator[str]:
        """Yield lines and words."""
        for value in self._ticks:
            y = self.y(value)
            words = escape(value_text(value, self._chart.unit))
            yield f'<path class="grid" d="M{_LEFT} {y:.1f}H{WIDTH - _RIGHT}"/>'
            yield f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{words}</text>'
        bottom = HEIGHT - _BOTTOM
        for us, words in time_ticks(self._chart.begin_us, self._chart.end_us, _TIME_TICKS_MAX):
            x = self.x(us)
            yield f'<path class="tick" d="M{x:.1f} {bottom}v4"/>'
            yield f'<text x="{x:.1f}" y="{HEIGHT - 8}" text-anchor="middle">{words}</text>'


def _lines(chart: Chart, axes: _Axes) -> Iterator[str]:
    for number, series in enumerate(chart.series):
        for run in _runs(series):
            places = [f"{axes.x(us):.1f} {axes.y(value):.1f}" for us, value in run]
            if len(places) == 1:
                x, y = places[0].split()
                yield f'<circle class="s{number} dot" cx="{x}" cy="{y}" r="2.5"/>'
            else:
                yield f'<path class="s{number} line" d="M{"L".join(places)}"/>'


def _runs(series: Series) -> Iterator[list[tuple[int, float]]]:
    run: list[tuple[int, float]] = []
    for us, value in series.points:
        if value is not None:
            run.append((us, value))
        elif run:
            yield run
            run = []
    if run:
        yield run


def _bars(chart: Chart, axes: _Axes) -> Iterator[str]:
    whole = axes.x(chart.begin_us + chart.bar_us) - axes.x(chart.begin_us)
    width = max(_BAR_MIN, whole * _BAR_SHARE / max(1, len(chart.series)))
    for number, series in enumerate(chart.series):
        for us, value in series.points:
            if value is None:
                continue
            x = axes.x(us) + whole * (1 - _BAR_SHARE) / 2 + number * width
            y = axes.y(value)
            words = f"{series.name}, {moment(us):%Y-%m-%d %H:%M:%S}: {value:,.12g}"
            yield (
                f'<rect class="s{number} bar" x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" '
                f'height="{max(0.0, axes.y(0) - y):.1f}"><title>{escape(words)}</title></rect>'
            )


def _words(chart: Chart) -> str:
    names = ", ".join(s.name for s in chart.series) or "nothing"
    return f"{chart.title}: {names}; at most {value_text(highest(chart), chart.unit)}"
