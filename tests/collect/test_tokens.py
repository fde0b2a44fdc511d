from __future__ import annotations

import asyncio
import json
from contextlib import closing

import pytest

from headrace.collect.exchange import HeaderList, Request
from headrace.collect.gate import TokenGate
from headrace.collect.limits import Share
from headrace.control import sessions, tokens
from headrace.control.admission import FAILED_MAX, Admission
from headrace.control.tokens import Wanted
from headrace.log.embedded import EmbeddedLog, EmbeddedLogReader
from headrace.model.clock import ManualClock
from headrace.model.errors import Invalid

GOOD = b'{"event_type":"good","n":1}'
SHOP = "https://shop.example"


def error(answer):
    return answer.status, json.loads(answer.body)["error"]["code"]


@pytest.fixture
def clock():
    return ManualClock()


@pytest.fixture
def kept(tmp_path, clock):
    """The log that holds the tokens."""
    with closing(EmbeddedLog(tmp_path / "log", clock)) as log:
        yield log


@pytest.fixture
def door(open_door, kept, clock, tmp_path):
    with closing(EmbeddedLogReader(tmp_path / "log")) as reader:
        yield open_door(gate=TokenGate(Admission(reader, clock)))


@pytest.fixture
def bearer(kept, clock):
    """Return a function that makes a token and the headers that show it."""

    def bearer(*scopes, **more):
        text = tokens.create(kept, clock, Wanted(scopes, **more)).text
        return [("authorization", f"Bearer {text}")]

    return bearer


def every_path(door):
    """Yield each path of the door with the scope that it declares, and the methods it knows."""
    collector = door.collector
    yield from ((path, place.scope, place.handlers) for path, place in collector._paths.items())
    for route in collector._patterns:
        path = route.route.path.replace("{guild}", "red")
        place = collector._find(path)
        yield path, place.scope, place.handlers
    place = collector._find("/v1/topics/nothing")
    yield "/v1/topics/nothing", place.scope, place.handlers


def test_every_path_asks_for_a_token_and_for_its_scope(door, bearer, log):
    paths = list(every_path(door))
    assert len(paths) == 11
    assert {scope for _, scope, _ in paths} == {
        "read",
        "append:events",
        "append:named",
        "append:free",
        "",
    }
    for path, scope, handlers in paths:
        for method in {*handlers, "GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS"}:
            assert error(door(method, path, GOOD)) == (401, "unauthorized"), (method, path)
            wrong = [("authorization", "Bearer hr_api_x")]
            assert door(method, path, GOOD, wrong).status in {401, 429}
            if scope:
                others = {"read", "append:events", "append:named", "append:free", "sql"} - {scope}
                answer = door(method, path, GOOD, bearer(*others))
                assert error(answer) == (403, "forbidden"), (method, path)
                assert scope in answer.body.decode()
    assert not any(log.batches.values())
    for path, scope, handlers in paths:
        if not scope:
            continue
        for of_scope in (scope, "admin"):
            method = next(iter(handlers))
            answer = door(method, path, GOOD, bearer(of_scope))
            assert answer.status == 200, (method, path, answer)
    assert all(log.batches.values())


def test_a_refusal_says_how_to_show_a_token(door):
    assert ("www-authenticate", "Bearer") in door.post(GOOD).headers


def test_a_token_in_the_address_lets_nobody_in(door, bearer):
    ((_, value),) = bearer("admin")
    for name in ("token", "access_token", "authorization"):
        answer = door.post(GOOD, query=f"?{name}={value.removeprefix('Bearer ')}")
        assert error(answer) == (401, "unauthorized")


def test_nothing_is_read_of_a_body_that_may_not_be_sent(door):
    async def ask():
        async def read():
            raise AssertionError("the body was read")

        request = Request(
            "POST", "/v1/topics/events", "", HeaderList([]), read, Share(door.collector.budget)
        )
        return await door.collector.respond(request)

    assert asyncio.run(ask()).status == 401


def test_names_that_clients_choose_are_those_of_a_token(door, bearer, log):
    first, second = bearer("append:events"), bearer("append:*")
    for who in (first, second, first):
        assert door.post(GOOD, headers=[*who, ("idempotency-key", "1")]).status == 200
    a, b, again = log.all("events").ids
    assert a == again
    assert a != b


def test_no_token_is_kept_with_a_record(door, bearer, log):
    who = bearer("append:events")
    assert door("GET", "/buy", headers=who).status == 200
    binary = [*who, ("ce-id", "1"), ("ce-source", "s"), ("ce-specversion", "1.0"), ("ce-type", "t")]
    assert door.post(GOOD, headers=binary).status == 200
    batch = log.all("events")
    kept = b"".join([*batch.values, *batch.headers, *(k or b"" for k in batch.keys)])
    assert b"hr_api" not in kept


