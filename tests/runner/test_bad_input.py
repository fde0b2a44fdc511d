"""Bad input, alone in an epoch and among good neighbours: a dead letter or a row, never a loss."""

from __future__ import annotations

import itertools
import json
from decimal import Decimal

import pytest

from headrace import Pipeline, Record, field
from headrace.define.check import check
from headrace.model.batch import RECORDS, Batch, decode, encode
from headrace.model.clock import ManualClock
from headrace.model.ids import client_id
from headrace.model.plan import DEAD_LETTER_SCHEMA, DEAD_LETTERS, Plan
from headrace.model.runner import Epoch, Range
from headrace.runner.local import LocalRunner
from headrace.stage.duplicates import IdIndex
from headrace.tables.delta import DeltaTables

GOOD_RECORDS = 10_000
GOOD = b'{"event_type":"good","amount":1,"price":"1.50","text":"7","when":"2026-01-01T00:00:00Z"}'
DECODE, ROW = ("decode", None), ("row", "casts")


class Event(Record):
    event_type: str
    amount: int | None = None
    price: Decimal | None = field(digits=(10, 2), default=None)
    text: str | None = None


def plan() -> Plan:
    pipe = Pipeline("bad")
    pipe.topic("events", Event)
    pipe.table("casts", "SELECT CAST(text AS INT) AS number, amount FROM events")
    pipe.table("plain", "SELECT event_type FROM events")
    pipe.view("sums", "SELECT event_type, sum(amount) AS s, avg(price) AS p FROM events GROUP BY 1")
    pipe.view("squares", "SELECT sum(amount * amount) AS s FROM casts")
    made = check(pipe)
    assert isinstance(made, Plan), made
    return made


PLAN = plan()


class OneBatch:
    """A log of one batch: the runner's view of it needs no more."""

    def __init__(self, batch: Batch) -> None:
        self.records = decode([(0, len(batch), encode(batch))])

    def read(self, topic, partition, start, end, *, bytes_max):
        assert self.records.schema == RECORDS
        yield self.records.slice(start, end - start)


@pytest.fixture(scope="module")
def runner(tmp_path_factory):
    clock = ManualClock()
    made = LocalRunner(None, DeltaTables(tmp_path_factory.mktemp("tables"), clock), clock)
    yield made
    made.close()


def event(**fields) -> bytes:
    return json.dumps({"event_type": "bad", **fields}).encode()


BAD = {
    "malformed JSON": (b'{"event_type": ', DECODE, "invalid_json"),
    "two objects": (b'{"event_type":"a"}{"event_type":"b"}', DECODE, "invalid_json"),
    "an array": (b"[1, 2]", DECODE, "invalid_record"),
    "wrong type": (event(amount="5"), DECODE, "invalid_record"),
    "a fraction for an integer": (event(amount=5.7), DECODE, "invalid_record"),
    "missing field": (b'{"amount": 1}', DECODE, "invalid_record"),
    "null for what is not nullable": (b'{"event_type": null}', DECODE, "invalid_record"),
    "NaN": (b'{"event_type":"a","amount":NaN}', DECODE, "invalid_json"),
    "2^63": (event(amount=2**63), DECODE, "invalid_record"),
    "1e300 into a decimal": (event(price=1e300), DECODE, "invalid_record"),
    "1e400": (b'{"event_type":"a","price":1e400}', DECODE, "invalid_record"),
    "5,000 digits": (b'{"event_type":"a","amount":' + b"9" * 5000 + b"}", DECODE, "invalid_record"),
    "duplicate keys": (b'{"event_type":"a","event_type":"b"}', DECODE, "duplicate_key"),
    "invalid UTF-8": (b'{"event_type":"\xff"}', DECODE, "invalid_utf8"),
    "invalid UTF-8 undeclared": (b'{"event_type":"a","x":"\xc3"}', DECODE, "invalid_utf8"),
    "lone surrogate": (b'{"event_type":"\\ud800"}', DECODE, "invalid_json"),
    "nesting": (b'{"x":' + b"[" * 10_000 + b"]" * 10_000 + b"}", DECODE, "too_deep"),
    "open nesting": (b'{"a":' * 10_000, DECODE, "too_deep"),
    "empty": (b"", DECODE, "invalid_json"),
    "blanks": (b" \n", DECODE, "invalid_json"),
    "NUL bytes": (b"\x00\x00", DECODE, "invalid_json"),
    "a CAST that fails": (event(text="abc"), ROW, "sql_error"),
    "a product past 64 bits": (event(amount=2**62, text="1"), ROW, "sql_error"),
}  # fmt: skip
ODD = {
    "10 MB string": event(text="1", other="x" * (10 << 20)),
    "10 MB in a column": b'{"event_type":"' + b"x" * (10 << 20) + b'"}',
    "a sum past 64 bits": event(amount=3_000_000_000, text="1"),
    "escapes": b'{"event_type":"\\u0000\\ud83d\\ude00"}',
    "undeclared 1e400": b'{"event_type":"a","x":1e400}',
    "deep enough": b'{"event_type":"a","x":' + b"[" * 63 + b"]" * 63 + b"}",
}


