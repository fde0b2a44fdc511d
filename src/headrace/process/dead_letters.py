"""Dead letters after the fact: read them, replay them once, discard them on record.

A letter is a row of `system/dead_letters` and never changes. What was done about it is a keyed
value in the log, written in the same act as the replayed record, so a second replay is refused
even when two people ask at once.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import msgspec
import pyarrow as pa
import pyarrow.compute as pc

from headrace.model.batch import Batch
from headrace.model.clock import Clock
from headrace.model.errors import Fenced, Invalid
from headrace.model.log import Log, LogReader
from headrace.model.plan import DEAD_LETTER_SCHEMA, DEAD_LETTERS
from headrace.model.tables import Tables

STATE_PREFIX = "dead-letter/"
LETTER_HEADER = "headrace-letter"
"""Record header that names the letter whose record is replayed."""
ATTEMPT_HEADER = "headrace-attempt"
"""Record header that says how often the record has failed."""
ONLY_HEADER = "headrace-only"
"""Record header that names the one table which a replayed record is for."""

Status = Literal["open", "replayed", "discarded"]


class Act(msgspec.Struct, frozen=True):
    """What was done about a letter, and when (microseconds)."""

    act: Literal["replayed", "discarded"]
    at_us: int
    why: str = ""


def letters(tables: Tables) -> pa.Table:
    """Return every dead letter, `plan.DEAD_LETTER_SCHEMA`; empty before the first."""
    snapshot = tables.snapshot(DEAD_LETTERS)
    return DEAD_LETTER_SCHEMA.empty_table() if snapshot is None else tables.read(snapshot)


def acts(log: LogReader) -> dict[str, Act]:
    """Return what was done, by letter id."""
    return {
        e.key.removeprefix(STATE_PREFIX): msgspec.json.decode(e.value, type=Act)
        for e in log.scan(STATE_PREFIX)
    }


def list_letters(
    tables: Tables,
    log: LogReader,
    *,
    topic: str | None = None,
    output: str | None = None,
    code: str | None = None,
    status: Status | None = "open",
) -> pa.Table:
    """Return letters with a `status` column in front, newest failure first, filtered."""
    rows = letters(tables)
    done = acts(log)
    states = [done[i].act if i in done else "open" for i in rows.column("letter_id").to_pylist()]
    rows = rows.add_column(0, "status", pa.array(states, pa.string()))
    wanted = {"topic": topic, "output": output, "code": code, "status": status}
    for column, value in wanted.items():
        if value is not None:
            rows = rows.filter(pc.fill_null(pc.equal(rows.column(column), value), False))
    return rows.sort_by([("failed_at", "descending"), ("letter_id", "ascending")])


def replay(log: Log, tables: Tables, ids: Sequence[str], clock: Clock) -> list[str]:
    """Append the records of letters again; return the ids replayed.

    A decode failure's record goes to its topic as a new record, without what its client chose as
    its id; a table's failure goes to that table alone, as the same event. `Invalid`: no such
    letter, or something was done about it before; letters earlier in `ids` stay replayed.
    """
    for letter in _find(tables, ids):
        batch = Batch()
        original = uuid.UUID(letter["event_id"]).bytes
        only = letter["output"] if letter["stage"] == "row" else None
        headers = _headers(letter, only)
        batch.add(
            letter["value"],
            received_at=clock.now_us(),
            id=original if only else clock.new_id(),
            key=letter["key"],
            headers=headers,
        )
        _record(log, letter, batch, Act("replayed", clock.now_us()))
    return list(ids)


def discard(log: Log, tables: Tables, ids: Sequence[str], clock: Clock, why: str = "") -> list[str]:
    """Record that nothing will be done about letters; return their ids."""
    for letter in _find(tables, ids):
        _record(log, letter, Batch(), Act("discarded", clock.now_us(), why))
    return list(ids)


def _headers(letter: Mapping[str, Any], only: object) -> bytes:
    text = letter["headers"]
    headers: dict[str, object] = msgspec.json.decode(str(text)) if text else {}
    headers[LETTER_HEADER] = letter["letter_id"]
    headers[ATTEMPT_HEADER] = str(letter["attempt"])
    if only:
        headers[ONLY_HEADER] = only
    return msgspec.json.encode(headers)


def _record(log: Log, letter: Mapping[str, Any], batch: Batch, act: Act) -> None:
    key = STATE_PREFIX + letter["letter_id"]
    state = {key: msgspec.json.encode(act)}
    try:
        log.append(letter["topic"], batch, state, expect={key: 0})
    except Fenced as e:
        raise Invalid(
            f"Something was done about dead letter {letter['letter_id']} before",
            hint="`headrace dlq show` says what and when.",
            code="letter_done",
        ) from e


def _find(tables: Tables, ids: Iterable[str]) -> list[dict[str, Any]]:
    rows = letters(tables)
    found = []
    for letter_id in ids:
        match = rows.filter(pc.equal(rows.column("letter_id"), letter_id))
        if match.num_rows == 0:
            raise Invalid(
                f"There is no dead letter {letter_id}",
                hint="`headrace dlq list` shows those there are.",
                code="unknown_letter",
            )
        found.append(match.slice(0, 1).to_pylist()[0])
    return found
