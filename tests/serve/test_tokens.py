"""Every path of the reading side asks for a token, and tokens over HTTP."""

from __future__ import annotations

import dataclasses
import json
import re
from contextlib import closing
from urllib.parse import urlencode

import msgspec
import pytest

from headrace.control import tokens
from headrace.control.admission import FAILED_MAX, FRESH_S, Admission
from headrace.control.tokens import LIFETIME_S_MAX, Wanted
from headrace.log.embedded import EmbeddedLogReader
from headrace.model.clock import ManualClock
from headrace.model.errors import Internal
from headrace.serve import api
from headrace.serve.access import SCOPES, scope_of

TOKENS = "/v1/tokens"


class Guarded:
    """The application of a plan that asks for tokens, and tokens for it."""

    def __init__(self, world, make_client, reader):
        self.world = world
        self.clock = ManualClock(world.clock.now_us())
        world.log.create("events", 2)
        world.epoch([world.sale(0)], [world.letter(0)])
        options = dataclasses.replace(world.plan.options, tokens=True)
        queries = tuple(q for q in world.plan.queries if q.path in {"/count", "/echo"})
        self.plan = msgspec.structs.replace(world.plan, options=options, queries=queries)
        held = api.Tokens(Admission(reader, self.clock), world.log)
        self.client = make_client(self.plan, tokens=held)
        self.app = self.client.app

    def make(self, *scopes, **more):
        return tokens.create(self.world.log, self.clock, Wanted(scopes, **more)).text

    def __call__(self, method, path, token=None, body=None, **headers):
        if token is not None:
            headers["authorization"] = f"Bearer {token}"
        if body is not None:
            headers["content-type"] = "application/json"
        content = None if body is None else json.dumps(body).encode()
        return self.client.ask(path, method, headers=headers, content=content)


@pytest.fixture
def guarded(world, make_client):
    with closing(EmbeddedLogReader(world.layout.log)) as reader:
        yield Guarded(world, make_client, reader)


def code(answer):
    return answer.status_code, answer.json()["error"]["code"]


NAMES = {"table": "sales", "view": "by_host", "letter": "letter-0", "asset": "style.css"}


def filled(template):
    """Return a path with a name for each of its parameters; none that is a stream without end."""
    names = {} if template.endswith("/live") else NAMES
    return re.sub(r"\{(\w+)\}", lambda m: names.get(m[1], "some"), template)


ENDLESS = "/_/changes"
"""A stream that waits for what does not come here: asked only by those who are refused."""


def every_path(app):
    """Yield each (method, path) of the application, with the path's template."""
    for route in app.routes:
        for method in sorted(route.methods):
            yield method, filled(route.path), route.path


UNASKED = {
    (method, path)
    for path in ("/healthz", "/_/sign-in", "/_/static/{asset}")
    for method in ("GET", "HEAD")
} | {("POST", "/_/sign-in"), ("POST", "/_/sign-out")}


def test_every_path_but_a_few_asks_for_a_token(guarded):
    paths = list(every_path(guarded.app))
    assert len(paths) > 30
    for method, path, template in paths:
        answer = guarded(method, path)
        if (method, template) in UNASKED:
            assert answer.status_code < 400 or path == "/_/sign-in", (method, path)
            continue
        assert answer.status_code == 401, (method, path)
        assert answer.headers["www-authenticate"] == "Bearer"
        if method != "HEAD":
            assert code(answer) == (401, "unauthorized")
        assert guarded(method, path, "hr_api_x").status_code in {401, 429}


def test_every_path_of_the_document_asks_for_a_token_and_says_its_scope(guarded):
    admin = guarded.make("admin")
    described = guarded("GET", "/openapi.json", admin).json()
    assert described["components"]["securitySchemes"]["token"]["scheme"] == "bearer"
    served = {(method, path) for method, path, _ in every_path(guarded.app)}
    for path, operations in described["paths"].items():
        for method, operation in operations.items():
            (asked,) = operation["security"] or [{"token": []}]
            here = (method.upper(), filled(path))
            assert asked["token"] or path == "/healthz"
            if here in served and asked["token"]:
                assert guarded(*here).status_code == 401


def test_unknown_paths_and_methods_are_told_to_nobody_unknown(guarded):
    read = guarded.make("read")
    assert code(guarded("GET", "/nothing")) == (401, "unauthorized")
    assert code(guarded("PUT", "/v1/tables")) == (401, "unauthorized")
    assert code(guarded("GET", "/nothing", read)) == (404, "not_found")
    assert code(guarded("PUT", "/v1/tables", read)) == (405, "method_not_allowed")


