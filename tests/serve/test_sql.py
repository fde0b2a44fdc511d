"""`POST /v1/sql`: what may be asked, what is answered, and what is not let through."""

import asyncio
import io
import json
import signal
import sys
from pathlib import Path

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hostile_sql import ENDLESS, OUTSIDE, TOO_LARGE, UNENDING, WRITES

from headrace.serve.sql.workers import WAITING_MAX


def ask(client, sql, **params):
    return client.ask("/v1/sql", "POST", json={"sql": sql}, params=params)


def rows(client, sql, **params):
    answer = ask(client, sql, **params)
    assert answer.status_code == 200, answer.text[:500]
    return answer.json()["rows"]


def refused(client, sql, **params):
    answer = ask(client, sql, **params)
    assert answer.status_code >= 400, answer.text[:500]
    return answer.status_code, answer.json()["error"]


def workers():
    """The SQL workers of this process."""
    found = psutil.Process().children()
    return [p for p in found if "headrace.serve.sql.process" in " ".join(p.cmdline())]


def test_rows_with_types_and_how_far_they_have_come(shop):
    answer = ask(shop, "SELECT host, count(*) AS n FROM sales GROUP BY host ORDER BY host")
    assert answer.status_code == 200, answer.text
    assert answer.json() == {
        "columns": [{"name": "host", "type": "VARCHAR"}, {"name": "n", "type": "BIGINT"}],
        "truncated": False,
        "rows": [
            {"host": "a", "n": 2},
            {"host": "b", "n": 1},
            {"host": "it's", "n": 1},
            {"host": None, "n": 1},
        ],
    }
    assert answer.headers["x-headrace-version"] == '{"sales":1}'
    assert answer.headers["x-headrace-offsets"] == '{"sales":{"events/0":5,"events/1":0}}'
    assert answer.headers["x-headrace-truncated"] == "false"


@pytest.mark.parametrize(
    ("sql", "first"),
    [
        ("SELECT 1 AS a", {"a": 1}),
        ("  -- a remark\nSELECT /* another; */ 1 AS a; -- the end", {"a": 1}),
        ("SELECT 'ß 你好 🐟' AS t", {"t": "ß 你好 🐟"}),
        ('SELECT "odd""name&<more>" AS o FROM sales LIMIT 1', {"o": "it's"}),
        ("FROM sales SELECT max(n) AS m", {"m": 4}),
        ("VALUES (1, 'a')", {"col0": 1, "col1": "a"}),
        ("TABLE by_host", None),
        ("SELECT count(*) AS c FROM tables.sales", {"c": 5}),
        ("SELECT count(*) AS c FROM views.by_host", {"c": 0}),
        ("SELECT count(*) AS c FROM SALES", {"c": 5}),
        ("SELECT count(*) AS c FROM unborn", {"c": 0}),
        ("SELECT count(*) AS c FROM dead_letters", {"c": 0}),
        ("SELECT count(*) AS c, max(cpu_percent) AS p FROM samples", {"c": 0, "p": None}),
        ("WITH s AS (SELECT n FROM sales) SELECT sum(n) AS t FROM s", {"t": 10}),
        ("WITH sales AS (SELECT 7 AS n) SELECT n FROM sales", {"n": 7}),
        ("SELECT a.n FROM sales a JOIN sales b USING (n) ORDER BY 1", {"n": 0}),
        ("SELECT (SELECT count(*) FROM sales) AS c", {"c": 5}),
        ("SELECT 1 AS a UNION ALL SELECT 2 ORDER BY a", {"a": 1}),
        ("SELECT n, sum(n) OVER (ORDER BY n) AS s FROM sales ORDER BY n DESC", {"n": 4, "s": 10}),
        ("SELECT unnest([3, 4]) AS u", {"u": 3}),
        ("SELECT i FROM range(2) t(i)", {"i": 0}),
        ("SELECT value FROM json_each('[5]')", {"value": "5"}),
        ("PIVOT (SELECT host, n FROM sales) ON host IN ('a') USING sum(n)", None),
        ("SELECT 1 AS n, 2 AS n", {"n": 1, "n_1": 2}),
        ("SELECT extra['k'] AS k, place.city AS c FROM sales LIMIT 1", {"k": 0, "c": "Oslo"}),
        ("SELECT max(received_at) AS t FROM sales", {"t": "2026-01-01T00:00:04.000000Z"}),
        ("SELECT TIMESTAMPTZ '2026-01-01 12:00:00+02' AS t", {"t": "2026-01-01T10:00:00.000000Z"}),
    ],
)
def test_one_select_of_any_shape(shop, sql, first):
    found = rows(shop, sql)
    assert first is None or found[0] == first


def test_columns_are_described(shop):
    described = rows(shop, "DESCRIBE sales")
    assert {r["column_name"] for r in described} >= {"host", "price", "n"}
    assert {r["name"] for r in rows(shop, "SHOW TABLES")} == {
        "by_host",
        "dead_letters",
        "sales",
        "samples",
        "unborn",
    }
    assert rows(shop, "SUMMARIZE SELECT n FROM sales")[0]["max"] == "4"


