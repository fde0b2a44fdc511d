"""Bodies of requests that change something: JSON of a declared shape, bounded."""

from __future__ import annotations

from typing import TypeVar

import msgspec
from starlette.requests import Request

from headrace.model.errors import Invalid
from headrace.serve.arguments import Arguments

BODY_BYTES_MAX = 1 << 20

T = TypeVar("T")


async def read_body(request: Request, kind: type[T], shape: str) -> T:
    """Return a request's JSON body as a `kind`; `shape` is the hint that says what to send.

    The request has no parameters beside. Raises `Invalid`.
    """
    Arguments(request.query_params.multi_items()).finish()
    return await read_json(request, kind, shape)


async def read_json(request: Request, kind: type[T], shape: str) -> T:
    """Return a request's JSON body, whatever its parameters; see `read_body`.

    The type that the body must name keeps other sites' forms out.
    """
    if request.headers.get("content-type", "").partition(";")[0].strip() != "application/json":
        raise Invalid(
            "The body has to be JSON",
            hint=f"Say Content-Type: application/json. {shape}",
            code="unsupported_media_type",
        )
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > BODY_BYTES_MAX:
            raise Invalid(
                f"The body is larger than {BODY_BYTES_MAX} bytes", hint=shape, code="body_too_large"
            )
    try:
        return msgspec.json.decode(bytes(body), type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError) as e:
        raise Invalid(f"The body cannot be used: {e}", hint=shape, code="invalid_body") from e
