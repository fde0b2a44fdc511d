"""How the command line prints: tables and colours for people, JSON for scripts."""

from __future__ import annotations

import base64
import math
import sys
import uuid
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import click
import msgspec
from rich.console import Console
from rich.table import Table
from rich.text import Text

PIPE_WIDTH = 1000

_UNITS = ("B", "kB", "MB", "GB", "TB")
_STEP = 1000

_CONTROLS = {
    code: f"\\x{code:02x}" for code in (*range(0x20), *range(0x7F, 0xA0)) if chr(code) not in "\n\t"
}
"""Signs that a terminal obeys: records come from outside, and may hold any."""


def console() -> Console:
    """Return standard output for people: in a pipe without colours, and lines are not broken."""
    return Console(highlight=False, width=None if sys.stdout.isatty() else PIPE_WIDTH)


def print_error(message: str, hint: str = "") -> None:
    """Print what went wrong, and what to do, on standard error."""
    err = Console(stderr=True, highlight=False, soft_wrap=True)
    err.print(Text("error: ", style="bold red") + Text(visible(message), style="default"))
    if hint:
        err.print(Text("  hint: ", style="bold cyan") + Text(visible(hint), style="default"))


def print_json(value: object) -> None:
    """Print a value as one line of JSON."""
    click.echo(msgspec.json.encode(plain(value)))


def print_rows(columns: Sequence[str], rows: Iterable[Sequence[Any]], title: str = "") -> None:
    """Print rows as a table; numbers stand to the right."""
    listed = [list(row) for row in rows]
    table = Table(title=title or None, title_justify="left", box=None, header_style="bold")
    for position, name in enumerate(columns):
        numbers = bool(listed) and all(
            isinstance(row[position], int | float) and not isinstance(row[position], bool)
            for row in listed
        )
        table.add_column(name, justify="right" if numbers else "left", overflow="fold")
    for row in listed:
        table.add_row(*(Text(cell(value)) for value in row))
    console().print(table)


def cell(value: object) -> str:
    """Return a value as a table shows it."""
    match value:
        case None:
            return ""
        case bool():
            return "true" if value else "false"
        case float():
            return f"{value:.12g}"
        case str() | int() | Decimal():
            return visible(str(value))
        case datetime():
            return plain(value)
        case bytes():
            return visible(value.decode("utf-8", "backslashreplace"))
    return visible(msgspec.json.encode(plain(value)).decode())


def visible(text: str) -> str:
    """Return a text with signs that a terminal would obey written as escapes."""
    return text.translate(_CONTROLS)


def plain(value: Any) -> Any:  # noqa: ANN401 - any value that a table or a status holds
    """Return a value as JSON can hold it; bytes that are no UTF-8 become base64."""
    match value:
        case bytes():
            try:
                return value.decode()
            except UnicodeDecodeError:
                return base64.b64encode(value).decode()
        case datetime():
            return value.astimezone(UTC).isoformat().replace("+00:00", "Z")
        case dict():
            return {str(plain(k)): plain(v) for k, v in value.items()}
        case list() | tuple() if not hasattr(value, "_fields"):
            return [plain(v) for v in value]
        case float() if not math.isfinite(value):
            # JSON has no sign for these; null would say that there is no value.
            return str(value)
    return value


def id_text(identifier: bytes) -> str:
    """Return a record's id as UUID text."""
    return str(uuid.UUID(bytes=identifier))


def size_text(size_bytes: float) -> str:
    """Return a size in a unit that gives one to three digits before the point."""
    for unit in _UNITS[:-1]:
        if size_bytes < _STEP:
            return f"{size_bytes:.0f} {unit}" if unit == "B" else f"{size_bytes:.1f} {unit}"
        size_bytes /= _STEP
    return f"{size_bytes:.1f} {_UNITS[-1]}"