def test_guessing_is_limited(door, bearer):
    wrong = [("authorization", "Bearer hr_api_1_2_3")]
    answers = [door.post(GOOD, headers=wrong) for _ in range(FAILED_MAX + 1)]
    assert [a.status for a in answers] == [401] * FAILED_MAX + [429]
    assert int(dict(answers[-1].headers)["retry-after"]) > 1
    assert door.post(GOOD, headers=bearer("append:events")).status == 200


def test_what_is_for_another_role_is_let_through_for_any_token_and_health_for_none(door, bearer):
    def request(path, headers):
        share = Share(door.collector.budget)
        return Request("GET", path, "", HeaderList(headers), None, share)

    for path in ("/_", "/v1/tables", "/ready", "/metrics", "/healthz/", "//healthz", "/Healthz"):
        with pytest.raises(Invalid) as caught:
            door.collector.identify(request(path, []))
        assert caught.value.code == "unauthorized"
    door.collector.identify(request("/v1/tables", bearer("append:free")))
    for path in ("/healthz", "/", "/_/", "/_/sign-in"):
        door.collector.identify(request(path, []))  # the role that answers it judges it


def test_a_session_reads_and_appends_nothing(door, kept, clock):
    maker = tokens.create(kept, clock, Wanted(("admin",)))
    session = sessions.begin(kept, clock, maker.token).text
    gate = door.collector._gate
    share = Share(door.collector.budget)
    cookie = HeaderList([("cookie", f"{sessions.COOKIE}={session}")])
    request = Request("GET", "/", "", cookie, None, share)
    assert gate.admit(request, "read")
    assert gate.admit(request, "")
    for scope in ("append:events", "append:*"):
        with pytest.raises(Invalid) as caught:
            gate.admit(request, scope)
        assert caught.value.code == "unauthorized"


# --- browsers


def key(bearer, *scopes, origins=(SHOP,)):
    return bearer(*(scopes or ("append:events",)), kind="browser", origins=origins)


PREFLIGHT = [
    ("origin", SHOP),
    ("access-control-request-method", "POST"),
    ("access-control-request-headers", "authorization,content-type"),
]


def allowed_origin(answer):
    return dict(answer.headers).get("access-control-allow-origin")


def test_a_page_of_an_allowed_origin_may_append(door, bearer):
    headers = key(bearer)
    asked = door("OPTIONS", "/v1/topics/events", headers=PREFLIGHT)
    said = dict(asked.headers)
    assert asked.status == 204
    assert said["access-control-allow-origin"] == SHOP
    assert "POST" in said["access-control-allow-methods"]
    assert {"authorization", "content-type"} <= set(
        said["access-control-allow-headers"].split(", ")
    )
    assert said["vary"] == "Origin"
    answer = door.post(GOOD, headers=[*headers, ("origin", SHOP)])
    assert (answer.status, allowed_origin(answer)) == (200, SHOP)
    assert "x-headrace-offsets" in dict(answer.headers)["access-control-expose-headers"]


def test_the_page_may_read_why_it_was_refused(door, bearer):
    key(bearer)
    answer = door.post(GOOD, headers=[("origin", SHOP)])
    assert (answer.status, allowed_origin(answer)) == (401, SHOP)


@pytest.mark.parametrize(
    "origin", ["https://evil.example", "null", "", "https://shop.example.evil"]
)
def test_no_other_page_may(door, bearer, origin):
    headers = key(bearer)
    asked = [("origin", origin), *PREFLIGHT[1:]]
    answer = door("OPTIONS", "/v1/topics/events", headers=asked)
    assert (answer.status, allowed_origin(answer)) == (401, None)
    answer = door.post(GOOD, headers=[*headers, ("origin", origin)])
    assert error(answer) == (403, "forbidden")
    assert allowed_origin(answer) is None
    assert error(door.post(GOOD, headers=headers)) == (403, "forbidden")


def test_a_browsers_key_is_good_for_nothing_but_its_topic(door, bearer):
    headers = [*key(bearer), ("origin", SHOP)]
    for method, path in (
        ("POST", "/v1/topics/named"),
        ("GET", "/v1/topics"),
        ("GET", "/v1/topics/events/records"),
    ):
        asked = door("OPTIONS", path, headers=PREFLIGHT)
        assert (asked.status, allowed_origin(asked)) == (401, None)
        answer = door(method, path, GOOD, headers)
        assert error(answer) == (403, "forbidden")
        assert allowed_origin(answer) is None


def test_without_keys_for_browsers_no_page_may_do_anything(door, bearer):
    headers = [*bearer("admin"), ("origin", SHOP)]
    assert door("OPTIONS", "/v1/topics/events", headers=PREFLIGHT).status == 401
    answer = door.post(GOOD, headers=headers)
    assert (answer.status, allowed_origin(answer)) == (200, None)


def test_without_tokens_all_is_as_it_was(open_door):
    door = open_door()
    assert door.post(GOOD, headers=[("origin", SHOP)]).headers[0][0] == "content-type"
    assert allowed_origin(door("OPTIONS", "/v1/topics/events", headers=PREFLIGHT)) is None
