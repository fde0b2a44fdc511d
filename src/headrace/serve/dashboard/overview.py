"""`/`: what runs and what it has counted, at a glance."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from headrace.control.progress import Listed
from headrace.define.types import quoted
from headrace.model.clock import Clock
from headrace.serve.dashboard import epochs
from headrace.serve.dashboard.epochs import Epochs
from headrace.serve.dashboard.page import ROOT, Shell
from headrace.serve.dashboard.relations import chart_of, order_of, rows_of
from headrace.serve.dashboard.shown import Grid
from headrace.serve.dashboard.topics import Topics
from headrace.serve.freshness import Freshness
from headrace.serve.reading import Reading, Readings
from headrace.serve.relations import Catalog, Relation
from headrace.stage.encode import records

ROWS_MAX = 8
"""Rows of a view on the page."""


class Shown(msgspec.Struct, frozen=True):
    """A view on the page."""

    name: str
    path: str
    rows: int
    fresh: Freshness
    grid: Grid
    chart: Mapping[str, object] | None


class Overview:
    """The handler."""

    def __init__(
        self,
        shell: Shell,
        readings: Readings,
        topics: Topics,
        epochs_: Epochs,
        clock: Clock,
        sources: Callable[[], Sequence[Listed]],
    ) -> None:
        """`sources` returns those there are, with how they fare."""
        self._shell = shell
        self._readings = readings
        self._topics = topics
        self._epochs = epochs_
        self._clock = clock
        self._sources = sources

    async def page(self, request: Request) -> Response:
        """Answer the page as things stand."""
        plan = self._readings.plan
        now_us = self._clock.now_us()
        sources = await asyncio.to_thread(self._sources)
        topics = await asyncio.to_thread(self._topics.states, now_us)
        found = await self._readings.read(Catalog.all, self._found)
        latest = self._epochs.latest()
        return self._shell.page(
            "overview.html",
            plan.name,
            request,
            topics=topics,
            sources=sources,
            now_us=now_us,
            last=self._readings.ledger.last(),
            per_s=epochs.rate_per_s(latest, now_us),
            lag=sum(t.lag or 0 for t in topics),
            lag_s=next((e.lag_s for e in reversed(latest) if e.lag_s is not None), None),
            throughput=epochs.throughput(latest, now_us),
            **found,
        )

    def _found(self, reading: Reading) -> dict[str, Any]:
        plan = self._readings.plan
        n = len(plan.tables)
        views = reading.relations[n:-1]
        return {
            "tables": reading.relations[:n],
            "letters": open_letters(reading, reading.relations[-1]),
            "views": [
                self._view(reading, view, fresh)
                for view, fresh in zip(views, reading.fresh[n:-1], strict=True)
            ],
        }

    def _view(self, reading: Reading, view: Relation, fresh: Freshness) -> Shown:
        reading.session.prepare([view])
        names = [c.name for c in view.columns]
        sql = f"SELECT * FROM {quoted(view.name)} ORDER BY {_order(view)} LIMIT {ROWS_MAX}"
        declared = next(v for v in self._readings.plan.views if v.name == view.name)
        return Shown(
            name=view.name,
            path=f"{ROOT}views/{view.name}",
            rows=view.rows,
            fresh=fresh,
            grid=rows_of(records(reading.session.select(sql)), names),
            chart=chart_of(reading, view, declared),
        )


def open_letters(reading: Reading, letters: Relation) -> int:
    """Return how many dead letters wait for somebody."""
    if letters.rows == 0:
        return 0
    reading.session.prepare([letters])
    sql = f"SELECT count(*) FROM {quoted(letters.name)} WHERE status = 'open'"
    return int(reading.session.select(sql).column(0)[0].as_py())


def _order(view: Relation) -> str:
    order = [f"{quoted(name.removeprefix('-'))} DESC NULLS LAST" for name in order_of(view)]
    others = [k for k in view.key if f"-{k}" not in order_of(view)]
    return ", ".join([*order, *(f"{quoted(name)} NULLS LAST" for name in others)]) or "1"
