"""Signing in and out of a pipeline that asks for tokens."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from urllib.parse import parse_qs, quote

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from headrace.control import sessions, tokens
from headrace.control.admission import Admission
from headrace.control.tokens import Made, Token
from headrace.model.clock import Clock
from headrace.model.errors import HeadraceError, Invalid
from headrace.model.log import Log
from headrace.serve.dashboard.page import ROOT, Shell
from headrace.serve.errors import status_of

SIGN_IN, SIGN_OUT = f"{ROOT}sign-in", f"{ROOT}sign-out"
BODY_BYTES_MAX = 4_096
_FORM = "application/x-www-form-urlencoded"


def to_sign_in(request: Request) -> Response:
    """Send a person to where one signs in, and back afterwards."""
    path = request.url.path
    wanted = f"{path}?{request.url.query}" if request.url.query else path
    return RedirectResponse(f"{SIGN_IN}?next={quote(wanted, safe='')}", 303)


class SessionPages:
    """The handlers. Whoever else uses `log` takes `lock` too: it is for one at a time."""

    def __init__(
        self,
        shell: Shell,
        admission: Admission,
        log: Log,
        lock: threading.Lock,
        clock: Clock,
        client_of: Callable[[Request], str],
    ) -> None:
        self._shell = shell
        self._admission = admission
        self._log = log
        self._lock = lock
        self._clock = clock
        self._client_of = client_of

    async def form(self, request: Request) -> Response:
        """Show where one signs in."""
        return self._form(_next(request.query_params.get("next")))

    async def sign_in(self, request: Request) -> Response:
        """Begin a session for a token, and show what was asked for."""
        given = await _form_of(request)
        next_ = _next(given.get("next"))
        try:
            maker = self._admission.admit(
                f"Bearer {given.get('token', '').strip()}",
                tokens.READ,
                origin=None,
                client=self._client_of(request),
            )
            made = await asyncio.to_thread(self._begin, maker)
        except HeadraceError as e:
            return self._form(next_, e)
        return self._moved(request, next_, made.text)

    async def sign_out(self, request: Request) -> Response:
        """End the session, here and wherever else its cookie may be."""
        text = sessions.shown(request.headers, request.method)
        token_id = tokens.parse(text or "")
        if token_id is not None:
            await asyncio.to_thread(self._end, token_id)
        return self._moved(request, SIGN_IN, "")

    def _begin(self, maker: Token) -> Made:
        with self._lock:
            return sessions.begin(self._log, self._clock, maker)

    def _end(self, token_id: str) -> None:
        with self._lock:
            token = tokens.find(self._log, token_id)
            if token is not None and token.kind == "session":
                tokens.revoke(self._log, self._clock, token_id)

    def _form(self, next_: str, error: HeadraceError | None = None) -> Response:
        status = status_of(error) if error is not None else 200
        return self._shell.page("sign_in.html", "Sign in", next=next_, error=error, status=status)

    @staticmethod
    def _moved(request: Request, to: str, text: str) -> Response:
        said = request.headers.get("x-forwarded-proto", "")
        is_https = request.url.scheme == "https" or said.startswith("https")
        headers = {
            "set-cookie": sessions.cookie_of(text, is_https=is_https),
            "cache-control": "no-store",
        }
        return RedirectResponse(to, 303, headers=headers)


async def _form_of(request: Request) -> dict[str, str]:
    """Return the fields of a form that this server's own page sent."""
    if sessions.is_foreign(request.headers):
        raise Invalid("A page of another site may not sign anybody in", code="forbidden")
    if request.headers.get("content-type", "").partition(";")[0].strip() != _FORM:
        raise Invalid("The body has to be a form", hint=_FORM, code="unsupported_media_type")
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > BODY_BYTES_MAX:
            raise Invalid("The form is too large", code="body_too_large")
    fields = parse_qs(body.decode("utf-8", "replace"), keep_blank_values=True)
    return {name: values[0] for name, values in fields.items()}


def _next(path: str | None) -> str:
    """Return where to go afterwards: a page of this server, whatever was asked."""
    if path is None or not path.startswith("/") or path.startswith(("//", "/\\")):
        return ROOT
    return path if path.isprintable() else ROOT
