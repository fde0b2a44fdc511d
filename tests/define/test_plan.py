"""What a pipeline compiles to: columns, reads, rewritten SQL that DuckDB runs, and the value."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import msgspec
import pytest

from headrace import Json, Pipeline, Record, field, hopping, param, tumbling
from headrace.define.binder import Binder
from headrace.define.check import check
from headrace.define.compatible import compatible
from headrace.define.duration import microseconds
from headrace.define.explain import describe, kept
from headrace.define.query_sql import splice
from headrace.define.types import (
    arrow_schema,
    columns_of,
    open_duckdb,
    quoted,
    record_columns,
)
from headrace.model.errors import Invalid
from headrace.model.plan import SYSTEM_COLUMNS, Column, Plan, QueryParameter, Table, Window


class Place(Record):
    city: str


class Event(Record):
    event_type: str
    n: int = 0
    price: Decimal = field(digits=(10, 2), default=Decimal(0))
    tags: list[str] | None = None
    place: Place | None = None
    extra: Json = None
    user_agent: str | None = field("User-Agent", default=None)


SYSTEM = {
    "event_id": "VARCHAR",
    "received_at": "TIMESTAMPTZ",
    "_topic": "VARCHAR",
    "_partition": "INTEGER",
    "_offset": "BIGINT",
}
FIELDS = {
    "event_type": "VARCHAR",
    "n": "BIGINT",
    "price": "DECIMAL(10,2)",
    "tags": "VARCHAR[]",
    "place": 'STRUCT("city" VARCHAR)',
    "extra": "VARCHAR",
    "user_agent": "VARCHAR",
}


def plan_of(declare: Callable[..., object] = lambda *_: None, **options: object) -> Plan:
    pipeline = Pipeline("p", **options)
    declare(pipeline, pipeline.topic("events", Event, partitions=3))
    made = check(pipeline)
    assert isinstance(made, Plan), "\n".join(map(str, made))
    return made


def table_of(sql: str) -> Table:
    return plan_of(lambda p, _: p.table("t", sql)).tables[1]


def columns(table: Table) -> dict[str, str]:
    return {c.name: c.type for c in table.columns}


def test_a_topic_has_the_table_of_its_own_name():
    (table,) = plan_of().tables
    assert table.name == "events"
    assert list(columns(table)) == [
        "event_id", "received_at", *FIELDS, "_topic", "_partition", "_offset",
    ]  # fmt: skip
    assert columns(table) == {**SYSTEM, **FIELDS}
    assert set(table.inputs[0].fields) == {*SYSTEM, *FIELDS}


def test_missing_system_columns_come_last():
    table = table_of("SELECT event_type, received_at, n FROM events")
    assert list(columns(table)) == [
        "event_type", "received_at", "n", "event_id", "_topic", "_partition", "_offset",
    ]  # fmt: skip


STORED = {
    "n::HUGEINT": "DECIMAL(38,0)",
    "n::UBIGINT": "DECIMAL(20,0)",
    "n::UINTEGER": "BIGINT",
    "n::USMALLINT": "INTEGER",
    "n::UTINYINT": "SMALLINT",
    "n::TINYINT": "TINYINT",
    "n::FLOAT": "FLOAT",
    "md5(event_type)::UUID": "VARCHAR",
    "event_type::JSON": "VARCHAR",
    "event_type::ENUM('a', 'b')": "VARCHAR",
    "received_at::TIMESTAMP": "TIMESTAMPTZ",
    "received_at::TIMESTAMP_NS": "TIMESTAMPTZ",
    "received_at::TIMESTAMP_S": "TIMESTAMPTZ",
    "received_at::DATE": "DATE",
    "event_type::BLOB": "BLOB",
    "[n::UINTEGER]": "BIGINT[]",
    "array_value(n, n)": "BIGINT[]",
    "{'a': n, 'b c': event_type::JSON}": 'STRUCT("a" BIGINT, "b c" VARCHAR)',
    "MAP {'a': n::UTINYINT}": "MAP(VARCHAR, SMALLINT)",
    "price * 2": "DECIMAL(18,2)",
}


@pytest.mark.parametrize("expression", STORED)
def test_types_become_what_delta_stores(expression):
    table = table_of(f"SELECT {expression} AS x FROM events")
    assert columns(table)["x"] == STORED[expression]
    assert made_types(table)["x"] == STORED[expression]


def made_types(table: Table) -> dict[str, str]:
    """Bind a table's SQL against only the fields that it says it reads."""
    relation = record_columns(plan_of().topic("events").schema)
    items = ", ".join(f"{quoted(n)} {relation[n]}" for n in table.inputs[0].fields)
    with open_duckdb() as con:
        con.execute(f"CREATE TABLE events ({items})")
        return {
            c.name: c.type for c in columns_of(con.sql(table.inputs[0].sql).to_arrow_table().schema)
        }


