"""The console writer: a table's or view's new rows, printed as they are committed."""

from __future__ import annotations

import collections
from collections.abc import Iterator
from contextlib import closing
from typing import NamedTuple

import click
import pyarrow as pa

from headrace.app.cli.printing import console, print_rows
from headrace.app.data_directory import find_plan, require
from headrace.app.site import open_site
from headrace.model.clock import Clock, rfc3339
from headrace.model.errors import Invalid
from headrace.model.layout import Layout
from headrace.model.tables_to_read import TablesToRead
from headrace.serve.new_rows import Follower, NewRows
from headrace.serve.owner import SCHEMAS, SYSTEM
from headrace.stage.encode import encode_record, records

POLL_S = 0.2
ROWS_SHOWN = 20
"""Rows of a version that people see, by default; `--json` prints all."""


class Wanted(NamedTuple):
    """What is to be followed, and how it is printed."""

    name: str
    from_beginning: bool
    ends: bool
    """Whether to end at what is committed now."""
    rows_max: int | None
    """After how many rows to end."""
    rows_shown: int
    """How many of a version people see."""
    columns: tuple[str, ...]
    """Which ones to print; none means all."""
    as_json: bool


def tail_table(layout: Layout, clock: Clock, wanted: Wanted) -> None:
    """Print the new rows of each version, and go on until there are enough, or Ctrl-C."""
    require(layout)
    left = wanted.rows_max
    with open_site(layout, clock).tables_to_read() as tables:
        storage = _storage_name(layout, tables, wanted.name)
        follower = Follower(tables, storage, from_beginning=wanted.from_beginning)
        with closing(follower):
            while True:
                found = follower.look()
                if found is not None:
                    printed = _print(found, clock, wanted, left)
                    left = None if left is None else left - printed
                if wanted.ends or left == 0:
                    return
                clock.sleep(POLL_S)


def _print(found: NewRows, clock: Clock, wanted: Wanted, left: int | None) -> int:
    """Print a version's new rows, of which only so many count; return how many these are."""
    columns = _chosen(found.rows.schema.names, wanted)
    batches = (batch.select(columns) for batch in _up_to(found.rows, left))
    count = 0
    if wanted.as_json:
        for batch in batches:
            for record in records(pa.Table.from_batches([batch])):
                click.echo(encode_record(record))
            count += batch.num_rows
        return count
    newest: collections.deque[dict[str, object]] = collections.deque(maxlen=wanted.rows_shown)
    for batch in batches:
        shown = batch.slice(max(0, batch.num_rows - wanted.rows_shown))
        newest.extend(records(pa.Table.from_batches([shown])))
        count += batch.num_rows
    if count:
        seconds = rfc3339(clock.now_us())[:19]
        rows = "1 row" if count == 1 else f"{count} rows"
        console().print(f"{wanted.name}, version {found.version}: {rows} at {seconds}Z")
        print_rows(columns, [list(row.values()) for row in newest])
        if count > len(newest):
            console().print(f"… after {count - len(newest)} others; --rows or --json prints more")
        console().print()
    return count


def _chosen(there: list[str], wanted: Wanted) -> list[str]:
    unknown = [name for name in wanted.columns if name not in there]
    if unknown:
        raise Invalid(
            f"{wanted.name} has no column {unknown[0]}",
            hint=f"its columns: {', '.join(there)}",
            code="unknown_column",
        )
    return list(wanted.columns) or there


def _up_to(batches: pa.RecordBatchReader, left: int | None) -> Iterator[pa.RecordBatch]:
    for batch in batches:
        taken = batch if left is None else batch.slice(0, left)
        yield taken
        left = None if left is None else left - taken.num_rows
        if left == 0:
            return


def _storage_name(layout: Layout, tables: TablesToRead, name: str) -> str:
    """Return the storage name of what is meant by a name as SQL has it; it may be still to come."""
    stored, plan = tables.names(), find_plan(layout)
    known = {SYSTEM[n]: n for n in SYSTEM if SYSTEM[n] in stored}
    known |= {s: s.replace("/", ".", 1) for s in stored if s.startswith(SCHEMAS)}
    if plan is not None:
        known |= {f"tables/{t.name}": f"tables.{t.name}" for t in plan.tables}
        known |= {f"views/{v.name}": f"views.{v.name}" for v in plan.views}
    for storage, written in sorted(known.items()):
        if name in {written, written.rpartition(".")[2]}:
            return storage
    there = ", ".join(sorted(known.values()))
    raise Invalid(
        f"There is no table or view {name}",
        hint=f"here are: {there or 'none yet'}",
        code="unknown_table",
    )
