"""The old system's API: every path and body, over a pipeline that is played here."""

from __future__ import annotations

import asyncio
import importlib.util
import json

import httpx2
import pytest
from run_example import ROOT


def load_api():
    spec = importlib.util.spec_from_file_location("api", ROOT / "examples/biodiversity/api.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


api = load_api()
OWNER, READER = "owner", "reader"


class Played:
    """A pipeline's public API, and what it was asked."""

    def __init__(self):
        self.asked = []
        self.added = []
        self.fails = False

    def answer(self, request):
        token = request.headers.get("authorization", "").removeprefix("Bearer ")
        path = request.url.raw_path.decode()
        self.asked.append((request.method, path, token))
        if self.fails:
            raise httpx2.ConnectError("refused")
        if token == "often-wrong":
            return refusal(429, "rate_limited", "Too many wrong tokens")
        if token not in {OWNER, READER}:
            return refusal(401, "unauthorized", "This asks for a token")
        if request.method == "POST":
            return self.post(path, json.loads(request.content), token)
        return httpx2.Response(200, json=self.get(path))

    def post(self, path, body, token):
        if token != OWNER:
            return refusal(403, "forbidden", "The token does not allow this")
        if path == "/v1/tokens":
            assert body == {"scopes": ["read"], "lifetime_s": 900, "name": "getToken"}
            return httpx2.Response(201, json={"token": READER, "scopes": ["read"]})
        assert path == "/v1/sources"
        if body["name"] in [s["name"] for s in self.added]:
            return refusal(400, "source_exists", "There already is a source named gbif")
        self.added.append(body)
        return httpx2.Response(201, json=body)

    def get(self, path):
        kingdoms = [("Plantae", 5), ("Animalia", 4), (None, 2), ("incertae sedis", 1)]
        sources = [("gbif", 9), ("obis", 3)]
        names = [("obis", 2), ("gbif", 4), (None, 5)]
        return {
            "/v1/tables": {"tables": []},
            "/v1/sources": {"sources": [*self.added, {"name": "x", "kind": "replay"}]},
            "/count?by=kingdom": {"rows": [{"kingdom": k, "records": n} for k, n in kingdoms]},
            "/count?by=source": {"rows": [{"source": s, "records": n} for s, n in sources]},
            "/count/species": {
                "rows": [
                    {"source": "gbif", "species": 7, "unit": "distinct accepted species ids"},
                    *({"source": s, "species": n, "unit": api.BY_NAME} for s, n in names),
                ]
            },
        }[path]


def refusal(status, code, message):
    return httpx2.Response(status, json={"error": {"code": code, "message": message, "hint": ""}})


@pytest.fixture
def played():
    return Played()


@pytest.fixture
def get(played):
    def ask(target, method="GET", **settings):
        return asyncio.run(asked(played, target, method, settings))

    return ask


async def asked(played, target, method, settings):
    pipeline = httpx2.MockTransport(played.answer)
    base = {"base_url": "http://pipeline"}
    async with httpx2.AsyncClient(transport=pipeline, **base) as client:
        app = api.make_app(api.Settings("http://pipeline", OWNER, **settings), client)
        over = httpx2.ASGITransport(app=app)
        async with httpx2.AsyncClient(transport=over, base_url="http://old") as user:
            return await user.request(method, target)


@pytest.mark.parametrize(
    ("target", "status", "body"),
    [
        ("/?token=reader", 200, b'{"message":"Hello, biodiversity!"}'),
        ("/", 401, b'{"message":"Token is missing!"}'),
        ("/?token=", 401, b'{"message":"Token is missing!"}'),
        ("/?token=wrong", 401, b'{"message":"Token is invalid!"}'),
        ("/?token=w%C3%A4nd%0A", 401, b'{"message":"Token is invalid!"}'),
        ("/?token=often-wrong", 401, b'{"message":"Token is invalid!"}'),
        ("/count?by=kingdom", 401, b'{"message":"Token is missing!"}'),
        ("/count?by=nothing&token=wrong", 401, b'{"message":"Token is invalid!"}'),
        ("/count?by=nothing&token=reader", 404, b'{"message":"Unrecognized parameter"}'),
        ("/count?token=reader", 404, b'{"message":"Unrecognized parameter"}'),
        (
            "/count?by=kingdom&token=reader",
            200,
            (
                b'{"message":"Success","count":{"Plantae":5,"Animalia":4,"Title Unavailable":2,'
                b'"incertae sedis":1}}'
            ),
        ),
        (
            "/count?by=source&token=reader",
            200,
            b'{"message":"Success","count":{"http://gbif.org":9,"http://obis.org":3}}',
        ),
        (
            "/count?by=species&token=reader",
            200,
            (
                b'{"message":"Success","count":{"http://gbif.org":4,"http://obis.org":2,'
                b'"all sources":5}}'
            ),
        ),
        ("/listSources", 401, b'{"message":"Token is missing!"}'),
        ("/listSources?token=reader", 200, b'{"message":"Success","sources":[]}'),
        ("/addSource?url=http://gbif.org", 401, b'{"message":"Token is missing!"}'),
        ("/addSource?token=owner", 400, b'{"message":"Missing parameter: url"}'),
        ("/addSource?token=owner&url=", 400, b'{"message":"Missing parameter: url"}'),
        ("/addSource?token=owner&url=http://ebird.org", 400, b'{"message":"Unknown source"}'),
        ("/addSource?token=owner&url=gbif.org", 400, b'{"message":"Unknown source"}'),
        ("/addSource?token=owner&url=http://[gbif", 400, b'{"message":"Unknown source"}'),
        *(
            (f"/addSource?token=owner&url={url}", 400, b'{"message":"Unknown source"}')
            for url in (
                *("file://gbif/etc/passwd", "ftp://gbif.org", "//gbif.org", "javascript://gbif"),
                *("http://me@gbif.org", "http://gbif@169.254.169.254/", "http://gbif.org:99999"),
                *("http://169.254.169.254/", "http://[::1]/", "http://gbif.org%0d%0aX:1"),
            )
        ),
        ("/addSource?token=owner&url=http://gbif.org", 200, b'{"message":"Success"}'),
        (
            "/addSource?token=reader&url=http://gbif.org",
            403,
            b'{"message":"Token does not allow this!"}',
        ),
        (
            "/getToken",
            403,
            b'{"message":"Tokens are not given here: ask the owner for one"}',
        ),
        ("/favicon.ico", 204, b""),
        ("/nothing", 404, b'{"message":"Not found"}'),
        ("/nothing?token=reader", 404, b'{"message":"Not found"}'),
        ("/count/?by=kingdom&token=reader", 404, b'{"message":"Not found"}'),
    ],
)
def test_each_path_answers_as_it_did(get, target, status, body):
    answer = get(target)
    assert (answer.status_code, answer.content) == (status, body)
    if body:
        assert answer.headers["content-type"] == "application/json"


def test_another_method_is_refused(get):
    answer = get("/count", method="POST")
    assert (answer.status_code, answer.json()) == (405, {"message": "Method not allowed"})


def test_a_token_for_reading_is_given_where_the_owner_lets_it(get, played):
    answer = get("/getToken", gives_tokens=True)
    assert answer.json() == {"message": "Success", "token": READER}
    assert answer.headers["cache-control"] == "no-store"
    assert played.asked == [("POST", "/v1/tokens", OWNER)]


def test_the_callers_own_token_is_what_the_pipeline_sees(get, played):
    get("/count?by=source&token=reader")
    assert played.asked == [("GET", "/count?by=source", READER)]


def test_a_source_is_known_by_the_first_label_of_its_host(get, played):
    options = {"obis": {"url": "http://127.0.0.1:1/obis/v3", "contact": "me@example.org"}}
    for url in ("http://gbif.org", "https://obis.org/data?x=1", "http://idigbio.org:80/"):
        get(f"/addSource?token=owner&url={url}", options=options)
    assert [(s["name"], s["kind"], s["topic"], s["counts"]) for s in played.added] == [
        (kind, kind, kind, "source_counts") for kind in ("gbif", "obis", "idigbio")
    ]
    assert [s["options"] for s in played.added] == [{}, options["obis"], {}]
    assert get("/listSources?token=reader").json()["sources"] == [
        "http://gbif.org",
        "http://obis.org",
        "http://idigbio.org",
    ]


def test_adding_a_source_again_changes_nothing(get, played):
    for _ in range(2):
        answer = get("/addSource?token=owner&url=http://gbif.org")
        assert (answer.status_code, answer.json()) == (200, {"message": "Success"})
    assert len(played.added) == 1


def test_it_says_so_when_the_pipeline_is_away(get, played):
    played.fails = True
    answer = get("/count?by=source&token=reader")
    assert (answer.status_code, answer.json()) == (503, {"message": "The pipeline does not answer"})


def test_tokens_are_not_given_without_end(played):
    async def ask_often():
        pipeline = httpx2.MockTransport(played.answer)
        async with httpx2.AsyncClient(transport=pipeline, base_url="http://pipeline") as client:
            app = api.make_app(api.Settings("", OWNER, gives_tokens=True), client)
            over = httpx2.ASGITransport(app=app)
            async with httpx2.AsyncClient(transport=over, base_url="http://old") as user:
                return [(await user.get("/getToken")).status_code for _ in range(61)]

    assert asyncio.run(ask_often()) == [200] * 60 + [429]


def test_options_are_read_as_json_or_else_as_text():
    pairs = ("gbif.url=http://127.0.0.1:1", "gbif.interval_s=2", "obis.follow=false")
    assert api.read_options(pairs) == {
        "gbif": {"url": "http://127.0.0.1:1", "interval_s": 2},
        "obis": {"follow": False},
    }
