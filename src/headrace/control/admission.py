"""Who is let in: the one place where a request's token is judged, for every role that answers HTTP.

The answer is the same whether there is no token, or an unknown, wrong, expired or revoked one: who
guesses learns nothing. Secrets are compared in constant time. What was looked up in the log counts
for `FRESH_S`, so a token that is revoked is refused everywhere within two seconds; one that was
just made is good at once.
"""

from __future__ import annotations

import hmac
import ipaddress
from collections import OrderedDict

from headrace.control import tokens
from headrace.control.tokens import APPEND, Token
from headrace.model.clock import Clock
from headrace.model.errors import Invalid, Unavailable
from headrace.model.log import LogReader

OPEN_PATH = "/healthz"
"""Asks for no token: whoever restarts a server that is not well has none."""
PAGES = "/_/"
"""The dashboard's own paths begin so. Where a person signs in there is no token yet: the role that
makes the pages judges those itself."""

FRESH_S = 1.0
CACHED_MAX = 10_000
"""Tokens that are held in memory."""

FAILED_MAX, FAILED_WINDOW_S = 20, 60.0
"""Wrong tokens that a client address may send in so many seconds; further ones get 429. A token
cannot be guessed, so a right one is let in all the same: many clients may share an address."""
ADDRESSES_MAX = 10_000
"""Client addresses whose failed tries are counted, the latest ones."""

_NO_DIGEST = "0" * 64
_BEARER = "bearer "


class Admission:
    """Judges tokens; used from one thread, which alone uses `log`."""

    def __init__(self, log: LogReader, clock: Clock) -> None:
        self._log = log
        self._clock = clock
        self._failures = FailedTries(clock)
        self._known: OrderedDict[str, tuple[Token, float]] = OrderedDict()
        self._origins: dict[str, list[Token]] = {}
        self._origins_at_s = -FRESH_S

    def admit(
        self,
        authorization: str | None,
        scope: str,
        *,
        origin: str | None,
        client: str,
        session: str | None = None,
    ) -> Token:
        """Return the token in an `Authorization` header, else a session's, if it has a scope.

        `origin` is the request's `Origin` header, `client` the address that it comes from,
        `session` what `sessions.shown` says. An empty scope asks for any token. Raises `Invalid`
        with code `unauthorized` or `forbidden`, `Unavailable` with code `rate_limited`, and
        whatever the log is unavailable with.
        """
        if authorization is not None:
            token = self._identify(_bearer(authorization), is_session=False)
        elif session is not None:
            token = self._identify(session, is_session=True)
        else:
            raise _unauthorized()
        if token is None:
            self._failures.count(client)
            raise _unauthorized()
        if not token.allows(scope):
            raise Invalid(
                f"This asks for the scope {scope}, which the token does not have",
                hint=f"Use a token with it: headrace tokens create --scope {scope}.",
                code="forbidden",
            )
        if token.kind == "browser" and (origin or "").lower() not in token.origins:
            raise Invalid(
                "The key does not allow pages of this origin",
                hint="Make a key that names it: headrace tokens create --origin ORIGIN.",
                code="forbidden",
            )
        return token

    def allows_origin(self, origin: str, scope: str) -> bool:
        """Return whether any browser's key allows pages of an origin what `scope` does."""
        if not scope.startswith(APPEND):
            return False
        now_s = self._clock.monotonic_s()
        if now_s - self._origins_at_s >= FRESH_S:
            self._origins = {}
            for token in tokens.listed(self._log):
                for named in token.origins:
                    self._origins.setdefault(named, []).append(token)
            self._origins_at_s = now_s
        now_us = self._clock.now_us()
        keys = self._origins.get(origin.lower(), ())
        return any(key.state(now_us) == "live" and key.allows(scope) for key in keys)

    def _identify(self, text: str, *, is_session: bool) -> Token | None:
        """Return the token of a text, if it is good now, and where it may be shown."""
        token_id = tokens.parse(text)
        if token_id is None:
            return None
        token = self._find(token_id)
        kept = _NO_DIGEST if token is None else token.sha256
        is_same = hmac.compare_digest(tokens.digest(text), kept)
        if token is None or not is_same or (token.kind == "session") != is_session:
            return None
        return token if self._is_live(token) else None

    def _is_live(self, token: Token) -> bool:
        now_us = self._clock.now_us()
        if token.state(now_us) != "live":
            return False
        if token.made_by is None:
            return True
        maker = self._find(token.made_by)
        return maker is not None and self._is_live(maker)

    def _find(self, token_id: str) -> Token | None:
        now_s = self._clock.monotonic_s()
        token, looked_at_s = self._known.get(token_id, (None, 0.0))
        if token is not None and now_s - looked_at_s < FRESH_S:
            return token
        token = tokens.find(self._log, token_id)
        self._known.pop(token_id, None)
        if token is not None:
            self._known[token_id] = (token, now_s)
            if len(self._known) > CACHED_MAX:
                self._known.popitem(last=False)
        return token


class FailedTries:
    """Counts wrong tokens by client address, within bounded memory."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._counts: OrderedDict[str, tuple[int, float]] = OrderedDict()

    def count(self, client: str) -> None:
        """Count one more; raise `Unavailable` if there are too many."""
        network, now_s = _network(client), self._clock.monotonic_s()
        n, since_s = self._counts.pop(network, (0, now_s))
        if now_s - since_s >= FAILED_WINDOW_S:
            n, since_s = 0, now_s
        self._counts[network] = (min(n + 1, FAILED_MAX + 1), since_s)
        if len(self._counts) > ADDRESSES_MAX:
            self._counts.popitem(last=False)
        if n >= FAILED_MAX:
            raise Unavailable(
                "Too many wrong tokens came from this address",
                hint="Wait for the seconds in Retry-After, and send a token that is good.",
                code="rate_limited",
                retry_after_s=since_s + FAILED_WINDOW_S - now_s,
            )


def _bearer(authorization: str) -> str:
    """Return the token in a header; nothing if it is of another kind."""
    if authorization[: len(_BEARER)].lower() != _BEARER:
        return ""
    return authorization[len(_BEARER) :].strip()


def _network(client: str) -> str:
    """Return whom to count a try for: an IPv4 address, or a network of IPv6, which one client has.

    `client` is an address, perhaps with a port: `192.0.2.1:80`, `[2001:db8::1]:80`.
    """
    text = client.partition("]")[0].removeprefix("[")
    if text.count(":") == 1:
        text = text.partition(":")[0]
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return text[:64]
    if isinstance(address, ipaddress.IPv4Address):
        return str(address)
    if address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return str(ipaddress.IPv6Network((int(address) >> 64 << 64, 64)))


def _unauthorized() -> Invalid:
    return Invalid(
        "This asks for a token, and there is none that is good",
        hint="Send Authorization: Bearer hr_…; `headrace tokens create` makes a token.",
        code="unauthorized",
    )
