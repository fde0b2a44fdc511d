"""How things stand: dead letters, sources, totals and accounting."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from headrace.app.cli.status import status_of
from headrace.app.report.known import Known
from headrace.app.report.parts import Grid, Section
from headrace.control.dead_letters import acts
from headrace.control.progress import list_sources, read_progress
from headrace.model.plan import DEAD_LETTERS

LETTERS_SHOWN = 20
_USER = re.compile(r"//[^/@\s]*@")


def dead_letters(known: Known) -> Section:
    """Counts by what went wrong, and the newest."""
    name, title = "dead-letters", "Dead letters"
    if DEAD_LETTERS not in known.tables.names():
        return Section(name, title, ("There are none.",))
    within = known.within("failed_at")
    counts = known.query(
        f"SELECT code, stage, topic, output, count(*) FILTER (WHERE {within}) AS now, "
        "count(*) AS n, max(failed_at) AS newest, any_value(message) AS message "
        "FROM headrace.dead_letters GROUP BY ALL ORDER BY n DESC, code, stage, topic, output"
    )
    newest = known.query(
        'SELECT failed_at, topic, partition, "offset", code, message, '
        "left(coalesce(TRY(decode(value)), 'not text'), 200) AS value "
        f"FROM headrace.dead_letters ORDER BY failed_at DESC, letter_id LIMIT {LETTERS_SHOWN}"
    )
    columns = ("code", "stage", "topic", "table", "in this time", "in all", "newest", "for example")
    grids = (
        Grid(columns, tuple(tuple(row.values()) for row in counts), title="By what went wrong"),
        Grid(
            ("failed at", "topic", "partition", "offset", "code", "message", "begins with"),
            tuple(tuple(row.values()) for row in newest),
            title="The newest",
            left_out=sum(int(str(row["n"])) for row in counts) - len(newest),
        ),
    )
    with known.site.reading() as log:
        done = acts(log)
    said = [a.act for a in done.values()]
    what = ", ".join(f"{said.count(act)} {act}" for act in sorted(set(said)))
    notes = (f"Of these were dealt with: {what}.",) if what else ()
    return Section(name, title, notes, grids=grids)


def sources(known: Known) -> Section:
    """Every source, and how far it has come."""
    name, title = "sources", "Sources"
    if known.plan is None:
        return Section(name, title, ("No pipeline has run here yet.",))
    with known.site.reading() as log:
        listed = list_sources(known.plan, log, read_progress(known.layout.run, known.clock))
    if not listed:
        return Section(name, title, ("There are none.",))
    columns = (
        *("name", "kind", "topic", "state", "records", "pages", "sweep", "changed", "unchanged"),
        *("deleted", "remaining", "done", "waiting_for", "error"),
    )
    rows = tuple(tuple(getattr(each, column) for column in columns) for each in listed)
    options = tuple(
        (each.name, option, _without_user(value))
        for each in listed
        for option, value in each.options.items()
    )
    grids = [Grid(tuple(c.replace("_", " ") for c in columns), rows)]
    if options:
        grids.append(Grid(("source", "option", "value"), options, title="What they ask for"))
    return Section(name, title, grids=tuple(grids))


def _without_user(value: object) -> object:
    """Return an option's value; a URL loses the name and password that it may hold."""
    return _USER.sub("//…@", value) if isinstance(value, str) else value


def totals(known: Known) -> Section:
    """The accounts since the pipeline began, and what is stored."""
    with known.site.reading() as log:
        found = status_of(known.layout, log, known.tables)
    grids = [
        _accounts(
            "topic", ("appended", "decoded", "dead", "duplicates", "waiting"), found["topics"]
        ),
        _accounts("table", ("decoded", "rows", "filtered", "failed"), found["tables"]),
        _accounts("change topic", ("records",), found["change_topics"]),
        _stored(known),
    ]
    notes = (
        "The accounts close: of each topic what was appended is decoded, dead, duplicate or "
        "waiting, of each table what was decoded is a row, filtered or failed."
        if found["accounts_close"]
        else "The accounts do not close: `headrace doctor` tells more.",
    )
    kept = tuple(grid for grid in grids if grid.rows)
    return Section("totals", "Totals and accounting", notes if kept else (), grids=kept)


def _accounts(noun: str, columns: tuple[str, ...], counts: Mapping[str, Any]) -> Grid:
    rows = tuple((name, *(count[c] for c in columns)) for name, count in counts.items())
    return Grid((noun, *columns), rows, title=f"Of each {noun}")


def _stored(known: Known) -> Grid:
    rows = []
    for name in known.tables.names():
        snapshot = known.tables.snapshot(name)
        if snapshot is not None:
            files = snapshot.files
            size_mb = round(sum(f.size_bytes for f in files) / 1e6, 3)
            rows.append((name, sum(f.rows for f in files), len(files), size_mb, snapshot.version))
    columns = ("stored as", "rows", "files", "size, MB", "version")
    return Grid(columns, tuple(rows), title="Stored")
