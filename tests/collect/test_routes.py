import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.collect.exchange import HeaderList
from headrace.collect.routes import CompiledRoute, field_name, find
from headrace.model.errors import Invalid
from headrace.model.plan import Route

NONE = HeaderList([])


def route(path="/buy", fixed=None, *, headers=True):
    return CompiledRoute(Route(path, "events", fixed or {"event_type": "buy"}, "ok\n", headers))


def event(body=b"", headers=(), **options):
    made = route(**options).event({}, body, HeaderList(list(headers)))
    pairs = json.loads(made, object_pairs_hook=list)
    names = [name.lower() for name, _ in pairs]
    assert len(set(names)) == len(names), "no name twice, whatever its case"
    return dict(pairs)


def test_headers_become_fields_in_title_case():
    assert event(
        headers=[("user-agent", "curl/8"), ("host", "a:1"), ("accept", "*/*"), ("x_y", "z")]
    ) == {
        "event_type": "buy",
        "User-Agent": "curl/8",
        "Host": "a:1",
        "Accept": "*/*",
        "X_y": "z",
    }


def test_a_route_may_leave_headers_out():
    made = route(headers=False).event({}, b"", HeaderList([("host", "a")]))
    assert json.loads(made) == {"event_type": "buy"}


@pytest.mark.parametrize("name", ["event_type", "Event_Type", "EVENT_TYPE"])
def test_a_header_never_overrides_the_routes_own_field(name):
    assert event(headers=[(name, "forged")]) == {"event_type": "buy"}


def test_the_routes_field_beats_the_body_and_the_body_beats_headers():
    assert event(b'{"Event_Type":"forged","host":"mine","n":1}', [("host", "theirs")]) == {
        "event_type": "buy",
        "host": "mine",
        "n": 1,
    }


def test_repeated_headers_are_joined():
    assert event(headers=[("x-a", "1"), ("host", "h"), ("X-A", "2")])["X-A"] == "1, 2"


@pytest.mark.parametrize(
    "name",
    [
        "Authorization",
        "Cookie",
        "Set-Cookie",
        "Proxy-Authorization",
        "X-Api-Key",
        "ApiKey",
        "X-Auth-Token",
        "X-Access-Token",
        "X-Amz-Security-Token",
        "X-CSRF-Token",
        "X-Session-Id",
        "My-Secret",
        "X-Password",
        "Forwarded",
    ],
)
def test_credentials_are_never_kept(name):
    assert event(headers=[(name, "s3cret"), ("host", "h")]) == {"event_type": "buy", "Host": "h"}


@pytest.mark.parametrize("name", ["idempotency-key", "accept", "referer", "x-author", "keep-alive"])
def test_other_headers_are_kept(name):
    assert field_name(name) is not None


def test_client_addresses_are_truncated():
    headers = [
        ("x-forwarded-for", "203.0.113.77, 2001:db8:1:2::3, nonsense"),
        ("x-real-ip", "nonsense"),
        ("cf-connecting-ip", "::ffff:203.0.113.77"),
    ]
    made = event(headers=headers)
    assert made["X-Forwarded-For"] == "203.0.113.0, 2001:db8:1::"
    assert "X-Real-Ip" not in made
    assert "77" not in made["Cf-Connecting-Ip"]


@pytest.mark.parametrize(
    "inner",
    [
        b'"a":1,"a":2',
        b'"big":9223372036854775808',
        b'"f":1e999',
        b'"deep":' + b"[" * 100 + b"]" * 100,
        b'"bad":"\xff"',
        b'"digits":' + b"1" * 5000,
    ],
)
def test_the_bodys_members_keep_their_bytes_for_the_judge(inner):
    made = route(headers=False).event({}, b" { " + inner + b" } ", NONE)
    assert made == b'{"event_type":"buy",' + inner + b"}"


