"""Tokens: who may do what over HTTP.

A token is shown once, when it is made. What is kept is a keyed value in the log, `token/<id>`, with
the SHA-256 of the token and not the token, so nothing that lies in a data directory lets anyone in.

    hr_<kind>_<id>_<secret>_<crc>

`id` (8 bytes) names the token and is no secret. `secret` has 32 bytes, so it cannot be guessed, and
a plain hash of it needs no salt and no stretching. `crc` (CRC-32 of all before) tells a token that
was cut or mistyped from a wrong one without a look at the log, and lets those who search code for
leaked secrets be sure. All three are hexadecimal.

=================  ============================================================
scope              allows
=================  ============================================================
`append:<topic>`   to append to a topic, by its path or by routes
`append:*`         to append to any topic
`read`             to read topics, tables, views, queries, dead letters, metrics
`sql`              to run SQL of one's own
`admin`            all of these, and to change what runs: dead letters, sources, tokens
=================  ============================================================

A key of the kind `browser` is made to be seen: it can only append, and only from pages of the
origins that it names. A token that was made over HTTP ends within `LIFETIME_S_MAX`, is no good once
the token that made it was revoked, and makes no others. The kind `session` is a person's at the
dashboard (`sessions.py`).
"""

from __future__ import annotations

import hashlib
import re
import zlib
from typing import Literal

import msgspec

from headrace.model.clock import Clock, rfc3339
from headrace.model.errors import Fenced, Internal, Invalid
from headrace.model.log import Log, LogReader

PREFIX = "token/"
"""The log's key of a token: this, then its id."""

READ, SQL, ADMIN, APPEND = "read", "sql", "admin", "append:"
ANY_TOPIC = f"{APPEND}*"

Kind = Literal["api", "browser", "session"]
State = Literal["live", "expired", "revoked"]

ID_BYTES, SECRET_BYTES = 8, 32
TOKENS_MAX = 10_000
"""Tokens that are kept; those that have ended are forgotten to make room."""
SCOPES_MAX, ORIGINS_MAX, NAME_LENGTH_MAX = 64, 64, 100
ENDED_KEPT_S = 86_400
"""A token that has ended is listed for this long."""
FORGOTTEN_MAX = 20
"""Tokens that are forgotten when one is made; each is a write of its own."""
LIFETIME_S_DEFAULT, LIFETIME_S_MAX = 3_600.0, 30 * 86_400.0
"""How long a token lives that was made over HTTP."""
_TRIES = 5

_TOKEN = re.compile(r"(hr_(api|browser|session)_([0-9a-f]{16})_[0-9a-f]{64})_([0-9a-f]{8})")
_TOPIC = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,248}|\*")
_ORIGIN = re.compile(r"https?://([a-z0-9.-]+|\[[0-9a-f:]+\])(:[0-9]{1,5})?")


class Wanted(msgspec.Struct, frozen=True):
    """What a token is to be."""

    scopes: tuple[str, ...]
    name: str = ""
    kind: Kind = "api"
    lifetime_s: float | None = None
    """None: it does not end by itself."""
    origins: tuple[str, ...] = ()
    """Of a browser's key: the origins of the pages that may use it, as `https://example.org`."""


class Token(msgspec.Struct, frozen=True):
    """What is kept of a token."""

    id: str
    kind: Kind
    name: str
    scopes: tuple[str, ...]
    origins: tuple[str, ...]
    sha256: str
    """Of the whole token, hexadecimal."""
    created_at_us: int
    expires_at_us: int | None
    revoked_at_us: int | None = None
    made_by: str | None = None
    """Id of the token that made it over HTTP; None: the owner of the data directory did."""

    def state(self, now_us: int) -> State:
        """Return whether it is good at a time."""
        if self.revoked_at_us is not None:
            return "revoked"
        is_over = self.expires_at_us is not None and self.expires_at_us <= now_us
        return "expired" if is_over else "live"

    def allows(self, scope: str) -> bool:
        """Return whether it has a scope; an empty one is had by every token."""
        if not scope or ADMIN in self.scopes or scope in self.scopes:
            return True
        return scope.startswith(APPEND) and ANY_TOPIC in self.scopes


class Made(msgspec.Struct, frozen=True):
    """A token that was just made, and its text, which cannot be had again."""

    token: Token
    text: str


