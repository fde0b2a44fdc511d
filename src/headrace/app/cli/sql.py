"""`headrace sql`: SELECTs over the tables and views of a data directory."""

from __future__ import annotations

import contextlib
import readline
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pyarrow as pa

from headrace.app.cli.options import data_option, json_option
from headrace.app.cli.printing import console, print_error, print_rows
from headrace.app.data_directory import require
from headrace.app.site import open_site
from headrace.model.clock import SystemClock
from headrace.model.errors import HeadraceError
from headrace.model.layout import Layout
from headrace.serve.owner import OwnerSql
from headrace.stage.encode import encode_record, records

HISTORY = Path("~/.headrace_history")
HISTORY_LINES = 1_000
ROWS_SHOWN = 1_000
"""Rows that a terminal gets; --json prints them all."""

_HELP = "One SELECT, ended by a semicolon. .tables lists what there is, .quit ends."


@click.command()
@click.argument("query", required=False)
@data_option
@json_option
def sql(query: str | None, layout: Layout, *, as_json: bool) -> None:
    """Run one SELECT over tables and views, or without QUERY ask for one after another.

    The SQL is DuckDB's. Tables and views go by their names; dead_letters, ledger and samples
    are there too: what could not become rows, the epochs, and what each role used of its machine.
    With --json the rows are printed as a list of objects.
    """
    require(layout)
    with contextlib.closing(OwnerSql(open_site(layout, SystemClock()))) as database:
        if query is not None:
            _show(database.query(query), as_json=as_json)
        elif sys.stdin.isatty():
            _converse(database)
        else:
            _show(database.query(sys.stdin.read()), as_json=as_json)


def _show(rows: pa.Table, *, as_json: bool) -> None:
    if as_json:
        click.echo(b"[" + b",".join(map(encode_record, records(rows))) + b"]")
        return
    shown = records(rows.slice(0, ROWS_SHOWN))
    print_rows(rows.column_names, [list(row.values()) for row in shown])
    if rows.num_rows > ROWS_SHOWN:
        console().print(f"{rows.num_rows - ROWS_SHOWN} more rows; --json prints all")


def _converse(database: OwnerSql) -> None:
    console().print(_HELP)
    with _history(HISTORY.expanduser()):
        for statement in _statements():
            match statement.strip().rstrip(";").strip():
                case "":
                    continue
                case ".quit" | ".exit":
                    return
                case ".tables":
                    console().print("\n".join(database.names()) or "nothing yet")
                case ".help":
                    console().print(_HELP)
                case query:
                    try:
                        _show(database.query(query), as_json=False)
                    except HeadraceError as error:
                        print_error(error.message, error.hint)


def _statements() -> Iterator[str]:
    """Yield what is typed, up to a semicolon or a word that begins with a dot."""
    typed = ""
    while True:
        try:
            typed += input("... " if typed else "sql> ") + "\n"
        except KeyboardInterrupt:
            typed = ""
            console().print()
            continue
        except EOFError:
            console().print()
            return
        if typed.rstrip().endswith(";") or typed.startswith(".") or not typed.strip():
            yield typed
            typed = ""


@contextlib.contextmanager
def _history(path: Path) -> Iterator[None]:
    """Keep what was typed from one time to the next; a home that cannot be written is fine."""
    with contextlib.suppress(OSError):
        readline.read_history_file(path)
    readline.set_history_length(HISTORY_LINES)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            readline.write_history_file(path)
