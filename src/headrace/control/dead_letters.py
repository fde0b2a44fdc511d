"""Dead letters after the fact: read them, replay them once, discard them on record.

A letter is a row of `system/dead_letters` and never changes. What was done about it is a keyed
value in the log, written in the same act as the replayed record, so a second replay is refused
even when two people ask at once.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.compute as pc

from headrace.model.batch import Batch
from headrace.model.clock import Clock
from headrace.model.errors import Fenced, Invalid
from headrace.model.letters import (
    ATTEMPT_HEADER,
    LETTER_HEADER,
    ONLY_HEADER,
    STATE_PREFIX,
    Act,
    Status,
)
from headrace.model.log import Log, LogReader
from headrace.model.plan import DEAD_LETTER_SCHEMA, DEAD_LETTERS
from headrace.model.tables_to_read import TablesToRead


def letters(tables: TablesToRead) -> pa.Table:
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
    tables: TablesToRead,
    log: LogReader,
    *,
    topic: str | None = None,
    output: str | None = None,
    code: str | None = None,
    status: Status | None = "open",
) -> pa.Table:
    """Return letters, newest failure first, filtered.

    In front of a letter's own columns stand `status`, and `acted_at` and `why` of what was done.
    """
    rows = letters(tables)
    done = acts(log)
    found = [done.get(i) for i in rows.column("letter_id").to_pylist()]
    said = {
        "status": pa.array(["open" if a is None else a.act for a in found], pa.string()),
        "acted_at": pa.array([a and a.at_us for a in found], pa.timestamp("us", tz="UTC")),
        "why": pa.array([a and a.why for a in found], pa.string()),
    }
    rows = pa.table({**said, **dict(zip(rows.column_names, rows.columns, strict=True))})
    wanted = {"topic": topic, "output": output, "code": code, "status": status}
    for column, value in wanted.items():
        if value is not None:
            rows = rows.filter(pc.fill_null(pc.equal(rows.column(column), value), False))
    return rows.sort_by([("failed_at", "descending"), ("letter_id", "ascending")])


def replay(log: Log, tables: TablesToRead, ids: Sequence[str], clock: Clock) -> list[str]:
    """Append the records of letters again; return the ids replayed.

    A decode failure's record goes to its topic as a new record, without what its client chose as
    its id; a table's failure goes to that table alone, as the same event. `Invalid`: there is no
    such letter, or something was done about one before; then nothing was done. Only if someone else
    acts on one of them meanwhile, or the log ends, those before it in `ids` stay replayed.
    """
    found = _open(log, tables, ids)
    for letter in found:
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
    return [letter["letter_id"] for letter in found]


def discard(
    log: Log, tables: TablesToRead, ids: Sequence[str], clock: Clock, why: str = ""
) -> list[str]:
    """Record that nothing will be done about letters; return their ids. Fails as `replay` does."""
    found = _open(log, tables, ids)
    for letter in found:
        _record(log, letter, Batch(), Act("discarded", clock.now_us(), why))
    return [letter["letter_id"] for letter in found]


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
        raise _done(letter["letter_id"]) from e


def _open(log: LogReader, tables: TablesToRead, ids: Iterable[str]) -> list[dict[str, Any]]:
    """Return the letters of these ids; `Invalid` unless each is there and open."""
    wanted = list(dict.fromkeys(ids))
    rows = letters(tables)
    rows = rows.filter(pc.is_in(rows.column("letter_id"), pa.array(wanted, pa.string())))
    found = {row["letter_id"]: row for row in rows.to_pylist()}
    done = acts(log)
    for letter_id in wanted:
        if letter_id not in found:
            raise Invalid(
                f"There is no dead letter {letter_id}",
                hint="`headrace dlq list` shows those there are.",
                code="unknown_letter",
            )
        if letter_id in done:
            raise _done(letter_id)
    return [found[letter_id] for letter_id in wanted]


def _done(letter_id: str) -> Invalid:
    return Invalid(
        f"Something was done about dead letter {letter_id} before",
        hint="`headrace dlq show` and GET /v1/dead-letters/{letter} say what and when.",
        code="letter_done",
    )