def run(runner: LocalRunner, values: list[bytes], *, ids=None, headers=b""):
    clock, batch = ManualClock(), Batch()
    for i, value in enumerate(values):
        record_id = (ids or {}).get(i) or clock.new_id()
        batch.add(value, received_at=clock.now_us(), id=record_id, headers=headers)
    runner._log = OneBatch(batch)
    epoch = Epoch(1, PLAN, (Range("events", 0, 0, len(values)),), {"events": "i"}, {}, 0)
    outcome = runner.run(epoch, IdIndex())
    assert all(c.read == c.decoded + c.dead + c.duplicates for c in outcome.topics.values())
    assert all(c.decoded == c.rows + c.filtered + c.failed for c in outcome.tables.values())
    return outcome, letters(runner, outcome)


def letters(runner: LocalRunner, outcome) -> list[dict]:
    tables = runner._tables
    table = (
        tables.snapshot(DEAD_LETTERS) or tables.create(DEAD_LETTERS, DEAD_LETTER_SCHEMA).snapshot
    )
    return tables.read(table, outcome.files.get(DEAD_LETTERS, [])).to_pylist()


@pytest.mark.parametrize("good", [0, GOOD_RECORDS], ids=["alone", "among neighbours"])
@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_a_dead_letter_with_its_reason(runner, name, good):
    value, where, code = BAD[name]
    values = [GOOD] * (good // 2) + [value] + [GOOD] * (good // 2)
    outcome, (letter,) = run(runner, values)
    assert (letter["stage"], letter["output"]) == where
    assert letter["code"] == code
    assert letter["value"] == value
    assert letter["offset"] == good // 2
    assert 0 < len(letter["message"]) <= 301
    assert outcome.tables["casts"].rows == good
    assert outcome.tables["plain"].rows == good + (where == ROW)


@pytest.mark.parametrize("good", [0, GOOD_RECORDS], ids=["alone", "among neighbours"])
@pytest.mark.parametrize("name", ODD)
def test_odd_input_is_a_row(runner, name, good):
    outcome, found = run(runner, [*[GOOD] * good, ODD[name]])
    assert found == []
    assert {c.rows for c in outcome.tables.values()} == {good + 1}


def test_sums_past_64_bits_are_exact(runner):
    outcome, found = run(runner, [event(amount=2**63 - 1)] * 5)
    assert [letter["output"] for letter in found] == ["casts"] * 5
    sums = outcome.partials["sums"]["groups"].to_pylist()
    assert any(value == 5 * (2**63 - 1) for row in sums for value in row.values())


def test_a_duplicate_among_neighbours(runner):
    chosen = client_id("s", "events", "a")
    values = [GOOD] * GOOD_RECORDS
    outcome, found = run(runner, values, ids={17: chosen, 9_000: chosen, 9_001: chosen})
    assert found == []
    assert outcome.topics["events"].duplicates == 2
    assert outcome.tables["events"].rows == GOOD_RECORDS - 2


def test_headers_cannot_change_a_record(runner):
    headers = b'{"event_type": "header", "headrace-attempt": "x"}'
    outcome, (letter,) = run(runner, [GOOD, b"bad"], headers=headers)
    assert outcome.tables["events"].rows == 1
    assert letter["attempt"] == 1
    assert letter["headers"] == headers.decode()


def test_every_bad_record_at_once(runner):
    values = list(itertools.chain.from_iterable([GOOD, value] for value, *_ in BAD.values()))
    outcome, found = run(runner, values)
    assert sorted(letter["code"] for letter in found) == sorted(code for *_, code in BAD.values())
    assert outcome.tables["casts"].rows == len(BAD)


def test_a_whole_epoch_of_failing_records(runner):
    outcome, found = run(runner, [event(text="abc")] * 200 + [b"{"] * 200)
    assert len(found) == 400
    assert outcome.tables["casts"].failed == 200
    assert outcome.tables["plain"].rows == 200
