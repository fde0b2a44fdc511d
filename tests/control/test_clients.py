"""Who a request comes from, as far as proxies that are trusted say."""

import pytest

from headrace.control.clients import Client, Proxies, host_of
from headrace.model.errors import Invalid

PROXIES = Proxies(["10.0.0.0/8", "127.0.0.1", "2001:db8:1::/48"])


def came(peer, *forwarded, proto=()):
    headers = [("host", "x"), *(("x-forwarded-for", f) for f in forwarded)]
    headers += [("x-forwarded-proto", p) for p in proto]
    return PROXIES.client(peer, "http", headers)


@pytest.mark.parametrize("peer", ["192.0.2.9:1", "[2001:db8:2::1]:1", "11.0.0.1:1", "", "nobody"])
def test_nobody_but_a_trusted_proxy_is_believed(peer):
    assert came(peer, "203.0.113.5", proto=["https"]) == Client(peer, "http")


@pytest.mark.parametrize(
    "peer", ["127.0.0.1:4711", "10.1.2.3:1", "[2001:db8:1::7]:1", "[::ffff:127.0.0.1]:80"]
)
def test_a_trusted_proxy_says_who_asks_and_how(peer):
    assert came(peer, "203.0.113.5", proto=["https"]) == Client("203.0.113.5:0", "https")
    assert came(peer, "2001:db8::1", proto=["HTTPS"]) == Client("[2001:db8::1]:0", "https")
    assert came(peer) == Client(peer, "http")


@pytest.mark.parametrize(
    ("forwarded", "client"),
    [
        # What stands before the address that the first trusted proxy saw was made up.
        (["6.6.6.6, 203.0.113.5"], "203.0.113.5:0"),
        (["6.6.6.6", "203.0.113.5"], "203.0.113.5:0"),
        (["6.6.6.6, 203.0.113.5, 10.0.0.3, 10.0.0.4"], "203.0.113.5:0"),
        (["6.6.6.6, 203.0.113.5:1234"], "203.0.113.5:0"),
        (["6.6.6.6, [2001:db8::9]:443, 10.0.0.3"], "[2001:db8::9]:0"),
        # Everybody on the way is trusted: the farthest one is the client.
        (["10.0.0.3, 10.0.0.4"], "10.0.0.3:0"),
        # Nothing before what is no address can be known.
        (["6.6.6.6, unknown"], "10.0.0.9:7"),
        (["6.6.6.6, unknown, 10.0.0.3"], "10.0.0.3:0"),
        ([""], "10.0.0.9:7"),
    ],
)
def test_the_client_is_the_last_that_is_no_trusted_proxy(forwarded, client):
    assert came("10.0.0.9:7", *forwarded).address == client


def test_a_scheme_that_is_none_is_not_believed():
    assert came("10.0.0.9:7", proto=["gopher"]).scheme == "http"
    assert came("10.0.0.9:7", proto=["http", "https"]).scheme == "https"
    assert came("10.0.0.9:7", proto=["http, https"]).scheme == "https"


def test_what_is_seen_of_a_request_is_what_is_true():
    headers = [("x-forwarded-for", "6.6.6.6"), ("a", "1"), ("x-forwarded-proto", "https")]
    seen = PROXIES.seen(Client("[2001:db8::9]:0", "http"), headers)
    assert seen == [("a", "1"), ("x-forwarded-for", "2001:db8::9"), ("x-forwarded-proto", "http")]


@pytest.mark.parametrize("network", ["proxy.example.org", "10.0.0.1/8", "10.0.0.0/33", ""])
def test_what_is_no_network_is_refused(network):
    with pytest.raises(Invalid, match="trusted proxy"):
        Proxies([network])


@pytest.mark.parametrize(
    ("address", "host"),
    [
        ("192.0.2.1:80", "192.0.2.1"), ("192.0.2.1", "192.0.2.1"), ("[::1]:80", "::1"),
        ("::1", "::1"), ("localhost:8080", "localhost"), ("", ""),
    ],
)  # fmt: skip
def test_an_address_without_its_port(address, host):
    assert host_of(address) == host
