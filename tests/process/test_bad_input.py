"""Bad input from the HTTP door to the tables: a 4xx or a dead letter, never a lost neighbour."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from contextlib import closing
from decimal import Decimal
from typing import NamedTuple

import pytest
from owning import Place, checked, opened

from headrace import Pipeline, Record, field
from headrace.collect.collector import Collector
from headrace.collect.exchange import HeaderList, Request, Response
from headrace.collect.limits import Limits, Share
from headrace.model.plan import Plan

NEIGHBOURS = 10_000
GOOD = b'{"event_type":"good","n":1,"price":"1.50","text":"7"}'
LIMITS = Limits(body_bytes_max=64 << 20)
JSON, LINES = "application/json", "application/x-ndjson"


class Event(Record):
    event_type: str
    n: int | None = None
    price: Decimal | None = field(digits=(10, 2), default=None)
    text: str | None = None


def plan() -> Plan:
    pipe = Pipeline("bad")
    events = pipe.topic("events", Event)
    pipe.route("/buy", events, {"event_type": "buy"}, reply="Bought!\n")
    pipe.table("casts", "SELECT CAST(text AS INT) AS number, n FROM events")
    pipe.view("sums", "SELECT event_type, count(*) AS c, sum(n) AS s FROM events GROUP BY 1")
    pipe.view("total", "SELECT sum(n) AS s FROM casts")
    return checked(pipe)


def event(**fields: object) -> bytes:
    return json.dumps({"event_type": "bad", **fields}).encode()


DEAD = {
    "wrong type": event(n="5"),
    "missing field": b'{"n":5}',
    "2^63": event(n=2**63),
    "1e300 into a decimal": event(price=1e300),
    "duplicate keys": b'{"event_type":"a","event_type":"b"}',
    "invalid UTF-8": b'{"event_type":"\xff"}',
    "invalid UTF-8 undeclared": b'{"event_type":"a","x":"\xc3\x28"}',
    "10,000 deep": b'{"event_type":"a","x":' + b"[" * 10_000 + b"]" * 10_000 + b"}",
}
UNJSON = {
    "malformed": b'{"event_type": ',
    "NaN": b'{"event_type":"a","n":NaN}',
    "no JSON": b"hello",
    "NUL": b"\x00",
}
FAILING = {"a CAST that fails": event(text="abc")}
ODD = {
    "10 MB string": event(text="1", other="x" * (10 << 20)),
    "10 MB in a column": b'{"event_type":"' + b"x" * (10 << 20) + b'"}',
    "the largest integer": event(n=2**63 - 1),
    "a decimal in full": event(price="99999999.99"),
}


class Refused(NamedTuple):
    """A request that is answered with a 4xx and leaves nothing behind."""

    status: int
    code: str
    path: str = "/v1/topics/events"
    body: bytes = GOOD
    content_type: str | None = JSON
    method: str = "POST"


REFUSED = {
    "empty body": Refused(400, "empty_body", body=b""),
    "blank body": Refused(400, "empty_body", body=b" \n"),
    "empty array": Refused(400, "empty_body", body=b"[]"),
    "wrong content type": Refused(415, "unsupported_media_type", content_type="text/plain"),
    "unknown topic": Refused(404, "unknown_topic", path="/v1/topics/nothing"),
    "wrong method": Refused(405, "method_not_allowed", method="DELETE"),
}


class Site:
    """A pipeline behind a collector, without a server between."""

    def __init__(self, place: Place) -> None:
        self.place = place
        self.collector = Collector(place.plan, place.log, place.clock, LIMITS)

    def ask(
        self,
        body: bytes,
        *,
        path: str = "/v1/topics/events",
        content_type: str | None = JSON,
        method: str = "POST",
        headers: tuple[tuple[str, str], ...] = (),
    ) -> Response:
        sent = [*headers, ("content-length", str(len(body)))]
        if content_type:
            sent.append(("content-type", content_type))
        return asyncio.run(self._respond(method, path, sent, body))

    async def _respond(
        self, method: str, path: str, sent: list[tuple[str, str]], body: bytes
    ) -> Response:
        async def read() -> bytes:
            return body

        share = Share(self.collector.budget)
        request = Request(method, path, "", HeaderList(sent), read, share)
        answer = await self.collector.respond(request)
        share.give_back()
        assert answer is not None
        assert answer.status < 500
        return answer

    def told(self, body: bytes, content_type: str = JSON) -> tuple[int, int]:
        """Send records; return how many were accepted and how many dead."""
        answer = self.ask(body, content_type=content_type)
        assert answer.status == 200, answer.body[:300]
        told = json.loads(answer.body)
        return told["accepted"], told["dead"]

    def grown(self) -> tuple[int, int, list[dict]]:
        """Run an epoch; return its rows of `events` and of `casts`, and its dead letters."""
        before = {letter["letter_id"] for letter in self.place.letters()}
        row = self.place.epoch()
        if row is None:
            return 0, 0, []
        letters = [x for x in self.place.letters() if x["letter_id"] not in before]
        assert all(letter["code"] and letter["message"] for letter in letters)
        self.place.assert_accounted()
        return row.tables["events"].rows, row.tables["casts"].rows, letters


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with opened(tmp_path_factory.mktemp("site"), plan()) as place:
        made = Site(place)
        with closing(made.collector):
            yield made


@pytest.mark.parametrize("name", DEAD)
def test_a_bad_record_alone_is_a_dead_letter(site: Site, name: str) -> None:
    assert site.told(DEAD[name]) == (0, 1)
    rows, casts, (letter,) = site.grown()
    assert (rows, casts) == (0, 0)
    assert (letter["stage"], letter["value"]) == ("decode", DEAD[name])


@pytest.mark.parametrize("name", UNJSON)
def test_what_is_no_json_is_refused_as_a_body_and_a_dead_letter_as_a_line(
    site: Site, name: str
) -> None:
    answer = site.ask(UNJSON[name])
    assert answer.status == 400
    assert site.grown() == (0, 0, [])
    assert site.told(UNJSON[name], LINES) == (0, 1)
    _, _, (letter,) = site.grown()
    assert letter["value"] == UNJSON[name]


@pytest.mark.parametrize("name", FAILING)
def test_what_fails_in_a_table_is_missing_there_alone(site: Site, name: str) -> None:
    assert site.told(FAILING[name]) == (1, 0)
    rows, casts, (letter,) = site.grown()
    assert (rows, casts) == (1, 0)
    assert (letter["stage"], letter["output"]) == ("row", "casts")


@pytest.mark.parametrize("name", ODD)
def test_odd_records_are_rows(site: Site, name: str) -> None:
    assert site.told(ODD[name]) == (1, 0)
    assert site.grown() == (1, 1, [])


@pytest.mark.parametrize("name", REFUSED)
def test_a_request_that_cannot_be_taken_leaves_nothing(site: Site, name: str) -> None:
    case = REFUSED[name]
    answer = site.ask(case.body, path=case.path, content_type=case.content_type, method=case.method)
    error = json.loads(answer.body)["error"]
    assert (answer.status, error["code"]) == (case.status, case.code)
    assert error["message"]
    assert error["hint"]
    assert site.grown() == (0, 0, [])


def test_a_header_named_event_type_changes_no_event(site: Site) -> None:
    evil = (("event_type", "evil"), ("Event_type", "evil"), ("headrace-only", "casts"))
    answer = site.ask(b"", path="/buy", method="GET", content_type=None, headers=evil)
    assert (answer.status, answer.body) == (200, b"Bought!\n")
    assert site.grown() == (1, 1, [])
    types = site.place.rows("tables/events").column("event_type").to_pylist()
    assert "buy" in types
    assert "evil" not in types


def test_sums_past_64_bits_are_exact(site: Site) -> None:
    body = b"\n".join([event(event_type="big", n=2**63 - 1)] * 5)
    assert site.told(body, LINES) == (5, 0)
    assert site.grown() == (5, 5, [])
    site.place.publish()
    sums = {r["event_type"]: r["s"] for r in site.place.rows("views/sums").to_pylist()}
    assert sums["big"] == 5 * (2**63 - 1)


def test_everything_bad_among_good_neighbours(site: Site) -> None:
    dead = [*DEAD.values(), *UNJSON.values()]
    odd = [*FAILING.values(), *ODD.values()]
    share = NEIGHBOURS // (len(dead) + len(odd))
    lines = [line for bad in [*dead, *odd] for line in (*[GOOD] * share, bad)]
    lines += [GOOD] * (NEIGHBOURS - share * (len(dead) + len(odd)))
    accepted, died = site.told(b"\n".join(lines), LINES)
    assert (accepted, died) == (NEIGHBOURS + len(odd), len(dead))
    assert accepted + died == len(lines)
    for case in REFUSED.values():
        site.ask(case.body, path=case.path, content_type=case.content_type, method=case.method)
    rows, casts, letters = site.grown()
    assert rows == NEIGHBOURS + len(odd)
    assert casts == rows - len(FAILING)
    assert sorted(x["value"] for x in letters) == sorted([*dead, *FAILING.values()])
