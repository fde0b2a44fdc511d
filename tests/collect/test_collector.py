import asyncio
import gzip
import json
import logging
from itertools import pairwise

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from headrace.collect.exchange import HeaderList, Request
from headrace.collect.gate import OpenGate
from headrace.collect.limits import Limits, Share
from headrace.model.batch import UNMARKED, Batch, is_client_chosen
from headrace.model.errors import Corrupt, Invalid, Unavailable
from headrace.model.plan import Plan, Topic, View

JSON = "application/json"
LINES = "application/x-ndjson"
GOOD = b'{"event_type":"good","n":1}'


def told(answer):
    return json.loads(answer.body)


def error(answer):
    what = told(answer)["error"]
    assert set(what) == {"code", "message", "hint"}
    return answer.status, what["code"]


# Records in, one result each


def test_an_object_is_one_record(door):
    answer = door.post(GOOD)
    assert (answer.status, told(answer)) == (200, {"accepted": 1, "dead": 0, "errors": []})
    kept = door.log.all("events")
    assert kept.values == [GOOD]
    assert kept.marks == [door.mark]
    assert kept.received_at == [door.clock.now_us()]
    assert (kept.keys, kept.headers) == ([None], [b""])
    assert not is_client_chosen(kept.ids[0])


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(
    ("body", "content_type"),
    [(b"[" + b",".join([GOOD] * 3) + b"]", JSON), (b"\n".join([GOOD] * 3), LINES)],
)
def test_arrays_lines_and_gzip_of_each(door, body, content_type, packed):
    headers = [("content-encoding", "gzip")] if packed else []
    sent = gzip.compress(body) if packed else body
    answer = door.post(sent, headers=headers, content_type=content_type)
    assert told(answer) == {"accepted": 3, "dead": 0, "errors": []}
    kept = door.log.all("events")
    assert kept.values == [GOOD] * 3
    assert len(set(kept.ids)) == 3


def test_a_bad_record_among_good_neighbours_is_kept_and_told(door):
    body = b"\n".join([GOOD, b'{"event_type":5}', b"", b'{"event_type":', GOOD])
    answer = door.post(body, content_type=LINES)
    assert answer.status == 200
    assert told(answer) == {
        "accepted": 2,
        "dead": 2,
        "errors": [
            {
                "index": 1,
                "code": "invalid_record",
                "message": "Expected str, got int - at $.event_type",
            },
            {"index": 2, "code": "invalid_json", "message": told(answer)["errors"][1]["message"]},
        ],
    }
    kept = door.log.all("events")
    mark = door.mark
    assert kept.marks == [mark, UNMARKED, UNMARKED, mark]
    assert kept.values[1:3] == [b'{"event_type":5}', b'{"event_type":']


def test_errors_listed_are_bounded_and_all_are_counted(open_door):
    door = open_door(Limits(errors_listed_max=3))
    answer = told(door.post(b"\n".join([b"{}"] * 10), content_type=LINES))
    assert (answer["dead"], len(answer["errors"])) == (10, 3)


# The log's part


def test_without_waiting_the_answer_comes_before_the_log(door):
    door.log.hold.clear()
    answer = door.post(GOOD, query="?wait=false")
    assert (answer.status, told(answer)["accepted"]) == (202, 1)
    assert door.log.batches["events"] == []
    door.log.hold.set()


def test_a_full_log_is_told_and_nothing_is_acknowledged(door, full):
    door.log.refuse = full
    for query in ("", "?wait=false"):
        answer = door.post(GOOD, query=query)
        assert error(answer) == (503, "log_full")
        assert ("retry-after", "2") in answer.headers
    assert error(door("GET", "/buy")) == (503, "log_full")
    assert door.lost == []
    door.log.refuse = None
    door.log.fail = full
    assert error(door.post(GOOD)) == (503, "log_full")
    assert door.lost == []
    door.log.fail = None
    assert door.post(GOOD).status == 200


def test_a_damaged_log_is_reported_as_lost(door, log):
    log.fail = Corrupt("damaged")
    answer = asyncio.run(_post_raw(door, GOOD))
    assert answer.status == 500
    assert [e.code for e in door.lost] == ["corrupt"]


async def _post_raw(door, body):
    async def read():
        return body

    return await door.collector.respond(
        Request(
            "POST",
            "/v1/topics/events",
            "",
            HeaderList([("content-type", JSON)]),
            read,
            Share(door.collector.budget),
        )
    )


def test_requests_of_one_turn_share_a_batch_and_each_learns_its_own_place(door):
    bodies = [b"[" + b",".join([GOOD] * n) + b"]" for n in (1, 3, 2)]
    answers = door.all([("POST", "/v1/topics/events", body) for body in bodies])
    assert door.log.submits == 1
    places = [dict(a.headers)["x-headrace-offsets"] for a in answers]
    assert places == ["events/0=1", "events/0=4", "events/0=6"]


