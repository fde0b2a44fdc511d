"""CloudEvents 1.0 over HTTP: structured, batched, binary.

In all three modes a record's value is the event's data and its context attributes are the record's
headers, named as in the Kafka binding (`ce_id`): the same event is the same record whatever its
mode, and on Kafka it is a CloudEvent in binary mode.
"""

from __future__ import annotations

import base64
import binascii
from typing import NamedTuple
from urllib.parse import unquote

import msgspec

from headrace.collect.exchange import Headers
from headrace.model.errors import Invalid

NO_DATA = b"{}"
"""An event without data is an object without fields."""

_REQUIRED = ("id", "source", "specversion", "type")
_FIELDS = msgspec.json.Decoder(dict[str, msgspec.Raw])
_TEXT = msgspec.json.Decoder(str)


class Context(NamedTuple):
    """What an event says about itself."""

    headers: bytes
    name: str
    """What makes it the same event: its source and id."""
    key: bytes | None


class Event(NamedTuple):
    """An event taken out of its envelope."""

    data: bytes
    context: Context


def structured(envelope: bytes, place: str = "The event") -> Event:
    """Return the event of a JSON envelope; `place` begins the words of a refusal."""
    try:
        members = _FIELDS.decode(envelope)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        raise _refused(f"{place} is not a JSON object") from None
    data = _data(members, place)
    attributes: dict[str, str] = {}
    for name, raw in members.items():
        if name not in {"data", "data_base64"} and raw != b"null":
            attributes[name] = _attribute(raw, f"{place}'s attribute {name[:40]!r}")
    return Event(data, _context(attributes, place))


def batched(envelopes: list[bytes]) -> list[Event]:
    """Return the events of a batch; one bad envelope refuses the batch."""
    if not envelopes:
        raise Invalid("The batch is empty", hint="Send at least one event.", code="empty_body")
    return [structured(envelope, f"Event {i}") for i, envelope in enumerate(envelopes)]


def binary(headers: Headers) -> Context:
    """Return the context of an event whose data is the body."""
    attributes = {
        name[3:]: unquote(value) for name, value in headers.items() if name.startswith("ce-")
    }
    return _context(attributes, "The event")


def _context(attributes: dict[str, str], place: str) -> Context:
    missing = [name for name in _REQUIRED if not attributes.get(name)]
    if missing:
        raise _refused(f"{place} lacks {', '.join(missing)}")
    if not attributes["specversion"].startswith("1."):
        raise _refused(f"{place} is not of CloudEvents 1.0")
    key = attributes.get("partitionkey")
    return Context(
        msgspec.json.encode({f"ce_{name}": value for name, value in attributes.items()}),
        msgspec.json.encode(["cloudevent", attributes["source"], attributes["id"]]).decode(),
        key.encode("utf-8", "surrogatepass") if key else None,
    )


def _data(members: dict[str, msgspec.Raw], place: str) -> bytes:
    if "data" in members:
        return bytes(members["data"])
    encoded = members.get("data_base64")
    if encoded is None:
        return NO_DATA
    try:
        return base64.b64decode(_TEXT.decode(encoded), validate=True)
    except (msgspec.MsgspecError, UnicodeDecodeError, binascii.Error, ValueError):
        raise _refused(f"{place}'s data_base64 is not base64") from None


def _attribute(raw: msgspec.Raw, place: str) -> str:
    try:
        value = msgspec.json.decode(raw, type=str | int | bool)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        raise _refused(f"{place} is not a string, integer or boolean") from None
    return value if isinstance(value, str) else msgspec.json.encode(value).decode()


def _refused(message: str) -> Invalid:
    return Invalid(
        message,
        hint="Every event needs specversion 1.0, id, source and type; see cloudevents.io.",
        code="malformed_cloudevent",
    )
