"""`headrace status`: what runs, how far it has come, and whether the accounts close."""

from __future__ import annotations

import fcntl
from typing import Any

import click
import msgspec
from rich.markup import escape

from headrace.app.cli.options import data_option, json_option
from headrace.app.cli.printing import console, print_json, print_rows
from headrace.app.data_directory import find_plan, open_tables, reading_log
from headrace.control.progress import list_sources, read_progress
from headrace.model.clock import SystemClock, rfc3339
from headrace.model.layout import Layout
from headrace.model.log import LogReader
from headrace.model.plan import LEDGER, Plan
from headrace.model.tables import Tables
from headrace.process.ledger import LedgerRow, last_row

PROCESS_FILE = "process.json"
_OF_SOURCE = ("kind", "topic", "state", "records", "pages", "done", "waiting_for", "error")


@click.command()
@data_option
@json_option
def status(layout: Layout, *, as_json: bool) -> None:
    """Show what runs, how far each topic and table has come, sources, and the accounting.

    The accounts close if for each topic appended = decoded + dead + duplicates + waiting, and for
    each table decoded = rows + filtered + failed.
    """
    with reading_log(layout) as log:
        found = status_of(layout, log, open_tables(layout, SystemClock()))
    if as_json:
        print_json(found)
    else:
        _print(found)


def status_of(layout: Layout, log: LogReader, tables: Tables) -> dict[str, Any]:
    """Return the status as plain values, from what is durable: right also after a crash."""
    snapshot = tables.snapshot(LEDGER)
    row = last_row(tables, snapshot) if snapshot else None
    process = _read(layout, PROCESS_FILE) or {}
    running = is_running(layout)
    plan = find_plan(layout)
    published = set(plan.change_topics) if plan else set()
    names = sorted(log.describe())
    topics = {name: _topic(log, name, row) for name in names if name not in published}
    counts = msgspec.to_builtins(row.table_totals) if row else {}
    closes = all(t["closes"] for t in topics.values()) and all(map(_table_closes, counts.values()))
    return {
        "running": running,
        "pid": process.get("pid") if running else None,
        "pipeline": plan.name if plan else None,
        "epoch": row.epoch if row else 0,
        "committed_at": rfc3339(row.committed_at_us) if row else None,
        "waiting_for": process.get("waiting_for", "") if running else "",
        "alarm": process.get("alarm", "") if running else "",
        "at_risk": process.get("at_risk", "") if running else "",
        "topics": topics,
        "change_topics": {
            name: {"records": sum(log.ends(name))} for name in names if name in published
        },
        "tables": counts,
        "sources": _sources(layout, log, plan) if plan else {},
        "accounts_close": closes,
    }


def is_running(layout: Layout) -> bool:
    """Return whether a run holds the data directory's lock."""
    try:
        with layout.lock.open() as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


def _topic(log: LogReader, name: str, row: LedgerRow | None) -> dict[str, Any]:
    count = row.topic_totals.get(name) if row else None
    ends = log.ends(name)
    current = row is not None and row.incarnations.get(name) == log.describe()[name].incarnation
    offsets = row.offsets if row and current else {}
    waiting = sum(end - offsets.get(f"{name}/{p}", 0) for p, end in enumerate(ends))
    read, decoded, dead, duplicates = (
        (count.read, count.decoded, count.dead, count.duplicates) if count else (0, 0, 0, 0)
    )
    return {
        "appended": read + waiting,
        "decoded": decoded,
        "dead": dead,
        "duplicates": duplicates,
        "waiting": waiting,
        "closes": read == decoded + dead + duplicates,
    }


def _table_closes(count: dict[str, int]) -> bool:
    return count["decoded"] == count["rows"] + count["filtered"] + count["failed"]


def _sources(layout: Layout, log: LogReader, plan: Plan) -> dict[str, Any]:
    listed = list_sources(plan, log, read_progress(layout.run, SystemClock()))
    return {s.name: {name: getattr(s, name) for name in _OF_SOURCE} for s in listed}


def _read(layout: Layout, name: str) -> Any:  # noqa: ANN401 - a role's own words, as JSON
    try:
        return msgspec.json.decode((layout.run / name).read_bytes())
    except (FileNotFoundError, msgspec.DecodeError):
        return None


def _print(found: dict[str, Any]) -> None:
    out = console()
    state = f"running, process {found['pid']}" if found["running"] else "not running"
    out.print(f"pipeline {found['pipeline'] or '?'}: {state}, epoch {found['epoch']}")
    for word in ("waiting_for", "alarm", "at_risk"):
        if found[word]:
            out.print(f"[yellow]{word.replace('_', ' ')}:[/] {escape(found[word])}")
    out.print()
    _print_counts(
        "topic", ("appended", "decoded", "dead", "duplicates", "waiting"), found["topics"]
    )
    _print_counts("change topic", ("records",), found["change_topics"])
    _print_counts("table", ("decoded", "rows", "filtered", "failed"), found["tables"])
    _print_counts("source", _OF_SOURCE, found["sources"])
    closes = "[green]close[/]" if found["accounts_close"] else "[bold red]do not close[/]"
    out.print(f"The accounts {closes}.")


def _print_counts(noun: str, columns: tuple[str, ...], counts: dict[str, Any]) -> None:
    if counts:
        print_rows(
            (noun, *columns), [[name, *(c[n] for n in columns)] for name, c in counts.items()]
        )
        console().print()
