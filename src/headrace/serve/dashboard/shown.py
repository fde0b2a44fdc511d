"""How values are shown to people: numbers, times, sizes, and the cells of a table."""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Sequence

import msgspec

from headrace.stage.encode import ENCODER

CELL_CHARACTERS_MAX = 200
"""Characters of a value in a table; the whole of it is to be had where a single row is shown."""

UNKNOWN = "\N{EN DASH}"
"""Stands where a value is not known."""

_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z")
_ID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_SIZES = ("bytes", "kB", "MB", "GB", "TB", "PB")
_THOUSAND = 1_000
_UNITS = ((86_400, "days"), (3_600, "hours"), (60, "minutes"))
_WHOLE = 100
"""From here on a rate is shown without a fraction."""


class Cell(msgspec.Struct, frozen=True):
    """A value in a table."""

    text: str
    is_null: bool = False


class Grid(msgspec.Struct, frozen=True):
    """A table of rows: the class of each column says how it is set."""

    names: Sequence[str]
    classes: Sequence[str]
    rows: Sequence[Sequence[Cell]]


def grid(names: Sequence[str], rows: Sequence[Sequence[object]]) -> Grid:
    """Return rows ready to be shown."""
    classes = [_class([row[i] for row in rows]) for i in range(len(names))]
    return Grid(
        names, classes, [[_cell(v, c) for v, c in zip(r, classes, strict=True)] for r in rows]
    )


def number(value: float | None) -> str:
    """Return a number with its thousands apart; a dash for what is not known."""
    if value is None:
        return UNKNOWN
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:,.0f}" if abs(value) >= _WHOLE else f"{value:,.1f}"


def size(value: float | None) -> str:
    """Return a number of bytes in the unit that suits it."""
    if value is None:
        return UNKNOWN
    at = 0
    while abs(value) >= _THOUSAND and at < len(_SIZES) - 1:
        value, at = value / _THOUSAND, at + 1
    return f"{value:.0f} {_SIZES[at]}" if at == 0 else f"{value:.1f} {_SIZES[at]}"


def seconds(value: float | None) -> str:
    """Return a length of time."""
    if value is None:
        return UNKNOWN
    if value < 1:
        return f"{value * 1000:.0f} ms"
    for length, name in _UNITS:
        if value >= 2 * length:
            return f"{value / length:.0f} {name}"
    return f"{value:.1f} s" if value < 10 else f"{value:.0f} s"  # noqa: PLR2004 - two digits


def time(us: int | None) -> str:
    """Return a moment, in microseconds since 1970, as UTC to the second."""
    if not us:
        return UNKNOWN
    moment = dt.datetime.fromtimestamp(us // 1_000_000, dt.UTC)
    return moment.strftime("%Y-%m-%d %H:%M:%SZ")


def counted(n: int, noun: str) -> str:
    """Return how many of something there are, in words."""
    return f"{n:,} {noun}" if n == 1 else f"{n:,} {noun}s"


def text_of(value: object) -> str:
    """Return a value of a row as one line of text, whole."""
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, dict | list):
        return ENCODER.encode(value).decode()
    return str(value)


def _class(values: Sequence[object]) -> str:
    """Return how a column is set: numbers to the right, times and ids on one line."""
    there = [v for v in values if v is not None]
    if there and all(isinstance(v, int | float) and not isinstance(v, bool) for v in there):
        return "number"
    if there and all(isinstance(v, str) and _TIME.fullmatch(v) for v in there):
        return "time"
    if there and all(isinstance(v, str) and _ID.fullmatch(v) for v in there):
        return "id"
    return ""


def _cell(value: object, class_: str) -> Cell:
    if value is None:
        return Cell("null", is_null=True)
    text = text_of(value)
    if class_ == "time":
        # A fraction of zeros tells nothing, and `T` is for machines.
        text = text.removesuffix("Z").removesuffix(".000000").replace("T", " ") + "Z"
    if len(text) > CELL_CHARACTERS_MAX:
        text = text[:CELL_CHARACTERS_MAX] + "…"
    return Cell(text)


FILTERS = {
    "number": number,
    "size": size,
    "seconds": seconds,
    "time": time,
    "counted": counted,
}
"""The names by which templates know these."""