READS = {
    "SELECT n FROM events": {"n"},
    "SELECT e.n FROM events AS e WHERE e.event_type = 'a'": {"n", "event_type"},
    "FROM events": set(FIELDS),
    "SELECT * EXCLUDE (tags, place, extra) FROM events": set(FIELDS) - {"tags", "place", "extra"},
    "SELECT * REPLACE (n + 1 AS n) FROM events e": set(FIELDS),
    "SELECT * RENAME (n AS m) FROM events": set(FIELDS),
    "SELECT events.* FROM events": set(FIELDS),
    "SELECT place.city AS city FROM events": {"place"},
    "SELECT events.place.city AS city FROM events": {"place"},
    "SELECT list_transform(tags, lambda x: x || event_type) AS t FROM events": {
        "tags",
        "event_type",
    },
    "SELECT [x || '!' FOR x IN tags IF x <> 'a'] AS t FROM events": {"tags"},
    "SELECT n + 1 AS m, m * 2 AS k FROM events WHERE m > 3": {"n"},
    "SELECT extra ->> '$.a' AS a FROM events": {"extra"},
    "SELECT _value AS raw_event, _key, _headers FROM events": {"_value", "_key", "_headers"},
    "SELECT 'x' AS source FROM events": set(),
    "SELECT CASE WHEN n < 0 THEN error('below zero') ELSE n END AS n FROM events": {"n"},
    "SELECT CASE WHEN n > 1 THEN event_type END AS c FROM events; -- and a comment": {
        "n",
        "event_type",
    },
}


@pytest.mark.parametrize("sql", READS)
def test_only_what_is_read_is_decoded(sql):
    table = table_of(sql)
    assert set(table.inputs[0].fields) - set(SYSTEM_COLUMNS) == READS[sql]
    assert list(made_types(table)) == list(columns(table))


def test_row_sql_runs_and_does_what_it_says():
    table = table_of(
        """
        SELECT upper(event_type) AS kind, n::UBIGINT AS big, received_at::TIMESTAMP AS at,
               place.city AS city, coalesce(tags[1], 'none') AS "first-tag"
        FROM events AS e WHERE n > 1 AND NOT (event_type LIKE '%''b%')
        """
    )
    with open_duckdb() as con:
        relation = record_columns(plan_of().topic("events").schema)
        items = ", ".join(f"{quoted(n)} {kind}" for n, kind in relation.items())
        con.execute(f"CREATE TABLE events ({items})")
        for n, word in ((1, "a"), (2, "a'b"), (3, "c")):
            con.execute(
                "INSERT INTO events BY NAME SELECT ? AS event_id, "
                "TIMESTAMPTZ '2026-01-02 03:04:05+00' AS received_at, ? AS event_type, ? AS n, "
                "{'city': 'Rome'} AS place, 'events' AS _topic, 0 AS _partition, ? AS _offset",
                [f"id{n}", word, n, n],
            )
        rows = con.sql(table.inputs[0].sql).to_arrow_table().to_pylist()
    assert rows == [
        {
            "kind": "C",
            "big": Decimal(3),
            "at": datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC),
            "city": "Rome",
            "first-tag": "none",
            "event_id": "id3",
            "received_at": datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC),
            "_topic": "events",
            "_partition": 0,
            "_offset": 3,
        }
    ]


