"""Our count beside the service's own, for each source that asks for it, with the time of both.

Ours are the rows, in the keyed tables that take the source's records, of what the source gives now.
Where a topic is filled by one source alone those are the topic's rows. Where several fill it, a
source's index (`pull/seen.py`) says which keys are its own; a key that two of them give counts for
both, as it does for the services.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterable, Iterator
from datetime import datetime
from pathlib import Path

import msgspec

from headrace.app.site import open_site
from headrace.control.sources import wanted_sources
from headrace.define.types import quoted
from headrace.model.clock import Clock, rfc3339
from headrace.model.errors import Invalid
from headrace.model.layout import Layout
from headrace.model.log import LogReader
from headrace.model.plan import KEY_COLUMN, Plan, Source
from headrace.serve.owner import OwnerSql


class Reconciled(msgspec.Struct, frozen=True):
    """One source and one table: how many records each side has of the same thing."""

    source: str
    kind: str
    table: str
    filter: str | None
    """What was counted, as the service was asked; None before it first was."""
    theirs: int | None
    asked_at: str | None
    ours: int | None
    """None while it cannot be told which rows are the source's."""
    counted_at: str
    difference: int | None
    """Ours less theirs."""


def reconcile(plan: Plan, layout: Layout, log: LogReader, clock: Clock) -> list[Reconciled]:
    """Count what every source that has a topic of counts gave, and put the service's count beside.

    Raises `Invalid` if no source has such a topic, or one has it without a table to look it up in.
    """
    sources = [w.source for w in wanted_sources(plan, log)]
    counting = [s for s in sources if s.counts is not None]
    if not counting:
        raise Invalid(
            "No source asks its service how many records there are",
            hint='Give it a topic for the answers: pipeline.source(..., counts="source_counts").',
            code="nothing_counted",
        )
    with contextlib.closing(OwnerSql(open_site(layout, clock))) as database:
        return [
            _reconciled(source, table, _Ours(plan, layout, database, sources), clock)
            for source in counting
            for table in _tables(plan, source.topic)
        ]


class _Ours:
    """Counts in a data directory's tables."""

    def __init__(
        self, plan: Plan, layout: Layout, database: OwnerSql, sources: list[Source]
    ) -> None:
        self._plan = plan
        self._layout = layout
        self._database = database
        self._sources = sources

    def count(self, source: Source, table: str) -> int | None:
        """Return how many rows of a table are of what a source gives; None if nothing tells."""
        where = f"FROM tables.{quoted(table)} WHERE _topic = '{source.topic}'"
        if not self._is_there(table):
            return 0
        if sum(s.topic == source.topic for s in self._sources) == 1:
            found = self._database.query(f"SELECT count(*) AS n {where}")
            return int(found.column("n")[0].as_py())
        keys = self._database.query(f"SELECT {quoted(KEY_COLUMN)} AS k {where}").column("k")
        given = _given_keys(self._layout.index(source.name))
        return None if given is None else _common(set(keys.to_pylist()), given)

    def latest(self, source: Source) -> tuple[str, int, datetime] | None:
        """Return the newest of the service's counts: filter, records, when it was asked."""
        assert source.counts is not None
        if all(t.name != source.counts for t in self._plan.tables):
            raise Invalid(
                f"What {source.name} was told goes to {source.counts}, which has no table",
                hint="Give that topic a record type: then it has the table of its name.",
                code="counts_not_kept",
            )
        if not self._is_there(source.counts):
            return None
        rows = self._database.query(
            f"SELECT filter, records, asked_at::TIMESTAMPTZ AS asked"
            f" FROM tables.{quoted(source.counts)}"
            f" WHERE source = '{source.name}' ORDER BY asked DESC LIMIT 1"
        ).to_pylist()
        return (rows[0]["filter"], rows[0]["records"], rows[0]["asked"]) if rows else None

    def _is_there(self, table: str) -> bool:
        return any(name in {f"tables.{table}", f"tables.{quoted(table)}"}
                   for name in self._database.names())  # fmt: skip


def _reconciled(source: Source, table: str, counts: _Ours, clock: Clock) -> Reconciled:
    said = counts.latest(source)
    ours = counts.count(source, table)
    what, theirs, at = said or (None, None, None)
    return Reconciled(
        source=source.name,
        kind=source.kind,
        table=table,
        filter=what,
        theirs=theirs,
        asked_at=None if at is None else at.isoformat().replace("+00:00", "Z"),
        ours=ours,
        counted_at=rfc3339(clock.now_us()),
        difference=None if ours is None or theirs is None else ours - theirs,
    )


def _tables(plan: Plan, topic: str) -> list[str]:
    """Return the keyed tables that take a topic's records; others hold every version."""
    return [t.name for t in plan.tables if t.keyed and any(i.topic == topic for i in t.inputs)]


def _given_keys(index: Path) -> Iterator[str] | None:
    """Return the keys that a source gives now, None while there is no index of them."""
    if not index.is_file():
        return None
    with contextlib.closing(sqlite3.connect(f"{index.as_uri()}?mode=ro", uri=True)) as database:
        try:
            found = database.execute("SELECT key FROM seen").fetchall()
        except sqlite3.Error:
            return None
    return (key.decode("utf-8", "surrogatepass") for (key,) in found)


def _common(rows: set[str | None], given: Iterable[str]) -> int:
    return sum(key in rows for key in given)
