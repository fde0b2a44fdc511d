"""Dead letters: read, and chosen to be replayed or discarded."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from urllib.parse import urlencode

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from headrace.define.types import quoted
from headrace.model.errors import HeadraceError, Invalid
from headrace.serve.arguments import Arguments
from headrace.serve.dashboard.page import ROOT, Shell
from headrace.serve.dashboard.shown import text_of
from headrace.serve.dashboard.topics import indented, text_of_bytes
from headrace.serve.letters import LetterActs
from headrace.serve.pages import page_of, split
from headrace.serve.reading import Reading, Readings
from headrace.serve.relations import Catalog, Relation
from headrace.stage.encode import records

SHOWN = 50
STATUSES = ("open", "replayed", "discarded", "all")
CODES_MAX = 50

_COLUMNS = "letter_id,failed_at,topic,partition,offset,stage,output,code,message,text,status"


class Asked(msgspec.Struct, frozen=True):
    """What the form above the letters asks."""

    status: str = "open"
    topic: str = ""
    code: str = ""
    cursor: str = ""

    @property
    def filters(self) -> list[tuple[str, str]]:
        """The parameters of `GET /v1/dead-letters` that say the same."""
        status = [] if self.status == "all" else [("status", self.status)]
        named = (("topic", self.topic), ("code", self.code))
        return [*status, *((n, v) for n, v in named if v)]


class LetterPages:
    """The handlers."""

    def __init__(self, shell: Shell, readings: Readings, acts: LetterActs) -> None:
        self._shell = shell
        self._readings = readings
        self._acts = acts

    async def listed(self, request: Request) -> Response:
        """Show letters, the latest failure first."""
        asked = _asked(request)
        found = await self._readings.read(_letters, lambda reading: _found(reading, asked))
        cursor = found.pop("cursor")
        form = [(n, v) for n, v in msgspec.structs.asdict(asked).items() if v and n != "cursor"]
        return self._shell.page(
            "letters.html",
            "Dead letters",
            request,
            asked=asked,
            statuses=STATUSES,
            topics=[t.name for t in self._readings.plan.topics],
            next=f"{ROOT}dead-letters?{urlencode([*form, ('cursor', cursor)])}" if cursor else "",
            exports=[
                (f, f"/v1/dead-letters?{urlencode([*asked.filters, ('format', f)])}")
                for f in ("csv", "json")
            ],
            **found,
        )

    async def one(self, request: Request) -> Response:
        """Show a letter whole, with its record's bytes and what was done about it."""
        Arguments(request.query_params.multi_items()).finish()
        letter = request.path_params["letter"]
        row = await self._readings.read(_letters, lambda reading: _one(reading, letter))
        act = self._acts.all().get(letter)
        value, headers = row.pop("value"), row.pop("headers")
        row.pop("text")
        facts = [(n, text_of(v)) for n, v in row.items() if v is not None]
        return self._shell.page(
            "letter.html",
            "Dead letter",
            request,
            letter=letter,
            status=200,
            state=row["status"],
            facts=facts,
            act=act,
            value=indented(text_of_bytes(value or b"")),
            headers=indented(headers or ""),
            size_bytes=len(value or b""),
        )


def _letters(catalog: Catalog) -> list[Relation]:
    return [catalog.dead_letters()]


def _found(reading: Reading, asked: Asked) -> dict[str, Any]:
    relation = reading.relations[0]
    reading.session.prepare(reading.relations)
    items = [*asked.filters, ("order", "-failed_at"), ("columns", _COLUMNS)]
    if asked.cursor:
        items.append(("cursor", asked.cursor))
    page = page_of(relation, Arguments(items), SHOWN, SHOWN)
    table, cursor = split(page, reading.session.select(page.sql, page.values))
    counts = (
        f"SELECT code, count(*) AS n FROM {quoted(relation.name)} WHERE status = 'open' "
        f"GROUP BY code ORDER BY n DESC, code LIMIT {CODES_MAX}"
    )
    codes: Sequence[dict[str, object]] = records(reading.session.select(counts))
    return {"letters": records(table), "cursor": cursor, "codes": codes}


def _one(reading: Reading, letter: str) -> dict[str, Any]:
    relation = reading.relations[0]
    reading.session.prepare(reading.relations)
    sql = f"SELECT * FROM {quoted(relation.name)} WHERE letter_id = ? ORDER BY failed_at LIMIT 1"
    table = reading.session.select(sql, [letter])
    if not table.num_rows:
        raise HeadraceError(
            f"There is no dead letter {letter!r}",
            hint="The page before lists those there are.",
            code="unknown_letter",
        )
    row: dict[str, Any] = records(table)[0]
    for name in ("value", "key"):
        row[name] = table.column(name)[0].as_py()
    if row["key"] is not None:
        row["key"] = text_of_bytes(row["key"])
    return row


def _asked(request: Request) -> Asked:
    arguments = Arguments(request.query_params.multi_items())
    defaults = msgspec.structs.asdict(Asked())
    asked = Asked(**{n: arguments.take(n) or d for n, d in defaults.items()})
    arguments.finish()
    if asked.status not in STATUSES:
        raise Invalid(
            "status has to be a letter's",
            hint=f"One of: {', '.join(STATUSES)}.",
            code="invalid_parameter",
        )
    return asked