EXPRESSIONS = (
    "a || 'it''s' || E'\\n' || $$q$$",
    "n / 2, n // 2, n % 2, -n, n ** 2, n & 3, n << 2, (n + 1) * 2 - n / 3",
    "n BETWEEN 1 AND 2, n NOT IN (1, 5), n IS DISTINCT FROM NULL, NOT n = 2 AND n > 0 OR n < 2",
    "CASE n WHEN 1 THEN 'one' ELSE a END, CASE WHEN n > 1 THEN a END, if(n > 1, 'a', 'b')",
    "CAST(a AS VARCHAR), TRY_CAST(a AS INTEGER), n::DECIMAL(5, 2), 1e3, 12345678901234567890",
    "[x * 2 FOR x IN [1, n] IF x > 1], list_filter([n, 2], lambda x: x > 1), [1, 2, 3][2:]",
    "{'k': n, 'b c': a}, {'k': n}.k, MAP {'a': n}['a'], struct_pack(z := n)",
    "j ->> '$.b', j -> '$.b', json_extract(j, '$.b'), j ->> 'b' = 'x'",
    "date_trunc('hour', t), t AT TIME ZONE 'UTC', extract(year FROM t), t + INTERVAL 1 DAY",
    "strftime(t, '%Y-%m'), epoch_ms(t), t::DATE, DATE '2026-01-01' + n::INTEGER, t::TIMESTAMP",
    "a LIKE 'a%', a NOT ILIKE '%B', a SIMILAR TO 'a.*', a LIKE 'x!%' ESCAPE '!', a GLOB 'a*'",
    "regexp_replace(a, '(.)', '<\\1>', 'g'), a COLLATE NOCASE = 'AB', a[1:2]",
    "coalesce(NULL, n), nullif(a, ''), n IS NULL, a IS NOT NULL, greatest(n, 2), 'x' IN (a, 'x')",
    "(n, a) = (1, 'ab'), X'00FF', true AND NULL, NULL OR n = 1, try(1 / n), md5(a)",
)


@pytest.mark.parametrize("expressions", EXPRESSIONS)
def test_rewritten_sql_means_what_was_written(expressions):
    """The text that DuckDB makes of its tree gives the same values as the text of the user."""

    binder = Binder()
    rewritten = binder.text(binder.parse(f"SELECT {expressions} FROM x"))
    binder.close()
    with open_duckdb() as con:
        con.execute("CREATE TABLE x (a VARCHAR, n BIGINT, j VARCHAR, t TIMESTAMPTZ)")
        for row in (("ab", 1), ("", 2), (None, None)):
            con.execute(
                "INSERT INTO x VALUES (?, ?, '{\"b\": \"x\"}', '2026-01-02 03:04:05+00')", row
            )
        wanted = con.sql(f"SELECT {expressions} FROM x").fetchall()
        assert con.sql(rewritten).fetchall() == wanted


def test_one_table_of_several_topics_has_one_order_of_columns():
    def declare(p, events):
        raw = p.topic("raw.v1", store=False)
        p.table(
            "both",
            {
                events: "SELECT 'events' AS source, n, event_type AS kind FROM events",
                raw: """
                    SELECT _value ->> '$.kind' AS kind, event_id, (_value ->> '$.n')::BIGINT AS n,
                           'raw' AS source
                    FROM "raw.v1"
                """,
            },
            retention="30 days",
        )

    plan = plan_of(declare)
    table = plan.tables[1]
    assert [i.topic for i in table.inputs] == ["events", "raw.v1"]
    assert list(columns(table))[:3] == ["source", "n", "kind"]
    assert table.retention_s == 30 * 86_400
    with open_duckdb() as con:
        for made in table.inputs:
            relation = record_columns(plan.topic(made.topic).schema)
            items = ", ".join(f"{quoted(n)} {relation[n]}" for n in made.fields)
            con.execute(f"CREATE TABLE {quoted(made.topic)} ({items})")
            assert con.sql(made.sql).columns == list(columns(table))


