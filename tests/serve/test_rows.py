"""Tables and views as pages of rows: filters, order, cursors, formats, bad requests."""

import base64
import io
import json

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
import pytest

HOSTILE = [
    "'; DROP TABLE sales; --",
    '" OR 1=1 --',
    "a' OR 'a'='a",
    "a') UNION SELECT 1 --",
    "$1",
    "?",
    "{by}",
    "\x00",
    "%27%20OR%201=1",
    "a\\",
    "(SELECT 1)",
    "read_csv('/etc/passwd')",
    "ß語" * 50,
    "a" * 5000,
]


@pytest.fixture
def sales(world):
    hosts = ["a", "b", None, "a", "it's"]
    world.epoch([world.sale(i, host) for i, host in enumerate(hosts)])
    return world


def numbers(rows):
    return [r["n"] for r in rows]


def refused(client, path, **params):
    answer = client.get(path, **params)
    error = answer.json()["error"]
    assert answer.status_code == 400, answer.text
    assert error["message"]
    assert "Traceback" not in answer.text
    return error


def test_values_in_json(shop):
    row = shop.rows("/v1/tables/sales", n=1)[0]
    assert row == {
        "host": "b",
        "price": 0.5,
        "amount": 1.5,
        "total": 100000000000000000001,
        "n": 1,
        "paid": False,
        "day": "2026-01-02",
        "tags": ["x", None],
        "extra": {"k": 1},
        "place": {"city": "Oslo", "at": "2026-01-01T00:00:00Z"},
        "raw": "AP8=",
        'odd"name&<more>': "it's",
        "event_id": "00000000-0000-7000-8000-000000000001",
        "received_at": "2026-01-01T00:00:01.000000Z",
        "_topic": "events",
        "_partition": 0,
        "_offset": 1,
    }


def test_numbers_keep_all_their_digits_and_what_is_no_number_is_null(client, sales):
    sales.epoch(
        [
            sales.sale(10, n=2**63 - 1, price=float("nan")),
            sales.sale(11, n=-(2**63), price=float("inf")),
        ]
    )
    text = client.get("/v1/tables/sales", n__in="9223372036854775807,-9223372036854775808").text
    assert '"n":9223372036854775807' in text
    assert '"n":-9223372036854775808' in text
    assert text.count('"price":null') == 2
    assert '"amount":1.50' in text


@pytest.mark.parametrize(
    ("params", "expected"),
    [
        ({"host": "a"}, [0, 3]),
        ({"host": "it's"}, [4]),
        ({"host__ne": "a"}, [1, 4]),
        ({"host__null": "true"}, [2]),
        ({"host__null": "false"}, [0, 1, 3, 4]),
        ({"host__in": "a,b"}, [0, 1, 3]),
        ({"host__prefix": "it"}, [4]),
        ({"n__ge": "3"}, [3, 4]),
        ({"n__gt": "3"}, [4]),
        ({"n__le": "1"}, [0, 1]),
        ({"n__lt": "1"}, [0]),
        ({"n__ge": "1", "n__lt": "3"}, [1, 2]),
        ({"n__eq": "3"}, [3]),
        ({"price": "1.5"}, [3]),
        ({"price__gt": "1e0"}, [3, 4]),
        ({"amount": "1.5"}, [0, 1, 2, 3, 4]),
        ({"amount__gt": "1.49"}, [0, 1, 2, 3, 4]),
        ({"total": "100000000000000000002"}, [2]),
        ({"paid": "true"}, [0, 2, 4]),
        ({"day": "2026-01-02", "n": "0"}, [0]),
        ({"received_at__ge": "2026-01-01T00:00:03Z"}, [3, 4]),
        ({"received_at__lt": "2026-01-01T01:00:01+01:00"}, [0]),
        ({'odd"name&<more>': "it's"}, [0, 1, 2, 3, 4]),
        ({'odd"name&<more>__ne': "it's"}, []),
        ({"tags__null": "false"}, [0, 1, 2, 3, 4]),
    ],
)
def test_filters(shop, params, expected):
    assert numbers(shop.rows("/v1/tables/sales", **params)) == expected


def test_a_plus_sign_that_arrives_as_a_space_is_still_a_zone(shop):
    answer = shop.ask("/v1/tables/sales?received_at__lt=2026-01-01T01:00:01+01:00")
    assert numbers(answer.json()["rows"]) == [0]


@pytest.mark.parametrize(
    ("order", "expected"),
    [
        ("-n", [4, 3, 2, 1, 0]),
        ("host,-n", [3, 0, 1, 4, 2]),
        ("-host,n", [4, 1, 0, 3, 2]),
        ("paid,-received_at", [3, 1, 4, 2, 0]),
    ],
)
def test_order_puts_null_last(shop, order, expected):
    assert numbers(shop.rows("/v1/tables/sales", order=order)) == expected


