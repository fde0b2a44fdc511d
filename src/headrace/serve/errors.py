"""Errors as HTTP answers: one shape on every path."""

from __future__ import annotations

import math

import msgspec
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from headrace.model.errors import Closed, Fenced, HeadraceError, Invalid, Unavailable

STATUS_OF_CODE = {
    "body_too_large": 413,
    "forbidden": 403,
    "letter_done": 409,
    "method_not_allowed": 405,
    "misdirected": 421,
    "not_acceptable": 406,
    "not_found": 404,
    "not_yet": 504,
    "not_allowed": 403,
    "query_memory": 422,
    "query_timeout": 504,
    "rate_limited": 429,
    "result_too_large": 422,
    "not_representable": 422,
    "source_exists": 409,
    "source_of_pipeline": 409,
    "sources_closed": 403,
    "too_many_sources": 409,
    "unknown_letter": 404,
    "unknown_source": 404,
    "unauthorized": 401,
    "unknown_table": 404,
    "unknown_token": 404,
    "unknown_view": 404,
    "unsupported_media_type": 415,
}
"""Statuses of errors whose kind alone does not tell."""

_LATER = {429, 503}
"""Statuses that say when to try again."""


def status_of(error: HeadraceError) -> int:
    """Return the HTTP status that an error is answered with."""
    if error.code in STATUS_OF_CODE:
        return STATUS_OF_CODE[error.code]
    if isinstance(error, Invalid):
        return 400
    return 503 if isinstance(error, Unavailable | Closed | Fenced) else 500


def error_response(error: HeadraceError, **more: object) -> Response:
    """Return the answer for an error, with `more` members beside `error`."""
    status = status_of(error)
    headers = {"cache-control": "no-store"}
    if isinstance(error, Unavailable) and status in _LATER:
        headers["retry-after"] = str(max(1, math.ceil(error.retry_after_s)))
    if status == 401:  # noqa: PLR2004 - Unauthorized
        headers["www-authenticate"] = "Bearer"
    return error_body(status, error.code, error.message, error.hint, headers, **more)


def error_body(
    status: int, code: str, message: str, hint: str, headers: dict[str, str], **more: object
) -> Response:
    """Return an answer of the one shape that errors have."""
    body = {"error": {"code": code, "message": message, "hint": hint}, **more}
    return Response(
        msgspec.json.encode(body), status, headers=headers, media_type="application/json"
    )


async def on_http_exception(request: Request, error: Exception) -> Response:
    """Answer what the router refuses: unknown paths and methods."""
    if not isinstance(error, HTTPException):
        return error_body(500, "internal", "The request failed", "Report it as a bug.", {})
    headers = dict(error.headers or {})
    path = request.url.path
    if error.status_code == 404:  # noqa: PLR2004 - Not Found
        hint = "GET /openapi.json lists every path, /docs shows them."
        return error_body(404, "not_found", f"There is nothing at {path}", hint, headers)
    if error.status_code == 405:  # noqa: PLR2004 - Method Not Allowed
        allowed = next((v for k, v in headers.items() if k.lower() == "allow"), "GET")
        message = f"{request.method} is not possible at {path}"
        return error_body(405, "method_not_allowed", message, f"Use {allowed}.", headers)
    return error_body(error.status_code, "invalid", str(error.detail), "", headers)
