"""What a view changes becomes records of its topic: rows as they are, keys that are gone."""

from __future__ import annotations

import datetime as dt
import json
import math
from contextlib import nullcontext
from decimal import Decimal

import msgspec
import pyarrow as pa
import pytest
from owning import Crashes, append, checked, opened

from headrace import Pipeline, Record
from headrace.define.types import arrow_schema
from headrace.define.view_sql import compile_view
from headrace.log.embedded import EmbeddedLog
from headrace.model.clock import ManualClock
from headrace.model.errors import Internal
from headrace.model.plan import Column
from headrace.model.source import DELETED_HEADER
from headrace.process import changes, views
from headrace.process.changes import ChangeTopics, batches
from headrace.process.housekeeping import Housekeeper
from headrace.process.view_store import Contained

TABLE = (Column("kind", "VARCHAR"), Column("n", "BIGINT"), Column("price", "DECIMAL(10,2)"))
CONTAINED = Contained("id", 7, 9)


def view(sql, topic="t_query"):
    made = compile_view(name="v", sql=sql, tables={"t": TABLE}, window=None)
    return msgspec.structs.replace(made, topic=topic)


BY_KIND = view("SELECT kind, n, count(*) AS c, sum(price) AS s FROM t GROUP BY kind, n")


def rows(view, *values):
    schema = arrow_schema(view.columns)
    return pa.Table.from_pylist([dict(zip(schema.names, v, strict=True)) for v in values], schema)


def keys(view, *values):
    return rows(view, *((*v, *[None] * (len(view.columns) - len(v))) for v in values)).select(
        list(view.key)
    )


def sent(view, changed, gone):
    return [
        (batch.keys[i], batch.headers[i], batch.values[i])
        for batch in batches(view, changed, gone, CONTAINED, ManualClock())
        for i in range(len(batch))
    ]


def test_a_changed_row_is_a_record_and_a_row_that_is_gone_is_a_deletion_of_its_key():
    changed = rows(BY_KIND, ("pen", 1, 2, Decimal("3.50")), (None, 2, 1, None))
    told = sent(BY_KIND, changed, keys(BY_KIND, ("ink", 5)))
    headers = {"headrace-view": "v", "headrace-version": "7", "headrace-epoch": "9"}
    assert [msgspec.json.decode(key) for key, _, _ in told] == [
        ["v", "ink", 5],
        ["v", "pen", 1],
        ["v", None, 2],
    ]
    assert [msgspec.json.decode(said) for _, said, _ in told] == [
        headers | {"headrace-deleted": "true"},
        headers,
        headers,
    ]
    assert [value for _, _, value in told] == [
        b'{"kind":"ink","n":5}',
        b'{"kind":"pen","n":1,"c":2,"s":3.50}',
        b'{"kind":null,"n":2,"c":1,"s":null}',
    ]


def test_the_one_row_of_a_view_without_a_key_is_keyed_by_the_view():
    one = view("SELECT count(*) AS c, avg(n) AS a FROM t")
    told = sent(one, rows(one, (0, math.nan)), keys(one))
    assert [(key, value) for key, _, value in told] == [(b'["v"]', b'{"c":0,"a":null}')]


def test_times_in_a_key_are_what_they_are_in_the_row():
    tables = {"t": (Column("at", "TIMESTAMPTZ"),)}
    made = compile_view(
        name="v", sql='SELECT "at", count(*) AS c FROM t GROUP BY 1', tables=tables, window=None
    )
    told = sent(made, rows(made, (dt.datetime(2026, 1, 2, tzinfo=dt.UTC), 1)), keys(made))
    text = "2026-01-02T00:00:00.000000Z"
    assert msgspec.json.decode(told[0][0]) == ["v", text]
    assert msgspec.json.decode(told[0][2]) == {"at": text, "c": 1}


def test_many_changes_are_appended_in_bounded_pieces_each_record_once(tmp_path, monkeypatch):
    monkeypatch.setattr(changes, "RECORDS_MAX", 40)
    clock = ManualClock()
    changed = rows(BY_KIND, *((f"k{i}", i, i, None) for i in range(100)))
    gone = keys(BY_KIND, *((f"g{i}", i) for i in range(50)))
    log = EmbeddedLog(tmp_path, clock)
    log.create("t_query", 1)
    ChangeTopics(log, clock).send(BY_KIND, changed, gone, CONTAINED)
    read = pa.Table.from_batches(log.read("t_query", 0, 0, 1_000))
    log.close()
    found = [msgspec.json.decode(key)[1] for key in read.column("key").to_pylist()]
    assert found == [f"g{i}" for i in range(50)] + [f"k{i}" for i in range(100)]
    assert len(set(read.column("id").to_pylist())) == 150
    sizes = [len(b) for b in batches(BY_KIND, changed, gone, CONTAINED, clock)]
    assert sizes == [40, 10, 40, 40, 20]