@pytest.mark.parametrize("order", ["", "-n", "host", "-host", "host,-price", "paid", "tags", "raw"])
@pytest.mark.parametrize("limit", [1, 2, 3, 5])
def test_pages_together_are_the_table(shop, order, limit):
    whole = numbers(shop.rows("/v1/tables/sales", order=order))
    assert sorted(whole) == [0, 1, 2, 3, 4]
    seen, answer = [], shop.get("/v1/tables/sales", order=order, limit=limit)
    for _ in range(10):
        body = answer.json()
        assert len(body["rows"]) <= limit
        seen += numbers(body["rows"])
        if body["next"] is None:
            assert "next" not in answer.links
            break
        assert answer.links["next"]["url"].startswith("/v1/tables/sales?")
        answer = shop.ask(answer.links["next"]["url"])
    assert seen == whole


def test_pages_over_values_that_are_no_numbers(client, sales):
    sales.epoch([sales.sale(10, price=float("nan")), sales.sale(11, price=None)])
    seen, cursor = [], {}
    while cursor is not None:
        body = client.get("/v1/tables/sales", order="-price", limit=1, **cursor).json()
        seen += numbers(body["rows"])
        cursor = {"cursor": body["next"]} if body["next"] else None
    assert seen == [10, 4, 3, 2, 1, 0, 11]


def test_rows_that_are_added_before_a_cursor_do_not_shift_the_next_page(client, sales):
    first = client.get("/v1/tables/sales", order="-n", limit=2).json()
    sales.epoch([sales.sale(5)])
    second = client.get("/v1/tables/sales", order="-n", limit=2, cursor=first["next"]).json()
    assert numbers(first["rows"]) + numbers(second["rows"]) == [4, 3, 2, 1]


def test_only_the_columns_asked_for(shop):
    answer = shop.get("/v1/tables/sales", columns="n,host", limit=1).json()
    assert answer["rows"] == [{"n": 0, "host": "a"}]
    assert answer["next"]


def test_ndjson(shop):
    answer = shop.get("/v1/tables/sales", columns="n", format="ndjson")
    assert answer.headers["content-type"] == "application/x-ndjson"
    assert [json.loads(line) for line in answer.text.splitlines()] == [{"n": i} for i in range(5)]


def test_csv(shop):
    answer = shop.get("/v1/tables/sales", format="csv")
    assert answer.headers["content-type"] == "text/csv; charset=utf-8"
    rows = pa.csv.read_csv(io.BytesIO(answer.content)).to_pylist()
    assert len(rows) == 5
    assert rows[1]["n"] == 1
    assert rows[1]["raw"] == "AP8="
    assert json.loads(rows[1]["tags"]) == ["x", None]
    assert json.loads(rows[1]["extra"]) == {"k": 1}
    assert "2026-01-01T00:00:01.000000Z" in answer.text


def test_parquet_and_arrow_have_the_types(shop):
    parquet = shop.get("/v1/tables/sales", format="parquet")
    arrow = shop.get("/v1/tables/sales", format="arrow")
    assert parquet.headers["content-type"] == "application/vnd.apache.parquet"
    assert arrow.headers["content-type"] == "application/vnd.apache.arrow.stream"
    tables = [
        pa.parquet.read_table(io.BytesIO(parquet.content)),
        pa.ipc.open_stream(arrow.content).read_all(),
    ]
    for table in tables:
        assert table.column("n").to_pylist() == [0, 1, 2, 3, 4]
        assert table.column("raw")[0].as_py() == b"\x00\xff"
        assert table.schema.field("amount").type == pa.decimal128(20, 2)
        assert table.schema.field("received_at").type == pa.timestamp("us", tz="UTC")


def test_bulk_formats_page_too(shop):
    answer = shop.get("/v1/tables/sales", format="csv", columns="n", limit=3)
    assert answer.text.split() == ['"n"', "0", "1", "2"]
    assert shop.ask(answer.links["next"]["url"]).text.split() == ['"n"', "3", "4"]


@pytest.mark.parametrize(
    ("accept", "media"),
    [
        ("text/csv", "text/csv; charset=utf-8"),
        ("application/json", "application/json"),
        ("application/vnd.apache.parquet", "application/vnd.apache.parquet"),
        ("application/x-ndjson;q=0.9, text/csv;q=0.8", "application/x-ndjson"),
        ("text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8", "application/json"),
        ("image/png;q=x, */*", "application/json"),
    ],
)
def test_the_accept_header_chooses(shop, accept, media):
    answer = shop.ask("/v1/tables/sales", headers={"accept": accept})
    assert answer.headers["content-type"] == media


def test_an_accept_header_that_cannot_be_met(shop):
    answer = shop.ask("/v1/tables/sales", headers={"accept": "image/png"})
    assert answer.status_code == 406
    assert answer.json()["error"]["code"] == "not_acceptable"


