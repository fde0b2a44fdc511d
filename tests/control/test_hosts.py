"""By which names readers may ask a port that asks for no tokens."""

import pytest

from headrace.control.hosts import check_name, hosts_of
from headrace.model.errors import Invalid

LOOPBACK = ["localhost", "LocalHost:8080", "a.localhost:1", "localhost.", "127.0.0.1:80",
            "127.9.9.9", "[::1]:8080", "[::1]"]  # fmt: skip
STRANGE = ["evil.example", "evil.example:8080", "localhost.evil.example", "127.0.0.1.evil.example",
           "10.0.0.1", "0.0.0.0", "[2001:db8::1]:80", "", ":80", "xlocalhost"]  # fmt: skip


@pytest.mark.parametrize("bound", ["127.0.0.1", "::1", "127.0.0.5"])
@pytest.mark.parametrize("host", [*LOOPBACK, None])
def test_names_of_this_machine_are_answered(bound, host):
    hosts_of(bound, [], tokens=False).check(host)


@pytest.mark.parametrize("host", STRANGE)
def test_other_names_are_not(host):
    with pytest.raises(Invalid) as refused:
        hosts_of("127.0.0.1", ["data.example.org"], tokens=False).check(host)
    assert refused.value.code == "misdirected"
    assert "--host-name" in refused.value.hint


@pytest.mark.parametrize("host", ["data.example.org", "DATA.example.org:443", "data.example.org."])
def test_names_that_were_given_are_answered(host):
    hosts_of("127.0.0.1", ["Data.Example.org"], tokens=False).check(host)


def test_an_address_that_others_reach_is_checked_if_names_are_given():
    assert hosts_of("192.0.2.1", [], tokens=False) is None
    hosts = hosts_of("192.0.2.1", ["data.example.org"], tokens=False)
    for host in ("192.0.2.1:8080", "data.example.org", "localhost"):
        hosts.check(host)
    with pytest.raises(Invalid):
        hosts.check("evil.example")


def test_tokens_are_enough():
    assert hosts_of("127.0.0.1", ["data.example.org"], tokens=True) is None


@pytest.mark.parametrize("name", ["http://x", "a b", "", "a/b", "*"])
def test_what_is_no_name_is_refused(name):
    with pytest.raises(Invalid, match="no name of a host"):
        check_name(name)


@pytest.mark.parametrize("name", ["data.example.org", "data", "192.0.2.1", "[2001:db8::1]"])
def test_names_and_addresses_are_taken(name):
    check_name(name)
