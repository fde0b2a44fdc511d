"""Axes: where their ticks are, and how values and times are written."""

from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta

from headrace.app.report.parts import Unit

SECOND_US = 1_000_000
_STEPS_S = (
    *(1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 10_800, 21_600, 43_200),
    *(86_400 * days for days in (1, 2, 7, 14, 28, 91, 182, 365)),
)
_MINUTE_S, _DAY_S = 60, 86_400
_PREFIXES = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


def step_us(span_us: int, most: int) -> int:
    """Return the shortest round length of time of which at most so many make up a span."""
    for step in _STEPS_S:
        if span_us <= step * SECOND_US * most:
            return step * SECOND_US
    return _STEPS_S[-1] * SECOND_US * math.ceil(span_us / (_STEPS_S[-1] * SECOND_US * most))


def time_ticks(begin_us: int, end_us: int, most: int) -> list[tuple[int, str]]:
    """Return round times within a span and their words; UTC."""
    step = step_us(end_us - begin_us, most)
    first = -(-begin_us // step) * step
    form = "%H:%M:%S" if step < _MINUTE_S * SECOND_US else "%H:%M"
    form = "%d %b" if step >= _DAY_S * SECOND_US else form
    return [(us, moment(us).strftime(form)) for us in range(first, end_us + 1, step)]


def value_ticks(highest: float, most: int = 5) -> list[float]:
    """Return round values from 0 to at least `highest`; the last one is the axis' end."""
    if highest <= 0 or not math.isfinite(highest):
        return [0.0, 1.0]
    rough = highest / most
    size = 10.0 ** math.floor(math.log10(rough))
    step = next(size * n for n in (1, 2, 2.5, 5, 10) if size * n >= rough * (1 - 1e-9))
    return [step * n for n in range(math.ceil(highest / step - 1e-9) + 1)]


def value_text(value: float | None, unit: Unit) -> str:
    """Return a value in few digits, with its unit."""
    if value is None or not math.isfinite(value):
        return "none"
    if unit == "s" and 0 < abs(value) < 1:
        return f"{value * 1000:.3g} ms"
    suffix = {"": "", "/s": "/s", "s": " s", "%": " %", "bytes": "B"}[unit]
    for size, prefix in _PREFIXES:
        if abs(value) >= size:
            return f"{value / size:.3g} {prefix}{suffix}".rstrip()
    number = f"{value:.0f}" if value == round(value) else f"{value:.3g}"
    return f"{number} B" if unit == "bytes" else f"{number}{suffix}"


def moment(us: int) -> datetime:
    """Return microseconds since 1970 as a time in UTC."""
    return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=us)
