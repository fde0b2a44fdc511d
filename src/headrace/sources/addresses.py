"""What a source may connect to: the guard against requests that are forged through the server.

Whoever may add a source chooses where this machine sends requests. So the guard stands where a
connection is made, not before it: a name is resolved once, every address that it has is judged, and
the connection goes to one of exactly those. A name that says something else a moment later gains
nothing, nor does a redirect, because each is a connection of its own.

=========================  =================  =======================================
address                    usual              `private`
=========================  =================  =======================================
public                     allowed            allowed
loopback                   refused            allowed
private (RFC 1918, 4193)   refused            allowed
everything else            refused            refused
=========================  =================  =======================================

"Everything else" is what no service is found at on purpose: link-local and so the metadata services
of clouds (also where they have another address), shared (CGNAT), multicast, unspecified, reserved,
documentation, benchmarking, and IPv6 forms that carry an IPv4 address through a tunnel. An
IPv4-mapped address is judged as the IPv4 address, because that is what the system connects to; one
behind the well-known NAT64 prefix likewise, but may only be public.

The ranges are those of IANA's special-purpose address registries (RFC 6890), written out, since
what Python calls global differs with its version.
"""

from __future__ import annotations

import ipaddress
import re
import socket
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import httpcore2
import httpx2

from headrace.model.errors import HeadraceError, Invalid, Unavailable

URL_LENGTH_MAX = 2_048
HOST_LENGTH_MAX = 253
"""Longest host name, characters (RFC 1035)."""
PORT_MIN = 1_024
"""Lowest port that is allowed beside 80 and 443: those below speak other protocols."""
PORT_MAX = 65_535
CONNECT_TRIES_MAX = 4
"""Addresses of one name that are tried, one after another."""
REDIRECTS_MAX = 5

PUBLIC = "public"
PRIVATE = ("private", "loopback")
"""The kinds of addresses that `private` opens."""

IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address
Resolve = Callable[[str, int], Sequence[str]]
"""From a host name and a port to its addresses as text; raises `OSError` if there are none."""

_LABEL = re.compile(r"(?!-)[a-z0-9_-]{1,63}(?<!-)")
_NUMBER = re.compile(r"0x[0-9a-f]*|[0-9]+")
_PORT = re.compile(r"[0-9]{0,5}")
"""Python's int would also take +80, 8_0 and digits of other scripts."""
_REFUSED_CHARACTERS = re.compile(r"[\x00-\x20\x7f\\]|\s")

_KINDS_4 = tuple(
    (ipaddress.IPv4Network(network), kind)
    for network, kind in (
        # Azure's, which looks public, and Oracle's: the well-known one is link-local.
        ("168.63.129.16/32", "metadata"),
        ("192.0.0.192/32", "metadata"),
        ("100.100.100.200/32", "metadata"),
        ("169.254.169.254/32", "metadata"),
        ("0.0.0.0/8", "unspecified"),
        ("10.0.0.0/8", "private"),
        ("100.64.0.0/10", "shared"),
        ("127.0.0.0/8", "loopback"),
        ("169.254.0.0/16", "link_local"),
        ("172.16.0.0/12", "private"),
        ("192.0.0.0/24", "reserved"),
        ("192.0.2.0/24", "documentation"),
        ("192.88.99.0/24", "tunnel"),
        ("192.168.0.0/16", "private"),
        ("198.18.0.0/15", "benchmarking"),
        ("198.51.100.0/24", "documentation"),
        ("203.0.113.0/24", "documentation"),
        ("224.0.0.0/4", "multicast"),
        ("240.0.0.0/4", "reserved"),
        ("0.0.0.0/0", PUBLIC),
    )
)
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
_KINDS_6 = tuple(
    (ipaddress.IPv6Network(network), kind)
    for network, kind in (
        ("fd00:ec2::254/128", "metadata"),
        ("fd20:ce::254/128", "metadata"),
        ("::/128", "unspecified"),
        ("::1/128", "loopback"),
        ("::/96", "tunnel"),
        ("64:ff9b:1::/48", "tunnel"),
        ("100::/64", "reserved"),
        ("2001::/32", "tunnel"),
        ("2001:2::/48", "benchmarking"),
        ("2001::/23", "reserved"),
        ("2001:db8::/32", "documentation"),
        ("2002::/16", "tunnel"),
        ("3fff::/20", "documentation"),
        ("fc00::/7", "private"),
        ("fe80::/10", "link_local"),
        ("fec0::/10", "reserved"),
        ("ff00::/8", "multicast"),
        # All that is given out to the world; the rest waits for a use.
        ("2000::/3", PUBLIC),
        ("::/0", "reserved"),
    )
)
"""Which kind an address is of: that of the first range that holds it."""


