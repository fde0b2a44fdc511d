"""The dashboard, the documentation and the OpenAPI document they come from."""

import datetime as dt
import re
from html.parser import HTMLParser
from urllib.parse import quote

import msgspec
import pyarrow as pa
import pytest
from msgspec import structs

from headrace.model.batch import Batch
from headrace.model.plan import Column, Plan, Query, Route, Window
from headrace.serve.dashboard.topics import CHUNK_BYTES


class Page(HTMLParser):
    """What a browser would find in a page."""

    def __init__(self, text):
        super().__init__()
        self.tags = []
        self.texts = []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_data(self, text):
        self.texts.append(text)


DATA = {"type": "application/json"}
"""A block that browsers do not run."""


def policy(answer):
    return answer.headers["content-security-policy"]


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/_/",
        "/docs",
        "/_/topics",
        "/_/topics/events",
        "/_/tables",
        "/_/tables/sales",
        "/_/views/by_host",
        "/_/dead-letters",
        "/_/health",
        "/_/sql",
    ],
)
def test_pages_need_no_other_host_and_no_inline_script(shop, path):
    answer = shop.get(path)
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/html")
    assert "default-src 'none'" in policy(answer)
    assert "unsafe" not in policy(answer)
    assert answer.headers["x-content-type-options"] == "nosniff"
    page = Page(answer.text)
    for tag, attributes in page.tags:
        assert not [a for a in attributes if a.startswith("on") or a == "style"], tag
        for name in ("src", "href"):
            assert attributes.get(name, "/").startswith(("/", "#", "?")), tag
            assert not attributes.get(name, "/").startswith("//"), tag
    scripts = [a for tag, a in page.tags if tag == "script" and a != DATA]
    assert all("src" in a for a in scripts)
    for wanted in [a["src"] for a in scripts] + ["/_/static/style.css"]:
        assert shop.get(wanted).status_code == 200


def test_the_style_knows_the_dark_and_the_narrow(shop):
    style = shop.get("/_/static/style.css").text
    assert "color-scheme: light dark" in style
    assert "overflow-x: auto" in style
    assert ("meta", {"name": "viewport", "content": "width=device-width, initial-scale=1"}) in Page(
        shop.get("/").text
    ).tags


def texts_of(answer):
    assert answer.status_code == 200, answer.text
    return [t.strip() for t in Page(answer.text).texts]


def test_the_dashboard_shows_what_there_is(client, world):
    assert "nothing committed yet" in client.get("/").text
    world.log.create("events", 2)
    world.epoch([world.sale(0), world.sale(1)], [world.letter(1)], offsets={"events/0": 2_000})
    world.publish([{"host": "a", "sales": 2, "sum": 0.5}], 1)
    texts = texts_of(client.get("/"))
    for expected in ("shop", "events", "sales", "by_host", "Dead letters", "a", "0.5"):
        assert expected in texts
    assert "as of epoch 1" in client.get("/").text


def test_what_comes_from_outside_stays_text(client, world):
    evil = '<script>alert(1)</script><img src=x onerror="alert(1)">' + "a" * 1000
    world.log.create("events", 2)
    records = Batch()
    records.add(evil.encode(), received_at=1, id=bytes(16), key=evil.encode())
    world.log.append("events", records)
    world.epoch([world.sale(0, evil)], [world.letter(0, message=evil, value=evil.encode())])
    world.publish([{"host": evil, "sales": 1, "sum": 0.5}], 1)
    for path in (
        "/",
        "/_/topics/events",
        "/_/tables/sales",
        "/_/views/by_host",
        "/_/dead-letters",
        "/_/dead-letters/letter-0",
        "/_/tables/sales?column=host&value=" + quote(evil),
    ):
        answer = client.get(path)
        page = Page(answer.text)
        assert not [a for tag, a in page.tags if tag == "img" and a["src"] == "x"], path
        assert "alert(1)</script>" not in answer.text, path
        assert any("<script>alert(1)" in t for t in page.texts), path


@pytest.mark.parametrize(
    "value",
    [b'{"half a pair": "\\ud800"}', b"[" * 900 + b"1," * 9_000 + b"1" + b"]" * 900],
)
def test_json_that_is_hard_to_show_is_shown_as_it_was_sent(client, world, value):
    world.log.create("events", 2)
    records = Batch()
    records.add(value, received_at=1, id=bytes(16), key=None)
    world.log.append("events", records)
    world.epoch(letters=[world.letter(0, value=value)])
    for path in ("/_/topics/events", "/_/dead-letters/letter-0"):
        answer = client.get(path)
        assert answer.status_code == 200
        assert value.decode() in Page(answer.text).texts
        assert len(answer.text) < 100_000


def test_a_search_holds_few_large_records_at_a_time(client, world, monkeypatch):
    world.log.create("events", 2)
    value, n = b"x" * 100_000, 200
    records = Batch()
    for i in range(n):
        records.add(value, received_at=i, id=i.to_bytes(16), key=None)
    world.log.append("events", records)
    read, sizes = client.reader.read, []

    def noted(topic, partition, begin, end):
        sizes.append(end - begin)
        return read(topic, partition, begin, end)

    monkeypatch.setattr(client.reader, "read", noted)
    assert f"none among the latest {n} records" in client.get("/_/topics/events", text="y").text
    assert sum(sizes) >= n
    assert max(sizes) * len(value) <= CHUNK_BYTES