def test_an_unexpected_exception_is_logged_without_what_it_holds(door, caplog):
    def broken(request, topic):
        raise KeyError("s3cret payload")

    door.collector._gate.admit = broken
    with caplog.at_level(logging.DEBUG):
        answer = asyncio.run(_post_raw(door, b'{"event_type":"s3cret"}'))
    assert answer.status == 500
    assert "KeyError" in caplog.text
    assert "s3cret" not in caplog.text + answer.body.decode()


def test_the_hook_decides_who_may_append(open_door, log):
    def admit(request, scope):
        assert scope == "append:events"
        who = request.headers.get("authorization")
        if who is None:
            raise Invalid("no", code="unauthorized")
        if who == "slow":
            raise Unavailable("slow down", code="rate_limited", retry_after_s=7)
        return who

    gate = OpenGate()
    gate.admit = admit
    door = open_door(gate=gate)
    assert error(door.post(GOOD)) == (401, "unauthorized")
    limited = door.post(GOOD, headers=[("authorization", "slow")])
    assert error(limited) == (429, "rate_limited")
    assert ("retry-after", "7") in limited.headers
    for who in ("a", "b", "a"):
        door.post(GOOD, headers=[("authorization", who), ("idempotency-key", "1")])
    a, b, again = log.all("events").ids
    assert a == again != b


# Names and keys


def test_an_idempotency_key_names_every_record_of_its_request(door):
    headers = [("idempotency-key", "k1")]
    for _ in range(2):
        door.post(b"[{},{}]", "free", headers=headers)
    door.post(b"[{},{}]", "free", headers=[("idempotency-key", "k2")])
    ids = door.log.all("free").ids
    assert ids[:2] == ids[2:4]
    assert len(set(ids)) == 4
    assert all(map(is_client_chosen, ids))


def test_an_idempotency_key_has_a_length(door):
    for key in ("", "x" * 256):
        answer = door.post(GOOD, headers=[("idempotency-key", key)])
        assert error(answer) == (400, "invalid_idempotency_key")


def test_a_declared_field_names_and_keys_its_record(door):
    body = b'[{"id":"a","player":7},{"id":"a","x":1},{"id":5},{"id":"5"},{"id":null},{"id":[]},{}]'
    door.post(body, "named", headers=[("idempotency-key", "k")])
    kept = door.log.all("named")
    assert kept.ids[0] == kept.ids[1]
    assert len(set(kept.ids)) == 6
    assert all(map(is_client_chosen, kept.ids))
    assert kept.keys == [b"7", *[None] * 6]


def test_a_key_may_come_from_a_header(door):
    door.post(b'[{"player":"own"},{}]', "named", headers=[("headrace-key", "k")])
    door.post(b'{"player":"own"}', "named")
    assert door.log.all("named").keys == [b"k", b"k", b"own"]


def test_the_same_cloudevent_has_one_name_in_all_modes(door):
    event = {"specversion": "1.0", "id": "1", "source": "s", "type": "t", "data": {"a": 1}}
    door.post(json.dumps(event).encode(), "free", content_type="application/cloudevents+json")
    door.post(
        json.dumps([event]).encode(), "free", content_type="application/cloudevents-batch+json"
    )
    ce = [(f"ce-{name}", str(value)) for name, value in event.items() if name != "data"]
    door.post(b'{"a": 1}', "free", headers=ce)
    kept = door.log.all("free")
    assert len(set(kept.ids)) == len(set(kept.values)) == len(set(kept.headers)) == 1
    assert is_client_chosen(kept.ids[0])


# Routes


def test_a_route_makes_an_event_of_a_request(door):
    headers = [("host", "h:1"), ("user-agent", "ab"), ("cookie", "s"), ("event_type", "forged")]
    answer = door("GET", "/buy?token=secret", headers=headers, content_type=None)
    assert (answer.status, answer.body) == (200, b"Bought!\n")
    assert dict(answer.headers)["content-type"].startswith("text/plain")
    assert json.loads(door.log.all("events").values[0]) == {
        "event_type": "buy",
        "Host": "h:1",
        "User-Agent": "ab",
    }


def test_a_posted_objects_fields_are_added(door):
    assert door("POST", "/join/red", b'{"n":4,"guild":"blue"}').status == 200
    made = json.loads(door.log.all("events").values[0])
    assert (made["guild"], made["n"]) == ("red", 4)
    assert door("POST", "/join/red", content_type="application/x-www-form-urlencoded").status == 200


