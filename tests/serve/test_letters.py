"""Dead letters over HTTP: what became of them, and acting on them."""

from __future__ import annotations

import json
import uuid

import pytest

LETTERS = "/v1/dead-letters"


@pytest.fixture
def letters(client, world):
    """A client of three dead letters of a topic that the log has."""
    world.log.create("events", 2)
    ids = [str(uuid.UUID(int=n)) for n in range(3)]
    world.epoch([world.sale(0)], [world.letter(n, event_id=i) for n, i in enumerate(ids)])
    return client


def act(client, verb, body, **more):
    headers = {"content-type": "application/json"} | more
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return client.ask(f"{LETTERS}/{verb}", "POST", content=content, headers=headers)


def statuses(client, **params):
    return {r["letter_id"]: r["status"] for r in client.rows(LETTERS, **params)}


def test_replayed_and_discarded_show(letters, world):
    assert set(statuses(letters).values()) == {"open"}
    answer = act(letters, "replay", {"ids": ["letter-1"]})
    assert (answer.status_code, answer.json()) == (200, {"replayed": ["letter-1"]})
    answer = act(letters, "discard", {"ids": ["letter-2"], "why": "it's a probe"})
    assert (answer.status_code, answer.json()) == (200, {"discarded": ["letter-2"]})
    done = {"letter-1": "replayed", "letter-2": "discarded"}
    assert statuses(letters) == {"letter-0": "open", **done}
    assert statuses(letters, status="open") == {"letter-0": "open"}
    assert statuses(letters, status__in="replayed,discarded", order="-failed_at") == done
    one = letters.get(f"{LETTERS}/letter-2").json()
    assert (one["status"], one["why"]) == ("discarded", "it's a probe")
    assert one["acted_at"].endswith("Z")
    untouched = letters.get(f"{LETTERS}/letter-0").json()
    assert (untouched["status"], untouched["acted_at"], untouched["why"]) == ("open", None, None)

    assert sum(world.log.ends("events")) == 1
    partition = world.log.ends("events").index(1)
    (batch,) = world.log.read("events", partition, 0, 1)
    assert batch.to_pylist()[0]["value"] == b'{"n": "x"}'


def test_acting_twice_is_refused_and_does_nothing(letters, world):
    act(letters, "replay", {"ids": ["letter-1"]})
    for verb in ("replay", "discard"):
        answer = act(letters, verb, {"ids": ["letter-0", "letter-1"]})
        assert (answer.status_code, answer.json()["error"]["code"]) == (409, "letter_done")
    assert statuses(letters)["letter-0"] == "open"
    assert sum(world.log.ends("events")) == 1


def test_an_unknown_letter_is_not_found(letters):
    answer = act(letters, "replay", {"ids": ["letter-0", "it's"]})
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "unknown_letter")
    assert statuses(letters)["letter-0"] == "open"


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"nonsense",
        b"\xff",
        {},
        {"ids": []},
        {"ids": "letter-1"},
        {"ids": [1]},
        {"ids": ["letter-1"], "all": True},
        {"ids": ["x"] * 1_001},
        [],
    ],
)
def test_a_body_of_another_shape_is_refused(letters, body):
    answer = act(letters, "replay", body)
    error = answer.json()["error"]
    assert (answer.status_code, error["code"]) == (400, "invalid_body")
    assert '{"ids": ["…"]}' in error["hint"]


def test_another_sites_form_cannot_act(letters):
    for kind in ("text/plain", "application/x-www-form-urlencoded", ""):
        answer = act(letters, "discard", {"ids": ["letter-1"]}, **{"content-type": kind})
        assert answer.status_code == 415
    assert statuses(letters)["letter-1"] == "open"


def test_a_large_body_and_other_methods(letters):
    assert act(letters, "replay", b" " * (1 << 20) + b"{}").status_code == 413
    assert letters.ask(f"{LETTERS}/replay", "PUT").status_code == 405
    assert letters.ask(LETTERS, "POST").status_code == 405
    assert act(letters, "replay?x=1", {"ids": ["letter-1"]}).status_code == 400