def test_a_view_without_a_topic_sends_nothing():
    silent = view("SELECT count(*) AS c FROM t", topic=None)
    with pytest.raises(Internal):
        ChangeTopics(None, ManualClock()).send(silent, rows(silent, (1,)), keys(silent), CONTAINED)


class Seen(Record):
    id: str
    kind: str | None = None
    at_s: int = 0
    gone: bool = False


def pipeline():
    made = Pipeline("changes")
    seen = made.topic("seen", Seen, store=False)
    sql = "SELECT id, kind, at_s, gone FROM seen"
    made.table("things", {seen: sql}, key="id", version="at_s", deleted="gone")
    made.view("by_kind", "SELECT kind, count(*) AS n FROM things GROUP BY kind", publish_to="told")
    made.view("all", "SELECT count(*) AS n, max(at_s) AS last FROM things", publish_to="told")
    return checked(made, log_retention_s=60, horizon_s=0)


def send(place, *records):
    append(place.log, place.clock, "seen", *(json.dumps(record).encode() for record in records))
    place.outlive(place.epoch)
    place.outlive(place.publish)


def told(place):
    """Return the records of the topic of changes as (key, headers, value)."""
    (end,), (start,) = place.log.ends("told"), place.log.starts("told")
    read = [row for batch in place.log.read("told", 0, start, end) for row in batch.to_pylist()]
    return [
        (tuple(json.loads(r["key"])), json.loads(r["headers"]), json.loads(r["value"]))
        for r in read
    ]


def followed(records):
    """Return what a follower has who keeps the last record of each key."""
    held = {}
    for key, headers, value in records:
        held.pop(key, None)
        if DELETED_HEADER not in headers:
            held[key] = value
    return held


def wanted(place):
    by_kind = place.rows("views/by_kind").to_pylist()
    rows = {("by_kind", row["kind"]): row for row in by_kind}
    (rows[("all",)],) = place.rows("views/all").to_pylist()
    return rows


HISTORY = [
    [{"id": "a", "kind": "x", "at_s": 1}, {"id": "b", "kind": "x", "at_s": 1}],
    [{"id": "a", "kind": "y", "at_s": 2}, {"id": "c", "at_s": 2}],
    [{"id": "b", "at_s": 3, "gone": True}],
    [{"id": "a", "kind": "late", "at_s": 1}],
]


def test_who_follows_the_topic_has_the_views(tmp_path):
    with opened(tmp_path, pipeline()) as place:
        for records in HISTORY:
            send(place, *records)
            assert followed(told(place)) == wanted(place)
        by_kind = [(key[1], value.get("n")) for key, _, value in told(place) if len(key) == 2]
        # The group of null and that of y came in one publish, in no order; what came late is not.
        assert by_kind[0] == ("x", 2)
        assert sorted(by_kind[1:4], key=str) == [("x", 1), ("y", 1), (None, 1)]
        assert by_kind[4:] == [("x", None)]
        versions = [int(headers["headrace-version"]) for _, headers, _ in told(place)]
        assert versions == sorted(versions)


def test_after_a_crash_changes_may_come_again_and_none_is_missing(tmp_path, monkeypatch):
    crashes = Crashes(monkeypatch)
    # One after another, so that the same steps are met each time.
    monkeypatch.setattr(views, "_at_once", lambda writes: [write() for write in writes])
    with opened(tmp_path, pipeline()) as place:
        send(place, *HISTORY[0])
        for number in range(0, 80, 2):
            before = len(crashes.met)
            with crashes.at([number]):
                send(place, {"id": "a", "kind": f"k{number % 3}", "at_s": 10 + number})
            assert followed(told(place)) == wanted(place)
            if len(crashes.met) == before:
                break
        assert {"publish.1", "publish.2", "publish.3"} & set(crashes.met)


def test_changes_stay_for_the_logs_retention_and_no_longer(tmp_path):
    with opened(tmp_path, pipeline()) as place:
        send(place, *HISTORY[0])
        housekeeper = Housekeeper(place.owner, nullcontext)
        housekeeper.trim()
        place.log.seal()
        place.clock.advance(50)
        send(place, *HISTORY[1])
        housekeeper.trim()
        assert place.log.starts("told") == [0]
        place.clock.advance(20)
        place.log.seal()
        housekeeper.trim()
        assert 0 < place.log.starts("told")[0] < place.log.ends("told")[0]
