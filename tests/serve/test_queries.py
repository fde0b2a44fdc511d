"""Named queries: typed parameters, choices as names, values bound."""

import io

import pyarrow.parquet
import pytest


@pytest.fixture
def sales(world):
    world.epoch([world.sale(i, host) for i, host in enumerate(["a", "b", "a"])])
    return world


def error(client, path, status=400, **params):
    answer = client.get(path, **params)
    assert answer.status_code == status, answer.text
    return answer.json()["error"]


def test_a_choice_becomes_a_name_and_a_value_is_bound(shop):
    assert shop.rows("/count", by="host") == [
        {"host": "a", "n": 3, "least": 0},
        {"host": "b", "n": 1, "least": 0},
        {"host": "it's", "n": 4, "least": 0},
        {"host": None, "n": 2, "least": 0},
    ]
    assert shop.rows("/count", by="paid", least="1") == [
        {"paid": False, "n": 4, "least": 1},
        {"paid": True, "n": 6, "least": 1},
    ]


@pytest.mark.parametrize(
    "choice",
    ["nope", "", "HOST", 'host"', "host,paid", "1", "{by}", "$least", "host; DROP", "a" * 999],
)
def test_what_is_no_choice_is_refused_with_the_choices(shop, choice):
    refusal = error(shop, "/count", by=choice)
    assert refusal["code"] == "invalid_parameter"
    assert refusal["hint"] == "Choose one of: host, paid."


def test_a_missing_parameter_is_told(shop):
    refusal = error(shop, "/count")
    assert (refusal["code"], refusal["hint"]) == ("missing_parameter", "Choose one of: host, paid.")


def test_unknown_and_repeated_parameters_are_refused(shop):
    refusal = error(shop, "/count", by="host", leest="1")
    assert refusal["code"] == "unknown_parameter"
    assert "Did you mean least?" in refusal["hint"]
    assert error(shop, "/count", by=["host", "paid"])["code"] == "repeated_parameter"


def test_typed_values(shop):
    row = shop.rows("/echo", s="x", i="-3", f="1.5", b="true", t="2026-01-01T01:00:00+01:00")[0]
    assert row == {
        "s": "x",
        "i": -3,
        "f": 1.5,
        "b": True,
        "t": "2026-01-01T00:00:00.000000Z",
        "braces": {"a": 1},
    }
    assert shop.rows("/echo", s="", unused="y")[0] == {
        **dict.fromkeys("ifbt"),
        "s": "",
        "braces": {"a": 1},
    }


@pytest.mark.parametrize(
    "params",
    [
        {"i": "1.5"},
        {"i": "x"},
        {"i": str(2**63)},
        {"f": "inf"},
        {"f": "x"},
        {"b": "1"},
        {"t": "today"},
        {"t": "2026-01-01T00:00:00"},
    ],
)
def test_values_of_the_wrong_type(shop, params):
    assert error(shop, "/echo", s="x", **params)["code"] == "invalid_parameter"


@pytest.mark.parametrize(
    "text", ["'; DROP TABLE sales; --", '"', "$i", "?", "{s}", "\x00", "a\\'", "1); --", "ß語"]
)
def test_hostile_values_come_back_as_they_were(shop, text):
    assert shop.rows("/echo", s=text)[0]["s"] == text


def test_a_value_that_the_query_cannot_use_is_the_askers_fault(client, sales):
    sales.publish([{"host": "a", "sales": 1, "sum": 1.0}], 1)
    assert client.rows("/cast", x="12") == [{"x": 12}]
    assert error(client, "/cast", x="abc")["code"] == "invalid_value"
    assert error(client, "/cast", x="99999999999")["code"] == "invalid_value"
    assert client.rows("/first", n="1") == [{"host": "a"}]
    assert error(client, "/first", n="-1")["code"] == "invalid_value"


def test_too_many_rows_are_refused_not_cut(shop):
    assert error(shop, "/large", 422)["code"] == "result_too_large"


def test_columns_of_one_name_and_times_without_end(shop):
    assert shop.rows("/twice") == [{"n": 1, "n_1": 2, "t": None}]


def test_formats(shop):
    answer = shop.get("/count", by="host", format="parquet")
    table = pyarrow.parquet.read_table(io.BytesIO(answer.content))
    assert table.column("n").to_pylist() == [3, 1, 4, 2]
    assert shop.get("/count", by="host", format="csv").text == (
        '"host","n","least"\n"a",3,0\n"b",1,0\n"it\'s",4,0\n,2,0\n'
    )


def test_only_get_and_head(shop):
    for method in ("POST", "PUT", "DELETE", "PATCH"):
        answer = shop.ask("/count?by=host", method)
        assert answer.status_code == 405
        assert answer.json()["error"]["code"] == "method_not_allowed"
        assert "GET" in answer.headers["allow"]
    head = shop.ask("/count?by=host", "HEAD")
    assert head.status_code == 200
    assert head.content == b""
    assert int(head.headers["content-length"]) == len(shop.get("/count", by="host").content)


def test_a_query_that_takes_too_long_is_stopped(client, world, monkeypatch):
    monkeypatch.setattr("headrace.serve.reading.QUERY_S_MAX", 0.2)
    assert error(client, "/endless", 504)["code"] == "query_timeout"
    # The thread that was interrupted answers the next request.
    assert client.rows("/echo", s="x")[0]["s"] == "x"
