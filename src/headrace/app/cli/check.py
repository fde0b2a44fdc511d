"""`headrace check` and `headrace plan`: what a pipeline file says, before anything runs."""

from __future__ import annotations

import sys
from pathlib import Path

import click
import msgspec
from rich.text import Text

from headrace.app.cli.options import data_option, json_option, pipeline_argument
from headrace.app.cli.printing import console, print_json, print_rows
from headrace.app.pipeline_file import compile_file, require_plan
from headrace.app.site import open_site
from headrace.define.explain import describe
from headrace.model.clock import SystemClock
from headrace.model.layout import Layout
from headrace.model.plan import LEDGER, Plan
from headrace.model.tables import Tables
from headrace.process.ledger import last_row


@click.command()
@pipeline_argument
@json_option
def check(pipeline: Path, *, as_json: bool) -> int:
    """Check a pipeline file, offline: print every fault with its file, line and a hint.

    Status 1 if there is any.
    """
    result = compile_file(pipeline)
    problems = [] if isinstance(result, Plan) else result
    if as_json:
        print_json([msgspec.to_builtins(p) for p in problems])
    elif isinstance(result, Plan):
        console().print(f"[green]{pipeline} is fine:[/] {_summary(result)}")
    else:
        for problem in problems:
            console().print(Text(str(problem)), soft_wrap=True)
        sys.stderr.write(f"{len(problems)} {'fault' if len(problems) == 1 else 'faults'}\n")
    return 1 if problems else 0


@click.command()
@pipeline_argument
@data_option
@json_option
def plan(pipeline: Path, layout: Layout, *, as_json: bool) -> None:
    """Print what a pipeline file compiles to, how each view is maintained, and where it begins.

    Where an output begins is told for the data directory: what is new there starts from the
    offsets or the table version printed; the rest goes on.
    """
    compiled = require_plan(pipeline)
    begins = beginnings(compiled, layout)
    if as_json:
        print_json({"plan": msgspec.to_builtins(compiled), "begins": begins})
        return
    click.echo(describe(compiled))
    print_rows(("output", "begins"), begins.items())


def beginnings(compiled: Plan, layout: Layout) -> dict[str, str]:
    """Return for each output, by storage name, where it begins on a data directory."""
    tables = open_site(layout, SystemClock()).tables() if layout.root.is_dir() else None
    offsets = _offsets(tables)
    begins = {}
    for table in compiled.tables:
        found = tables.snapshot(f"tables/{table.name}") if tables else None
        mine = {k: v for k, v in offsets.items() if _topic(k) in {i.topic for i in table.inputs}}
        if found:
            begins[f"tables/{table.name}"] = f"goes on from version {found.version}"
        elif any(mine.values()):
            at = ", ".join(f"{k}: {v}" for k, v in sorted(mine.items()))
            begins[f"tables/{table.name}"] = f"new, from offsets {at}"
        else:
            begins[f"tables/{table.name}"] = "new, from the beginning"
    for view in compiled.views:
        state = tables.snapshot(f"state/{view.name}-{view.fingerprint}") if tables else None
        source = tables.snapshot(f"tables/{view.table}") if tables else None
        if state:
            begins[f"views/{view.name}"] = "goes on from its state"
        elif source:
            begins[f"views/{view.name}"] = f"filled from {view.table} version {source.version}"
        else:
            begins[f"views/{view.name}"] = "new, from the beginning"
    return begins


def _offsets(tables: Tables | None) -> dict[str, int]:
    snapshot = tables.snapshot(LEDGER) if tables else None
    row = last_row(tables, snapshot) if tables and snapshot else None
    return row.offsets if row else {}


def _topic(partition: str) -> str:
    return partition.rpartition("/")[0]


def _summary(compiled: Plan) -> str:
    counted = {
        "topic": len(compiled.topics),
        "route": len(compiled.routes),
        "source": len(compiled.sources),
        "table": len(compiled.tables),
        "view": len(compiled.views),
        "query": len(compiled.queries),
    }
    plural = {"query": "queries"}
    return ", ".join(
        f"{n} {noun if n == 1 else plural.get(noun, noun + 's')}"
        for noun, n in counted.items()
        if n
    )
