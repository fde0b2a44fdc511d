from __future__ import annotations

import hashlib
import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.control import admission as admissions
from headrace.control import tokens
from headrace.control.admission import FailedTries
from headrace.control.tokens import Wanted
from headrace.model.clock import ManualClock
from headrace.model.errors import Invalid, Unavailable

DAY_S = 86_400.0


def wanted(*scopes, **more):
    return Wanted(scopes or ("read",), **more)


def browser_key(*scopes, origins=("https://shop.example",)):
    return wanted(*(scopes or ("append:events",)), kind="browser", origins=origins)


def admit(admission, text, scope="read", *, origin=None, client="192.0.2.1:5000"):
    return admission.admit(f"Bearer {text}", scope, origin=origin, client=client)


def refused(admission, authorization, scope="read", *, origin=None, client="192.0.2.1:5000"):
    with pytest.raises((Invalid, Unavailable)) as caught:
        admission.admit(authorization, scope, origin=origin, client=client)
    return caught.value


# --- making


def test_only_a_hash_of_a_token_is_kept(log, clock, tmp_path):
    made = tokens.create(log, clock, wanted(name="till"))
    kept = tokens.find(log, made.token.id)
    assert kept == made.token
    assert kept.sha256 == hashlib.sha256(made.text.encode()).hexdigest()
    _, _, token_id, secret, crc = made.text.split("_")
    assert token_id == made.token.id
    assert len(bytes.fromhex(secret)) == 32
    log.close()
    stored = b"".join(p.read_bytes() for p in (tmp_path / "log").rglob("*") if p.is_file())
    assert token_id.encode() in stored
    assert secret.encode() not in stored
    assert bytes.fromhex(secret) not in stored
    assert crc.encode() not in stored


def test_what_people_are_told_lets_nobody_in(log, clock):
    made = tokens.create(log, clock, wanted(lifetime_s=60.0))
    said = str(tokens.told(made.token, clock.now_us()))
    assert made.token.sha256 not in said
    assert made.text not in said


def test_tokens_differ(log, clock):
    texts = {tokens.create(log, clock, wanted()).text for _ in range(50)}
    assert len(texts) == len({text.split("_")[3] for text in texts}) == 50