@dataclass(frozen=True, slots=True)
class CheckedUrl:
    """A URL that may be asked, in its one normal form, with the addresses it was checked for."""

    url: str
    scheme: str
    host: str
    """In lower case, in ASCII (IDNA), without a trailing dot; an address in its shortest form."""
    port: int
    addresses: tuple[str, ...]


def check_url(url: str, *, private: bool, resolve: Resolve | None = None) -> CheckedUrl:
    """Return a URL in normal form, if a source may ask it.

    `private` also allows loopback and private addresses. Raises `Invalid` whose code says what is
    wrong: `invalid_url`, `url_scheme`, `url_user_info`, `url_port`, `invalid_host`, `unknown_host`,
    or the kind of address that it leads to, such as `loopback_address`; `Unavailable` if the name
    cannot be resolved now. Resolving asks the system's resolver, which may take its time.
    """
    parsed, host, port = _parse(url)
    addresses = _resolved(host, port, resolve or system_resolve)
    for address in addresses:
        _judge(host, address, private=private)
    shown = f"[{host}]" if ":" in host else host
    normal = str(parsed.copy_with(host=shown, fragment=None))
    return CheckedUrl(normal, parsed.scheme, host, port, tuple(str(a) for a in addresses))


def guarded_client(
    private: bool,  # noqa: FBT001 - said by every caller, there is nothing else it could be
    timeout_s: float,
    *,
    resolve: Resolve | None = None,
) -> httpx2.Client:
    """Return a client that connects only to addresses that are judged as it connects.

    A refused address raises `Invalid` as `check_url` does, from the request; a name that is not
    there is `httpx2.ConnectError`, for it may come back. Redirects are not
    followed (see `follow`), the environment's proxies and `.netrc` are not used. `timeout_s` bounds
    each step: connecting, writing, and waiting for bytes; not a whole answer.
    """
    transport = GuardedTransport(private=private, resolve=resolve or system_resolve)
    return httpx2.Client(
        transport=transport, timeout=timeout_s, trust_env=False, follow_redirects=False
    )


def follow(
    client: httpx2.Client, request: httpx2.Request, *, redirects_max: int = REDIRECTS_MAX
) -> httpx2.Response:
    """Send a request and follow redirects, each of them judged anew; the body is not read yet.

    Raises `Invalid` for too many, for one that goes from https to http, and for what the client
    refuses. The caller closes the response.
    """
    for _ in range(redirects_max + 1):
        response = client.send(request, stream=True)
        if response.next_request is None:
            return response
        response.close()
        if request.url.scheme == "https" and response.next_request.url.scheme == "http":
            raise Invalid(
                f"{request.url.host} redirects from https to http",
                hint="Name the address that it leads to, if that is wanted.",
                code="url_scheme",
            )
        request = response.next_request
    raise Invalid(
        f"{request.url.host} redirects more than {redirects_max} times",
        hint="Name the address that it leads to.",
        code="too_many_redirects",
    )


class GuardedTransport(httpx2.HTTPTransport):
    """A transport whose connections all go through `GuardedBackend`."""

    def __init__(self, *, private: bool, resolve: Resolve) -> None:
        # The base class has no argument for the backend, so the pool is made here; were it named
        # otherwise one day, no request would be sent at all.
        self._pool = httpcore2.ConnectionPool(
            ssl_context=httpx2.create_ssl_context(),
            max_connections=10,
            max_keepalive_connections=10,
            keepalive_expiry=5.0,
            network_backend=GuardedBackend(private=private, resolve=resolve),
        )

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        """Send a request if its URL is one that may be asked."""
        _parse(str(request.url))
        return super().handle_request(request)