@pytest.mark.parametrize(
    ("params", "code"),
    [
        ({"hots": "a"}, "unknown_parameter"),
        ({"host__like": "a"}, "unknown_parameter"),
        ({"n": "5.7"}, "invalid_parameter"),
        ({"n": "abc"}, "invalid_parameter"),
        ({"n": ""}, "invalid_parameter"),
        ({"n": "9223372036854775808"}, "invalid_parameter"),
        ({"n": "1" * 1000}, "invalid_parameter"),
        ({"n": "٣"}, "invalid_parameter"),
        ({"_partition": "2147483648"}, "invalid_parameter"),
        ({"n__in": "1,,2"}, "invalid_parameter"),
        ({"price": "nan"}, "invalid_parameter"),
        ({"price": "1e999"}, "invalid_parameter"),
        ({"price": "1_0"}, "invalid_parameter"),
        ({"price": "."}, "invalid_parameter"),
        ({"amount": "1.505"}, "invalid_parameter"),
        ({"amount": "1e30"}, "invalid_parameter"),
        ({"total": "9" * 39}, "invalid_parameter"),
        ({"paid": "yes"}, "invalid_parameter"),
        ({"day": "2026-02-30"}, "invalid_parameter"),
        ({"day": "yesterday"}, "invalid_parameter"),
        ({"received_at": "2026-01-01"}, "invalid_parameter"),
        ({"received_at": "2026-01-01T00:00:00"}, "invalid_parameter"),
        ({"received_at": "1767225600"}, "invalid_parameter"),
        ({"received_at": "0001-01-01T00:00:00+12:00"}, "invalid_parameter"),
        ({"tags": "x"}, "invalid_filter"),
        ({"raw": "x"}, "invalid_filter"),
        ({"n__prefix": "1"}, "invalid_filter"),
        ({"host__null": "maybe"}, "invalid_parameter"),
        ({"order": "nope"}, "invalid_parameter"),
        ({"order": "n,-n"}, "invalid_parameter"),
        ({"columns": "nope"}, "invalid_parameter"),
        ({"limit": "0"}, "invalid_parameter"),
        ({"limit": "-1"}, "invalid_parameter"),
        ({"limit": "10001"}, "invalid_parameter"),
        ({"limit": "ten"}, "invalid_parameter"),
        ({"limit": ["1", "2"]}, "repeated_parameter"),
        ({"cursor": "nonsense"}, "invalid_parameter"),
        ({"cursor": "é"}, "invalid_parameter"),
        ({"cursor": base64.urlsafe_b64encode(b'[["n"],["1"]]').decode()}, "invalid_cursor"),
        ({"format": "xml"}, "invalid_parameter"),
        ({"timeout": "31"}, "invalid_parameter"),
        ({"timeout": "nan"}, "invalid_parameter"),
        ({"at_least": "events"}, "invalid_parameter"),
        ({"at_least": "events/0:x"}, "invalid_parameter"),
        ({"at_least": "events/x:1"}, "invalid_parameter"),
        ({"at_least": "events/0:-1"}, "invalid_parameter"),
        ({"at_least": "events/0:99999999999999999999"}, "invalid_parameter"),
        ({"at_least": "other/0:1"}, "invalid_parameter"),
        ({"at_least": "events/7:1"}, "invalid_parameter"),
        ({f"x{i}": "1" for i in range(101)}, "too_many_parameters"),
    ],
)
def test_bad_requests_are_refused(shop, params, code):
    assert refused(shop, "/v1/tables/sales", **params)["code"] == code


def test_a_misspelt_filter_is_told_the_right_name(shop):
    assert "Did you mean host?" in refused(shop, "/v1/tables/sales", hots="a")["hint"]


def test_a_cursor_made_up_for_the_right_order_finds_no_way_into_sql(shop):
    order = ["received_at", "_topic", "_partition", "_offset"]
    for text in HOSTILE:
        cursor = json.dumps([order, [text, text, text, text]]).encode()
        answer = shop.get("/v1/tables/sales", cursor=base64.urlsafe_b64encode(cursor).decode())
        assert answer.status_code == 400
        assert answer.json()["error"]["code"] in {"invalid_value", "invalid_parameter"}


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_texts_are_values_and_nothing_else(shop, text):
    assert shop.rows("/v1/tables/sales", host=text) == []
    assert shop.rows("/v1/tables/sales", host__in=text) == []
    assert shop.rows("/v1/tables/sales", host__prefix=text) == []
    assert len(shop.rows("/v1/tables/sales", host__ne=text)) == 4
    for params in ({text: "1"}, {"order": text}, {"columns": text}, {"n": text}, {"limit": text}):
        refused(shop, "/v1/tables/sales", **params)
    assert len(shop.rows("/v1/tables/sales")) == 5


