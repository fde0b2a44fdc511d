"""Bodies to records: JSON object, JSON array, NDJSON, gzip of each, CloudEvents.

A record keeps its exact bytes. What cannot be taken apart is refused whole, before anything is
appended; what can be taken apart is a record, valid or not.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator
from functools import lru_cache
from typing import Literal

import msgspec
import numpy as np

from headrace.collect import cloudevents
from headrace.collect.exchange import Headers
from headrace.collect.limits import too_large
from headrace.model.errors import Invalid

Form = Literal["json", "lines", "event", "events"]

_FORMS: dict[str, Form] = {
    "application/json": "json",
    "application/x-ndjson": "lines",
    "application/ndjson": "lines",
    "application/jsonl": "lines",
    "application/jsonlines": "lines",
    "application/x-jsonlines": "lines",
    "application/cloudevents+json": "event",
    "application/cloudevents-batch+json": "events",
}
_TYPE_CACHE_ENTRIES = 256
_GZIP_WBITS = 31
_INFLATE_STEP_BYTES = 1 << 20
_WHITE = b" \t\r\n"
_SHOWN_LENGTH_MAX = 100
_RAW = msgspec.json.Decoder(msgspec.Raw)
_RAWS = msgspec.json.Decoder(list[msgspec.Raw])
_QUOTE, _COMMA = ord('"'), ord(",")
_DEPTH_STEPS = np.zeros(256, np.int8)
_DEPTH_STEPS[list(b"[{")] = 1
_DEPTH_STEPS[list(b"]}")] = -1
_CUT_STEP_BYTES = 1 << 18


class Records(msgspec.Struct, frozen=True, gc=False):
    """The records of a body. `headers` and `names` are None or as long as `values`."""

    values: list[bytes]
    headers: list[bytes] | None = None
    """What an envelope says beside the value, as JSON objects of strings."""
    names: list[str] | None = None
    """The client's own name of each record."""
    keys: list[bytes | None] | None = None
    whole: bool = False
    """Whether the body itself is the one record, without anything around it."""


@lru_cache(_TYPE_CACHE_ENTRIES)
def form_of(content_type: str | None) -> Form:
    """Return how a body of this type is to be taken apart; none said means JSON."""
    if content_type is None:
        return "json"
    kind, _, parameters = content_type.partition(";")
    kind = kind.strip().lower()
    form = _FORMS.get(kind)
    if form is None and kind.startswith("application/") and kind.endswith("+json"):
        form = "json"
    if form is None or not _is_utf8(parameters):
        raise Invalid(
            f"Content type {content_type[:_SHOWN_LENGTH_MAX]!r} cannot be taken apart into records",
            hint="Say Content-Type: application/json (an object or an array), application/x-ndjson"
            " (an object a line), application/cloudevents+json or"
            " application/cloudevents-batch+json, in UTF-8.",
            code="unsupported_media_type",
        )
    return form


def _is_utf8(parameters: str) -> bool:
    for parameter in parameters.split(";"):
        name, _, value = parameter.partition("=")
        if name.strip().lower() == "charset":
            return value.strip().strip('"').lower() in {"utf-8", "utf8", "us-ascii"}
    return True


def is_compressed(encoding: str | None) -> bool:
    """Return whether a Content-Encoding says gzip; refuse what is neither that nor plain."""
    if encoding is None:
        return False
    word = encoding.strip().lower()
    if word in {"gzip", "x-gzip"}:
        return True
    if word == "identity":
        return False
    raise Invalid(
        "This content encoding is not known here",
        hint="Send the body plain or with Content-Encoding: gzip.",
        code="unsupported_encoding",
    )


def inflate(data: bytes, bytes_max: int) -> bytes:
    """Return what gzip `data` holds, never making more than one byte over `bytes_max` of it."""
    pieces: list[bytes] = []
    total = 0
    while data:
        member = zlib.decompressobj(_GZIP_WBITS)
        while not member.eof:
            try:
                piece = member.decompress(data, min(_INFLATE_STEP_BYTES, bytes_max - total + 1))
            except zlib.error:
                raise _malformed_gzip() from None
            data = member.unconsumed_tail
            total += len(piece)
            if total > bytes_max:
                raise too_large(bytes_max)
            pieces.append(piece)
            if not piece and not data and not member.eof:
                raise _malformed_gzip()
        data = member.unused_data
    return b"".join(pieces)


def _malformed_gzip() -> Invalid:
    return Invalid(
        "The body is not whole gzip",
        hint="Compress the body as one gzip stream, or leave Content-Encoding out.",
        code="malformed_gzip",
    )