class GuardedBackend(httpcore2.NetworkBackend):
    """Connects to what a name resolves to, if all of it may be connected to."""

    def __init__(self, *, private: bool, resolve: Resolve) -> None:
        self._private = private
        self._resolve = resolve
        self._sockets = httpcore2.SyncBackend()

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore2.NetworkStream:
        """Connect to the first of the checked addresses that answers.

        The caller says the host's name in TLS and in the request; only the address is chosen here.
        """
        try:
            addresses = _resolved(_host(host), port, self._resolve)
        except Unavailable as e:
            raise httpcore2.ConnectError(e.message) from e
        except Invalid as e:
            # A resolver says so too while this machine is offline, and a source may be followed
            # for months: it asks again, where whoever adds one is told at once.
            if e.code != "unknown_host":
                raise
            raise httpcore2.ConnectError(e.message) from e
        for address in addresses:
            _judge(host, address, private=self._private)
        failed: Exception = httpcore2.ConnectError(f"{host} has no address")
        for address in addresses[:CONNECT_TRIES_MAX]:
            try:
                return self._sockets.connect_tcp(
                    str(address), port, timeout, local_address, socket_options
                )
            except (httpcore2.ConnectError, httpcore2.ConnectTimeout) as e:
                failed = e
        raise failed

    def connect_unix_socket(
        self,
        path: str,  # noqa: ARG002 - as the base class has it
        timeout: float | None = None,  # noqa: ARG002 - as above
        socket_options: Iterable[Any] | None = None,  # noqa: ARG002 - as above
    ) -> httpcore2.NetworkStream:
        """Refuse: a source has no business with this machine's sockets."""
        raise Invalid("A Unix socket is no address of a service", code="url_scheme")