def test_formats(shop):
    sql = "SELECT n, host FROM sales ORDER BY n"
    wanted = [(0, "a"), (1, "b"), (2, None), (3, "a"), (4, "it's")]

    def body(format_):
        return ask(shop, sql, format=format_).content

    lines = body("ndjson").splitlines()
    assert [tuple(json.loads(line).values()) for line in lines] == wanted
    assert body("csv").decode().splitlines()[:3] == ['"n","host"', '0,"a"', '1,"b"']
    table = pa.ipc.open_stream(body("arrow")).read_all()
    assert [tuple(r.values()) for r in table.to_pylist()] == wanted
    table = pq.read_table(io.BytesIO(body("parquet")))
    assert [tuple(r.values()) for r in table.to_pylist()] == wanted


@pytest.mark.parametrize("format_", ["json", "ndjson", "csv", "arrow", "parquet"])
def test_many_rows_come_whole_in_every_format(shop, format_):
    sql = "SELECT i AS n, 'text ' || i AS t FROM range(60000) r(i)"
    answer = ask(shop, sql, format=format_, limit=55_000)
    assert answer.headers["x-headrace-truncated"] == "true"
    match format_:
        case "json":
            found = [r["n"] for r in answer.json()["rows"]]
        case "ndjson":
            found = [json.loads(line)["n"] for line in answer.content.splitlines()]
        case "csv":
            found = [int(line.split(",")[0]) for line in answer.text.splitlines()[1:]]
        case "arrow":
            found = pa.ipc.open_stream(answer.content).read_all().column("n").to_pylist()
        case _:
            found = pq.read_table(io.BytesIO(answer.content)).column("n").to_pylist()
    assert found == list(range(55_000))


def test_no_rows_are_a_result(shop):
    assert rows(shop, "SELECT n FROM sales WHERE n > 9") == []
    assert ask(shop, "SELECT n FROM sales WHERE n > 9", format="csv").text == '"n"\n'
    assert ask(shop, "SELECT n FROM sales WHERE n > 9", format="ndjson").text == ""


@pytest.fixture(scope="module")
def inside(shop):
    """A file of a table, one of another, and their folder."""
    folder = Path(shop.app.state.readings.catalog.snapshots.newest("tables/sales").root)
    other = folder.parent.parent / "system"
    file = next(folder.glob("*.parquet"))
    return {"file": file, "folder": folder, "other": next(other.rglob("*.parquet"), file)}


@pytest.fixture
def untouched(inside):
    """Check that nothing below the data directory is other than before."""
    root = inside["folder"].parent.parent

    def seen():
        return {p: p.stat().st_mtime_ns for p in root.rglob("*") if p.is_file()}

    before = seen()
    yield
    assert {p: t for p, t in seen().items() if "run" not in p.parts} == {
        p: t for p, t in before.items() if "run" not in p.parts
    }


@pytest.mark.parametrize("sql", OUTSIDE)
def test_nothing_outside_the_tables_is_read(shop, inside, untouched, sql):
    status, error = refused(shop, sql.format(**inside))
    assert status in {400, 403, 404}
    assert error["code"] in {"not_allowed", "unknown_table", "invalid_sql"}
    assert "root:" not in error["message"]


@pytest.mark.parametrize("sql", WRITES)
def test_nothing_but_one_select_is_run(shop, inside, untouched, sql):
    status, error = refused(shop, sql.format(**inside))
    assert (status, error["code"]) in {(400, "not_a_select"), (400, "invalid_sql")}
    assert rows(shop, "SELECT count(*) AS c FROM sales") == [{"c": 5}]


@pytest.mark.parametrize(
    ("sql", "code", "word"),
    [
        ("SELECT * FROM sale", "unknown_table", "Did you mean sales?"),
        ("SELECT hots FROM sales", "invalid_sql", "host"),
        ("SELECT nosuch(1)", "invalid_sql", "nosuch"),
        ("SELECT CAST('x' AS INTEGER)", "invalid_value", "x"),
        ("SELECT n + host FROM sales", "invalid_sql", "+"),
        ("SELECT 9223372036854775807 + 1", "invalid_value", "Overflow"),
        ("SELECT error('mine')", "invalid_value", "mine"),
    ],
)
def test_a_mistake_is_told_in_words(shop, sql, code, word):
    _, error = refused(shop, sql)
    assert error["code"] == code
    assert word in error["message"] + error["hint"]


def test_what_json_cannot_say_is_refused_before_the_first_byte(shop):
    sql = "SELECT CASE WHEN i = 15000 THEN DATE '294247-01-10' END AS x FROM range(20000) t(i)"
    status, error = refused(shop, sql, limit=20_000)
    assert (status, error["code"]) == (422, "not_representable")
    assert ask(shop, sql, limit=20_000, format="arrow").status_code == 200


@pytest.mark.parametrize(
    "sql",
    UNENDING,
)
def test_a_query_without_end_is_stopped_and_its_worker_goes_on(shop, sql):
    status, error = refused(shop, sql, timeout=1)
    assert (status, error["code"]) == (504, "query_timeout")
    assert rows(shop, "SELECT 1 AS a") == [{"a": 1}]


