"""What a report is made of, as values: sections of charts and grids, however they are shown."""

from __future__ import annotations

from typing import Literal

import msgspec

Unit = Literal["", "/s", "s", "%", "bytes"]


class Series(msgspec.Struct, frozen=True):
    """One line, or the bars of one colour."""

    name: str
    points: tuple[tuple[int, float | None], ...]
    """Time in microseconds since 1970, ascending, and value; None breaks the line."""


class Chart(msgspec.Struct, frozen=True):
    """Values against time."""

    title: str
    unit: Unit
    series: tuple[Series, ...]
    begin_us: int
    end_us: int
    bar_us: int = 0
    """How long a bar lasts from its time on; 0 draws lines."""
    left_out: int = 0
    """Series that there was no room for."""


class Grid(msgspec.Struct, frozen=True):
    """A table."""

    columns: tuple[str, ...]
    rows: tuple[tuple[object, ...], ...]
    title: str = ""
    left_out: int = 0
    """Rows that there was no room for."""


class Section(msgspec.Struct, frozen=True):
    """A part of the report under a heading of its own."""

    name: str
    """A word that files and links can be called by."""
    title: str
    notes: tuple[str, ...] = ()
    charts: tuple[Chart, ...] = ()
    grids: tuple[Grid, ...] = ()


class Report(msgspec.Struct, frozen=True):
    """The whole of it."""

    title: str
    made_at_us: int
    begin_us: int
    end_us: int
    """The time that it is about."""
    figures: tuple[tuple[str, object], ...]
    """What one wants to know first: name and value."""
    sections: tuple[Section, ...]
