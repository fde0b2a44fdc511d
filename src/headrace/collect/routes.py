"""Declared routes: which one a path names, and the event that a request to it is."""

from __future__ import annotations

import ipaddress
import json
import re
from collections.abc import Iterable
from functools import lru_cache

import msgspec

from headrace.collect.envelopes import malformed
from headrace.collect.exchange import TEXT, Headers, Response
from headrace.model.errors import Invalid
from headrace.model.plan import Route

_PARAMETER = re.compile(r"\{(\w+)\}")
_MEMBERS = msgspec.json.Decoder(dict[str, msgspec.Raw])
_WHITE = b" \t\r\n"

_CREDENTIAL = re.compile(
    r"authori[sz]ation|cookie|token|secret|passw|pwd|credential|session|csrf|xsrf|signature|jwt"
    r"|assertion|api-?key|auth-?key|access-?key|subscription-key|functions-key|client-cert"
    r"|x-auth\b|x-goog-iap|x-amz-security|x-amzn-oidc|x-ms-client-principal"
    r"|(^|-)(bearer|dpop|otp|sig)$|^key$"
)
"""Names, with hyphens, that say that their value proves who the client is: it is never kept."""
_USER_OF_ADDRESS = re.compile(r"(?<=://)[^/?#@\s]*@")
_PARAMETER_OF_ADDRESS = re.compile(r"(?<=[?&;#])([^=?&;#\s]+)=[^&;#\s]*")
_CLIENT_ADDRESS = re.compile(
    r"(x-(original-)?forwarded-for|x-real-ip|(x-)?(cluster-)?client-ip|true-client-ip"
    r"|cf-connecting-ip(v6)?|fastly-client-ip|x-envoy-external-address|x-appengine-user-ip)$"
)
_FORWARDED = "forwarded"
_KEPT_BITS = {4: 24, 6: 48}
_NAME_CACHE_ENTRIES = 2_048
_NAME_CACHED_LENGTH_MAX = 100
"""Longer names are no common ones, and would let a client fill the cache's memory."""


class CompiledRoute:
    """A route, ready to match paths and to make events."""

    def __init__(self, route: Route) -> None:
        self.route = route
        parts = [_PARAMETER.split(part) for part in route.path.split("/")]
        self.parameters = _PARAMETER.findall(route.path)
        self._pattern = re.compile("/".join(map(_segment_pattern, parts)))
        self.reply = Response(200, [TEXT], route.reply.encode())
        self._taken = frozenset(name.lower() for name in route.fixed)
        self._templates = {
            name: text for name, text in route.fixed.items() if _PARAMETER.search(text)
        }
        self._fixed = msgspec.json.encode(route.fixed)

    def match(self, path: str) -> dict[str, str] | None:
        """Return the path's parameters, or None if the route is another."""
        found = self._pattern.fullmatch(path)
        return found.groupdict() if found else None

    def event(self, parameters: dict[str, str], body: bytes, headers: Headers) -> bytes:
        """Return the event as a JSON object.

        The route's own fields always win, then the body's, then headers: a name that is taken,
        whatever its case, is not taken again. The body's members keep their exact bytes, so the
        judge of records sees what the client sent. Raises `Invalid` if the body is no object.
        """
        members = [self._own(parameters)]
        taken: frozenset[str] | set[str] = self._taken
        if body and not body.isspace():
            inner, names = self._body(body)
            members.append(inner)
            taken = taken | names
        if self.route.headers:
            members.append(msgspec.json.encode(header_fields(headers, taken))[1:-1])
        return b"{" + b",".join([m for m in members if m]) + b"}"

    def _own(self, parameters: dict[str, str]) -> bytes:
        if not self._templates:
            return self._fixed[1:-1]
        filled = {
            name: _PARAMETER.sub(lambda found: parameters[found[1]], text)
            if name in self._templates
            else text
            for name, text in self.route.fixed.items()
        }
        return msgspec.json.encode(filled)[1:-1]

    def _body(self, body: bytes) -> tuple[bytes, set[str]]:
        """Return the body's members as text, without those that the route sets itself."""
        try:
            fields = _MEMBERS.decode(body)
        except msgspec.ValidationError:
            raise Invalid(
                "The body is not a JSON object",
                hint="Send an object, whose members become fields of the event, or no body.",
                code="not_an_object",
            ) from None
        except RecursionError:
            raise Invalid(
                "The body is nested too deep", hint="Send a flatter object.", code="too_deep"
            ) from None
        except (msgspec.DecodeError, UnicodeDecodeError) as fault:
            raise malformed(fault) from None
        names = {name.lower() for name in fields}
        if names.isdisjoint(self._taken):
            return body.strip(_WHITE)[1:-1].strip(_WHITE), names
        # Decoding kept the last of two members of one name; the pairs keep both, for the judge.
        text = body.decode("utf-8", "surrogateescape")
        pairs = json.loads(text, object_pairs_hook=_Pairs, parse_int=str, parse_float=str)
        kept = [
            msgspec.json.encode(name) + b":" + bytes(fields[name])
            for name in pairs.names
            if name.lower() not in self._taken and name in fields
        ]
        return b",".join(kept), names