def open_body(form: Form, body: bytes, headers: Headers, records_max: int) -> Records:
    """Return the records of a body, or raise `Invalid` if it cannot be taken apart."""
    if form == "event":
        return _from_events([cloudevents.structured(body)])
    if form == "events":
        return _from_events(cloudevents.batched(split_array(body, records_max)))
    if headers.get("ce-specversion"):
        return Records([body or cloudevents.NO_DATA], *_columns([cloudevents.binary(headers)]))
    if form == "lines":
        return Records(_split_lines(body, records_max))
    # Most bodies begin with what they are; only others are copied to see what comes after spaces.
    start = body[:1] if body[:1] in (b"{", b"[") else body.lstrip(_WHITE)[:1]
    if not start:
        raise Invalid("The body is empty", hint="Send at least one record.", code="empty_body")
    if start == b"[":
        values = split_array(body, records_max)
        if not values:
            raise Invalid("The array is empty", hint="Send at least one record.", code="empty_body")
        return Records(values)
    return Records([body], whole=True)


def _from_events(events: list[cloudevents.Event]) -> Records:
    return Records([event.data for event in events], *_columns([e.context for e in events]))


def _columns(
    contexts: list[cloudevents.Context],
) -> tuple[list[bytes], list[str], list[bytes | None]]:
    return (
        [context.headers for context in contexts],
        [context.name for context in contexts],
        [context.key for context in contexts],
    )


def _split_lines(body: bytes, records_max: int) -> list[bytes]:
    # Counted first: a body of newlines alone would otherwise become millions of list entries.
    if body.count(b"\n") > records_max:
        raise _too_many(records_max)
    lines = [line for line in body.split(b"\n") if line and not line.isspace()]
    if not lines:
        raise Invalid("The body is empty", hint="Send at least one record.", code="empty_body")
    if len(lines) > records_max:
        raise _too_many(records_max)
    return lines


def split_array(body: bytes, records_max: int) -> list[bytes]:
    """Return the elements' exact bytes of a JSON array.

    Elements nested too deep for the JSON reader are cut out by their brackets, so that one of them
    does not cost its neighbours.
    """
    if body.count(b",") >= records_max:
        # Commas within the elements count too, so this only says that it is worth a closer look.
        _elements(body, records_max)
    try:
        return [bytes(raw) for raw in _RAWS.decode(body)]
    except RecursionError:
        return _elements(body, records_max)
    except msgspec.ValidationError:
        raise Invalid(
            "The body is not a JSON array", hint="Send an array of events.", code="not_an_array"
        ) from None
    except (msgspec.DecodeError, UnicodeDecodeError) as fault:
        raise malformed(fault) from None


def _elements(body: bytes, records_max: int) -> list[bytes]:
    """Cut an array's elements out by its brackets, with no look at what is inside them.

    In whole columns: one object for each comma within the elements would let a small gzip body,
    all commas, keep the thread busy for seconds.
    """
    elements: list[bytes] = []
    start = body.find(b"[") + 1
    for cuts, end in _cuts(body):
        if len(elements) + len(cuts) > records_max:
            raise _too_many(records_max)
        for cut in cuts:
            elements.append(body[start:cut].strip(_WHITE))
            start = cut + 1
        if end is None:
            continue
        if body[end + 1 :].strip(_WHITE):
            break
        return elements
    raise malformed(None)


def _cuts(body: bytes) -> Iterator[tuple[list[int], int | None]]:
    """Yield, step by step, where elements of the outermost array end, and where it ends itself."""
    # Escaped signs end no string; they are written over, so that every quote left is a real one.
    text = body.replace(b"\\\\", b"__").replace(b'\\"', b"__")
    depth = quotes = 0
    for at in range(0, len(text), _CUT_STEP_BYTES):
        signs = np.frombuffer(text, np.uint8, min(_CUT_STEP_BYTES, len(text) - at), at)
        seen = np.cumsum(signs == _QUOTE, dtype=np.uint32) + np.uint32(quotes)
        outside = seen % 2 == 0
        steps = _DEPTH_STEPS[signs] * outside
        depths = np.cumsum(steps, dtype=np.int32) + np.int32(depth)
        closing = np.flatnonzero((steps < 0) & (depths == 0))
        end = int(closing[0]) if len(closing) else len(signs)
        commas = ((signs == _COMMA) & outside & (depths == 1))[:end]
        cuts = [int(cut) + at for cut in np.flatnonzero(commas)]
        if len(closing):
            yield [*cuts, at + end], at + end
            return
        yield cuts, None
        depth, quotes = int(depths[-1]), int(seen[-1])


def refuse_unless_json(value: bytes) -> None:
    """Raise `Invalid` if bytes are not one JSON value, however deep."""
    try:
        _RAW.decode(value)
    except RecursionError:
        return
    except (msgspec.DecodeError, UnicodeDecodeError) as fault:
        raise malformed(fault) from None


def malformed(fault: Exception | None) -> Invalid:
    """Return the error of a body that is no JSON, with the place where it stops being it."""
    place = re.search(r"\(byte \d+\)", str(fault)) if fault else None
    return Invalid(
        f"The body is not JSON{' ' + place[0] if place else ''}",
        hint="Send one JSON object, an array of them, or application/x-ndjson with one a line.",
        code="malformed_json",
    )


def _too_many(records_max: int) -> Invalid:
    return Invalid(
        f"The body has more than {records_max:,} records",
        hint="Send it in parts.",
        code="too_many_records",
    )
