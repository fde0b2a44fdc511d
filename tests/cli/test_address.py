"""Where a run listens: names are looked up, and what others reach is refused."""

import socket

import pytest

from headrace.app.running import at_loopback
from headrace.app.supervisor import Address
from headrace.model.errors import Invalid


@pytest.mark.parametrize(
    ("host", "found"),
    [("localhost", "127.0.0.1"), ("127.0.0.2", "127.0.0.2"), ("::1", "::1")],
)
def test_names_of_this_machine_become_its_addresses(host, found):
    assert at_loopback(Address(host, 1), insecure_bind=False) == Address(found, 1)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1"])
def test_what_others_reach_has_to_be_asked_for(host):
    with pytest.raises(Invalid, match="other machines"):
        at_loopback(Address(host, 1), insecure_bind=False)
    assert at_loopback(Address(host, 1), insecure_bind=True) == Address(host, 1)


def test_a_name_that_is_nobodys_is_the_users_fault(monkeypatch):
    def unknown(*_, **__):
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    with pytest.raises(Invalid, match="nowhere"):
        at_loopback(Address("nowhere", 1), insecure_bind=True)