def test_hostile_texts_are_found_where_they_are_stored(client, sales):
    sales.epoch([sales.sale(100 + i, text) for i, text in enumerate(HOSTILE)])
    for i, text in enumerate(HOSTILE):
        assert numbers(client.rows("/v1/tables/sales", host=text)) == [100 + i]


def test_names_that_are_no_tables(shop):
    for name in ("nope", "by_host", "system", "..", "sales'--", "%2e%2e%2fsystem%2fledger"):
        answer = shop.get(f"/v1/tables/{name}")
        assert answer.status_code == 404
        assert answer.json()["error"]["code"] in {"unknown_table", "not_found"}
    assert "sales, unborn" in shop.get("/v1/tables/nope").json()["error"]["hint"]
    assert shop.get("/v1/views/sales").json()["error"]["code"] == "unknown_view"


def test_a_table_without_rows_has_its_columns(client, world):
    answer = client.get("/v1/tables/unborn", format="parquet")
    table = pa.parquet.read_table(io.BytesIO(answer.content))
    assert table.num_rows == 0
    assert table.schema.field("a").type == pa.int64()
    assert client.rows("/v1/tables/unborn", a__gt="5", order="-a") == []


def test_old_files_lack_columns_and_the_plan_may_be_ahead(client, world):
    names = [n for n in world.sales_schema.names if n not in {"n", "extra", "amount"}]
    narrow = pa.schema([world.sales_schema.field(n) for n in names])
    world.epoch([world.sale(0)], schema=narrow)
    # The plan has columns that no file has yet.
    row = client.rows("/v1/tables/sales")[0]
    assert (row["n"], row["extra"], row["amount"]) == (None, None, None)
    world.epoch([world.sale(1)])
    rows = client.rows("/v1/tables/sales", order="_offset")
    assert [r["n"] for r in rows] == [None, 1]
    assert [r["_offset"] for r in rows] == [0, 1]
    assert [r["_offset"] for r in client.rows("/v1/tables/sales", n__null="true")] == [0]


def test_a_column_that_the_plan_forgot_is_still_shown(client, world):
    wide = world.sales_schema.append(pa.field("former", pa.int32()))
    world.epoch([world.sale(0, former=7)], schema=wide)
    assert client.rows("/v1/tables/sales", former="7")[0]["former"] == 7


def test_views_have_one_row_a_key_ordered_by_it(client, world):
    world.epoch([world.sale(0)])
    rows = [{"host": h, "sales": i, "sum": 0.5} for i, h in enumerate(["b", None, "a"])]
    world.publish(rows, 1)
    assert [r["host"] for r in client.rows("/v1/views/by_host")] == ["a", "b", None]
    assert client.rows("/v1/views/by_host", host="b") == [{"host": "b", "sales": 0, "sum": 0.5}]
    world.publish(rows[:1], 1)
    # As often as it takes for every thread to have it in memory, and after a new version.
    for _ in range(20):
        assert len(client.rows("/v1/views/by_host")) == 1


def test_lists_name_every_table_and_view(shop):
    tables = shop.get("/v1/tables").json()["tables"]
    assert [(t["name"], t["rows"], t["topics"]) for t in tables] == [
        ("sales", 5, ["events"]),
        ("unborn", 0, ["other"]),
    ]
    assert {"name": "n", "type": "BIGINT"} in tables[0]["columns"]
    view = shop.get("/v1/views").json()["views"][0]
    assert (view["name"], view["table"], view["key"]) == ("by_host", "sales", ["host"])
    assert refused(shop, "/v1/tables", limit="1")["code"] == "unknown_parameter"


def test_dead_letters(client, world):
    letters = [
        world.letter(1),
        world.letter(2, value=b"\xff", code="not_utf8", output="sales", stage="row"),
    ]
    world.epoch([world.sale(0)], letters)
    rows = client.rows("/v1/dead-letters")
    assert [r["letter_id"] for r in rows] == ["letter-1", "letter-2"]
    assert rows[0]["text"] == '{"n": "x"}'
    assert (rows[1]["value"], rows[1]["text"]) == ("/w==", None)
    for params in ({"code": "not_utf8"}, {"output": "sales"}, {"order": "-failed_at", "limit": 1}):
        found = client.rows("/v1/dead-letters", **params)
        assert [r["letter_id"] for r in found] == ["letter-2"]
    one = client.get("/v1/dead-letters/letter-2")
    assert one.json()["code"] == "not_utf8"
    missing = client.get("/v1/dead-letters/nope'--")
    assert (missing.status_code, missing.json()["error"]["code"]) == (404, "unknown_letter")
    assert refused(client, "/v1/dead-letters/letter-1", x="1")["code"] == "unknown_parameter"


def test_no_dead_letters_is_an_empty_list(client, world):
    assert client.rows("/v1/dead-letters") == []