@pytest.mark.parametrize(
    "sql",
    TOO_LARGE,
)
def test_a_query_that_needs_too_much_memory_is_refused(shop, sql):
    status, error = refused(shop, sql, timeout=20, limit=1_000_000)
    assert error["code"] in {
        "query_memory",
        "query_broke_off",
        "query_timeout",
        "invalid_value",
        "invalid_sql",
    }
    assert status in {400, 422, 503, 504}
    assert rows(shop, "SELECT 1 AS a") == [{"a": 1}]


def test_deep_and_long_statements_are_refused(shop):
    assert refused(shop, f"SELECT {'(' * 20_000}1{')' * 20_000}")[0] in {400, 503}
    assert refused(shop, f"SELECT {'-' * 5}{'1+' * 40_000}1")[0] in {400, 503}
    assert refused(shop, f"SELECT '{'x' * 200_000}'")[1]["code"] == "invalid_sql"
    assert rows(shop, "SELECT 1 AS a") == [{"a": 1}]


def test_a_worker_that_dies_is_replaced(shop):
    rows(shop, "SELECT 1")
    (worker, *_) = workers()
    worker.send_signal(signal.SIGKILL)
    worker.wait()
    status, error = refused(shop, "SELECT 1")
    assert (status, error["code"]) == (503, "query_broke_off")
    assert rows(shop, "SELECT 1 AS a") == [{"a": 1}]


def test_a_worker_has_nothing_to_give_away(shop):
    rows(shop, "SELECT 1")
    worker = workers()[0]
    assert worker.environ() == {}
    assert worker.cwd() == "/"
    assert worker.nice() == 19
    if sys.platform == "linux":
        assert worker.rlimit(psutil.RLIMIT_FSIZE) == (0, 0)
        assert Path(f"/proc/{worker.pid}/oom_score_adj").read_text() == "1000\n"
        assert "NoNewPrivs:\t1" in Path(f"/proc/{worker.pid}/status").read_text()


def test_more_statements_than_workers_wait_and_too_many_are_told_to_come_back(client):
    async def flood():
        asked = [
            client.http.post("/v1/sql", json={"sql": ENDLESS}, params={"timeout": 1})
            for _ in range(2 * WAITING_MAX)
        ]
        return await asyncio.gather(*asked)

    before = set(workers())
    answers = client.runner.run(flood())
    codes = [a.json()["error"]["code"] for a in answers]
    assert set(codes) == {"query_timeout", "busy"}
    assert 1 <= len(set(workers()) - before) <= 2
    busy = next(a for a in answers if a.json()["error"]["code"] == "busy")
    assert (busy.status_code, busy.headers["retry-after"]) == (503, "1")
    assert rows(client, "SELECT 1 AS a") == [{"a": 1}]


def test_no_worker_outlives_the_application(make_client):
    client = make_client()
    before = set(workers())
    rows(client, "SELECT 1")
    mine = set(workers()) - before
    assert mine
    client.close()
    assert not any(p.is_running() for p in mine)


def test_the_newest_rows_are_read(world, client):
    world.epoch([world.sale(0)])
    assert rows(client, "SELECT count(*) AS c FROM sales") == [{"c": 1}]
    world.epoch([world.sale(1), world.sale(2)])
    assert rows(client, "SELECT count(*) AS c FROM sales", at_least="events/0=3") == [{"c": 3}]
    status, error = refused(client, "SELECT 1 FROM sales", at_least="events/0=9", timeout=0)
    assert (status, error["code"]) == (504, "not_yet")
    status, error = refused(client, "SELECT 1 FROM sales", at_least="nosuch/0=1", timeout=0)
    assert (status, error["code"]) == (400, "invalid_parameter")
    assert rows(client, "SELECT 1 AS a") == [{"a": 1}]


@pytest.mark.parametrize(
    ("more", "code"),
    [
        ({"content": b"SELECT 1"}, "unsupported_media_type"),
        ({"json": {}}, "invalid_body"),
        ({"json": {"sql": 1}}, "invalid_body"),
        ({"json": {"sql": "SELECT 1", "more": 1}}, "invalid_body"),
        ({"json": {"sql": "SELECT 1"}, "params": {"limit": 0}}, "invalid_parameter"),
        ({"json": {"sql": "SELECT 1"}, "params": {"limit": 10**7}}, "invalid_parameter"),
        ({"json": {"sql": "SELECT 1"}, "params": {"format": "xml"}}, "invalid_parameter"),
        ({"json": {"sql": "SELECT 1"}, "params": {"nosuch": 1}}, "unknown_parameter"),
    ],
)
def test_requests_that_cannot_be_used(shop, more, code):
    assert shop.ask("/v1/sql", "POST", **more).json()["error"]["code"] == code


def test_tables_far_away_are_brought_first(far):
    world, client = far
    world.epoch([world.sale(0), world.sale(1)])
    assert rows(client, "SELECT sum(n) AS s FROM sales") == [{"s": 1}]
