"""A request and its answer, as values: nothing here knows the server that carries them."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable
from typing import Protocol

import msgspec

from headrace.collect.limits import Share
from headrace.model.errors import (
    Closed,
    Corrupt,
    Fenced,
    HeadraceError,
    Invalid,
    Unavailable,
)

JSON = ("content-type", "application/json")
TEXT = ("content-type", "text/plain; charset=utf-8")

_STATUS_OF_CODE = {
    "unauthorized": 401,
    "forbidden": 403,
    "not_found": 404,
    "unknown_topic": 404,
    "method_not_allowed": 405,
    "body_timeout": 408,
    "body_too_large": 413,
    "too_many_records": 413,
    "unsupported_encoding": 415,
    "unsupported_media_type": 415,
    "misdirected": 421,
    "rate_limited": 429,
}
_STATUS_OF_KIND: tuple[tuple[type[HeadraceError], int], ...] = (
    (Invalid, 400),
    (Unavailable, 503),
    (Fenced, 503),
    (Closed, 503),
    (Corrupt, 500),
)
_BODY_LEFT_UNREAD = {408, 413}


class Headers(Protocol):
    """A request's headers, names in lower case; a repeated name occurs again in `items`."""

    def get(self, key: str, default: str | None = None) -> str | None:
        """Return a header's first value."""

    def items(self) -> list[tuple[str, str]]:
        """Return every header in order."""


class HeaderList:
    """`Headers` over a list of pairs."""

    def __init__(self, pairs: list[tuple[str, str]]) -> None:
        self._pairs = [(name.lower(), value) for name, value in pairs]

    def get(self, key: str, default: str | None = None) -> str | None:
        """See `Headers`."""
        return next((value for name, value in self._pairs if name == key), default)

    def items(self) -> list[tuple[str, str]]:
        """See `Headers`."""
        return self._pairs


class Request(msgspec.Struct, frozen=True, gc=False):
    """A request whose body has perhaps not arrived yet.

    It and what is made of it are structs because these are the cheapest objects to make, and the
    door makes them for every record.
    """

    method: str
    path: str
    """Percent-decoded."""
    query: str
    """As sent, without the question mark."""
    headers: Headers
    read: Callable[[], Awaitable[bytes]]
    """Returns the whole body, once; raises `Invalid` or `Unavailable` when a limit is passed."""
    share: Share
    """What the request takes of the budget of all bodies; given back by whoever made it."""
    client: str = ""
    """Address and port that it comes from."""


class Response(msgspec.Struct, frozen=True, gc=False):
    """An answer, whole."""

    status: int
    headers: list[tuple[str, str]]
    body: bytes = b""


Handler = Callable[[Request, str], Awaitable[Response]]
"""Answers a request of a client that was let in; the text is the scope of the client's own names.
"""


def refusal(error: HeadraceError) -> Response:
    """Return the answer that says what went wrong, in the one shape that errors have."""
    status = _STATUS_OF_CODE.get(error.code)
    if status is None:
        status = next((s for kind, s in _STATUS_OF_KIND if isinstance(error, kind)), 500)
    headers = [JSON]
    if isinstance(error, Unavailable):
        headers.append(("retry-after", str(max(1, math.ceil(error.retry_after_s)))))
    if status == 401:  # noqa: PLR2004 - Unauthorized
        headers.append(("www-authenticate", "Bearer"))
    if status in _BODY_LEFT_UNREAD:
        headers.append(("connection", "close"))
    told = {"code": error.code, "message": error.message, "hint": error.hint}
    return Response(status, headers, msgspec.json.encode({"error": told}))


def with_headers(response: Response, *headers: tuple[str, str]) -> Response:
    """Return a response with more headers."""
    return Response(response.status, [*response.headers, *headers], response.body)


def method_not_allowed(method: str, allowed: str) -> Response:
    """Return 405 with `Allow`."""
    error = Invalid(
        f"{method} is not possible here", hint=f"Use {allowed}.", code="method_not_allowed"
    )
    return with_headers(refusal(error), ("allow", allowed))


def answer_json(value: object, status: int = 200) -> Response:
    """Return a value as JSON."""
    return Response(status, [JSON], msgspec.json.encode(value))