def test_an_event_that_is_not_valid_is_kept_and_answered(door):
    answer = door("GET", "/typed", content_type=None)
    assert (answer.status, answer.body) == (200, b"typed")
    assert ("x-headrace-dead", "invalid_record") in answer.headers
    assert door.log.all("events").marks == [UNMARKED]
    assert door("POST", "/buy", b'{"n":"x"}').status == 200
    assert door.collector.metrics.dead["events"] == 2


def test_bodies_that_a_route_cannot_take(door):
    for body, content_type, status in [
        (b"a=1", "application/x-www-form-urlencoded", 415),
        (b"{}\n{}", LINES, 415),
        (b"[]", JSON, 400),
        (b"{", JSON, 400),
        (b'{"d":' + b"[" * 10_000 + b"]" * 10_000 + b"}", JSON, 400),
    ]:
        assert door("POST", "/buy", body, content_type=content_type).status == status
    assert door.log.submits == 0


# Reading back


def test_topics_and_records_are_read_back(door):
    door.post(
        b'[{"event_type":"a"},{"event_type":"b","x":1e400},5]', headers=[("headrace-key", "k")]
    )
    topics = told(door("GET", "/v1/topics"))["topics"]
    assert [(t["name"], t["ends"]) for t in topics] == [
        ("events", [3]),
        ("named", [0]),
        ("free", [0]),
    ]
    answer = door("GET", "/v1/topics/events/records?partition=0&offset=1&limit=1")
    page = msgspec.json.decode(answer.body, type=dict[str, msgspec.Raw])
    assert [bytes(page[name]) for name in ("start", "end", "next")] == [b"0", b"3", b"2"]
    assert b'"value":{"event_type":"b","x":1e400}' in answer.body
    everything = told(door("GET", "/v1/topics/events/records?offset=2"))
    assert [(r["offset"], r["key"], r["value"]) for r in everything["records"]] == [(2, "k", 5)]
    assert told(door("GET", "/v1/topics/events/records?offset=9"))["records"] == []


def test_what_views_change_is_read_back_and_nobody_else_appends_it(open_door):
    view = View("v", "events", "", (), (), (), (), "", topic="game_query")
    door = open_door(plan=Plan("game", topics=(Topic("events", 1),), views=(view,)))
    door.log.batches["game_query"].append(
        Batch([b'{"n":1}'], [b'["v"]'], [b'{"headrace-view":"v"}'], [0], [bytes(16)], [0])
    )
    topics = told(door("GET", "/v1/topics"))["topics"]
    assert [(t["name"], t["record"], t["ends"]) for t in topics][-1] == ("game_query", None, [1])
    (record,) = told(door("GET", "/v1/topics/game_query/records"))["records"]
    assert (record["key"], record["value"]) == ('["v"]', {"n": 1})
    assert record["headers"] == {"headrace-view": "v"}
    assert error(door.post(GOOD, topic="game_query")) == (403, "forbidden")
    assert error(door("GET", "/v1/topics/game_query")) == (405, "method_not_allowed")
    assert door.log.submits == 0


def test_bytes_that_are_no_json_are_read_back_as_base64(door):
    door.post(b'{"u":"\xff"}\n{"a":', content_type=LINES)
    records = told(door("GET", "/v1/topics/events/records"))["records"]
    assert [set(r) & {"value", "value_base64"} for r in records] == [{"value_base64"}] * 2


@pytest.mark.parametrize("query", ["limit=0", "limit=1001", "partition=9", "offset=-1", "offset=x"])
def test_reading_parameters_are_checked(door, query):
    door.post(GOOD)
    assert error(door("GET", f"/v1/topics/events/records?{query}")) == (400, "invalid_parameter")


# Accounting


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    st.lists(
        st.sampled_from(
            [GOOD, b"{}", b"x", b'{"event_type":1}', b"\xff", b'{"event_type":"\\u00e9"}']
        ),
        min_size=1,
        max_size=30,
    ),
    st.lists(st.integers(1, 29), max_size=4),
)
def test_accepted_and_dead_are_all_that_was_sent(open_door, log, lines, cuts):
    log.batches.clear()
    door = open_door()
    edges = sorted({0, len(lines), *[c for c in cuts if c < len(lines)]})
    parts = [lines[a:b] for a, b in pairwise(edges)]
    answers = door.all(
        [("POST", "/v1/topics/events", b"\n".join(part), (), LINES) for part in parts]
    )
    results = [told(a) for a in answers]
    assert [r["accepted"] + r["dead"] for r in results] == list(map(len, parts))
    kept = log.all("events")
    assert kept.values == lines
    assert sum(r["dead"] for r in results) == kept.marks.count(UNMARKED)