def test_a_scope_is_enough_and_another_is_not(guarded):
    read, append = guarded.make("read"), guarded.make("append:*", "sql")
    admin = guarded.make("admin")
    for method, path, template in every_path(guarded.app):
        scope = scope_of("GET" if method == "HEAD" else method, template, guarded.plan)
        if (method, template) in UNASKED:
            continue
        wanted = 415 if scope == "sql" else 403
        assert guarded(method, path, append).status_code == wanted, (method, path)
        if path == ENDLESS:
            continue
        answer = guarded(method, path, read)
        if scope in {"admin", "sql"}:
            assert answer.status_code == 403, (method, path)
            assert method == "HEAD" or scope in answer.json()["error"]["message"]
        else:
            assert answer.status_code not in {401, 403}, (method, path)
        assert guarded(method, path, admin).status_code not in {401, 403}, (method, path)


def test_a_path_without_a_declared_scope_stops_the_server(guarded):
    with pytest.raises(Internal):
        scope_of("GET", "/v1/secrets", guarded.plan)
    with pytest.raises(Internal):
        scope_of("POST", "/v1/tables", guarded.plan)


def test_no_scope_is_declared_for_a_path_that_is_not_served(guarded):
    served = {(m, r.path) for r in guarded.app.routes for m in r.methods}
    optional = {(m, p) for m, p in SCOPES if p.startswith(("/v1/sources", "/_/sources"))}
    assert set(SCOPES) - served - optional == set()


def test_a_plan_that_asks_for_tokens_is_not_served_without(guarded, make_client):
    with pytest.raises(Internal):
        make_client(guarded.plan)


def test_guessing_is_limited(guarded):
    answers = [guarded("GET", "/v1/tables", f"hr_api_{n}") for n in range(FAILED_MAX + 1)]
    assert [a.status_code for a in answers] == [401] * FAILED_MAX + [429]
    assert int(answers[-1].headers["retry-after"]) > 1
    assert guarded("GET", "/v1/tables", guarded.make("read")).status_code == 200


# --- tokens over HTTP


def test_a_token_is_made_listed_used_and_revoked(guarded):
    admin = guarded.make("admin", name="owner")
    made = guarded("POST", TOKENS, admin, {"scopes": ["read"], "name": "guest", "lifetime_s": 60})
    assert (made.status_code, made.headers["cache-control"]) == (201, "no-store")
    told = made.json()
    text = told.pop("token")
    assert (told["name"], told["scopes"], told["state"]) == ("guest", ["read"], "live")
    assert told["made_by"] == tokens.parse(admin)
    assert guarded("GET", "/v1/tables", text).status_code == 200
    listed = guarded("GET", TOKENS, admin)
    assert told in listed.json()["tokens"]
    assert len(listed.json()["tokens"]) == 2
    assert text not in listed.text
    assert text.split("_")[3] not in listed.text
    gone = guarded("DELETE", f"{TOKENS}/{told['id']}", admin)
    assert (gone.status_code, gone.json()["state"]) == (200, "revoked")
    guarded.clock.advance(FRESH_S)
    assert code(guarded("GET", "/v1/tables", text)) == (401, "unauthorized")
    assert code(guarded("DELETE", f"{TOKENS}/{'0' * 16}", admin)) == (404, "unknown_token")


def test_a_token_that_was_made_over_http_ends(guarded):
    admin = guarded.make("admin")
    text = guarded("POST", TOKENS, admin, {"scopes": ["read"]}).json()["token"]
    guarded.clock.advance(3_500)
    assert guarded("GET", "/v1/tables", text).status_code == 200
    # More than an hour, since whoever makes it has a clock of its own.
    guarded.clock.advance(200)
    assert code(guarded("GET", "/v1/tables", text)) == (401, "unauthorized")


def test_it_makes_no_others_and_ends_with_its_maker(guarded):
    admin = guarded.make("admin")
    other = guarded("POST", TOKENS, admin, {"scopes": ["admin"]}).json()["token"]
    assert code(guarded("POST", TOKENS, other, {"scopes": ["read"]})) == (403, "forbidden")
    guarded("DELETE", f"{TOKENS}/{tokens.parse(admin)}", other)
    guarded.clock.advance(FRESH_S)
    assert code(guarded("GET", TOKENS, other)) == (401, "unauthorized")


