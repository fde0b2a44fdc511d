from __future__ import annotations

import json
import uuid
from contextlib import closing
from pathlib import Path

import pyarrow as pa
import pytest

from headrace.control import dead_letters
from headrace.log.embedded import EmbeddedLog
from headrace.model.clock import ManualClock
from headrace.model.errors import Invalid
from headrace.model.ids import client_id
from headrace.model.plan import DEAD_LETTER_SCHEMA, DEAD_LETTERS
from headrace.tables.delta import DeltaTables

CHOSEN = client_id("test", "events", "mine")


def letter(letter_id: str, **changes: object) -> dict[str, object]:
    return {
        "letter_id": letter_id,
        "topic": "events",
        "partition": 0,
        "offset": 3,
        "event_id": str(uuid.UUID(bytes=CHOSEN)),
        "received_at": 1_000_000,
        "failed_at": 2_000_000,
        "stage": "decode",
        "output": None,
        "code": "invalid_record",
        "message": "Expected int, got str - at $.n",
        "schema_fingerprint": "ab",
        "attempt": 1,
        "key": b"k",
        "headers": '{"a":"b"}',
        "value": b'{"n": "x"}',
        "pipeline": "p",
    } | changes


@pytest.fixture
def tables(tmp_path: Path) -> DeltaTables:
    found = DeltaTables(tmp_path, ManualClock())
    letters = [letter("one"), letter("two", stage="row", output="numbers", code="sql_error")]
    rows = pa.Table.from_pylist(letters, schema=DEAD_LETTER_SCHEMA)
    table = found.create(DEAD_LETTERS, DEAD_LETTER_SCHEMA)
    table.commit([found.stage(DEAD_LETTERS, rows)])
    return found


@pytest.fixture
def log(tmp_path: Path):
    with closing(EmbeddedLog(tmp_path / "log", ManualClock())) as opened:
        opened.create("events", 1)
        yield opened


def test_listed_and_filtered(tables: DeltaTables, log: EmbeddedLog) -> None:
    listed = dead_letters.list_letters(tables, log)
    assert listed.column("status").to_pylist() == ["open", "open"]
    only = dead_letters.list_letters(tables, log, output="numbers")
    assert only.column("letter_id").to_pylist() == ["two"]


def test_replayed_once_as_a_new_record(tables: DeltaTables, log: EmbeddedLog) -> None:
    clock = ManualClock()
    assert dead_letters.replay(log, tables, ["one"], clock) == ["one"]
    (batch,) = log.read("events", 0, 0, 1)
    record = batch.to_pylist()[0]
    assert record["value"] == b'{"n": "x"}'
    assert record["key"] == b"k"
    assert record["id"] != CHOSEN
    assert record["mark"] == 0
    assert json.loads(record["headers"]) == {
        "a": "b", "headrace-letter": "one", "headrace-attempt": "1",
    }  # fmt: skip
    with pytest.raises(Invalid, match="before"):
        dead_letters.replay(log, tables, ["one"], clock)
    with pytest.raises(Invalid, match="before"):
        dead_letters.discard(log, tables, ["one"], clock)
    assert log.ends("events") == [1]
    assert dead_letters.list_letters(tables, log).column("letter_id").to_pylist() == ["two"]


def test_a_tables_failure_is_replayed_to_that_table_as_the_same_event(
    tables: DeltaTables, log: EmbeddedLog
) -> None:
    dead_letters.replay(log, tables, ["two"], ManualClock())
    (batch,) = log.read("events", 0, 0, 1)
    record = batch.to_pylist()[0]
    assert record["id"] == CHOSEN
    assert json.loads(record["headers"])["headrace-only"] == "numbers"


def test_discarded_on_record(tables: DeltaTables, log: EmbeddedLog) -> None:
    dead_letters.discard(log, tables, ["one"], ManualClock(), why="test data")
    assert log.ends("events") == [0]
    assert dead_letters.acts(log)["one"].why == "test data"
    listed = dead_letters.list_letters(tables, log, status="discarded")
    assert listed.column("letter_id").to_pylist() == ["one"]
    assert listed.column("why").to_pylist() == ["test data"]
    assert listed.column("acted_at").null_count == 0


def test_unknown_letter(tables: DeltaTables, log: EmbeddedLog) -> None:
    with pytest.raises(Invalid, match="no dead letter"):
        dead_letters.replay(log, tables, ["one", "three"], ManualClock())
    assert log.ends("events") == [0]


def test_one_that_is_done_keeps_the_others_as_they_are(
    tables: DeltaTables, log: EmbeddedLog
) -> None:
    dead_letters.discard(log, tables, ["two"], ManualClock())
    with pytest.raises(Invalid, match="before"):
        dead_letters.replay(log, tables, ["one", "two"], ManualClock())
    assert log.ends("events") == [0]
    assert dead_letters.replay(log, tables, ["one", "one"], ManualClock()) == ["one"]
    assert log.ends("events") == [1]