def system_resolve(host: str, port: int) -> list[str]:
    """Return a name's addresses in the order in which the system would try them."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP)
    return list(dict.fromkeys(str(address[0]) for *_, address in found))


def kind_of(address: IPAddress) -> str:
    """Return what an address is for: `public`, `loopback`, `private`, `link_local`, …"""
    if isinstance(address, ipaddress.IPv4Address):
        return next(kind for network, kind in _KINDS_4 if address in network)
    if address.scope_id is not None:
        return "link_local"
    if address.ipv4_mapped is not None:
        return kind_of(address.ipv4_mapped)
    if address in _NAT64:
        embedded = kind_of(ipaddress.IPv4Address(int(address) & 0xFFFF_FFFF))
        return PUBLIC if embedded == PUBLIC else "tunnel"
    return next(kind for network, kind in _KINDS_6 if address in network)


def _parse(url: str) -> tuple[httpx2.URL, str, int]:
    """Return the URL as the client reads it, its host in normal form, and its port."""
    if len(url) > URL_LENGTH_MAX:
        raise _bad_url(f"it has more than {URL_LENGTH_MAX:,} characters")
    if _REFUSED_CHARACTERS.search(url):
        raise _bad_url("it holds a space, a control character or a backslash")
    try:
        # The client's own reading: a second parser would find another host some day.
        parsed = httpx2.URL(url)
    except (httpx2.InvalidURL, ValueError) as e:
        raise _bad_url(str(e)) from e
    if parsed.scheme not in {"http", "https"}:
        raise Invalid(
            "A source asks http and https only",
            hint="Give a URL that begins with https://.",
            code="url_scheme",
        )
    if not parsed.raw_host:
        raise _bad_url("it names no host")
    authority = re.split(r"[/?#]", url.partition("://")[2], maxsplit=1)[0]
    if "@" in authority:
        raise Invalid(
            "The URL holds a user name or a password",
            hint="Leave out what stands before the @.",
            code="url_user_info",
        )
    port = parsed.port if parsed.port is not None else {"http": 80, "https": 443}[parsed.scheme]
    is_plain = _PORT.fullmatch(authority.rpartition("]")[2].partition(":")[2])
    if not is_plain or (port not in {80, 443} and not PORT_MIN <= port <= PORT_MAX):
        raise Invalid(
            "The URL's port is not one for HTTP",
            hint=f"Allowed are 80, 443 and {PORT_MIN} to {PORT_MAX}.",
            code="url_port",
        )
    return parsed, _host(parsed.raw_host.decode("ascii")), port


def _bad_url(reason: str) -> Invalid:
    return Invalid(
        f"The URL cannot be used: {reason}",
        hint="For example https://api.example.org/v1.",
        code="invalid_url",
    )


def _host(raw: str) -> str:
    """Return a host in normal form: an address in its shortest one, or a name."""
    if ":" in raw:
        try:
            address = ipaddress.IPv6Address(raw)
        except ValueError as e:
            raise _bad_host(raw) from e
        if address.scope_id is not None:
            raise Invalid(
                "The URL names an interface of this machine",
                hint="Leave out the % and what follows it.",
                code="invalid_host",
            )
        return str(address)
    host = raw.lower().removesuffix(".")
    labels = host.split(".")
    if _NUMBER.fullmatch(labels[-1]):
        return str(_ipv4(labels, raw))
    if len(host) > HOST_LENGTH_MAX or not all(map(_LABEL.fullmatch, labels)):
        raise _bad_host(raw)
    return host


def _ipv4(labels: list[str], raw: str) -> ipaddress.IPv4Address:
    """Return the address of one to four numbers, each decimal, octal (0…) or hexadecimal (0x…).

    So the URL Standard has it, and so the system's resolver reads 0177.1 and 2130706433.
    """
    if len(labels) > len("abcd") or not all(map(_NUMBER.fullmatch, labels)):
        raise _bad_host(raw)
    try:
        *first, last = [_number(label) for label in labels]
        # The last number fills all the bytes that the others leave.
        octets = bytes(first) + last.to_bytes(4 - len(first), "big")
    except (ValueError, OverflowError) as e:
        raise _bad_host(raw) from e
    return ipaddress.IPv4Address(octets)


def _number(label: str) -> int:
    if label.startswith("0x"):
        return int(label[2:] or "0", 16)
    return int(label, 8 if label.startswith("0") else 10)


def _bad_host(raw: str) -> Invalid:
    return Invalid(
        f"{raw[:80]!r} is no host",
        hint="Give a host name, or an address such as 203.0.113.7 or [2001:db8::7].",
        code="invalid_host",
    )


def _resolved(host: str, port: int, resolve: Resolve) -> list[IPAddress]:
    """Return a host's addresses, at least one."""
    try:
        return [ipaddress.ip_address(host)]
    except ValueError:
        pass
    try:
        found = [ipaddress.ip_address(text) for text in resolve(host, port)]
    except socket.gaierror as e:
        raise _unresolved(host, e) from e
    except (OSError, UnicodeError) as e:
        raise Unavailable(f"{host} cannot be resolved now: {e}", code="unresolved") from e
    if not found:
        raise _unresolved(host, None)
    return found


def _unresolved(host: str, reason: socket.gaierror | None) -> HeadraceError:
    if reason is not None and reason.errno == socket.EAI_AGAIN:
        return Unavailable(f"{host} cannot be resolved now", code="unresolved", retry_after_s=10.0)
    return Invalid(f"There is no host {host}", hint="Look for a typo.", code="unknown_host")


def _judge(host: str, address: IPAddress, *, private: bool) -> None:
    """Raise `Invalid` unless a source may connect to an address.

    The answer names no address that a name resolves to, because who asks may be probing for it.
    """
    kind = kind_of(address)
    if kind == PUBLIC or (private and kind in PRIVATE):
        return
    shown = kind.replace("_", "-")
    raise Invalid(
        f"{host[:80]} leads to {'an' if shown[0] in 'aeiou' else 'a'} {shown} address",
        hint="The owner of the pipeline may allow it: private_addresses=True."
        if kind in PRIVATE
        else "No setting allows it.",
        code=f"{kind}_address",
    )
