"""`headrace tables`: what is stored, how much of it, in how many files."""

from __future__ import annotations

import click

from headrace.app.cli import completing
from headrace.app.cli.options import data_option, json_option
from headrace.app.cli.printing import print_json, print_rows, size_text
from headrace.app.data_directory import open_tables
from headrace.model.clock import SystemClock
from headrace.model.errors import Invalid
from headrace.model.layout import Layout
from headrace.model.tables import Tables

PUBLIC = ("tables/", "views/")


@click.command()
@click.argument("name", required=False, shell_complete=completing.outputs)
@click.option("--all", "every", is_flag=True, help="The pipeline's own tables too.")
@data_option
@json_option
def tables(name: str | None, layout: Layout, *, every: bool, as_json: bool) -> None:
    """List tables and views; with NAME, list the columns of one.

    A table's path is a Delta table: DuckDB, Spark, Trino, pandas and Polars read it as it lies.
    """
    storage = open_tables(layout, SystemClock())
    if name is not None:
        _columns(storage, name, as_json=as_json)
        return
    found = []
    for stored in storage.names():
        snapshot = storage.snapshot(stored) if every or stored.startswith(PUBLIC) else None
        if snapshot is None:
            continue
        found.append(
            {
                "name": stored,
                "rows": sum(f.rows for f in snapshot.files),
                "files": len(snapshot.files),
                "size_bytes": sum(f.size_bytes for f in snapshot.files),
                "version": snapshot.version,
                "path": snapshot.root,
            }
        )
    if as_json:
        print_json(found)
        return
    rows = [
        (t["name"], t["rows"], t["files"], size_text(int(str(t["size_bytes"]))), t["version"])
        for t in found
    ]
    print_rows(("name", "rows", "files", "size", "version"), rows)


def _columns(storage: Tables, name: str, *, as_json: bool) -> None:
    names = [name] if "/" in name else [prefix + name for prefix in (*PUBLIC, "system/")]
    snapshot = next((s for s in map(storage.snapshot, names) if s is not None), None)
    if snapshot is None:
        known = ", ".join(n for n in storage.names() if n.startswith(PUBLIC))
        raise Invalid(
            f"There is no table or view {name}",
            hint=f"here are: {known or 'none yet'}",
            code="unknown_table",
        )
    columns = [{"column": f.name, "type": str(f.type)} for f in snapshot.schema]
    if as_json:
        print_json(columns)
    else:
        print_rows(("column", "type"), [list(c.values()) for c in columns])