def create(log: Log, clock: Clock, wanted: Wanted, *, maker: Token | None = None) -> Made:
    """Make a token. `maker` is the token that asks for it over HTTP.

    Raises `Invalid` for scopes, origins or a lifetime that make no sense, and if there are too many
    tokens.
    """
    check_wanted(wanted)
    now_us = clock.now_us()
    expires_at_us = (
        None if wanted.lifetime_s is None else now_us + round(wanted.lifetime_s * 1_000_000)
    )
    if maker is not None:
        expires_at_us = _bounded(maker, now_us, expires_at_us)
    return _issue(log, clock, wanted, expires_at_us, maker)


def create_session(log: Log, clock: Clock, wanted: Wanted, maker: Token) -> Made:
    """Make the token of a session, which ends with its maker at the latest; see `sessions.begin`.

    `Invalid`: there are too many tokens.
    """
    expires_at_us = clock.now_us() + round((wanted.lifetime_s or 0) * 1_000_000)
    expires_at_us = min(expires_at_us, maker.expires_at_us or expires_at_us)
    return _issue(log, clock, wanted, expires_at_us, maker)


def _issue(
    log: Log, clock: Clock, wanted: Wanted, expires_at_us: int | None, maker: Token | None
) -> Made:
    now_us = clock.now_us()
    _make_room(log, now_us)
    for _ in range(_TRIES):
        token_id = clock.secret(ID_BYTES).hex()
        text = _text(wanted.kind, token_id, clock.secret(SECRET_BYTES))
        token = Token(
            id=token_id,
            kind=wanted.kind,
            name=wanted.name,
            scopes=tuple(dict.fromkeys(wanted.scopes)),
            origins=tuple(dict.fromkeys(origin.lower() for origin in wanted.origins)),
            sha256=digest(text),
            created_at_us=now_us,
            expires_at_us=expires_at_us,
            made_by=None if maker is None else maker.id,
        )
        try:
            log.put_if(PREFIX + token_id, 0, msgspec.json.encode(token))
        except Fenced:
            continue
        return Made(token, text)
    raise Internal("Every id of a token that chance gave is taken")


def check_wanted(wanted: Wanted) -> None:
    """Raise `Invalid` unless a token may be as it is wanted."""
    if not 1 <= len(wanted.scopes) <= SCOPES_MAX:
        raise _bad("A token has at least one scope", _SCOPES_HINT)
    for scope in wanted.scopes:
        _check_scope(scope)
    if len(wanted.name) > NAME_LENGTH_MAX or not wanted.name.isprintable():
        raise _bad("A token's name is one short line", f"At most {NAME_LENGTH_MAX} characters.")
    if wanted.lifetime_s is not None and not wanted.lifetime_s > 0:
        raise _bad("A token lives for some time", "Give a length such as 7 days, or none.")
    if wanted.kind == "browser":
        _check_browser_key(wanted)
    elif wanted.origins:
        raise _bad("Only a browser's key has origins", "Make a key of the kind browser.")


def _check_browser_key(wanted: Wanted) -> None:
    if not all(scope.startswith(APPEND) for scope in wanted.scopes):
        raise _bad(
            "A browser's key can be read by everyone who sees the page, so it may only append",
            "Give scopes such as append:events.",
        )
    if not 1 <= len(wanted.origins) <= ORIGINS_MAX:
        raise _bad("A browser's key names the origins of its pages", _ORIGIN_HINT)
    for origin in wanted.origins:
        if not _ORIGIN.fullmatch(origin.lower()):
            raise _bad(f"{origin[:100]!r} is no origin", _ORIGIN_HINT)


def listed(log: LogReader) -> list[Token]:
    """Return every token that is kept, newest first."""
    found = [msgspec.json.decode(e.value, type=Token) for e in log.scan(PREFIX)]
    return sorted(found, key=lambda t: (-t.created_at_us, t.id))


def any_live(log: LogReader, clock: Clock) -> bool:
    """Return whether any token is good now."""
    now_us = clock.now_us()
    return any(token.state(now_us) == "live" for token in listed(log))


def find(log: LogReader, token_id: str) -> Token | None:
    """Return a token by its id."""
    entry = log.get(PREFIX + token_id)
    return None if entry is None else msgspec.json.decode(entry.value, type=Token)


def revoke(log: Log, clock: Clock, token_id: str) -> Token:
    """End a token for good, and with it those that it made; doing it again changes nothing.

    Takes a whole token too, of which only the id is used. `Invalid`: there is none.
    """
    token = _revoke(log, clock, parse(token_id) or token_id)
    for made in listed(log):
        if made.made_by == token.id and made.state(clock.now_us()) == "live":
            revoke(log, clock, made.id)
    return token


