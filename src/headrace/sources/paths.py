"""Key paths: where in a JSON document something stands.

`item.data` names the member `data` of the member `item`. A name that itself holds a dot is reached
by a JSON Pointer (RFC 6901), which begins with a slash: `/item/data.v2`.
"""

from __future__ import annotations

import msgspec

Path = tuple[str, ...]

_MEMBERS = msgspec.json.Decoder(dict[str, msgspec.Raw])
_ITEMS = msgspec.json.Decoder(list[msgspec.Raw])
_STRING = msgspec.json.Decoder(str)
_NUMBER_STARTS = (b"-", *(b"%d" % digit for digit in range(10)))


def parse_path(text: str) -> Path:
    """Return the names that a key path goes through; none for an empty one."""
    if text.startswith("/"):
        return tuple(n.replace("~1", "/").replace("~0", "~") for n in text[1:].split("/"))
    return tuple(text.split(".")) if text else ()


def find(document: bytes, path: Path) -> bytes | None:
    """Return the text that stands at a path, as it was sent; None if there is nothing."""
    at = document
    try:
        for name in path:
            at = bytes(_MEMBERS.decode(at)[name])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, KeyError):
        return None
    return at


def items(text: bytes) -> list[bytes]:
    """Return the elements of a JSON array, as they were sent; of anything else itself."""
    if not text.startswith(b"["):
        return [text]
    try:
        return [bytes(item) for item in _ITEMS.decode(text)]
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return [text]


def name_at(document: bytes, path: Path) -> str | None:
    """Return the string at a path, or a number's digits as sent; None for anything else.

    A number is not parsed: 18446744073709551617 and its neighbours stay different names.
    """
    text = find(document, path)
    if text is None or not text.startswith(_NUMBER_STARTS):
        return string_of(text)
    return text.decode("ascii", "replace")


def string_of(text: bytes | None) -> str | None:
    """Return the value of a JSON string; None for anything else."""
    if text is None or not text.startswith(b'"'):
        return None
    try:
        return _STRING.decode(text)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
