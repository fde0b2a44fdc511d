"""Every kind of fault that check finds, by its code, and all of them at once with their lines."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import pytest

from headrace import Pipeline, Record, field, hopping, param, tumbling
from headrace.define.check import check, check_file, load
from headrace.define.problem import Problem
from headrace.model.options import option


class Event(Record):
    event_type: str
    n: int = 0
    at: datetime | None = None
    tags: list[str] | None = None
    host: str | None = field("Host", default=None)


class Inner(Record):
    x: int


class Outer(Record):
    detail: Inner


@dataclasses.dataclass(frozen=True)
class ReplayOptions:
    path: str = option(doc="A file.", example="a.ndjson", required=True)
    delay_s: float = option(0.0, doc="A delay.", example=1.0, at_least=0)


KINDS = {"replay": ReplayOptions}


def problems_of(declare: Callable[..., object]) -> list[Problem]:
    pipeline = Pipeline("p")
    declare(pipeline, pipeline.topic("events", Event))
    found = check(pipeline, KINDS)
    assert isinstance(found, list), "no fault was found"
    return found


def codes(declare: Callable[..., object]) -> list[str]:
    return [p.code for p in problems_of(declare)]


ROW_SQL = {
    "aggregate": ("SELECT count(*) AS n FROM events", ["not_row_by_row"]),
    "aggregate macro": ("SELECT geomean(n) AS g FROM events", ["not_row_by_row"]),
    "group by": ("SELECT n FROM events GROUP BY n", ["not_row_by_row"]),
    "group by all": ("SELECT n FROM events GROUP BY ALL", ["not_row_by_row"]),
    "having": ("SELECT n FROM events HAVING n > 1", ["not_row_by_row"]),
    "window function": ("SELECT row_number() OVER () AS r FROM events", ["not_row_by_row"]),
    "qualify": ("SELECT n FROM events QUALIFY n > 1", ["not_row_by_row"]),
    "order": ("SELECT n FROM events ORDER BY n", ["not_row_by_row"]),
    "limit": ("SELECT n FROM events LIMIT 3", ["not_row_by_row"]),
    "percent limit": ("SELECT n FROM events LIMIT 3%", ["not_row_by_row"]),
    "distinct": ("SELECT DISTINCT n FROM events", ["not_row_by_row"]),
    "join": ("SELECT e.n FROM events e JOIN events f ON true", ["not_row_by_row"]),
    "comma join": ("SELECT e.n FROM events e, events f", ["not_row_by_row"]),
    "subquery": ("SELECT n FROM events WHERE n > (SELECT 1)", ["not_row_by_row"]),
    "subquery in from": ("SELECT n FROM (SELECT n FROM events)", ["not_row_by_row"]),
    "with": ("WITH a AS (SELECT 1) SELECT n FROM events", ["not_row_by_row"]),
    "union": ("SELECT n FROM events UNION ALL SELECT n FROM events", ["not_row_by_row"]),
    "sample": ("SELECT n FROM events USING SAMPLE 10%", ["not_row_by_row"]),
    "tablesample": ("SELECT n FROM events TABLESAMPLE 10%", ["not_row_by_row"]),
    "unnest": ("SELECT unnest(tags) AS t FROM events", ["not_row_by_row"]),
    "values": ("VALUES (1)", ["not_row_by_row"]),
    "table function": ("SELECT 1 AS one FROM range(3)", ["not_row_by_row"]),
    "file function": ("SELECT * FROM read_csv('/etc/passwd')", ["not_row_by_row"]),
    "file": ("SELECT * FROM 'x.csv'", ["unknown_topic"]),
    "no from": ("SELECT 1 AS one", ["not_row_by_row"]),
    "now": ("SELECT now() AS t FROM events", ["not_deterministic"]),
    "current_date": ("SELECT current_date AS d FROM events", ["not_deterministic"]),
    "current_timestamp": ("SELECT CURRENT_TIMESTAMP AS t FROM events", ["not_deterministic"]),
    "random": ("SELECT n FROM events WHERE random() < 0.5", ["not_deterministic"]),
    "uuid": ("SELECT uuid() AS u FROM events", ["not_deterministic"]),
    "gen_random_uuid": ("SELECT gen_random_uuid() AS u FROM events", ["not_deterministic"]),
    "nextval": ("SELECT nextval('s') AS s FROM events", ["not_deterministic"]),
    "setting": ("SELECT current_setting('threads') AS s FROM events", ["not_deterministic"]),
    "variable": ("SELECT getvariable('x') AS v FROM events", ["not_deterministic"]),
    "environment": ("SELECT getenv('HOME') AS h FROM events", ["not_deterministic"]),
    "age": ("SELECT age(received_at) > INTERVAL 1 DAY AS a FROM events", ["not_deterministic"]),
    "ago": ("SELECT ago(INTERVAL 1 DAY) AS a FROM events", ["not_deterministic"]),
    "unknown column": ("SELECT hots FROM events", ["unknown_column"]),
    "unknown qualified": ("SELECT e.hots FROM events e", ["unknown_column"]),
    "unknown in where": ("SELECT n FROM events WHERE hots = 'a'", ["unknown_column"]),
    "unknown excluded": ("SELECT * EXCLUDE (hots) FROM events", ["unknown_column"]),
    "columns of a pattern": ("SELECT COLUMNS('n') FROM events", ["unknown_column"]),
    "unknown topic": ("SELECT n FROM evnts", ["unknown_topic"]),
    "other schema": ("SELECT n FROM main.events", ["unknown_topic"]),
    "unknown function": ("SELECT upperr(host) AS h FROM events", ["bad_sql"]),
    "wrong argument": ("SELECT list_sum(host) AS h FROM events", ["bad_sql"]),
    "no parse": ("SELEC n FROM events", ["bad_sql"]),
    "empty": ("", ["not_select"]),
    "two statements": ("SELECT n FROM events; SELECT 1", ["not_select"]),
    "not a select": ("DROP TABLE events", ["not_select"]),
    "copy": ("COPY events TO '/tmp/x'", ["not_select"]),
    "interval": ("SELECT INTERVAL 1 DAY AS i FROM events", ["type_not_stored"]),
    "time": ("SELECT CAST(received_at AS TIME) AS t FROM events", ["type_not_stored"]),
    "untyped null": ("SELECT NULL AS x FROM events", ["type_not_stored"]),
    "interval inside": ("SELECT [INTERVAL 1 DAY] AS i FROM events", ["type_not_stored"]),
    "no name": ("SELECT n + 1 FROM events", ["bad_column_name"]),
    "name with blank": ('SELECT n AS "a b" FROM events', ["bad_column_name"]),
    "name twice": ("SELECT n, host AS N FROM events", ["duplicate_column"]),
    "system column": ("SELECT host AS event_id FROM events", ["reserved_column"]),
    "system column by case": ("SELECT host AS _Offset FROM events", ["reserved_column"]),
    "system column moved": ("SELECT event_id AS _topic FROM events", ["reserved_column"]),
    "several": (
        "SELECT hots, count(*) AS c, now() AS t FROM events ORDER BY n",
        ["not_row_by_row", "not_row_by_row", "not_deterministic", "unknown_column"],
    ),
}


@pytest.mark.parametrize("case", ROW_SQL)
def test_row_sql_that_no_table_can_have(case):
    sql, expected = ROW_SQL[case]
    assert sorted(codes(lambda p, _: p.table("t", sql))) == sorted(expected)


VIEWS = {
    "unknown table": ("SELECT count(*) AS n FROM evnts", "unknown_relation"),
    "over a view": ("SELECT count(*) AS m FROM good", "unknown_relation"),
    "no parse": ("SELECT count(* FROM events", None),
    "unknown column": ("SELECT hots, count(*) AS n FROM events GROUP BY hots", None),
    "not maintainable": ("SELECT host, n FROM events LIMIT 3", None),
}


@pytest.mark.parametrize("case", VIEWS)
def test_views_that_cannot_be(case):
    sql, code = VIEWS[case]

    def declare(p, _):
        p.view("good", "SELECT host, count(*) AS n FROM events GROUP BY host")
        p.view("bad", sql)

    found = codes(declare)
    assert len(found) == 1
    assert code in (None, found[0])


DECLARED = {
    "topic twice": (lambda p, t: p.topic("Events", Event), ["duplicate_name", "duplicate_name"]),
    "table named as a topic": (lambda p, t: p.table("events", "SELECT n FROM events"), None),
    "view named as a table": (
        lambda p, t: p.view("EVENTS", "SELECT count(*) AS n FROM events"),
        ["duplicate_name"],
    ),
    "source twice": (
        lambda p, t: [p.source("s", kind="replay", topic=t, path="a") for _ in "ab"],
        ["duplicate_name"],
    ),
    "topic's name": (lambda p, t: p.topic("a b", store=False), ["bad_name"]),
    "topic's table name": (lambda p, t: p.topic("a-b", Event), ["bad_name"]),
    "table's name": (lambda p, t: p.table("a-b", "SELECT n FROM events"), ["bad_name"]),
    "view's name": (lambda p, t: p.view("1", "SELECT count(*) AS n FROM events"), ["bad_name"]),
    "partitions": (lambda p, t: p.topic("x", Event, partitions=0), ["bad_partitions"]),
    "no record class": (lambda p, t: p.topic("x", dict), ["bad_record"]),
    "unknown id": (lambda p, t: p.topic("x", Event, id="uid"), ["unknown_field"]),
    "key of no text": (lambda p, t: p.topic("x", Event, key="tags"), ["bad_field"]),
    "bad schema": (lambda p, t: p.topic("x", Reserved), ["reserved_column"]),
    "unread topic": (lambda p, t: p.topic("x"), ["unread_topic"]),
    "unread stored topic": (lambda p, t: p.topic("x", Event, store=False), ["unread_topic"]),
    "retention": (
        lambda p, t: p.table("x", "SELECT n FROM events", retention="2 months"),
        ["bad_duration"],
    ),
    "no select": (lambda p, t: p.table("x", {}), ["bad_sql"]),
    "other topic": (lambda p, t: p.table("x", {"events": "SELECT n FROM y"}), ["unknown_topic"]),
    "unknown topic of a table": (
        lambda p, t: p.table("x", {"evnts": "SELECT n FROM evnts"}),
        ["unknown_topic"],
    ),
    "route's topic": (lambda p, t: p.route("/a", "evnts"), ["unknown_topic"]),
    "route's field": (lambda p, t: p.route("/a", t, {"even_type": "x"}), ["unknown_field"]),
    "route's field's type": (lambda p, t: p.route("/a", t, {"n": "1"}), ["bad_field"]),
    "unused path parameter": (lambda p, t: p.route("/a/{b}", t), ["unused_parameter"]),
    "unknown path parameter": (
        lambda p, t: p.route("/a/{b}", t, {"event_type": "{c}{b}"}),
        ["unknown_parameter"],
    ),
    "path without slash": (lambda p, t: p.route("a", t), ["bad_path"]),
    "path with blank": (lambda p, t: p.route("/a b", t), ["bad_path"]),
    "path ends in slash": (lambda p, t: p.route("/a/", t), ["bad_path"]),
    "half a segment": (lambda p, t: p.route("/a{b}", t, {"event_type": "{b}"}), ["bad_path"]),
    "built-in health": (lambda p, t: p.route("/healthz", t), ["shadowed_path"]),
    "built-in API": (lambda p, t: p.route("/v1/x", t), ["shadowed_path"]),
    "parameter first": (
        lambda p, t: p.route("/{b}", t, {"event_type": "{b}"}),
        ["shadowed_path"],
    ),
    "same path": (lambda p, t: [p.route("/a", t) for _ in "ab"], ["shadowed_path"]),
    "shadowed path": (
        lambda p, t: [p.route("/a/{x}", t, {"event_type": "{x}"}), p.route("/a/b", t)],
        ["shadowed_path"],
    ),
    "query on a route": (
        lambda p, t: [p.route("/a", t), p.query("/a", "SELECT n FROM events")],
        ["shadowed_path"],
    ),
    "query's path": (lambda p, t: p.query("/a/{b}", "SELECT n FROM events"), ["bad_path"]),
    "query's relation": (lambda p, t: p.query("/q", "SELECT 1 FROM evnts"), ["unknown_relation"]),
    "query of nothing": (lambda p, t: p.query("/q", "SELECT 1 AS n"), ["bad_query"]),
    "query's column": (lambda p, t: p.query("/q", "SELECT hots FROM events"), ["bad_sql"]),
    "query's file": (
        lambda p, t: p.query("/q", "SELECT * FROM read_text('/etc/passwd'), events"),
        ["bad_sql"],
    ),
    "query's statement": (lambda p, t: p.query("/q", "DELETE FROM events"), ["not_select"]),
    "undeclared choice": (
        lambda p, t: p.query("/q", "SELECT {by} FROM events"),
        ["unknown_parameter"],
    ),
    "undeclared value": (
        lambda p, t: p.query("/q", "SELECT n FROM events WHERE n = $m"),
        ["unknown_parameter"],
    ),
    "unused value": (
        lambda p, t: p.query("/q", "SELECT n FROM events", params={"m": "string"}),
        ["unused_parameter"],
    ),
    "unused choice": (
        lambda p, t: p.query("/q", "SELECT n FROM events", params={"m": ["n"]}),
        ["unused_parameter"],
    ),
    "a choice that does not bind": (
        lambda p, t: p.query("/q", "SELECT {by} FROM events", params={"by": ["n", "m"]}),
        ["bad_sql"],
    ),
    "no choices": (
        lambda p, t: p.query("/q", "SELECT {by} FROM events", params={"by": []}),
        ["bad_parameter"],
    ),
    "unknown kind": (
        lambda p, t: p.query("/q", "SELECT $a FROM events", params={"a": "text"}),
        ["bad_parameter"],
    ),
    "a parameter that every query has": (
        lambda p, t: p.query("/q", "SELECT $format AS a FROM events", params={"format": "string"}),
        ["bad_parameter"],
    ),
    "default of another kind": (
        lambda p, t: p.query(
            "/q", "SELECT $a AS a FROM events", params={"a": param("integer", default="x")}
        ),
        ["bad_parameter"],
    ),
    "default that is no choice": (
        lambda p, t: p.query(
            "/q", "SELECT {a} FROM events", params={"a": param(["n"], default="m")}
        ),
        ["bad_parameter"],
    ),
    "unknown kind of source": (
        lambda p, t: p.source("s", kind="replya", topic=t, path="a"),
        ["unknown_source_kind"],
    ),
    "unknown option": (
        lambda p, t: p.source("s", kind="replay", topic=t, path="a", dely=1),
        ["invalid_options"],
    ),
    "missing option": (lambda p, t: p.source("s", kind="replay", topic=t), ["invalid_options"]),
    "option out of bounds": (
        lambda p, t: p.source("s", kind="replay", topic=t, path="a", delay_s=-1),
        ["invalid_options"],
    ),
    "source's topic": (
        lambda p, t: p.source("s", kind="replay", topic="x", path="a"),
        ["unknown_topic"],
    ),
    "window of nothing": (lambda p, t: _view(p, tumbling("0 s")), ["bad_window"]),
    "window's length": (lambda p, t: _view(p, tumbling("1 moon")), ["bad_duration"]),
    "window's step": (lambda p, t: _view(p, hopping("1 min", every="2 min")), ["bad_window"]),
    "too many windows": (lambda p, t: _view(p, hopping("1 d", every="1 ms")), ["bad_window"]),
    "window's column": (lambda p, t: _view(p, tumbling("1 min", on="host")), None),
}


class Reserved(Record):
    received_at: str


def _view(pipeline, window):
    pipeline.view("w", "SELECT count(*) AS n FROM events", window=window)


@pytest.mark.parametrize("case", DECLARED)
def test_declarations_that_cannot_be(case):
    declare, expected = DECLARED[case]
    found = codes(declare)
    if expected is None:
        assert len(found) == 1
    else:
        assert found == expected


def test_a_table_over_topics_that_do_not_fit():
    def declare(p, events):
        others = p.topic("others", Outer, store=False)
        p.table(
            "t",
            {
                events: "SELECT n AS a, host AS b FROM events",
                others: "SELECT detail.x::INTEGER AS a, 1 AS c FROM others",
            },
        )

    (problem,) = problems_of(declare)
    assert problem.code == "different_columns"
    for part in ("'b' is missing", "'c' is one too many", "'a' is INTEGER, not BIGINT"):
        assert part in problem.message


def test_one_mistake_makes_one_problem():
    def declare(p, _):
        bad = p.topic("bad", Reserved)
        p.route("/bad", bad)
        p.table("t", "SELECT received_at FROM bad")
        p.table("u", {bad: "SELECT received_at FROM bad"})
        p.view("v", "SELECT count(*) AS n FROM t")
        p.query("/q", "SELECT n FROM v")

    assert codes(declare) == ["reserved_column"]


@pytest.mark.parametrize(
    ("options", "code"),
    [
        ({"every": "soon"}, "bad_duration"),
        ({"horizon": 5}, "bad_duration"),
        ({"epoch_bytes_max": 0}, "invalid_options"),
        ({"epoch_records_max": -1}, "invalid_options"),
        ({"every": "0 s"}, "invalid_options"),
        ({"evry": "1 s"}, "invalid_options"),
    ],
)
def test_pipeline_options_that_cannot_be(options, code):
    found = check(Pipeline("p", **options))
    assert [p.code for p in found] == [code]


def test_a_pipeline_s_name():
    assert [p.code for p in check(Pipeline("a/b"))] == ["bad_name"]


FILE = '''\
from headrace import Pipeline, Record

pipeline = Pipeline("p")


class Event(Record):
    b: str
    a: int | bool


class Other(Record):
    b: str


events = pipeline.topic("events", Event)
others = pipeline.topic("others", Other)
pipeline.route("/healthz", others)
pipeline.table(
    "t",
    """
    SELECT b,
           c,
           now() AS t
    FROM others
    """,
)
pipeline.view("v", "SELECT count(*) AS n FROM nothing")
pipeline.source("s", kind="x", topic=others)
'''


def test_all_faults_of_a_file_come_at_once_each_with_its_line(tmp_path):
    file = tmp_path / "pipeline.py"
    file.write_text(FILE)
    found = check_file(file, KINDS)
    assert [(p.line, p.code) for p in found] == [
        (8, "bad_annotation"),
        (17, "shadowed_path"),
        (22, "unknown_column"),
        (23, "not_deterministic"),
        (27, "unknown_relation"),
        (28, "unknown_source_kind"),
    ]
    assert {p.file for p in found} == {str(file)}
    assert all(p.hint for p in found)
    assert str(found[1]).startswith(f"{file}:17: '/healthz' shadows")


@pytest.mark.parametrize(
    ("text", "line", "code"),
    [
        ("x = 1\nclass (", 2, "syntax"),
        ("x = 1\n\nraise ValueError('no')\n", 3, "raised"),
        ("x = 1\nimport sys\nsys.exit(3)\n", 3, "raised"),
        ("import nothing_of_the_sort\n", 1, "raised"),
        ("x = 1\n", 1, "no_pipeline"),
        (
            "from headrace import Pipeline\na = Pipeline('a')\nb = Pipeline('b')\n",
            3,
            "several_pipelines",
        ),
    ],
)
def test_a_file_that_cannot_be_loaded(tmp_path, text, line, code):
    file = tmp_path / "pipeline.py"
    file.write_text(text)
    (problem,) = load(file)
    assert (problem.file, problem.line, problem.code) == (str(file), line, code)
    assert check(load(file)) == [problem]


def test_a_file_that_is_not_there(tmp_path: Path):
    assert [p.code for p in load(tmp_path / "none.py")] == ["no_file"]
    assert [p.code for p in load(tmp_path)] == ["no_file"]


def test_hints_name_what_is_near():
    (problem,) = problems_of(lambda p, _: p.table("t", "SELECT hots FROM events"))
    assert problem.hint == "Did you mean `host`?"
    (problem,) = problems_of(lambda p, _: p.view("t", "SELECT count(*) AS n FROM event"))
    assert problem.hint == "Did you mean `events`?"
