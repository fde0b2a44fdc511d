"""By which names readers may ask: what keeps a web page from reading a port of its user's machine.

A page of `evil.example` can have that name looked up as 127.0.0.1 (DNS rebinding): its browser then
takes this port for the page's own and lets the page read all answers. What gives it away is the
`Host` header, which still says `evil.example`. So a port that asks for no tokens because only this
machine reaches it answers readers who ask by a name of this machine. Events are taken by any name:
their `Host` is data, and a page could send them without reading the answer all the same.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Sequence

from headrace.control.clients import host_of
from headrace.model.errors import Invalid

CODE = "misdirected"
"""Of the error; 421 in HTTP (RFC 9110, 15.5.20)."""
_NAME_LENGTH_MAX = 100
_NAME = re.compile(r"[a-z0-9_]([a-z0-9_.-]*[a-z0-9_])?")


class Hosts:
    """The names that are answered."""

    def __init__(self, bound: str, names: Sequence[str]) -> None:
        """Answer to names of loopback, to the address that is listened on, and to `names`."""
        self._names = {_normal(name) for name in (bound, *names)}

    def check(self, host: str | None) -> None:
        """Raise `Invalid` unless the value of a `Host` header is a name that is answered to.

        Browsers always send one; what sends none is no browser.
        """
        if host is None:
            return
        name = _normal(host)
        if name in self._names or _is_loopback(name):
            return
        raise Invalid(
            f"Nothing is to be read here by the name {name[:_NAME_LENGTH_MAX]!r}",
            hint="Ask by localhost, or run with --host-name NAME; with --tokens any name will do.",
            code=CODE,
        )


def hosts_of(bound: str, names: Sequence[str], *, tokens: bool) -> Hosts | None:
    """Return whom to answer; None where anyone is who reaches the port, or who has a token.

    A name that is looked up elsewhere does not bring a page its reader's session, so tokens are
    enough. An address that others reach is checked if names are given.
    """
    if tokens or not (names or _is_loopback(_normal(bound))):
        return None
    return Hosts(bound, names)


def check_name(name: str) -> None:
    """Raise `Invalid` for what is no name of a host."""
    if not (_NAME.fullmatch(name.lower().removesuffix(".")) or _is_address(name.strip("[]"))):
        raise Invalid(
            f"{name!r} is no name of a host",
            hint="Give it as browsers send it, such as data.example.org: no scheme and no path.",
            code="bad_host_name",
        )


def _normal(host: str) -> str:
    return host_of(host).lower().removesuffix(".")


def _is_loopback(name: str) -> bool:
    if name == "localhost" or name.endswith(".localhost"):
        # RFC 6761, 6.3: browsers look these up nowhere.
        return True
    return _is_address(name) and ipaddress.ip_address(name).is_loopback


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