def test_a_name_that_sql_knows_is_quoted():
    def declare(p, _):
        words = type(Record)(
            "Words", (Record,), {"__annotations__": {"order": str, "group": str}, "__module__": "x"}
        )
        p.topic("select", words)

    table = plan_of(declare).tables[1]
    assert columns(table)["order"] == "VARCHAR"
    with open_duckdb() as con:
        items = ", ".join(f"{quoted(n)} VARCHAR" for n in table.inputs[0].fields)
        con.execute(f'CREATE TABLE "select" ({items})')
        assert con.sql(table.inputs[0].sql).columns == list(columns(table))


def test_ids_and_keys_are_json_names():
    topic = plan_of(lambda p, _: p.topic("x", Event, id="user_agent", key="n")).topic("x")
    assert (topic.id_field, topic.key_field) == ("User-Agent", "n")


def test_routes_set_fields_by_their_json_names():
    def declare(p, events):
        p.route("/", events, {"event_type": "default"}, reply="Hello\n")
        p.route(
            "/join/{guild}/{rank}",
            events,
            {"event_type": "joined:{guild}", "user_agent": "{rank}"},
            headers=False,
        )
        p.route("/join/{guild}", events, {"event_type": "{guild}"})

    first, second, third = plan_of(declare).routes
    assert (first.path, first.reply, first.headers) == ("/", "Hello\n", True)
    assert second.fixed == {"event_type": "joined:{guild}", "User-Agent": "{rank}"}
    assert not second.headers
    assert third.fixed == {"event_type": "{guild}"}


def test_views_have_their_windows():
    def declare(p, _):
        p.view(
            "a",
            "SELECT event_type, count(*) AS n FROM events GROUP BY event_type",
            window=tumbling("1 minute", lateness="5 s"),
        )
        p.view(
            "b",
            "SELECT count(*) AS n FROM events",
            window=hopping(timedelta(minutes=10), every="2 min", on="received_at"),
        )
        p.view("c", "SELECT sum(n) AS n FROM events")

    plan = plan_of(declare)
    a, b, c = plan.views
    assert a.window == Window("received_at", 60_000_000, 60_000_000, 5_000_000)
    assert b.window == Window("received_at", 600_000_000, 120_000_000)
    assert c.window is None
    assert plan.views_of("events") == [a, b, c]


def test_queries_are_bound_for_every_choice():
    def declare(p, _):
        p.view("v", "SELECT event_type, n, count(*) AS c FROM events GROUP BY event_type, n")
        p.query(
            "/count",
            """
            WITH chosen AS (SELECT {by} AS k, c FROM v WHERE n > $least OR $word = '{}')
            SELECT k, sum(c)::BIGINT AS n FROM chosen JOIN (SELECT 1) ON true GROUP BY k;
            """,
            params={
                "by": param(["n", "event_type"], default="event_type"),
                "least": "integer",
                "word": param("string", required=False),
            },
        )

    query = plan_of(declare).queries[0]
    assert query.parameters == (
        QueryParameter("by", "choice", ("n", "event_type"), "event_type", required=False),
        QueryParameter("least", "integer"),
        QueryParameter("word", "string", required=False),
    )
    assert query.reads == ("v",)
    assert query.columns == (Column("k", "VARCHAR"), Column("n", "BIGINT"))
    assert not query.sql.endswith(";")
    assert 'SELECT "n" AS k' in splice(query.sql, {"by": "n"})
    assert splice("{a} {b}", {"a": 'x"y'}) == '"x""y" {b}'


def test_sources_keep_their_options():
    plan = plan_of(lambda p, t: p.source("s", kind="replay", topic=t, path="x", delay_s=0.5))
    (source,) = plan.sources
    assert (source.kind, source.topic) == ("replay", "events")
    assert source.options == {"path": "x", "delay_s": 0.5}


def test_options_become_numbers():
    options = plan_of(
        every="1 s", horizon=timedelta(hours=1), log_retention="2 days", epoch_records_max=10
    ).options
    assert (options.every_s, options.horizon_s, options.log_retention_s) == (1, 3600, 172_800)
    assert options.epoch_records_max == 10


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1 minute", 60_000_000),
        ("90s", 90_000_000),
        ("1.5 h", 5_400_000_000),
        ("250 ms", 250_000),
        ("7 us", 7),
        ("2 weeks", 1_209_600_000_000),
        (timedelta(days=1), 86_400_000_000),
    ],
)
def test_lengths_of_time(text, expected):
    assert microseconds(text) == expected


