"""`/v1/dead-letters`: each letter with what was done about it, and doing it.

A letter's row never changes; what was done about it is in the log. The two meet in a column
`status`, so lists can be filtered by it like by any other.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Mapping
from typing import Annotated

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from headrace.control import dead_letters
from headrace.define.types import quoted
from headrace.model.clock import Clock, rfc3339
from headrace.model.errors import HeadraceError
from headrace.model.letters import Act
from headrace.model.log import Log
from headrace.model.tables_to_read import TablesToRead
from headrace.serve.arguments import Arguments
from headrace.serve.bodies import read_body
from headrace.serve.endpoints import json_response
from headrace.serve.freshness import Freshness
from headrace.serve.reading import Reading, Readings, freshness_headers
from headrace.stage.encode import encode_record, records

IDS_MAX = 1_000
"""Letters that one request may act on."""
_SHAPE = f'Send {{"ids": ["…"]}} with 1 to {IDS_MAX} ids that GET /v1/dead-letters lists.'


class Chosen(msgspec.Struct, forbid_unknown_fields=True):
    """The body of a replay: which letters."""

    ids: Annotated[list[str], msgspec.Meta(min_length=1, max_length=IDS_MAX)]


class Discarded(Chosen, forbid_unknown_fields=True):
    """The body of a discard: which letters, and the reason, which is kept."""

    why: str = ""


class LetterActs:
    """What was done about letters, and doing it; safe to use from many threads."""

    def __init__(self, log: Log, tables: TablesToRead, clock: Clock) -> None:
        self._log = log
        self._tables = tables
        self._clock = clock
        # A log's reading end is for one thread at a time.
        self._lock = threading.Lock()

    def all(self) -> Mapping[str, Act]:
        """Return what was done, by letter id."""
        with self._lock:
            return dead_letters.acts(self._log)

    def replay(self, wanted: Chosen) -> list[str]:
        """Append the letters' records again; see `control.dead_letters`."""
        with self._lock:
            return dead_letters.replay(self._log, self._tables, wanted.ids, self._clock)

    def discard(self, wanted: Discarded) -> list[str]:
        """Record that nothing will be done about the letters; see `control.dead_letters`."""
        with self._lock:
            return dead_letters.discard(
                self._log, self._tables, wanted.ids, self._clock, wanted.why
            )


class LetterEndpoints:
    """The handlers of one letter, and of what can be done about letters."""

    def __init__(self, readings: Readings, acts: LetterActs) -> None:
        self._readings = readings
        self._acts = acts

    async def one(self, request: Request) -> Response:
        """Answer one dead letter, with what was done about it."""
        Arguments(request.query_params.multi_items()).finish()
        letter = request.path_params["letter"]
        letters, fresh = await self._readings.read(
            lambda catalog: [catalog.dead_letters()], lambda reading: self._find(reading, letter)
        )
        if not letters:
            raise HeadraceError(
                f"There is no dead letter {letter!r}",
                hint="GET /v1/dead-letters lists those there are.",
                code="unknown_letter",
            )
        return Response(
            encode_record(letters[0]),
            headers={"cache-control": "no-cache", **freshness_headers(fresh)},
            media_type="application/json",
        )

    async def replay(self, request: Request) -> Response:
        """Append the records of letters again, once."""
        wanted = await read_body(request, Chosen, _SHAPE)
        return json_response({"replayed": await asyncio.to_thread(self._acts.replay, wanted)})

    async def discard(self, request: Request) -> Response:
        """Record that nothing will be done about letters."""
        wanted = await read_body(request, Discarded, _SHAPE)
        return json_response({"discarded": await asyncio.to_thread(self._acts.discard, wanted)})

    def _find(
        self, reading: Reading, letter: str
    ) -> tuple[list[dict[str, object]], tuple[Freshness, ...]]:
        relation = reading.relations[0]
        reading.session.prepare(reading.relations)
        name = quoted(relation.name)
        sql = f"SELECT * FROM {name} WHERE letter_id = ? ORDER BY failed_at LIMIT 1"
        act = self._acts.all().get(letter)
        done = {
            "acted_at": None if act is None else rfc3339(act.at_us),
            "why": None if act is None else act.why,
        }
        found = records(reading.session.select(sql, [letter]))
        return [{**row, **done} for row in found], tuple(reading.fresh)
