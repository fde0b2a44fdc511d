"""What a view's SQL may say, what is refused and why, and how its columns come out."""

from __future__ import annotations

import pytest

from headrace.define.types import open_duckdb
from headrace.define.view_sql import compile_view
from headrace.model.errors import Invalid
from headrace.model.plan import Column, Window

COLUMNS = (
    Column("event_id", "VARCHAR"),
    Column("received_at", "TIMESTAMPTZ"),
    Column("Host", "VARCHAR"),
    Column("n", "BIGINT"),
    Column("price", "DECIMAL(10,2)"),
    Column("properties", 'STRUCT("host" VARCHAR, "size" BIGINT)'),
    Column("tags", "VARCHAR[]"),
)
TABLES = {"events": COLUMNS, "other": COLUMNS}


def view(sql, window=None):
    return compile_view(name="v", sql=sql, tables=TABLES, window=window)


def types(sql, window=None):
    return [(c.name, c.type) for c in view(sql, window).columns]


def test_columns_have_types_that_are_stored():
    got = types(
        "SELECT Host, count(*) AS c, sum(n) AS s, sum(price) AS p, avg(n) AS a, "
        "max(received_at) AS hi, CAST(received_at AS TIMESTAMP) AS t, max(n)::UBIGINT AS u "
        "FROM events GROUP BY Host, t"
    )
    assert got == [
        ("Host", "VARCHAR"),
        ("c", "BIGINT"),
        ("s", "DECIMAL(38,0)"),
        ("p", "DECIMAL(38,2)"),
        ("a", "DOUBLE"),
        ("hi", "TIMESTAMPTZ"),
        ("t", "TIMESTAMPTZ"),
        ("u", "DECIMAL(20,0)"),
    ]


def test_a_window_adds_its_columns_to_key_and_rows():
    compiled = view(
        "SELECT Host, count(*) AS c FROM events GROUP BY 1", Window("received_at", 9, 3)
    )
    names = [c.name for c in compiled.columns]
    assert names == ["window_start", "window_end", "Host", "c", "watermark_passed"]
    assert compiled.key == ("window_start", "window_end", "Host")


def test_only_what_is_needed_is_read():
    assert view("SELECT Host, count(*) AS c FROM events GROUP BY Host").reads == ("Host",)
    assert view("SELECT first(n) AS c FROM events").reads == ("event_id", "received_at", "n")
    assert len(view("SELECT count(*) AS c FROM events").reads) == 1


def test_names_are_found_in_any_case_and_through_aliases():
    compiled = view(
        'SELECT e.HOST AS h, properties.size AS size, count(*) AS "C" FROM events e '
        "WHERE size > 1 GROUP BY h, size HAVING c > 1"
    )
    assert compiled.key == ("h", "size")
    assert compiled.reads == ("Host", "properties")


def test_the_fingerprint_tells_builds_apart():
    one = view("SELECT n, count(*) AS c FROM events GROUP BY n")
    same = view("select n , COUNT(*) as c from events group by 1")
    other = view("SELECT n, count(*) AS c FROM events WHERE n > 0 GROUP BY n")
    assert one.fingerprint == same.fingerprint
    assert one.fingerprint != other.fingerprint


def test_grouping_sets_may_have_no_keys_at_all():
    compiled = view("SELECT count(*) AS c FROM events GROUP BY GROUPING SETS (())")
    assert compiled.key == ()


def test_the_same_state_is_kept_once():
    compiled = view("SELECT avg(n) AS a, sum(n) AS s, sum(n) / count(n) AS r FROM events")
    assert [c.name for c in compiled.parts[0].columns] == ["a0", "a1", "a2"]


