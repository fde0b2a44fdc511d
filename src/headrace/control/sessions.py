"""Sessions of people: signed in once with a token, a browser is known by a cookie for some hours.

The cookie holds a token of its own kind, made for the session: it has the scopes of the token that
was shown, without those to append; it ends after `LIFETIME_S`, with the token that it was made for,
or when the person signs out. It is no good in an `Authorization` header, nor are other tokens in
the cookie, so a program's token never lies about in a browser.

Browsers send cookies with requests that other pages make them send. Three things hold those off:
the cookie is `SameSite=Strict` (RFC 6265bis) and `HttpOnly`; a browser says whose page asks
(`Sec-Fetch-Site`, or `Origin`), and only this server's own may ask for more than to be shown a
page; and nothing is ever appended by a session.
"""

from __future__ import annotations

from typing import Protocol
from urllib.parse import urlsplit

from headrace.control import tokens
from headrace.control.tokens import APPEND, READ, Made, Token
from headrace.model.clock import Clock
from headrace.model.errors import Invalid
from headrace.model.log import Log

COOKIE = "headrace-session"
LIFETIME_S = 12 * 3_600
"""A working day."""

_SAFE_METHODS = {"GET", "HEAD"}
_OWN = {"same-origin", "none"}
"""What `Sec-Fetch-Site` says of this server's own pages, and of what a person typed."""


class Headers(Protocol):
    """A request's headers, by names in lower case."""

    def get(self, key: str, /) -> str | None:
        """Return a header's first value."""


def begin(log: Log, clock: Clock, maker: Token) -> Made:
    """Make the token of a session for whoever showed `maker`.

    `Invalid`: it may not read, or there are too many tokens.
    """
    if not maker.allows(READ):
        raise Invalid(
            f"To look around one needs the scope {READ}, which the token does not have",
            hint=f"Use a token with it: headrace tokens create --scope {READ}.",
            code="forbidden",
        )
    scopes = tuple(s for s in maker.scopes if not s.startswith(APPEND))
    wanted = tokens.Wanted(scopes, name=maker.name, kind="session", lifetime_s=LIFETIME_S)
    return tokens.create_session(log, clock, wanted, maker)


def shown(headers: Headers, method: str) -> str | None:
    """Return the text of the session's token in a request's cookie; None if it may not count."""
    cookies = headers.get("cookie")
    if cookies is None or COOKIE not in cookies or not _is_own(headers, method):
        return None
    for cookie in cookies.split(";"):
        name, _, value = cookie.strip().partition("=")
        if name == COOKIE:
            return value
    return None


def is_foreign(headers: Headers) -> bool:
    """Return whether a browser says that a page of another server asks; programs say nothing."""
    site = headers.get("sec-fetch-site")
    if site is not None:
        return site not in _OWN
    origin = headers.get("origin")
    if origin is None:
        return False
    try:
        return urlsplit(origin).netloc != headers.get("host")
    except ValueError:
        return True


def cookie_of(text: str, *, is_https: bool) -> str:
    """Return the `Set-Cookie` header that begins a session; an empty text ends it."""
    age_s = LIFETIME_S if text else 0
    secure = "; Secure" if is_https else ""
    return f"{COOKIE}={text}; Path=/; Max-Age={age_s}; HttpOnly; SameSite=Strict{secure}"


def _is_own(headers: Headers, method: str) -> bool:
    """Return whether a request is one that this server's own pages make, or that shows a page.

    Two servers on one machine are one site to `SameSite`, whatever their ports.
    """
    site = headers.get("sec-fetch-site")
    if site is not None:
        is_shown = method in _SAFE_METHODS and headers.get("sec-fetch-mode") == "navigate"
        return site in _OWN or is_shown
    if headers.get("origin") is None:
        return method in _SAFE_METHODS
    return not is_foreign(headers)