def test_repeated_members_are_still_seen_when_one_is_taken_out():
    body = b'{"a":1,"event_type":"x","a":2,"d":' + b"1" * 5000 + b"}"
    made = route(headers=False).event({}, body, NONE)
    assert made.count(b'"a":') == 2
    assert made.count(b"event_type") == 1


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"[]", "not_an_object"),
        (b"5", "not_an_object"),
        (b"{", "malformed_json"),
        (b'{"a":NaN}', "malformed_json"),
        (b"\xff\xfe", "malformed_json"),
        (b'{"a":' + b"[" * 10_000 + b"]" * 10_000 + b"}", "too_deep"),
    ],
)
def test_a_body_that_is_no_object_is_refused(body, code):
    with pytest.raises(Invalid) as refused:
        route().event({}, body, NONE)
    assert refused.value.code == code


def test_parameters_are_one_segment_each():
    routes = [route("/"), route("/join/{guild}"), route("/{a}/x/{b_1}"), route("/a.c")]
    assert find(routes, "/join/the red")[1] == {"guild": "the red"}
    assert find(routes, "/p/x/q")[1] == {"a": "p", "b_1": "q"}
    assert find(routes, "/")[1] == {}
    for path in ("/join/", "/join/a/b", "/join", "/abc", "", "/a.c/"):
        assert find(routes, path) is None


@given(st.text())
def test_parameters_fill_templates_and_cannot_break_out(guild):
    made = route("/j/{guild}", {"event_type": "join:{guild}", "g": "{guild}"}, headers=False)
    assert json.loads(made.event({"guild": guild}, b"", NONE)) == {
        "event_type": f"join:{guild}",
        "g": guild,
    }


names = st.text(st.characters(codec="utf-8"), max_size=6)


@given(
    st.dictionaries(names, st.integers() | st.text(st.characters(codec="utf-8")), max_size=5),
    st.lists(
        st.tuples(st.sampled_from(["a", "B", "x-a", "event_type", "host"]), st.text(max_size=3))
    ),
)
def test_no_name_stands_twice_and_the_routes_own_fields_stand(fields, headers):
    body = json.dumps(fields).encode()
    made = json.loads(
        route().event({}, body, HeaderList(headers)), object_pairs_hook=lambda pairs: pairs
    )
    assert made.count(("event_type", "buy")) == 1
    folded = [name.lower() for name, _ in made]
    ours = {name.lower() for name in fields}
    for name in set(folded) - ours:
        assert folded.count(name) == 1
    for name, value in fields.items():
        if name.lower() != "event_type":
            assert (name, value) in made


@pytest.mark.parametrize(
    "name",
    [
        "x_api_key",
        "X_Auth_Token",
        "Cf-Access-Jwt-Assertion",
        "X-Amzn-Oidc-Data",
        "Ocp-Apim-Subscription-Key",
        "X-Functions-Key",
        "X-Github-Otp",
        "DPoP",
        "X-Forwarded-Client-Cert",
    ],
)
def test_credentials_of_proxies_and_clouds_are_never_kept(name):
    assert event(headers=[(name, "s3cret"), ("host", "h")]) == {"event_type": "buy", "Host": "h"}


@pytest.mark.parametrize("name", ["referer", "X-Original-Url", "X-Forwarded-Uri", "Link"])
def test_credentials_in_addresses_are_never_kept(name):
    url = "https://ann:s3cret@a.example/p?utm=x&api_key=s3cret&token=s3cret#access_token=s3cret"
    (kept,) = set(event(headers=[(name, url)]).values()) - {"buy"}
    assert "s3cret" not in kept
    assert kept.startswith("https://")
    assert "a.example/p?utm=x" in kept


def test_other_addresses_keep_every_sign():
    url = "/p?q=a%20b&c[]=1;d=e&&#top"
    assert event(headers=[("referer", url)])["Referer"] == url


def test_long_names_of_headers_are_not_remembered():
    before = field_name.cache_info().currsize
    assert event(headers=[("x-" + "a" * 5_000, "1")])["X-A" + "a" * 4_999] == "1"
    assert field_name.cache_info().currsize == before