def test_a_chart_has_a_gap_where_a_window_has_no_number(make_client, world):
    columns = (
        Column("at", "TIMESTAMP WITH TIME ZONE"),
        Column("host", "VARCHAR"),
        Column("least", "BIGINT"),
    )
    minute = Window("received_at", 60_000_000, 60_000_000)
    view = structs.replace(world.plan.views[0], columns=columns, key=("at", "host"), window=minute)
    at = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
    rows = [{"at": at, "host": "a", "least": None}, {"at": at, "host": "b", "least": 2}]
    schema = pa.schema(
        [("at", pa.timestamp("us", tz="UTC")), ("host", pa.string()), ("least", pa.int64())]
    )
    world.epoch([world.sale(0)])
    world.publish(rows, 1, schema)
    shown = make_client(structs.replace(world.plan, views=(view,)))
    for path in ("/", "/_/views/by_host"):
        answer = shown.get(path)
        assert answer.status_code == 200
        assert '{"name": "a", "y": [null]}, {"name": "b", "y": [2.0]}' in answer.text


def test_a_records_values_stand_as_they_were_sent(client, world):
    sent = b'{"price":1.10,"price":1e400,"name":"\\u00e9"}'
    world.epoch([], [world.letter(0, value=sent)])
    (shown,) = (t for t in Page(client.get("/_/dead-letters/letter-0").text).texts if "1e400" in t)
    assert "".join(shown.split()) == sent.decode()


@pytest.mark.parametrize(
    "plan",
    [
        Plan("own", routes=(Route("/", "events", {}, "Hello\n"),)),
        Plan("own", queries=(Query("/", "SELECT 1 AS one", (), ()),)),
    ],
)
def test_the_dashboard_makes_way_for_a_pipelines_own_root(make_client, plan):
    client = make_client(plan)
    assert "Epoch" in client.get("/_/").text
    assert "Epoch" not in client.get("/").text
    described = client.get("/openapi.json").json()["paths"]
    assert described["/_/"]["get"]["summary"] == "The dashboard"
    assert described["/"]["get"]["summary"] != "The dashboard"


def test_openapi_has_every_path_and_every_parameter(shop):
    described = shop.get("/openapi.json").json()
    assert described["openapi"] == "3.1.0"
    paths = described["paths"]
    assert set(paths) == {
        "/buy/{what}",
        "/v1/topics",
        "/v1/topics/events",
        "/v1/topics/events/records",
        "/v1/topics/other",
        "/v1/topics/other/records",
        "/v1/tables",
        "/v1/tables/sales",
        "/v1/tables/unborn",
        "/v1/views",
        "/v1/views/by_host",
        "/v1/views/by_host/live",
        "/count",
        "/echo",
        "/cast",
        "/first",
        "/endless",
        "/large",
        "/twice",
        "/v1/sql",
        "/v1/dead-letters",
        "/v1/dead-letters/{letter}",
        "/v1/dead-letters/replay",
        "/v1/dead-letters/discard",
        "/v1/sources",
        "/v1/sources/{source}",
        "/v1/sources/{source}/pause",
        "/v1/sources/{source}/resume",
        "/openapi.json",
        "/docs",
        "/",
        "/_/",
        "/healthz",
        "/ready",
        "/metrics",
    }
    record = paths["/v1/topics/events"]["post"]["requestBody"]["content"]["application/json"]
    event = record["schema"]["anyOf"][0]
    assert event["properties"]["Host"] == {"type": "string", "minLength": 1}
    assert event["properties"]["n"]["anyOf"][1] == {"type": "null"}
    assert event["required"] == ["Host", "tags"]
    by = next(p for p in paths["/count"]["get"]["parameters"] if p["name"] == "by")
    assert by["schema"] == {"type": "string", "enum": ["host", "paid"]}
    assert by["required"] is True
    assert [p["name"] for p in paths["/buy/{what}"]["get"]["parameters"]] == ["what"]


def test_every_described_path_of_this_side_is_answered(shop):
    for path, operations in shop.get("/openapi.json").json()["paths"].items():
        # Sources have a server of their own in test_sources.py.
        # A live view has no end; it is in test_live.py.
        if path.startswith(("/buy", "/v1/topics", "/v1/sources", "/endless", "/large")):
            continue
        if path.endswith("/live"):
            continue
        for method, operation in operations.items():
            answer = shop.ask(path.replace("{letter}", "none"), method.upper())
            assert answer.status_code in {200, 400, 404, 415}, path
            if answer.status_code == 404:
                assert answer.json()["error"]["code"] == "unknown_letter"
            assert "default" in operation["responses"]


def test_rows_are_as_they_are_described(shop):
    properties = shop.get("/openapi.json").json()["paths"]["/v1/tables/sales"]["get"]["responses"][
        "200"
    ]["content"]["application/json"]["schema"]["properties"]["rows"]["items"]["properties"]
    kinds = {
        "string": str,
        "integer": int,
        "number": float,
        "boolean": bool,
        "array": list,
        "object": dict,
        "null": type(None),
    }
    for row in shop.rows("/v1/tables/sales"):
        assert set(row) == set(properties)
        for name, value in row.items():
            allowed = tuple(kinds[t] for t in properties[name]["type"])
            assert isinstance(value, allowed), name


def test_every_reference_in_openapi_leads_somewhere(shop):
    text = shop.get("/openapi.json").text
    schemas = msgspec.json.decode(text)["components"]["schemas"]
    assert set(re.findall(r"#/components/schemas/(\w+)", text)) == set(schemas)


def test_the_documentation_names_every_path(shop):
    text = "".join(Page(shop.get("/docs").text).texts)
    for path in shop.get("/openapi.json").json()["paths"]:
        assert path in text