def _revoke(log: Log, clock: Clock, token_id: str) -> Token:
    for _ in range(_TRIES):
        entry = log.get(PREFIX + token_id)
        if entry is None:
            raise Invalid(
                "There is no token of this id",
                hint="`headrace tokens list` and GET /v1/tokens show the ids.",
                code="unknown_token",
            )
        token = msgspec.json.decode(entry.value, type=Token)
        if token.revoked_at_us is not None:
            return token
        revoked = msgspec.structs.replace(token, revoked_at_us=clock.now_us())
        try:
            log.put_if(entry.key, entry.revision, msgspec.json.encode(revoked))
        except Fenced:
            continue
        return revoked
    raise Internal("A token was changed by others each time that it was to be revoked")


def told(token: Token, now_us: int) -> dict[str, object]:
    """Return what people may see of a token, as plain values."""
    return {
        "id": token.id,
        "kind": token.kind,
        "name": token.name,
        "state": token.state(now_us),
        "scopes": list(token.scopes),
        "origins": list(token.origins),
        "created_at": rfc3339(token.created_at_us),
        "expires_at": token.expires_at_us and rfc3339(token.expires_at_us),
        "revoked_at": token.revoked_at_us and rfc3339(token.revoked_at_us),
        "made_by": token.made_by,
    }


def parse(text: str) -> str | None:
    """Return the id in a token's text; None if it is no token, or a mistyped one."""
    match = _TOKEN.fullmatch(text)
    if match is None or _crc(match[1]) != match[4]:
        return None
    return match[3]


def digest(text: str) -> str:
    """Return what is kept of a token's text."""
    return hashlib.sha256(text.encode()).hexdigest()


def _text(kind: Kind, token_id: str, secret: bytes) -> str:
    body = f"hr_{kind}_{token_id}_{secret.hex()}"
    return f"{body}_{_crc(body)}"


def _crc(text: str) -> str:
    return f"{zlib.crc32(text.encode()):08x}"


def _bounded(maker: Token, now_us: int, expires_at_us: int | None) -> int:
    """Return when a token ends that another one makes."""
    if maker.made_by is not None:
        raise Invalid(
            "A token that was made over HTTP makes no others",
            hint="Use one that `headrace tokens create --scope admin` made.",
            code="forbidden",
        )
    if expires_at_us is None:
        expires_at_us = now_us + round(LIFETIME_S_DEFAULT * 1_000_000)
    if expires_at_us > now_us + LIFETIME_S_MAX * 1_000_000:
        raise _bad(
            "A token that is made over HTTP lives for 30 days at most",
            "`headrace tokens create` makes those that live longer.",
        )
    return min(expires_at_us, maker.expires_at_us or expires_at_us)


def _make_room(log: Log, now_us: int) -> None:
    """Forget some of the tokens that ended long ago, or at all if there are very many."""
    entries = log.scan(PREFIX)
    kept_us = 0 if len(entries) >= TOKENS_MAX else ENDED_KEPT_S * 1_000_000
    forgotten = 0
    for entry in entries:
        token = msgspec.json.decode(entry.value, type=Token)
        ended_us = token.revoked_at_us or token.expires_at_us
        if ended_us is not None and ended_us + kept_us <= now_us and forgotten < FORGOTTEN_MAX:
            _forget(log, entry.key, entry.revision)
            forgotten += 1
    if len(entries) - forgotten >= TOKENS_MAX:
        raise Invalid(
            f"There are {TOKENS_MAX:,} tokens, which is as many as there may be",
            hint="Revoke those that nobody needs, or let them live for a shorter time.",
            code="too_many_tokens",
        )


def _forget(log: Log, key: str, revision: int) -> None:
    try:
        log.put_if(key, revision, None)
    except Fenced:
        # Someone else has forgotten it, or revokes it now.
        return


_SCOPES_HINT = f"The scopes are {APPEND}TOPIC, {ANY_TOPIC}, {READ}, {SQL} and {ADMIN}."
_ORIGIN_HINT = "An origin is a scheme, a host and perhaps a port: https://example.org:8443."


def _check_scope(scope: str) -> None:
    if scope.startswith(APPEND):
        if _TOPIC.fullmatch(scope.removeprefix(APPEND)):
            return
    elif scope in {READ, SQL, ADMIN}:
        return
    raise _bad(f"There is no scope {scope[:100]!r}", _SCOPES_HINT)


def _bad(message: str, hint: str) -> Invalid:
    return Invalid(message, hint=hint, code="invalid_token_wanted")
