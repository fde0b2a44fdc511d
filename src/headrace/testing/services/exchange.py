"""A request and its reply, as the stand-ins see them: no sockets here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import msgspec

from headrace.testing.services.collection import Collection, Record

JSON = "application/json"
TEXT = "text/plain"


class Request(msgspec.Struct, frozen=True):
    """What a client asked."""

    method: str
    path: str
    """Below the service's own prefix: `/occurrence/search`."""
    query: Mapping[str, list[str]]
    headers: Mapping[str, str]
    """Names in lower case."""
    body: bytes = b""

    def first(self, name: str, default: str = "") -> str:
        """Return the first value of a parameter."""
        return self.query.get(name, [default])[0]

    def number(self, name: str, default: int) -> int:
        """Return a parameter as a whole number that is not negative, or else the default."""
        text = self.first(name)
        return int(text) if text.isdecimal() else default

    def words(self, name: str) -> list[str]:
        """Return the values of a parameter that is repeated or holds commas."""
        return [word for value in self.query.get(name, []) for word in value.split(",") if word]


class Reply(msgspec.Struct, frozen=True):
    """What is answered."""

    status: int
    body: bytes = b""
    content_type: str = JSON
    headers: Mapping[str, str] = {}


def json_reply(value: object, status: int = 200, **headers: str) -> Reply:
    """Return a reply of JSON; headers are given with `_` for `-`."""
    named = {name.replace("_", "-"): text for name, text in headers.items()}
    return Reply(status, msgspec.json.encode(value), JSON, named)


def text_reply(text: str, status: int) -> Reply:
    """Return a reply of plain text."""
    return Reply(status, text.encode(), TEXT)


def not_played(what: str) -> Reply:
    """Return the reply to what the real service can do and its stand-in cannot.

    To pass it over would answer another question than was asked.
    """
    return text_reply(f"The stand-in does not know how to do this: {what}", 501)


class Service(Protocol):
    """One of the three services: answers requests over its collection of records."""

    collection: Collection

    def answer(self, request: Request) -> Reply:
        """Answer as the real service would."""

    def stamp(self, record: Record, now_us: int) -> Record:
        """Return a changed record with the marks of change that the service gives it."""

    def identify(self, record: Record, donor: Record) -> Record:
        """Return the record as one of the donor's taxon."""


def copied(record: Record, donor: Record, names: tuple[str, ...]) -> Record:
    """Return the record with the named fields of the donor, those it lacks taken out."""
    kept: dict[str, Any] = {k: v for k, v in record.items() if k not in names}
    return kept | {k: donor[k] for k in names if k in donor}
