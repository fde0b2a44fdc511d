"""The stage: what goes in is accounted for, and no record takes a neighbour down."""

from __future__ import annotations

import json
from collections.abc import Sequence

import msgspec
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace import Pipeline, Record, field, tumbling
from headrace.define.check import check
from headrace.model.batch import Batch, decode, encode
from headrace.model.clock import ManualClock
from headrace.model.ids import client_id
from headrace.model.plan import DEAD_LETTER_SCHEMA, Plan
from headrace.stage.duplicates import IdIndex
from headrace.stage.engine import Engine
from headrace.stage.records import Slice
from headrace.stage.stage import Stage, StageResult
from headrace.stage.validate import Validator

START_US = 1_767_225_600_000_000
ENGINE = Engine(threads=1)


class Event(Record):
    kind: str
    amount: int | None = None
    text: str | None = field("Free Text", default=None)


class Other(Record):
    name: str


def pipeline() -> Plan:
    pipe = Pipeline("shop")
    events = pipe.topic("events", Event, partitions=2)
    other = pipe.topic("other", Other)
    pipe.topic("loose")
    pipe.table("buys", "SELECT kind, amount * 2 AS twice FROM events WHERE kind LIKE 'buy%'")
    pipe.table("numbers", "SELECT CAST(text AS INTEGER) AS number, kind FROM events")
    pipe.table(
        "names",
        {events: "SELECT kind AS name FROM events", other: "SELECT name FROM other"},
    )
    pipe.table("raw", "SELECT _value AS body, _headers, _key FROM loose")
    pipe.view("by_kind", "SELECT kind, count(*) AS n, sum(amount) AS total FROM events GROUP BY 1")
    pipe.view("squares", "SELECT sum(number * number) AS s FROM numbers")
    pipe.view(
        "per_minute",
        "SELECT kind, count(*) AS n FROM events GROUP BY kind",
        window=tumbling("1 minute", on="received_at"),
    )
    plan = check(pipe)
    assert isinstance(plan, Plan), plan
    return plan


PLAN = pipeline()
STAGE = Stage(PLAN, ENGINE)
SCHEMAS = {t.name: ENGINE.arrow_schema(t.columns) for t in PLAN.tables}


def body(**fields) -> bytes:
    return json.dumps(fields).encode()


def records(
    values: Sequence[bytes], *, ids=None, headers=None, marks=None, keys=None, first=0
) -> pa.RecordBatch:
    clock = ManualClock()
    batch = Batch()
    for i, value in enumerate(values):
        batch.add(
            value,
            received_at=START_US + i,
            id=(ids or {}).get(i) or clock.new_id(),
            headers=(headers or {}).get(i, b""),
            key=(keys or {}).get(i),
            mark=(marks or {}).get(i, 0),
        )
    return decode([(first, len(batch), encode(batch))])


def part(values, *, topic="events", partition=0, clock_us=None, **options) -> Slice:
    return Slice(topic, partition, "incarnation", clock_us, records(values, **options))


def run(*slices: Slice, known=None, stage=STAGE) -> StageResult:
    result = stage.run(slices, known or IdIndex(), START_US)
    assert_accounted(result, slices)
    return result


def assert_accounted(result: StageResult, slices: Sequence[Slice]) -> None:
    for topic, count in result.topics.items():
        assert count.read == sum(s.records.num_rows for s in slices if s.topic == topic)
        assert count.read == count.decoded + count.dead + count.duplicates
    for name, count in result.tables.items():
        assert count.decoded == count.rows + count.filtered + count.failed
        rows = result.rows.get(name)
        assert count.rows == (rows.num_rows if rows else 0)
        if rows:
            assert rows.schema == SCHEMAS[name]


def dead(result: StageResult) -> list[dict]:
    table = result.letters.table()
    if table is None:
        return []
    assert table.schema == DEAD_LETTER_SCHEMA
    return table.to_pylist()


GOOD = [body(kind="buy", amount=i, **{"Free Text": str(i)}) for i in range(4)]


def test_good_records_become_rows_of_every_table():
    result = run(part(GOOD))
    assert dead(result) == []
    assert result.rows["buys"].column("twice").to_pylist() == [0, 2, 4, 6]
    assert result.rows["numbers"].column("number").to_pylist() == [0, 1, 2, 3]
    assert result.rows["names"].column("name").to_pylist() == ["buy"] * 4
    events = result.rows["events"].to_pylist()
    assert [e["_offset"] for e in events] == [0, 1, 2, 3]
    assert {(e["_topic"], e["_partition"]) for e in events} == {("events", 0)}
    assert {len(e["event_id"]) for e in events} == {36}
    assert "raw" not in result.rows
    assert result.clocks == {"events/0": START_US + 3}


