"""What a view changes becomes records of its topic: rows as they are, keys that are gone."""

from __future__ import annotations

import datetime as dt
import math
from decimal import Decimal

import msgspec
import pyarrow as pa
import pytest

from headrace.define.types import arrow_schema
from headrace.define.view_sql import compile_view
from headrace.log.embedded import EmbeddedLog
from headrace.model.clock import ManualClock
from headrace.model.errors import Internal
from headrace.model.plan import Column
from headrace.process import changes
from headrace.process.changes import ChangeTopics, batches
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