@pytest.mark.parametrize("text", ["", "1", "minute", "-1 s", "1 month", "1 s 2 ms", 5, None])
def test_what_is_no_length_of_time(text):
    with pytest.raises(Invalid):
        microseconds(text)


def everything(p, events):
    p.route("/a/{b}", events, {"event_type": "{b}"})
    p.table("t", "SELECT n::HUGEINT AS h, * EXCLUDE (n) FROM events", retention="1 day")
    p.view(
        "v",
        "SELECT event_type, count(DISTINCT n) AS n, approx_count_distinct(n) AS about, "
        "max(price) AS top FROM events GROUP BY event_type",
        window=tumbling("1 minute"),
    )
    p.query("/q", "SELECT {by} FROM v", params={"by": ["n", "about"]})
    p.source("s", kind="replay", topic=events, path="x")


def test_a_plan_is_a_value():
    plan = plan_of(everything)
    text = msgspec.json.encode(plan)
    again = msgspec.json.decode(text, type=Plan)
    assert again == plan
    assert again.fingerprint == plan.fingerprint
    assert msgspec.json.encode(again) == text


def test_the_same_file_has_the_same_fingerprint_and_another_has_not():
    plan = plan_of(everything)
    assert plan_of(everything) == plan
    seen = {plan.fingerprint}
    for change in (
        lambda p, t: p.table("u", "SELECT n FROM events"),
        lambda p, t: p.view("u", "SELECT count(*) AS n FROM events"),
        lambda p, t: p.topic("u", Event),
    ):
        other = plan_of(lambda p, t, change=change: (everything(p, t), change(p, t)))
        assert other.fingerprint not in seen
        seen.add(other.fingerprint)


def test_what_does_not_touch_rows_keeps_the_fingerprint():
    def declare(p, events):
        everything(p, events)
        p.route("/more", events)
        p.query("/more/rows", "SELECT h FROM t")

    assert plan_of(declare).fingerprint == plan_of(everything).fingerprint


def test_a_plan_goes_on_with_tables_that_get_columns():
    existing = {t.name: t.columns for t in plan_of().tables}
    more = plan_of(lambda p, _: p.table("t", "SELECT n FROM events"))
    assert compatible(more, existing) == []
    assert compatible(more, {"t": (), "gone": (Column("a", "BIGINT"),)}) == []
    fewer = {"t": tuple(c for c in more.tables[1].columns if c.name != "n")}
    assert compatible(more, fewer) == []


@pytest.mark.parametrize(
    ("was", "word"),
    [
        (Column("n", "INTEGER"), "was INTEGER and would become BIGINT"),
        (Column("m", "BIGINT"), "is no longer selected"),
        (Column("N", "BIGINT"), "would change its case to 'n'"),
    ],
)
def test_a_plan_that_cannot_go_on_says_why(was, word):
    plan = plan_of(lambda p, _: p.table("t", "SELECT n FROM events"))
    (problem,) = compatible(plan, {"t": [was]})
    assert word in problem.message
    assert problem.hint
    assert problem.code == "incompatible_table"


def test_columns_survive_the_way_through_arrow():
    (table,) = plan_of().tables
    assert columns_of(arrow_schema(table.columns)) == table.columns


def test_a_plan_in_words_names_everything_and_each_state():
    plan = plan_of(everything)
    text = describe(plan)
    for word in ("pipeline p", "topic events", "route /a/{b}", "table t", "rows kept 86400 s",
                 "windows of 60 s", "query /q(by)", "source s: replay into events"):  # fmt: skip
        assert word in text
    assert [(k.column, k.aggregate) for k in kept(plan.views[0])] == [
        ("n", "count(DISTINCT n)"),
        ("about", "approx_count_distinct(n)"),
        ("top", "max(price)"),
    ]
    assert "smallest hashes" in kept(plan.views[0])[1].state