@pytest.mark.parametrize(
    ("sql", "what", "hint"),
    [
        ("SELECT n FROM events ORDER BY n", "ORDER BY", "sort in the query"),
        ("SELECT n FROM events GROUP BY n LIMIT 3", "LIMIT", "first rows"),
        ("SELECT DISTINCT n FROM events", "DISTINCT", "group by"),
        ("SELECT n, row_number() OVER () AS r FROM events", "window functions", "rank"),
        ("SELECT count(*) AS c FROM events JOIN other USING (n)", "a join", "table"),
        ("SELECT count(*) AS c FROM events, other", "a join", "table"),
        ("SELECT (SELECT 1) AS one, count(*) AS c FROM events", "a subquery", "table"),
        ("SELECT count(*) AS c FROM (SELECT * FROM events)", "a subquery", "table"),
        ("SELECT count(*) AS c FROM events WHERE n IN (SELECT 1)", "a subquery", "table"),
        ("SELECT n FROM events UNION SELECT n FROM other", "UNION", "one table"),
        ("WITH a AS (SELECT 1) SELECT count(*) AS c FROM events", "WITH", "one SELECT"),
        ("SELECT unnest(tags) AS tag, count(*) AS c FROM events GROUP BY 1", "UNNEST", "table"),
        ("SELECT now() AS t, count(*) AS c FROM events", "now", "received_at"),
        ("SELECT current_date AS t, count(*) AS c FROM events", "current_date", "received_at"),
        ("SELECT random() > 0.5 AS t, count(*) AS c FROM events GROUP BY 1", "random", "column"),
        ("SELECT max(age(received_at::TIMESTAMP)) AS a FROM events", "age", "received_at"),
        ("SELECT string_agg(Host, ',') AS s FROM events", "string_agg", "where the view is read"),
        ("SELECT list(n) AS s FROM events", "array_agg", "where the view is read"),
        ("SELECT mode(n) AS s FROM events", "mode", "where the view is read"),
        ("SELECT any_value(n) AS s FROM events", "any_value", "first(x)"),
        ("SELECT kurtosis(n) AS s FROM events", "kurtosis", "count, sum, avg"),
        ("SELECT sum(DISTINCT n) AS s FROM events", "sum(DISTINCT", "count(DISTINCT x)"),
        ("SELECT min(n, 3) AS s FROM events", "min(x, n)", "group by"),
        ("SELECT arg_max(Host, n, 3) AS s FROM events", "arg_max(x, y, n)", "one row"),
        ("SELECT * FROM events", "*", "name the columns"),
        ("SELECT tags, count(*) AS c FROM events GROUP BY tags", "groups by", "CAST"),
        ("SELECT max(received_at - received_at) AS m FROM events", "INTERVAL", "epoch"),
        ("SELECT avg(received_at) AS m FROM events", "avg of", "epoch"),
        ("SELECT count(*) AS c FROM read_csv('x')", "one table", "tables:"),
        (
            "SELECT n, count(*) AS c FROM events GROUP BY GROUPING SETS ((n), (n))",
            "same grouping set",
            "once",
        ),
    ],
)
def test_what_cannot_be_maintained_is_refused_with_a_way_out(sql, what, hint):
    with pytest.raises(Invalid) as raised:
        view(sql)
    assert raised.value.code == "not_maintainable"
    assert what in raised.value.message
    assert hint in raised.value.hint


@pytest.mark.parametrize(
    ("sql", "code", "message"),
    [
        ("SELECT nope, count(*) AS c FROM events GROUP BY nope", "sql", "nope"),
        ("SELECT count(*) AS c FROM missing", "unknown_table", "missing"),
        ("SELECT n, Host FROM events GROUP BY n", "sql", "GROUP BY"),
        ("SELECT count(*) AS c FROM events GROUP BY n", "key_not_selected", "n"),
        ("SELECT n, count(*) FROM events GROUP BY n", "column_name", "no name"),
        ('SELECT n, count(*) AS "a b" FROM events GROUP BY n', "column_name", "a b"),
        ("SELECT n, count(*) AS N FROM events GROUP BY 1", "column_name", "Two output columns"),
        ("SELECT sum(Host) AS s FROM events", "sql", "sum"),
        ("SELECT FROM WHERE", "sql_syntax", "does not parse"),
        ("DELETE FROM events", "sql", "is a SELECT"),
        ("SELECT count(*) AS c FROM events; SELECT 1", "sql", "one statement"),
        ("SELECT quantile_cont(n, -0.5) AS q FROM events", "sql", "0 to 1"),
    ],
)
def test_wrong_sql_is_refused(sql, code, message):
    with pytest.raises(Invalid) as raised:
        view(sql)
    assert raised.value.code == code
    assert message in raised.value.message


@pytest.mark.parametrize("on", ["n", "nope"])
def test_a_window_is_on_a_timestamp(on):
    with pytest.raises(Invalid) as raised:
        view("SELECT count(*) AS c FROM events", Window(on, 60, 60))
    assert raised.value.code == "window"
    assert "received_at" in raised.value.hint


@pytest.mark.parametrize(
    "sql",
    [
        "Host ->> 'dwc:kingdom'",
        "Host ->> 'a.b'",
        "log2(n)",
        "date_trunc('hour', received_at)",
        "list_transform(tags, lambda t: t || 'x')[1]",
        "time_bucket(INTERVAL 5 minutes, received_at)",
        "TRY_CAST(Host AS DOUBLE) // 2",
        "properties.host[1:2]",
    ],
)
def test_functions_are_left_as_they_were_written(sql):
    with open_duckdb() as con:
        columns = ", ".join(f'"{c.name}" {c.type}' for c in COLUMNS)
        con.execute(f"CREATE TABLE events ({columns})")
        written = view(f"SELECT {sql} AS k, count(*) AS c FROM events GROUP BY ALL").sql
        con.execute("SET explain_output = 'all'")
        original = f"SELECT {sql} AS k, count(*) AS c FROM events GROUP BY {sql}"
        plans = [con.execute(f"EXPLAIN {q}").fetchall()[0] for q in (written, original)]
    assert plans[0] == plans[1]
