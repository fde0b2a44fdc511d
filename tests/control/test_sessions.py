"""Sessions: what a browser is let in by, and what other pages cannot make of it."""

from __future__ import annotations

import pytest

from headrace.control import sessions, tokens
from headrace.control.admission import FRESH_S
from headrace.control.tokens import Wanted
from headrace.model.errors import Invalid

HOST = {"host": "127.0.0.1:8080"}


def begun(log, clock, *scopes, **more):
    maker = tokens.create(log, clock, Wanted(scopes, **more))
    return maker, sessions.begin(log, clock, maker.token)


def admit(admission, text, scope="read"):
    return admission.admit(None, scope, origin=None, client="", session=text)


def refused(admission, text, scope="read", authorization=None):
    with pytest.raises(Invalid) as caught:
        admission.admit(authorization, scope, origin=None, client="", session=text)
    return caught.value.code


def test_a_session_has_its_tokens_scopes_but_those_to_append(log, clock, admission):
    maker, session = begun(log, clock, "read", "append:*", "sql", name="Ada")
    assert session.token.scopes == ("read", "sql")
    assert session.token.name == "Ada"
    assert session.token.made_by == maker.token.id
    assert admit(admission, session.text, "sql").id == session.token.id
    assert refused(admission, session.text, "admin") == "forbidden"


def test_who_may_not_read_has_no_session(log, clock):
    with pytest.raises(Invalid) as caught:
        begun(log, clock, "append:events")
    assert caught.value.code == "forbidden"


def test_each_kind_of_token_has_its_place(log, clock, admission):
    maker, session = begun(log, clock, "read")
    assert refused(admission, maker.text) == "unauthorized", "a program's token in the cookie"
    assert refused(admission, None, authorization=f"Bearer {session.text}") == "unauthorized"


def test_a_session_ends_after_its_day_or_with_its_token(log, clock, admission):
    _, session = begun(log, clock, "read")
    clock.advance(sessions.LIFETIME_S - 1)
    assert admit(admission, session.text)
    clock.advance(1)
    assert refused(admission, session.text) == "unauthorized"
    _, shorter = begun(log, clock, "read", lifetime_s=60.0)
    clock.advance(60)
    assert refused(admission, shorter.text) == "unauthorized"


def test_revoked_with_its_token_and_with_that_ones_maker(log, clock, admission):
    owner = tokens.create(log, clock, Wanted(("admin",)))
    middle = tokens.create(log, clock, Wanted(("read",), lifetime_s=3600.0), maker=owner.token)
    session = sessions.begin(log, clock, middle.token)
    assert admit(admission, session.text)
    tokens.revoke(log, clock, owner.token.id)
    clock.advance(FRESH_S)
    assert refused(admission, session.text) == "unauthorized"
    states = {t.state(clock.now_us()) for t in tokens.listed(log)}
    assert states == {"revoked"}


@pytest.mark.parametrize(
    ("method", "headers", "counts"),
    [
        ("GET", {}, True),
        ("POST", {}, False),
        ("POST", {"origin": "http://127.0.0.1:8080"}, True),
        ("POST", {"origin": "http://127.0.0.1:3000"}, False),
        ("POST", {"origin": "null"}, False),
        ("POST", {"origin": "http://["}, False),
        ("DELETE", {"sec-fetch-site": "same-origin"}, True),
        ("GET", {"sec-fetch-site": "none"}, True),
        ("GET", {"sec-fetch-site": "same-site"}, False),
        ("GET", {"sec-fetch-site": "cross-site"}, False),
        ("GET", {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate"}, True),
        ("POST", {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate"}, False),
        ("POST", {"sec-fetch-site": "same-site", "origin": "http://127.0.0.1:8080"}, False),
    ],
)
def test_only_this_servers_pages_count(method, headers, counts):
    asked = {**HOST, "cookie": f"a=b; {sessions.COOKIE}=text; c=d", **headers}
    assert sessions.shown(asked, method) == ("text" if counts else None)


@pytest.mark.parametrize("cookie", ["", "a=b", "x_headrace-session=1", "headrace-sessions=1"])
def test_other_cookies_are_none(cookie):
    assert sessions.shown({**HOST, "cookie": cookie}, "GET") is None


def test_the_cookie_is_for_this_server_alone():
    said = sessions.cookie_of("t", is_https=True)
    for word in ("headrace-session=t;", "HttpOnly", "SameSite=Strict", "Secure", "Path=/;"):
        assert word in said
    assert "Secure" not in sessions.cookie_of("t", is_https=False)
    assert "Max-Age=0" in sessions.cookie_of("", is_https=False)
