"""`/v1/tokens`: tokens made, listed and revoked over HTTP, by those with the scope `admin`.

For a service that gives its users tokens of their own, such as one for reading that ends in an
hour. The token that it uses for that is made on the command line.
"""

from __future__ import annotations

import asyncio
import threading
from typing import Annotated, Literal

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from headrace.control import tokens
from headrace.control.tokens import LIFETIME_S_MAX, Made, Token
from headrace.model.clock import Clock
from headrace.model.log import Log
from headrace.serve.arguments import Arguments
from headrace.serve.bodies import read_body

_SHAPE = 'Send {"scopes": ["read"], "lifetime_s": 3600, "name": "…"}.'


class TokenRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The body that asks for a token."""

    scopes: tuple[str, ...]
    name: str = ""
    kind: Literal["api", "browser"] = "api"
    origins: tuple[str, ...] = ()
    lifetime_s: Annotated[float, msgspec.Meta(gt=0, le=LIFETIME_S_MAX)] = tokens.LIFETIME_S_DEFAULT


class TokenEndpoints:
    """The handlers of tokens. Whoever else uses `log` takes `lock` too: it is for one at a time."""

    def __init__(self, log: Log, lock: threading.Lock, clock: Clock) -> None:
        self._log = log
        self._lock = lock
        self._clock = clock

    async def create(self, request: Request) -> Response:
        """Make a token; the only answer that holds it."""
        asked = await read_body(request, TokenRequest, _SHAPE)
        wanted = tokens.Wanted(
            scopes=asked.scopes,
            name=asked.name,
            kind=asked.kind,
            lifetime_s=asked.lifetime_s,
            origins=asked.origins,
        )
        made = await asyncio.to_thread(self._create, wanted, request.state.token)
        return self._answer({**self._told(made.token), "token": made.text}, 201)

    async def listed(self, request: Request) -> Response:
        """List the tokens, newest first, without what lets anyone in."""
        Arguments(request.query_params.multi_items()).finish()
        found = await asyncio.to_thread(self._list)
        return self._answer({"tokens": [self._told(token) for token in found]})

    async def revoke(self, request: Request) -> Response:
        """End a token for good."""
        Arguments(request.query_params.multi_items()).finish()
        token = await asyncio.to_thread(self._revoke, request.path_params["token"])
        return self._answer(self._told(token))

    def _create(self, wanted: tokens.Wanted, maker: Token) -> Made:
        with self._lock:
            return tokens.create(self._log, self._clock, wanted, maker=maker)

    def _list(self) -> list[Token]:
        with self._lock:
            return tokens.listed(self._log)

    def _revoke(self, token_id: str) -> Token:
        with self._lock:
            return tokens.revoke(self._log, self._clock, token_id)

    def _told(self, token: Token) -> dict[str, object]:
        return tokens.told(token, self._clock.now_us())

    @staticmethod
    def _answer(value: object, status: int = 200) -> Response:
        headers = {"cache-control": "no-store"}
        return Response(
            msgspec.json.encode(value), status, headers=headers, media_type="application/json"
        )