def test_partials_are_of_the_rows():
    result = run(part(GOOD))
    (groups,) = result.partials["by_kind"].values()
    assert groups.num_rows == 1
    assert 6 in groups.to_pylist()[0].values()
    assert set(result.partials) == {"by_kind", "squares", "per_minute"}


def test_what_is_not_valid_is_a_dead_letter_with_the_reason_and_the_bytes():
    bad = b'{"kind": 5, "note": "\xc3\xa9"}'
    result = run(part([GOOD[0], bad, GOOD[1]], first=40, keys={1: b"k"}, headers={1: b'{"a":"b"}'}))
    (letter,) = dead(result)
    assert (letter["stage"], letter["output"], letter["code"]) == ("decode", None, "invalid_record")
    assert letter["message"] == "Expected str, got int - at $.kind"
    assert (letter["value"], letter["key"], letter["headers"]) == (bad, b"k", '{"a":"b"}')
    assert (letter["topic"], letter["partition"], letter["offset"]) == ("events", 0, 41)
    assert (letter["attempt"], letter["pipeline"]) == (1, "shop")
    assert letter["received_at"].timestamp() * 1e6 == START_US + 1
    assert letter["schema_fingerprint"] == f"{PLAN.topic('events').schema.fingerprint:016x}"
    assert result.rows["events"].num_rows == 2


def test_a_failing_statement_costs_its_table_that_record_alone():
    values = [*GOOD, body(kind="buy", **{"Free Text": "abc"}), body(kind="sell")]
    result = run(part(values))
    (letter,) = dead(result)
    assert (letter["stage"], letter["output"], letter["code"]) == ("row", "numbers", "sql_error")
    assert "abc" in letter["message"]
    assert letter["offset"] == 4
    assert result.rows["numbers"].num_rows == 5
    assert result.rows["events"].num_rows == 6
    assert result.topics["events"].dead == 0
    assert result.tables["numbers"].failed == 1


def test_a_partial_that_overflows_costs_the_row():
    big = body(kind="buy", **{"Free Text": str(2**31 - 1)})
    result = run(part([GOOD[1], big, GOOD[2]]))
    (letter,) = dead(result)
    assert (letter["output"], letter["code"], letter["offset"]) == ("numbers", "sql_error", 1)
    assert result.rows["numbers"].column("number").to_pylist() == [1, 2]
    (groups,) = result.partials["squares"].values()
    assert [v for v in groups.to_pylist()[0].values() if v == 5]


def test_everything_failing_leaves_no_rows_and_no_partials():
    result = run(part([body(kind="x", **{"Free Text": "no"})] * 9))
    assert result.tables["numbers"].failed == 9
    assert "numbers" not in result.rows
    assert "squares" not in result.partials


def test_failures_have_the_same_letter_id_however_often_and_however_cut():
    values = [b"nope", *GOOD, body(kind="x", **{"Free Text": "no"})]
    whole = dead(run(part(values)))
    cut = dead(run(part(values[:1]))) + dead(run(part(values[1:], first=1)))
    assert [letter["letter_id"] for letter in whole] == [letter["letter_id"] for letter in cut]
    assert len({letter["letter_id"] for letter in whole}) == 2


def test_a_replayed_record_reaches_its_table_alone():
    headers = msgspec.json.encode({"headrace-only": "numbers", "headrace-attempt": "2"})
    values = [GOOD[0], body(kind="buy", **{"Free Text": "abc"}), GOOD[2]]
    result = run(part(values, headers={1: headers, 2: headers}))
    assert result.rows["events"].num_rows == 1
    assert result.rows["numbers"].column("number").to_pylist() == [0, 2]
    assert result.tables["events"].decoded == 1
    assert result.tables["numbers"].decoded == 3
    (letter,) = dead(result)
    assert (letter["output"], letter["attempt"]) == ("numbers", 3)


@pytest.mark.parametrize("text", [b"", b'"headrace-', b'{"headrace-only": 5}', b"[]", b"\xff"])
def test_headers_that_are_none_of_ours_change_nothing(text):
    result = run(part([b"bad", GOOD[0]], headers={0: text, 1: text}))
    assert result.rows["events"].num_rows == 1
    assert dead(result)[0]["attempt"] == 1


