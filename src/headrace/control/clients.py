"""Who a request comes from where a proxy stands between: what it says of that, if it is trusted.

A proxy is trusted by its address alone. From anybody else `X-Forwarded-For` and `X-Forwarded-Proto`
are only what a client made up, and count for nothing.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from headrace.model.errors import Invalid

FORWARDED_FOR, FORWARDED_PROTO = "x-forwarded-for", "x-forwarded-proto"
_SCHEMES = {"http", "https"}

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
IpAddress = ipaddress.IPv4Address | ipaddress.IPv6Address


class Client(NamedTuple):
    """Where a request comes from, and how it was sent there."""

    address: str
    """With a port, which is 0 if only a proxy knows it: `192.0.2.1:4711`, `[2001:db8::1]:0`."""
    scheme: str


class Proxies:
    """The proxies that are trusted."""

    def __init__(self, networks: Sequence[str]) -> None:
        """Take networks such as `10.0.0.0/8`, and addresses; `Invalid` for what is neither."""
        self._networks = [_network(text) for text in networks]

    def client(self, peer: str, scheme: str, headers: Iterable[tuple[str, str]]) -> Client:
        """Return who a request comes from.

        `peer` is the other end of the connection, with its port; header names are in lower case.
        Each proxy writes whom it sees at the end of the list, so the client is the last that is not
        itself a trusted proxy: what stands before it may be made up.
        """
        if not self._trusts(peer):
            return Client(peer, scheme)
        told = list(headers)
        last = next((v for n, v in reversed(told) if n == FORWARDED_PROTO), scheme)
        proto = last.rpartition(",")[2].strip().lower()
        address = peer
        hops = [hop for n, v in told if n == FORWARDED_FOR for hop in v.split(",")]
        for hop in reversed(hops):
            found = _address(hop)
            if found is None:
                break
            address = f"[{found}]:0" if found.version == 6 else f"{found}:0"  # noqa: PLR2004
            if not self._holds(found):
                break
        return Client(address, proto if proto in _SCHEMES else scheme)

    def seen(self, client: Client, headers: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
        """Return a request's headers with nothing about its way but what is true."""
        kept = [(n, v) for n, v in headers if n not in {FORWARDED_FOR, FORWARDED_PROTO}]
        address = host_of(client.address)
        return [*kept, (FORWARDED_FOR, address), (FORWARDED_PROTO, client.scheme)]

    def _trusts(self, peer: str) -> bool:
        address = _address(peer)
        return address is not None and self._holds(address)

    def _holds(self, address: IpAddress) -> bool:
        return any(address in network for network in self._networks)


def host_of(address: str) -> str:
    """Return an address without its port, and without brackets."""
    text = address.strip()
    if text.startswith("["):
        return text[1:].partition("]")[0]
    return text.partition(":")[0] if text.count(":") == 1 else text


def _address(text: str) -> IpAddress | None:
    """Return the address in a text, which may have a port; IPv4 within IPv6 is IPv4."""
    try:
        address = ipaddress.ip_address(host_of(text))
    except ValueError:
        return None
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return mapped or address


def _network(text: str) -> Network:
    try:
        return ipaddress.ip_network(text.strip())
    except ValueError as error:
        raise Invalid(
            f"A trusted proxy cannot be {text!r}: {error}",
            hint="Give an address or a network, such as 10.0.0.7 or 10.0.0.0/8.",
            code="bad_proxy",
        ) from error