class _Pairs:
    """The names of a JSON object's members in order, repeated ones too."""

    def __init__(self, pairs: list[tuple[str, object]]) -> None:
        self.names = [name for name, _ in pairs]


def _segment_pattern(parts: list[str]) -> str:
    # `split` with one group alternates literal text and parameter names.
    return "".join(
        f"(?P<{part}>[^/]+)" if i % 2 else re.escape(part) for i, part in enumerate(parts)
    )


def header_fields(headers: Headers, taken: Iterable[str]) -> dict[str, str]:
    """Return request headers as fields: title case, no credentials, addresses truncated.

    Repeated headers are joined by a comma, as HTTP means them. A name in `taken` (lower case) is
    left out.
    """
    fields: dict[str, str] = {}
    for name, value in headers.items():
        named = field_name if len(name) <= _NAME_CACHED_LENGTH_MAX else field_name.__wrapped__
        title = named(name)
        if title is None or name in taken:
            continue
        text: str | None = value
        if _CLIENT_ADDRESS.match(name):
            text = _truncated(value)
        elif "?" in value or "://" in value or "#" in value:
            text = _without_credentials(value)
        if text is not None:
            fields[title] = f"{fields[title]}, {text}" if title in fields else text
    return fields


@lru_cache(_NAME_CACHE_ENTRIES)
def field_name(name: str) -> str | None:
    """Return a header's name as common clients send it, or None if it is never kept."""
    if name == _FORWARDED or _is_credential(name):
        return None
    return "-".join(part.capitalize() for part in name.split("-"))


def _is_credential(name: str) -> bool:
    return _CREDENTIAL.search(name.lower().replace("_", "-")) is not None


def _without_credentials(value: str) -> str:
    """Return text with addresses in it, as Referer's, without users and tokens in their query."""

    def kept(found: re.Match[str]) -> str:
        return f"{found[1]}=" if _is_credential(found[1]) else found[0]

    return _PARAMETER_OF_ADDRESS.sub(kept, _USER_OF_ADDRESS.sub("", value))


def _truncated(value: str) -> str | None:
    """Return a list of addresses without their last bits: a network, not a person."""
    kept = []
    for text in value.split(","):
        try:
            address = ipaddress.ip_address(text.strip())
        except ValueError:
            continue
        network = ipaddress.ip_network(f"{address}/{_KEPT_BITS[address.version]}", strict=False)
        kept.append(str(network.network_address))
    return ", ".join(kept) or None


def find(routes: list[CompiledRoute], path: str) -> tuple[CompiledRoute, dict[str, str]] | None:
    """Return the first route that a path names, with its parameters."""
    for route in routes:
        parameters = route.match(path)
        if parameters is not None:
            return route, parameters
    return None