def test_marked_records_are_trusted_and_others_are_not():
    fingerprint = Validator(PLAN.topic("events").schema).fingerprint
    wrong = body(kind=5)
    result = run(part([wrong, wrong, wrong], marks={0: fingerprint, 1: fingerprint ^ 1}))
    assert [letter["offset"] for letter in dead(result)] == [1, 2]


def test_duplicates_are_dropped_within_and_across_runs():
    chosen = client_id("s", "events", "a")
    index = IdIndex()
    first = run(part(GOOD, ids={0: chosen, 2: chosen}), known=index)
    assert first.topics["events"].duplicates == 1
    index.add(first.known_ids)
    again = part(GOOD, ids={1: chosen}, first=4, clock_us=first.clocks["events/0"])
    second = run(again, known=index)
    assert second.rows["events"].column("_offset").to_pylist() == [4, 6, 7]
    assert second.known_ids is None


def test_an_invalid_record_does_not_use_up_its_id():
    chosen = client_id("s", "events", "a")
    result = run(part([b"bad", GOOD[0]], ids={0: chosen, 1: chosen}))
    assert (result.topics["events"].dead, result.topics["events"].duplicates) == (1, 0)


def test_a_valid_record_that_does_not_decode_is_dead_and_does_not_use_up_its_id():
    # A mark makes the stage trust bytes that the engine cannot read.
    fingerprint = PLAN.topic("events").schema.fingerprint
    chosen = client_id("s", "events", "a")
    ids, marks = {0: chosen, 1: chosen}, {0: fingerprint}
    result = run(part([b'{"kind": 01}', *GOOD], ids=ids, marks=marks))
    (letter,) = dead(result)
    assert (letter["code"], letter["stage"]) == ("decode_error", "decode")
    assert result.rows["events"].num_rows == 4


def test_slices_of_several_partitions_and_topics():
    result = run(
        part(GOOD),
        part(GOOD[:2], partition=1, first=7),
        part([body(name="x"), b"[]"], topic="other"),
        part([body(a=1), b'{"b": "\xff"}'], topic="loose", keys={0: b"\xff"}),
    )
    assert result.rows["names"].num_rows == 7
    assert result.rows["raw"].column("body").to_pylist() == ['{"a": 1}']
    assert result.rows["raw"].column("_key").to_pylist() == ["�"]
    assert result.rows["raw"].column("_headers").to_pylist() == [None]
    assert len(dead(result)) == 2
    assert set(result.clocks) == {"events/0", "events/1", "other/0", "loose/0"}


def test_a_batch_that_is_a_slice_of_another():
    batch = records([*GOOD, *GOOD]).slice(3, 4)
    result = run(Slice("events", 0, "incarnation", None, batch))
    assert result.rows["events"].column("_offset").to_pylist() == [3, 4, 5, 6]
    assert result.rows["numbers"].column("number").to_pylist() == [3, 0, 1, 2]


VALUES = st.sampled_from(
    [*GOOD, b"bad", b"{}", body(kind="sell", **{"Free Text": "x"}), body(kind="k", amount=2**62)]
)
IDS = st.sampled_from([None, client_id("s", "t", "a"), client_id("s", "t", "b")])


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(VALUES, IDS), min_size=1, max_size=12), st.lists(st.integers(1, 11)))
def test_any_cut_gives_the_same_rows_letters_and_sums(drawn, cuts):
    values = [v for v, _ in drawn]
    ids = {i: chosen for i, (_, chosen) in enumerate(drawn) if chosen}
    whole = records(values, ids=ids)
    edges = sorted({0, len(values), *(c for c in cuts if c < len(values))})
    index, clock, pieces = IdIndex(), None, []
    for i, start in enumerate(edges[:-1]):
        cut = Slice("events", 0, "i", clock, whole.slice(start, edges[i + 1] - start))
        pieces.append(run(cut, known=index))
        clock = pieces[-1].clocks["events/0"]
        if pieces[-1].known_ids is not None:
            index.add(pieces[-1].known_ids)
    at_once = run(Slice("events", 0, "i", None, whole))
    for table in at_once.tables:
        rows = [row for r in pieces if table in r.rows for row in r.rows[table].to_pylist()]
        assert rows == (at_once.rows[table].to_pylist() if table in at_once.rows else [])
    letters = sorted(row["letter_id"] for r in pieces for row in dead(r))
    assert letters == sorted(row["letter_id"] for row in dead(at_once))
