"""Who may use the HTTP door, and from which web pages.

A page of another origin may use a path if a browser's key allows it (`control/tokens.py`): then the
answers to it, and to what its browser asks beforehand, say so (CORS, the Fetch Standard). Only the
answer to the request itself depends on the key; asked beforehand is whether any key allows it.
"""

from __future__ import annotations

from typing import Protocol

from headrace.collect.exchange import Request, Response
from headrace.control import sessions
from headrace.control.admission import Admission
from headrace.control.tokens import APPEND

_HEADERS_ALLOWED = (
    "authorization, content-encoding, content-type, headrace-key, idempotency-key, ce-id, "
    "ce-source, ce-specversion, ce-subject, ce-time, ce-type"
)
_HEADERS_SHOWN = "retry-after, x-headrace-dead, x-headrace-offsets"
_KEPT_S = "600"
"""How long a browser may remember the answer; the path is refused at once all the same."""


class Gate(Protocol):
    """Judges requests before anything else is done for them."""

    def admit(self, request: Request, scope: str) -> str:
        """Return the scope of the client's own record names if it may do what `scope` names.

        An empty scope asks for nothing but to be known. Raises `Invalid` with code `unauthorized`
        or `forbidden`, `Unavailable` with code `rate_limited`.
        """

    def preflight(self, request: Request, scope: str, methods: str) -> Response | None:
        """Return the answer to what a browser asks beforehand; None if it asks for nothing."""

    def cross_origin(self, request: Request, scope: str) -> list[tuple[str, str]]:
        """Return the headers with which a page of another origin may read the answer."""


class OpenGate:
    """Lets everyone in, as one anonymous client."""

    def admit(self, request: Request, scope: str) -> str:  # noqa: ARG002 - see `Gate`
        """See `Gate`."""
        return ""

    def preflight(self, request: Request, scope: str, methods: str) -> None:
        """See `Gate`."""

    def cross_origin(self, request: Request, scope: str) -> list[tuple[str, str]]:  # noqa: ARG002
        """See `Gate`."""
        return []


class TokenGate:
    """Lets in who has a token with the scope."""

    def __init__(self, admission: Admission) -> None:
        self._admission = admission

    def admit(self, request: Request, scope: str) -> str:
        """See `Gate`."""
        headers = request.headers
        authorization = headers.get("authorization")
        is_read = authorization is None and not scope.startswith(APPEND)
        token = self._admission.admit(
            authorization,
            scope,
            origin=headers.get("origin"),
            client=request.client,
            session=sessions.shown(headers, request.method) if is_read else None,
        )
        return token.id

    def preflight(self, request: Request, scope: str, methods: str) -> Response | None:
        """See `Gate`."""
        headers = self.cross_origin(request, scope)
        if not headers or request.headers.get("access-control-request-method") is None:
            return None
        headers += [
            ("access-control-allow-methods", methods),
            ("access-control-allow-headers", _HEADERS_ALLOWED),
            ("access-control-max-age", _KEPT_S),
        ]
        return Response(204, headers)

    def cross_origin(self, request: Request, scope: str) -> list[tuple[str, str]]:
        """See `Gate`."""
        origin = request.headers.get("origin")
        if origin is None or not self._admission.allows_origin(origin, scope):
            return []
        return [
            ("access-control-allow-origin", origin),
            ("access-control-expose-headers", _HEADERS_SHOWN),
            ("vary", "Origin"),
        ]