SENSELESS = [
    {},
    {"scopes": []},
    {"scopes": "read"},
    {"scopes": ["write"]},
    {"scopes": ["read"], "lifetime_s": 0},
    {"scopes": ["read"], "lifetime_s": -5},
    {"scopes": ["read"], "lifetime_s": LIFETIME_S_MAX + 1},
    {"scopes": ["read"], "lifetime_s": None},
    {"scopes": ["read"], "expires": "never"},
    {"scopes": ["read"], "kind": "root"},
    {"scopes": ["read"], "kind": "browser", "origins": ["https://a.example"]},
    {"scopes": ["append:events"], "kind": "browser", "origins": ["*"]},
    [],
]


def test_a_request_for_a_token_that_makes_no_sense(guarded):
    admin = guarded.make("admin")
    for body in SENSELESS:
        answer = guarded("POST", TOKENS, admin, body)
        assert answer.status_code == 400, body
        assert answer.json()["error"]["hint"]
    assert len(guarded("GET", TOKENS, admin).json()["tokens"]) == 1


def test_a_key_for_browsers_is_made(guarded):
    admin = guarded.make("admin")
    body = {"scopes": ["append:events"], "kind": "browser", "origins": ["https://a.example"]}
    made = guarded("POST", TOKENS, admin, body)
    assert made.status_code == 201
    assert made.json()["token"].startswith("hr_browser_")
    answer = guarded("GET", "/v1/tables", made.json()["token"], origin="https://a.example")
    assert code(answer) == (403, "forbidden")


def test_without_tokens_there_are_no_paths_to_make_them(client):
    for method, path in (("POST", TOKENS), ("GET", TOKENS), ("DELETE", f"{TOKENS}/x")):
        assert client.ask(path, method).status_code == 404
    described = client.get("/openapi.json").json()
    assert not any(path.startswith(TOKENS) for path in described["paths"])
    assert "securitySchemes" not in described["components"]


# --- people


def sign_in(guarded, text, **headers):
    headers = {"content-type": "application/x-www-form-urlencoded", **headers}
    body = f"token={text}&next=%2F_%2Ftopics%3Ftext%3Da".encode()
    return guarded.client.ask("/_/sign-in", "POST", headers=headers, content=body)


def test_a_person_is_sent_to_sign_in_and_back(guarded):
    asked = guarded("GET", "/_/topics?text=a", accept="text/html,*/*")
    assert asked.status_code == 303
    assert asked.headers["location"] == "/_/sign-in?next=%2F_%2Ftopics%3Ftext%3Da"
    form = guarded("GET", asked.headers["location"])
    assert 'value="/_/topics?text=a"' in form.text
    answer = sign_in(guarded, guarded.make("read", "sql"))
    assert answer.status_code == 303
    assert answer.headers["location"] == "/_/topics?text=a"
    cookie = answer.headers["set-cookie"].partition(";")[0]
    assert "hr_session_" in cookie
    shown = guarded("GET", "/_/tables", cookie=cookie)
    assert shown.status_code == 200
    assert "Sign out" in shown.text
    own = {"cookie": cookie, "sec-fetch-site": "same-origin"}
    assert guarded("POST", "/v1/sql", body={"sql": "SELECT 1"}, **own).status_code == 200
    other = {"cookie": cookie, "sec-fetch-site": "same-site"}
    assert guarded("POST", "/v1/sql", body={"sql": "SELECT 1"}, **other).status_code == 401
    out = guarded("POST", "/_/sign-out", **own)
    assert out.status_code == 303
    assert "Max-Age=0" in out.headers["set-cookie"]
    guarded.clock.advance(FRESH_S)
    assert guarded("GET", "/_/tables", cookie=cookie).status_code == 401


def test_a_token_that_is_not_good_signs_nobody_in(guarded):
    answer = sign_in(guarded, "hr_api_x")
    assert answer.status_code == 401
    assert "This token is no good here" in answer.text
    assert sign_in(guarded, guarded.make("append:events")).status_code == 403
    for _ in range(FAILED_MAX):
        answer = sign_in(guarded, "hr_api_x")
    assert answer.status_code == 429


def test_other_sites_sign_nobody_in(guarded):
    text = guarded.make("read")
    for headers in ({"origin": "https://evil.example"}, {"sec-fetch-site": "cross-site"}):
        refused = sign_in(guarded, text, **headers)
        assert refused.status_code == 403
        assert "set-cookie" not in refused.headers


@pytest.mark.parametrize("next_", ["//evil.example", "https://evil.example", "/\\evil.example", ""])
def test_who_signs_in_stays_here(guarded, next_):
    headers = {"content-type": "application/x-www-form-urlencoded"}
    body = urlencode({"token": guarded.make("read"), "next": next_}).encode()
    answer = guarded.client.ask("/_/sign-in", "POST", headers=headers, content=body)
    assert answer.headers["location"] == "/_/"
