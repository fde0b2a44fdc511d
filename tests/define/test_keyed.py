"""Tables with a key: what is declared, what is refused, and what the compiled SQL does."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from decimal import Decimal

import msgspec
import pyarrow as pa
import pytest

from headrace import Pipeline, Record, field
from headrace.define.check import check
from headrace.define.compatible import compatible
from headrace.define.explain import describe, kept
from headrace.define.keyed import mark_of, read_mark
from headrace.define.problem import Problem
from headrace.define.types import arrow_schema, open_duckdb, record_columns
from headrace.model.plan import SYSTEM_COLUMNS, Column, Keyed, Plan, Table
from headrace.stage.engine import Engine
from headrace.stage.failing import RowSql


class Origin(Record):
    id: str | None = None


class Seen(Record):
    id: str | None
    taxon: str | None = None
    n: int = 0
    number: int | None = field("catalogue number", default=None)
    x: float | None = None
    tags: list[str] | None = None
    seen_at: datetime | None = None
    price: Decimal | None = field(digits=(10, 2), default=None)
    origin: Origin | None = None


def outcome(declare: Callable[..., object], **topic: object) -> Plan | list[Problem]:
    pipeline = Pipeline("p")
    declare(pipeline, pipeline.topic("seen", Seen, store=False, **topic))
    return check(pipeline)


def plan_of(declare: Callable[..., object], **topic: object) -> Plan:
    made = outcome(declare, **topic)
    assert isinstance(made, Plan), "\n".join(map(str, made))
    return made


def table_of(sql: str, topic: dict[str, object] | None = None, **declared: object) -> Table:
    plan = plan_of(lambda p, _: p.table("t", sql, **declared), **(topic or {}))
    return plan.tables[0]


def names(columns: tuple[Column, ...]) -> list[str]:
    return [c.name for c in columns]


def test_a_table_with_a_key_ends_with_the_records_key_and_does_not_show_what_deletes():
    table = table_of(
        "SELECT id, _deleted AS gone, n FROM seen", key="id", version="n", deleted="gone"
    )
    assert table.keyed == Keyed(("id",), "n", "gone")
    assert names(table.columns) == ["id", "n", *SYSTEM_COLUMNS, "_key"]
    assert names(table.made) == [*names(table.columns), "gone"]
    assert {"_key", "_deleted"} <= set(table.inputs[0].fields)


def test_columns_that_are_selected_stay_where_they_are():
    table = table_of("SELECT _key, event_id, n FROM seen", key=["_key", "n"])
    assert names(table.columns)[:3] == ["_key", "event_id", "n"]
    assert names(table.columns)[3:] == ["received_at", "_topic", "_partition", "_offset"]


def test_a_topics_own_table_has_no_key():
    pipeline = Pipeline("p")
    pipeline.topic("seen", Seen, key="id")
    made = check(pipeline)
    assert isinstance(made, Plan)
    assert made.tables[0].keyed is None
    assert "_key" not in names(made.tables[0].columns)


ROW_SQL = {
    "deletions in the middle": "SELECT id, _deleted AS gone, n FROM seen",
    "deletions under their own name": "SELECT id, _deleted FROM seen",
    "deletions read by another column": "SELECT id, n > 1 AS gone, NOT gone AS there FROM seen",
    "a star": "SELECT *, coalesce(_deleted, false) AS gone FROM seen AS s",
    "a cast": "SELECT CAST(hash(id) AS UBIGINT) AS id, _deleted AS gone FROM seen",
    "a quoted name": 'SELECT id, _deleted AS "it\'s" FROM seen',
}


@pytest.mark.parametrize("case", ROW_SQL)
def test_compiled_sql_yields_what_the_table_is_made_of(case):
    sql = ROW_SQL[case]
    deleted = "_deleted" if "own name" in case else "it's" if "quoted" in case else "gone"
    table = table_of(sql, key="id", version="event_id", deleted=deleted)
    with open_duckdb() as con:
        relation = record_columns(plan_of(lambda p, _: p.table("t", sql)).topics[0].schema)
        columns = ", ".join(f'"{n}" {k}' for n, k in relation.items())
        con.execute(f"CREATE TABLE seen ({columns})")
        con.execute("INSERT INTO seen (event_id, id, n, _deleted) VALUES ('e', 'a', 1, true)")
        made = con.sql(table.inputs[0].sql)
        assert made.columns == names(table.made)
        row = dict(zip(made.columns, made.fetchall()[0], strict=True))
    assert row[deleted] is (case != "deletions read by another column")


@pytest.mark.parametrize("key", ["id", "_key"])
def test_a_record_without_its_key_fails_alone_and_says_why(key):
    table = table_of("SELECT id, n, _deleted AS gone FROM seen", key=key, deleted="gone")
    (one,) = table.inputs
    schema = plan_of(lambda p, _: p.table("t", "SELECT n FROM seen")).topics[0].schema
    relation = record_columns(schema)
    arrow = arrow_schema([Column(n, relation[n]) for n in one.fields])
    rows = [{"event_id": str(i), "id": "a", "_key": "k", "n": i} for i in range(200)]
    for i in (3, 70, 71):
        rows[i][key] = None
    records = pa.Table.from_pylist(rows, schema=arrow)
    engine = Engine(threads=1)
    row_sql = RowSql(engine, "seen", one.sql, one.sql, table.made)
    pieces, failed = row_sql.run(records)
    assert [at for at, _ in failed] == [3, 70, 71]
    assert all(f"key column {key} is NULL" in message for _, message in failed)
    assert sum(p.num_rows for p in pieces) == 197
    asked = row_sql._compile()
    assert asked, "many such records would each cost a search of their own"


def test_a_record_that_is_filtered_out_needs_no_key():
    table = table_of("SELECT id FROM seen WHERE id IS NOT NULL", key="id", version="event_id")
    (one,) = table.inputs
    with open_duckdb() as con:
        con.execute("CREATE TABLE seen (event_id VARCHAR, received_at TIMESTAMPTZ, id VARCHAR)")
        for name, kind in (("_topic", "VARCHAR"), ("_partition", "INTEGER"), ("_offset", "BIGINT"),
                           ("_key", "VARCHAR")):  # fmt: skip
            con.execute(f"ALTER TABLE seen ADD COLUMN {name} {kind}")
        con.execute("INSERT INTO seen (id) VALUES (NULL), ('a')")
        assert [r[0] for r in con.execute(one.sql).fetchall()] == ["a"]


TABLES = {
    "unknown key": ("id", {"key": "idd"}, "unknown_column"),
    "a field that is not selected": ("id", {"key": "n"}, "unknown_column"),
    "no key": ("id", {"key": ()}, "bad_key"),
    "a version without a key": ("id", {"version": "id"}, "bad_key"),
    "deletions without a key": ("id, _deleted AS d", {"deleted": "d"}, "bad_key"),
    "a key twice": ("id", {"key": ["id", "id"]}, "bad_key"),
    "a key that is the version": ("id, n", {"key": ["id", "n"], "version": "n"}, "bad_key"),
    "a list as key": ("id, tags", {"key": "tags"}, "bad_key"),
    "a number with a fraction as key": ("id, x", {"key": "x"}, "bad_key"),
    "unknown version": ("id, n", {"key": "id", "version": "m"}, "unknown_column"),
    "a version with a fraction": ("id, x", {"key": "id", "version": "x"}, "bad_version"),
    "a decimal version": ("id, price", {"key": "id", "version": "price"}, "bad_version"),
    "unknown deletions": ("id", {"key": "id", "deleted": "gone"}, "unknown_column"),
    "deletions that are no condition": ("id, n", {"key": "id", "deleted": "n"}, "bad_deleted"),
    "retention": ("id", {"key": "id", "retention": "1 day"}, "keyed_retention"),
    "the weight's name": ("id, n AS _weight", {"key": "id"}, "reserved_column"),
    "the epoch's name": ("id, n AS _epoch", {"key": "id"}, "reserved_column"),
    "the key's name": ("id, id AS _key", {"key": "id"}, "reserved_column"),
}


@pytest.mark.parametrize("case", TABLES)
def test_tables_that_cannot_be(case):
    columns, declared, code = TABLES[case]
    sql = f"SELECT {columns} FROM seen"
    found = outcome(lambda p, _: p.table("t", sql, **declared))
    assert [p.code for p in found] == [code]
    assert found[0].hint
    assert found[0].file == __file__


@pytest.mark.parametrize(
    "expression",
    ["n", "seen_at", "CAST(seen_at AS DATE)", "id", "price::DECIMAL(38, 0)", "n::UBIGINT"],
)
def test_what_orders_the_rows_of_a_key(expression):
    table = table_of(f"SELECT _key, {expression} AS v FROM seen", key="_key", version="v")
    assert table.keyed.version == "v"


SPREAD = {
    "one partition": (1, None, "SELECT id FROM seen", "id", True),
    "by another field": (3, "taxon", "SELECT id, taxon FROM seen", "id", False),
    "by the field": (3, "id", "SELECT id AS k FROM seen", "k", True),
    "by the field under its name in JSON": (
        3,
        "catalogue number",
        "SELECT CAST(number AS VARCHAR) AS k FROM seen",
        "k",
        True,
    ),
    "by the field of the topic": (3, "id", "SELECT seen.id AS k FROM seen", "k", True),
    "by the field of an alias": (3, "id", "SELECT S.id AS k FROM seen AS s", "k", True),
    "by a field of the same name inside another": (
        3,
        "id",
        "SELECT origin.id AS k FROM seen",
        "k",
        False,
    ),
    "by one inside another of the topic": (
        3,
        "id",
        "SELECT seen.origin.id AS k FROM seen",
        "k",
        False,
    ),
    "by what is made of the field": (3, "id", "SELECT lower(id) AS id FROM seen", "id", False),
    "by a part of the key": (3, "taxon", "SELECT id, taxon FROM seen", ["id", "taxon"], True),
    "by the record's key": (3, None, "SELECT id FROM seen", "_key", True),
    "by nothing": (3, None, "SELECT id FROM seen", "id", False),
}


@pytest.mark.parametrize("case", SPREAD)
def test_without_a_version_a_key_is_in_one_partition(case):
    partitions, by, sql, key, fits = SPREAD[case]
    found = outcome(lambda p, _: p.table("t", sql, key=key), partitions=partitions, key=by)
    if fits:
        assert isinstance(found, Plan)
        return
    assert [p.code for p in found] == ["no_version"]
    assert "version=" in found[0].hint


def test_without_a_version_a_key_is_of_one_topic():
    def declare(pipeline, seen, **more):
        other = pipeline.topic("other", Seen, store=False)
        sql = {seen: "SELECT id FROM seen", other: "SELECT id FROM other"}
        pipeline.table("t", sql, key="id", **more)

    (found,) = outcome(declare)
    assert found.code == "no_version"
    assert len(plan_of(lambda p, t: declare(p, t, version="event_id")).tables[0].inputs) == 2


FORGET = ["first(n)", "last(n ORDER BY seen_at)", "arg_max(n, seen_at)", "min_by(n, seen_at)",
          "approx_count_distinct(n)"]  # fmt: skip


@pytest.mark.parametrize("aggregate", FORGET)
def test_views_whose_state_forgets_rows_are_refused_over_a_key(aggregate):
    sql = f"SELECT {aggregate} AS a FROM t"

    def declare(pipeline, key):
        pipeline.table("t", "SELECT id, n, seen_at FROM seen", key=key)
        pipeline.view("v", sql)

    assert isinstance(outcome(lambda p, _: declare(p, None)), Plan)
    (found,) = outcome(lambda p, _: declare(p, "id"))
    assert found.code == "not_maintainable"
    assert "with a key" in found.message
    assert found.hint


def test_views_may_share_a_topic_of_changes():
    def declare(pipeline, _):
        pipeline.table("t", "SELECT id, n FROM seen", key="id")
        pipeline.view("a", "SELECT n, count(*) AS c FROM t GROUP BY n", publish_to="seen_query")
        pipeline.view("b", "SELECT max(n) AS hi FROM t", publish_to="seen_query")
        pipeline.view("c", "SELECT count(*) AS c FROM t")

    plan = plan_of(declare)
    assert [v.topic for v in plan.views] == ["seen_query", "seen_query", None]
    assert plan.change_topics == ("seen_query",)
    assert "change topic seen_query: a record for each changed row of a, b" in describe(plan)


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("seen", "bad_change_topic"),
        ("SEEN", "bad_change_topic"),
        ("a b", "bad_name"),
        ("", "bad_name"),
    ],
)
def test_a_topic_of_changes_is_no_topic_of_records(name, code):
    def declare(pipeline, _):
        pipeline.table("t", "SELECT id FROM seen")
        pipeline.view("v", "SELECT count(*) AS c FROM t", publish_to=name)

    assert [p.code for p in outcome(declare)] == [code]


def test_a_source_says_where_its_services_counts_go():
    def declare(pipeline, seen, counts):
        pipeline.table("t", "SELECT id FROM seen")
        pipeline.source("s", kind="replay", topic=seen, counts=counts, path="x")

    plan = plan_of(lambda p, t: declare(p, t, "seen"))
    assert plan.sources[0].counts == "seen"
    assert "counts" not in plan.sources[0].options
    assert "its own counts into seen" in describe(plan)
    assert [p.code for p in outcome(lambda p, t: declare(p, t, "sen"))] == ["unknown_topic"]


def keyed_plan(**declared: object) -> Plan:
    return plan_of(lambda p, _: p.table("t", "SELECT id, n, n > 1 AS d FROM seen", **declared))


def stored(plan: Plan) -> dict[str, tuple[Column, ...]]:
    (table,) = plan.tables
    both = {"t": table.columns}
    return both | ({"changes/t": table.log_columns} if table.keyed else {})


WAS = {"key": "id", "version": "n", "deleted": "d"}


@pytest.mark.parametrize(
    ("was", "now", "word"),
    [
        ({}, WAS, "kept by no key and would be by id"),
        (WAS, {}, "had a key and would have none"),
        (WAS, WAS | {"key": ["id", "_key"]}, "its key was id and would become id, _key"),
        (WAS, WAS | {"version": None}, "its version was n and would become none"),
        (WAS, WAS | {"deleted": None}, "its column of deletions was d and would become none"),
    ],
)
def test_a_table_cannot_get_another_key_under_its_rows(was, now, word):
    before = keyed_plan(**was)
    keyed = before.tables[0].keyed
    marks = {"t": mark_of(keyed)} if keyed else {}
    (problem,) = compatible(keyed_plan(**now), stored(before), marks)
    assert word in problem.message
    assert "headrace outputs drop --made t" in problem.hint
    assert compatible(before, stored(before), marks) == []


def test_a_table_with_a_key_may_get_columns_and_keeps_those_it_has():
    before = keyed_plan(**WAS)
    marks = {"t": mark_of(before.tables[0].keyed)}
    more = "SELECT id, n, taxon, n > 1 AS d FROM seen"
    assert compatible(plan_of(lambda p, _: p.table("t", more, **WAS)), stored(before), marks) == []
    fewer = "SELECT id, CAST(n AS INTEGER) AS n, n > 1 AS d FROM seen"
    (problem,) = compatible(plan_of(lambda p, _: p.table("t", fewer, **WAS)), stored(before), marks)
    assert "was BIGINT and would become INTEGER" in problem.message


def test_a_mark_is_read_back():
    keyed = Keyed(("a", "b"), None, "gone")
    assert read_mark(mark_of(keyed)) == keyed
    assert read_mark("demo/changes/t#epoch") is None


def test_a_plan_with_a_key_is_a_value_and_is_told_in_words():
    def declare(pipeline, _):
        pipeline.table("t", "SELECT id, n, n > 1 AS d FROM seen", **WAS)
        pipeline.view("v", "SELECT min(n) AS lo, bool_or(n > 1) AS many FROM t")

    plan = plan_of(declare)
    assert msgspec.json.decode(msgspec.json.encode(plan), type=Plan) == plan
    words = "one row for each id, the one with the greatest n; taken out where d"
    assert words in describe(plan)
    assert [k.state for k in kept(plan.views[0])] == [
        "every value with the number of its rows, so it is exact",
        "how many were true and how many false",
    ]
