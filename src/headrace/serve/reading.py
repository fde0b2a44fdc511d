"""How an answer comes about: which versions it reads, up to where they are true, and its rows."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import msgspec

from headrace.model.clock import Clock, rfc3339
from headrace.model.errors import Invalid, Unavailable
from headrace.model.plan import Plan
from headrace.serve.freshness import Freshness, Ledger, freshness_of, missing
from headrace.serve.query import Engine, Session
from headrace.serve.relations import Catalog, Relation

T = TypeVar("T")
Find = Callable[[Catalog], Sequence[Relation]]

POLL_S = 0.02
"""How often a request that waits for offsets looks again: two `stat` calls a time."""

QUERY_S_MAX = 10.0
"""Longest that a query may run, seconds."""


@dataclass(frozen=True, slots=True)
class Reading:
    """Relations at their versions, on a thread that may query them."""

    session: Session
    relations: Sequence[Relation]
    fresh: Sequence[Freshness]


class Readings:
    """Gives requests their relations; shared by all of them."""

    def __init__(self, plan: Plan, catalog: Catalog, engine: Engine, clock: Clock) -> None:
        self.plan = plan
        self.catalog = catalog
        self.ledger = Ledger(catalog.snapshots)
        self.engine = engine
        self._clock = clock

    async def read(
        self,
        find: Find,
        work: Callable[[Reading], T],
        at_least: Mapping[str, int] | None = None,
        timeout_s: float = 0.0,
    ) -> T:
        """Return `work` over the newest relations, on a thread of the engine's.

        Waits up to `timeout_s` until every relation contains `at_least`, else `not_yet`.
        """
        deadline = self._clock.monotonic_s() + timeout_s
        wanted = at_least or {}
        while True:
            result = await self.engine.run(
                lambda session: self._attempt(session, find, work, wanted), QUERY_S_MAX
            )
            if not isinstance(result, Behind):
                return result
            left = deadline - self._clock.monotonic_s()
            if left <= 0:
                raise not_yet(result, timeout_s)
            await asyncio.sleep(min(POLL_S, left))

    def _attempt(
        self,
        session: Session,
        find: Find,
        work: Callable[[Reading], T],
        wanted: Mapping[str, int],
    ) -> T | Behind:
        reading = self._resolve(session, find)
        for fresh in reading.fresh if wanted else ():
            if behind := missing(wanted, fresh.offsets):
                return Behind(fresh.name, behind, fresh.offsets)
        if wanted:
            self._refuse_unknown(wanted, reading.fresh)
        try:
            return work(reading)
        except Unavailable as e:
            if e.code != "file_gone":
                raise
        # A view was published and its old files cleaned between the snapshot and the query.
        for relation in reading.relations:
            self.catalog.snapshots.forget(relation.storage)
        return work(self._resolve(session, find))

    def _resolve(self, session: Session, find: Find) -> Reading:
        # The ledger first: see `freshness`.
        last = self.ledger.last()
        relations = find(self.catalog)
        fresh = [freshness_of(r, self.ledger, last, self.plan) for r in relations]
        return Reading(session, relations, fresh)

    def _refuse_unknown(self, wanted: Mapping[str, int], fresh: Sequence[Freshness]) -> None:
        known = sorted({partition for f in fresh for partition in f.offsets})
        for partition in wanted:
            if partition not in known:
                raise Invalid(
                    f"Partition {partition} does not flow into this answer",
                    hint=f"These do: {', '.join(known)}." if known else "",
                    code="invalid_parameter",
                )


class Behind(msgspec.Struct, frozen=True):
    """A relation that does not contain yet what was asked for."""

    name: str
    wanted: dict[str, int]
    reached: dict[str, int]


def not_yet(behind: Behind, timeout_s: float) -> Unavailable:
    """Return the error for an answer that did not get far enough in time."""
    partition, offset = next(iter(behind.wanted.items()))
    return Unavailable(
        f"{behind.name} contains {partition} up to {behind.reached[partition]}, not {offset}, "
        f"after {timeout_s:g} s",
        hint="Was that much appended? GET /ready says whether processing goes on. "
        "timeout= takes up to 30 seconds.",
        code="not_yet",
    )


def freshness_headers(fresh: Sequence[Freshness]) -> dict[str, str]:
    """Return the headers that say what an answer read.

    `X-Headrace-Version`: JSON, name → version. `X-Headrace-Offsets`: JSON, name →
    `topic/partition` → the offset after the last record contained. `X-Headrace-Committed-At`: when
    the oldest of the epochs up to which they are true was committed.
    """
    committed = min((f.committed_at_us for f in fresh), default=0)
    headers = {
        "x-headrace-version": msgspec.json.encode({f.name: f.version for f in fresh}).decode(),
        "x-headrace-offsets": msgspec.json.encode({f.name: f.offsets for f in fresh}).decode(),
    }
    if committed:
        headers["x-headrace-committed-at"] = rfc3339(committed)
    return headers
