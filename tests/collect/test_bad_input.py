"""Bad input of every kind: a clear 4xx or a dead letter, never a 500, never a lost neighbour."""

import gzip
import json

import pytest

from headrace.collect.limits import Limits
from headrace.model.batch import UNMARKED

JSON = "application/json"
LINES = "application/x-ndjson"
GOOD = b'{"event_type":"good","n":1}'


def told(answer):
    return json.loads(answer.body)


def error(answer):
    what = told(answer)["error"]
    assert set(what) == {"code", "message", "hint"}
    return answer.status, what["code"]


DEEP = b'{"event_type":"x","d":' + b"[" * 10_000 + b"]" * 10_000 + b"}"
DEAD = {
    "wrong type": (b'{"event_type":5}', "invalid_record"),
    "missing field": (b'{"n":5}', "invalid_record"),
    "no object": (b"[1]", "invalid_record"),
    "2^63": (b'{"event_type":"x","n":9223372036854775808}', "invalid_record"),
    "duplicate key": (b'{"event_type":"x","event_type":"y"}', "duplicate_key"),
    "duplicate undeclared key": (b'{"event_type":"x","u":1,"u":1}', "duplicate_key"),
    "bad UTF-8": (b'{"event_type":"\xff"}', "invalid_utf8"),
    "bad UTF-8 undeclared": (b'{"event_type":"x","u":"\xc3\x28"}', "invalid_utf8"),
    "10,000 deep": (DEEP, "too_deep"),
}
UNJSON = {
    "NaN": b'{"event_type":"x","n":NaN}',
    "cut off": b'{"event_type":"x"',
    "two values": b'{"event_type":"x"}{}',
    "no JSON": b"hello",
    "no JSON, no UTF-8": b"\xff\xfe\x00",
    "100 open": b"[" * 100,
}


@pytest.mark.parametrize("name", [n for n in DEAD if n != "no object"])
def test_a_bad_record_alone_is_a_dead_letter(door, name):
    value, code = DEAD[name]
    answer = told(door.post(value))
    assert (answer["accepted"], answer["dead"]) == (0, 1)
    assert answer["errors"][0]["code"] == code
    assert door.log.all("events").values == [value]


@pytest.mark.parametrize("name", UNJSON)
def test_a_body_that_is_no_json_is_refused_and_not_appended(door, name):
    assert error(door.post(UNJSON[name])) in {(400, "malformed_json"), (400, "too_deep")}
    assert door.log.submits == 0


@pytest.mark.parametrize("name", [*DEAD, *UNJSON])
def test_a_bad_line_among_good_neighbours(door, name):
    bad = DEAD[name][0] if name in DEAD else UNJSON[name]
    body = b"\n".join([*[GOOD] * 1_000, bad, *[GOOD] * 1_000])
    answer = told(door.post(body, content_type=LINES))
    assert (answer["accepted"], answer["dead"]) == (2_000, 1)
    assert answer["errors"][0]["index"] == 1_000
    kept = door.log.all("events")
    assert kept.values[1_000] == bad
    assert kept.marks.count(UNMARKED) == 1


@pytest.mark.parametrize("name", DEAD)
def test_a_bad_element_among_good_neighbours(door, name):
    body = b"[" + b",".join([*[GOOD] * 500, DEAD[name][0], *[GOOD] * 500]) + b"]"
    answer = told(door.post(body))
    assert (answer["accepted"], answer["dead"]) == (1_000, 1)
    assert door.log.all("events").values[500] == DEAD[name][0]


def test_a_string_of_ten_megabytes_is_a_record(door):
    value = b'{"event_type":"' + b"x" * (10 << 20) + b'"}'
    assert told(door.post(value))["accepted"] == 1
    assert door.log.all("events").values == [value]


def test_a_topic_without_a_record_type_takes_any_object(door):
    assert told(door.post(b'{"a":[1,{"b":2}]}', "free"))["accepted"] == 1
    assert told(door.post(b"5", "free"))["dead"] == 1


# What is refused before anything is appended


@pytest.mark.parametrize("content_type", ["text/plain", "application/x-www-form-urlencoded", "x"])
def test_wrong_content_types(door, content_type):
    assert error(door.post(GOOD, content_type=content_type)) == (415, "unsupported_media_type")
    assert door.log.submits == 0


@pytest.mark.parametrize("body", [b"", b"  ", b"[]"])
def test_empty_bodies(door, body):
    assert error(door.post(body)) == (400, "empty_body")


def test_unknown_topics_paths_and_methods(door):
    assert error(door.post(GOOD, "nothing")) == (404, "unknown_topic")
    assert error(door("GET", "/v1/topics/nothing/records")) == (404, "unknown_topic")
    assert door("GET", "/elsewhere") is None
    answer = door("PUT", "/v1/topics/events", GOOD)
    assert error(answer) == (405, "method_not_allowed")
    assert ("allow", "POST, OPTIONS") in answer.headers
    assert error(door("DELETE", "/buy")) == (405, "method_not_allowed")


def test_options_and_head_append_nothing(door):
    answer = door("OPTIONS", "/buy")
    assert (answer.status, answer.headers) == (204, [("allow", "GET, POST, HEAD, OPTIONS")])
    assert door("HEAD", "/buy").status == 200
    assert door.log.submits == 0


def test_too_many_records_and_too_large_after_gzip(door):
    body = b"\n".join([b"{}"] * 5_001)
    assert error(door.post(body, content_type=LINES)) == (413, "too_many_records")
    bomb = gzip.compress(bytes(50 << 20))
    packed = [("content-encoding", "gzip")]
    assert error(door.post(bomb, headers=packed)) == (413, "body_too_large")
    assert error(door.post(b"\x1f\x8bxx", headers=packed)) == (400, "malformed_gzip")
    assert error(door.post(GOOD, headers=[("content-encoding", "br")])) == (
        415,
        "unsupported_encoding",
    )
    assert door.log.submits == 0


def test_gzip_that_blows_up_past_the_budget_is_refused(open_door):
    door = open_door(Limits(in_flight_bytes_max=1 << 20))
    body = gzip.compress(b"[" + b",".join([GOOD] * 100_000) + b"]")
    answer = door.post(body, headers=[("content-encoding", "gzip")])
    assert error(answer) == (503, "too_busy")


def test_wait_has_two_values(door):
    assert error(door.post(GOOD, query="?wait=perhaps")) == (400, "invalid_parameter")