def test_an_id_that_is_taken_is_not_given_twice(log):
    class Stuck(ManualClock):
        """Chance that gives the same id three times."""

        given = 0

        def secret(self, size_bytes):
            if size_bytes == tokens.ID_BYTES:
                self.given += 1
                return bytes([min(self.given, 4) // 4]) * size_bytes
            return super().secret(size_bytes)

    clock = Stuck()
    ids = [tokens.create(log, clock, wanted()).token.id for _ in range(2)]
    assert ids == ["00" * 8, "01" * 8]


@pytest.mark.parametrize(
    "asked",
    [
        Wanted(()),
        wanted("write"),
        wanted("append"),
        wanted("append:"),
        wanted("append:a b"),
        wanted("append:a/b"),
        wanted("append:**"),
        wanted("read "),
        wanted("Admin"),
        wanted("read", name="two\nlines"),
        wanted("read", name="x" * 101),
        wanted("read", lifetime_s=0.0),
        wanted("read", lifetime_s=-1.0),
        wanted("read", lifetime_s=float("nan")),
        wanted("read", origins=("https://a.example",)),
        wanted(*(f"append:t{n}" for n in range(65))),
        browser_key("read"),
        browser_key("append:events", "admin"),
        browser_key(origins=()),
        browser_key(origins=("*",)),
        browser_key(origins=("null",)),
        browser_key(origins=("https://*.example.org",)),
        browser_key(origins=("https://a.example/",)),
        browser_key(origins=("https://a.example/path",)),
        browser_key(origins=("a.example",)),
        browser_key(origins=("https://u@a.example",)),
        browser_key(origins=("ftp://a.example",)),
        browser_key(origins=("https://a.example\r\nx: y",)),
    ],
    ids=str,
)
def test_tokens_that_make_no_sense_are_not_made(asked, log, clock):
    with pytest.raises(Invalid) as caught:
        tokens.create(log, clock, asked)
    assert caught.value.code == "invalid_token_wanted"
    assert caught.value.hint
    assert tokens.listed(log) == []


def test_tokens_that_ended_are_listed_for_a_day(log, clock):
    over = tokens.create(log, clock, wanted(lifetime_s=10.0)).token
    gone = tokens.create(log, clock, wanted()).token
    lasting = tokens.create(log, clock, wanted()).token
    tokens.revoke(log, clock, gone.id)
    clock.advance(11)
    now_us = clock.now_us()
    states = {t.id: t.state(now_us) for t in tokens.listed(log)}
    assert states == {over.id: "expired", gone.id: "revoked", lasting.id: "live"}
    clock.advance(DAY_S)
    tokens.create(log, clock, wanted())
    kept = {t.id for t in tokens.listed(log)}
    assert lasting.id in kept
    assert not kept & {over.id, gone.id}


def test_there_is_a_bound_to_how_many_there_are(log, clock, monkeypatch):
    monkeypatch.setattr(tokens, "TOKENS_MAX", 3)
    short = tokens.create(log, clock, wanted(lifetime_s=10.0)).token
    for _ in range(2):
        tokens.create(log, clock, wanted())
    with pytest.raises(Invalid) as caught:
        tokens.create(log, clock, wanted())
    assert caught.value.code == "too_many_tokens"
    clock.advance(11)
    tokens.create(log, clock, wanted())
    assert short.id not in {t.id for t in tokens.listed(log)}


# --- letting in


def test_a_token_is_let_in_for_its_scopes_alone(log, clock, admission):
    text = tokens.create(log, clock, wanted("append:events", "read")).text
    assert admit(admission, text, "append:events").scopes == ("append:events", "read")
    assert admit(admission, text, "read")
    assert admit(admission, text, "")
    for scope in ("append:other", "append:*", "sql", "admin"):
        error = refused(admission, f"Bearer {text}", scope)
        assert (error.code, scope in error.message) == ("forbidden", True)


@pytest.mark.parametrize(
    ("scope", "allowed"),
    [
        ("admin", {"read", "sql", "admin", "append:a", "append:b"}),
        ("append:*", {"append:a", "append:b"}),
        ("append:a", {"append:a"}),
        ("sql", {"sql"}),
        ("read", {"read"}),
    ],
)
def test_what_a_scope_allows(scope, allowed, log, clock):
    token = tokens.create(log, clock, wanted(scope)).token
    every = {"read", "sql", "admin", "append:a", "append:b"}
    assert {needed for needed in every if token.allows(needed)} == allowed


def test_missing_unknown_wrong_expired_and_revoked_are_told_alike(log, clock, admission):
    good = tokens.create(log, clock, wanted()).text
    over = tokens.create(log, clock, wanted(lifetime_s=10.0)).text
    gone = tokens.create(log, clock, wanted())
    tokens.revoke(log, clock, gone.token.id)
    other = tokens.create(log, clock, wanted()).text
    forgotten = tokens.create(log, clock, wanted())
    log.put_if(f"token/{forgotten.token.id}", log.get(f"token/{forgotten.token.id}").revision, None)
    clock.advance(10)
    body = "_".join([*good.split("_")[:3], other.split("_")[3]])
    wrong = f"{body}_{tokens._crc(body)}"
    assert tokens.parse(wrong) == tokens.parse(good)
    tries = [
        None,
        "",
        "Bearer",
        "Bearer ",
        good,
        f"Basic {good}",
        f"Token {good}",
        f"Bearer {good}x",
        f"Bearer {good[:-1]}",
        f"Bearer {good.upper()}",
        f"Bearer {good} {good}",
        f"Bearer {wrong}",
        f"Bearer {over}",
        f"Bearer {gone.text}",
        f"Bearer {forgotten.text}",
        "Bearer hr_api_" + "0" * 16 + "_" + "0" * 64 + "_00000000",
        "Bearer \u0661\ud800",
    ]
    said = {
        (e.code, e.message, e.hint)
        for n, one in enumerate(tries)
        for e in [refused(admission, one, client=f"192.0.2.{n}:1")]
    }
    assert len(said) == 1
    assert next(iter(said))[0] == "unauthorized"
    assert admit(admission, good)
    assert admission.admit(f"bearer  {good}", "read", origin=None, client="")


@given(st.text(max_size=120))
def test_no_text_is_taken_for_a_token(text):
    assert tokens.parse(text) is None


@given(st.integers(0, 96), st.characters(codec="ascii"))
def test_a_mistyped_token_is_told_without_a_look_at_the_log(place, sign):
    body = "hr_api_" + "ab" * 8 + "_" + "12" * 32
    good = f"{body}_{tokens._crc(body)}"
    typed = good[:place] + sign + good[place + 1 :]
    assert tokens.parse(good) == "ab" * 8
    assert typed == good or tokens.parse(typed) is None


def test_a_token_is_good_as_soon_as_it_is_made_and_refused_soon_after_it_is_revoked(
    log, clock, admission
):
    made = tokens.create(log, clock, wanted())
    assert admit(admission, made.text)
    tokens.revoke(log, clock, made.token.id)
    clock.advance(admissions.FRESH_S)
    assert refused(admission, f"Bearer {made.text}").code == "unauthorized"
    assert admissions.FRESH_S < 2


def test_a_token_ends_to_the_microsecond(log, clock, admission):
    text = tokens.create(log, clock, wanted(lifetime_s=10.0)).text
    clock.advance(9.999999)
    assert admit(admission, text)
    clock.advance(0.000001)
    assert refused(admission, f"Bearer {text}").code == "unauthorized"


def test_revoking_again_changes_nothing_and_needs_a_token_that_is_there(log, clock):
    made = tokens.create(log, clock, wanted())
    first = tokens.revoke(log, clock, made.text)
    clock.advance(5)
    assert tokens.revoke(log, clock, made.token.id) == first
    for unknown in ("", "ab" * 8, "../x", made.text[:-1]):
        with pytest.raises(Invalid) as caught:
            tokens.revoke(log, clock, unknown)
        assert caught.value.code == "unknown_token"


def test_a_token_that_another_made_ends_with_it(log, clock, admission):
    maker = tokens.create(log, clock, wanted("admin")).token
    made = tokens.create(log, clock, wanted("read"), maker=maker)
    assert made.token.expires_at_us == clock.now_us() + 3_600_000_000
    assert admit(admission, made.text)
    tokens.revoke(log, clock, maker.id)
    clock.advance(admissions.FRESH_S)
    assert refused(admission, f"Bearer {made.text}").code == "unauthorized"
    assert {t.state(clock.now_us()) for t in tokens.listed(log)} == {"revoked"}
    # One that slipped in while its maker was revoked is no good either.
    late = tokens.create(log, clock, wanted("read"), maker=maker)
    assert late.token.revoked_at_us is None
    assert refused(admission, f"Bearer {late.text}").code == "unauthorized"


def test_a_token_that_another_made_is_bounded(log, clock):
    maker = tokens.create(log, clock, wanted("admin", lifetime_s=60.0)).token
    made = tokens.create(log, clock, wanted("read", lifetime_s=3_600.0), maker=maker).token
    assert made.expires_at_us == maker.expires_at_us
    lasting = tokens.create(log, clock, wanted("admin")).token
    with pytest.raises(Invalid):
        tokens.create(log, clock, wanted("read", lifetime_s=31 * DAY_S), maker=lasting)
    with pytest.raises(Invalid) as caught:
        tokens.create(log, clock, wanted("read"), maker=made)
    assert caught.value.code == "forbidden"


# --- browsers


def test_a_browsers_key_is_good_for_its_origins_alone(log, clock, admission):
    text = tokens.create(log, clock, browser_key(origins=("https://Shop.example",))).text
    assert admit(admission, text, "append:events", origin="https://shop.example")
    for origin in (None, "", "null", "https://evil.example", "https://shop.example:8443"):
        error = refused(admission, f"Bearer {text}", "append:events", origin=origin)
        assert error.code == "forbidden"
    error = refused(admission, f"Bearer {text}", "read", origin="https://shop.example")
    assert error.code == "forbidden"


def test_which_origins_may_ask(log, clock, admission):
    assert not admission.allows_origin("https://shop.example", "append:events")
    clock.advance(admissions.FRESH_S)
    key = tokens.create(log, clock, browser_key()).token
    tokens.create(log, clock, wanted("admin"))
    assert admission.allows_origin("https://shop.example", "append:events")
    assert admission.allows_origin("HTTPS://SHOP.EXAMPLE", "append:events")
    assert not admission.allows_origin("https://shop.example", "append:other")
    assert not admission.allows_origin("https://shop.example", "read")
    assert not admission.allows_origin("https://other.example", "append:events")
    tokens.revoke(log, clock, key.id)
    clock.advance(admissions.FRESH_S)
    assert not admission.allows_origin("https://shop.example", "append:events")


# --- guessing


def guess(n):
    body = f"hr_api_{n:016x}_{n:064x}"
    return f"Bearer {body}_{tokens._crc(body)}"


def test_guessing_is_limited_by_address_and_a_good_token_is_let_in_all_the_same(
    log, clock, admission
):
    good = tokens.create(log, clock, wanted()).text
    codes = [refused(admission, guess(n)).code for n in range(admissions.FAILED_MAX + 5)]
    assert codes == ["unauthorized"] * admissions.FAILED_MAX + ["rate_limited"] * 5
    assert admit(admission, good)
    assert refused(admission, guess(1), client="192.0.2.1:9999").code == "rate_limited"
    assert refused(admission, guess(1), client="198.51.100.1:1").code == "unauthorized"
    # Who sends nothing guesses nothing.
    assert refused(admission, None).code == "unauthorized"
    clock.advance(20)
    assert refused(admission, guess(1)).retry_after_s == pytest.approx(40)
    clock.advance(40)
    assert refused(admission, guess(1)).code == "unauthorized"


def test_the_addresses_that_guess_are_counted_in_bounded_memory(clock, monkeypatch):
    monkeypatch.setattr(admissions, "ADDRESSES_MAX", 100)
    failures = FailedTries(clock)
    for n in range(1_000):
        failures.count(str(ipaddress.IPv4Address(n)))
    assert len(failures._counts) == 100


def test_all_addresses_of_an_ipv6_network_count_as_one(clock):
    failures = FailedTries(clock)
    for n in range(admissions.FAILED_MAX):
        failures.count(f"[2001:db8::{n:x}]:{n + 1}")
    with pytest.raises(Unavailable):
        failures.count("2001:db8::ffff:1:2:3")
    failures.count("2001:db8:0:1::1")
    failures.count("::ffff:192.0.2.7")
    failures.count("192.0.2.7:80")
    assert len(failures._counts) == 3


def test_tokens_are_held_in_bounded_memory(log, clock, admission, monkeypatch):
    monkeypatch.setattr(admissions, "CACHED_MAX", 3)
    texts = [tokens.create(log, clock, wanted()).text for _ in range(6)]
    for text in texts * 2:
        assert admit(admission, text)
    assert len(admission._known) == 3


def test_a_log_that_cannot_be_read_lets_nobody_in(log, clock, admission, monkeypatch):
    text = tokens.create(log, clock, wanted()).text
    assert admit(admission, text)
    clock.advance(admissions.FRESH_S)

    def unreadable(key):
        raise Unavailable("the disk is gone")

    monkeypatch.setattr(admission._log, "get", unreadable)
    assert isinstance(refused(admission, f"Bearer {text}"), Unavailable)
