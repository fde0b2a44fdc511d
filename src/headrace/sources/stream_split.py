"""Records of a stream of bytes, as they come: JSON documents or the data of server-sent events.

Nothing is parsed beyond what it takes to tell where a record ends, so a broken one comes out as it
stands; how far its neighbours are touched is said at each kind. What has not ended yet is kept.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import NamedTuple, Protocol

from headrace.model.errors import Invalid
from headrace.sources.documents import DOCUMENT_BYTES_MAX

_BLANKS = b" \t\r\n"
_QUOTE = ord('"')
_STEPS = {**dict.fromkeys(b"[{", 1), **dict.fromkeys(b"]}", -1)}
# A whole string, or one sign of the structure; a quote alone begins a string that has not ended.
_TOKEN = re.compile(rb'"(?:[^"\\]++|\\.)*+"|["\[\]{}]', re.DOTALL)
_LINE_END = re.compile(rb"\r\n|\n|\r(?!$)")


class Item(NamedTuple):
    """A record of a stream."""

    value: bytes
    event_id: str | None = None
    """The id that its event bears, if it bears one. Several may bear the same."""


class Splitter(Protocol):
    """Cuts bytes into records."""

    def feed(self, some: bytes) -> Iterator[Item]:
        """Take more bytes and yield the records that have ended."""

    def rest(self) -> Iterator[Item]:
        """Yield what is left at the end of a stream that ended by itself."""


class Lines:
    """A record a line (NDJSON); blank lines are none. A broken line touches no other."""

    def __init__(self) -> None:
        self._kept = b""

    def feed(self, some: bytes) -> Iterator[Item]:
        """See `Splitter`."""
        *whole, self._kept = (self._kept + some).split(b"\n")
        _check_size(self._kept)
        for line in whole:
            if record := line.strip(_BLANKS):
                yield Item(record)

    def rest(self) -> Iterator[Item]:
        """See `Splitter`."""
        if record := self._kept.strip(_BLANKS):
            yield Item(record)
        self._kept = b""


class Documents:
    """Objects and arrays one after another, with or without blanks between (concatenated JSON).

    What stands between two of them and is not blank is a record too. One whose brackets do not
    match takes in what follows it.
    """

    def __init__(self) -> None:
        self._kept = b""
        self._scanned = self._depth = 0

    def feed(self, some: bytes) -> Iterator[Item]:
        """See `Splitter`."""
        self._kept += some
        begin = 0
        scanned = len(self._kept)
        for token in _TOKEN.finditer(self._kept, self._scanned):
            sign = self._kept[token.start()]
            if sign == _QUOTE:
                if token.end() - token.start() == 1:
                    scanned = token.start()
                    break
                continue
            step = _STEPS[sign]
            if self._depth == 0 and step > 0 and (between := self._cut(begin, token.start())):
                yield between
                begin = token.start()
            self._depth = max(0, self._depth + step)
            if self._depth == 0 and (whole := self._cut(begin, token.end())):
                yield whole
                begin = token.end()
        self._kept = self._kept[begin:]
        self._scanned = scanned - begin
        _check_size(self._kept)

    def rest(self) -> Iterator[Item]:
        """See `Splitter`."""
        if left := self._cut(0, len(self._kept)):
            yield left
        self._kept, self._scanned, self._depth = b"", 0, 0

    def _cut(self, begin: int, end: int) -> Item | None:
        value = self._kept[begin:end].strip(_BLANKS)
        return Item(value) if value else None


class Events:
    """The data of server-sent events, as the HTML standard cuts them; comments are left out.

    An event that the stream breaks off in is none.
    """

    def __init__(self) -> None:
        self._kept = b""
        self._data: list[bytes] = []
        self._id: str | None = None

    def feed(self, some: bytes) -> Iterator[Item]:
        """See `Splitter`."""
        # A carriage return at the end may be half of a line's end.
        *lines, self._kept = _LINE_END.split(self._kept + some)
        _check_size(self._kept)
        for line in lines:
            if line:
                self._take(line)
                continue
            if self._data:
                yield Item(b"\n".join(self._data), self._id)
            self._data, self._id = [], None

    def rest(self) -> Iterator[Item]:
        """See `Splitter`."""
        self._kept, self._data, self._id = b"", [], None
        yield from ()

    def _take(self, line: bytes) -> None:
        name, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if name == b"data":
            self._data.append(value)
        elif name == b"id" and b"\0" not in value:
            self._id = value.decode("utf-8", "replace")


FORMATS: dict[str, Callable[[], Splitter]] = {"ndjson": Lines, "json": Documents, "sse": Events}
"""Format → what cuts it."""


def format_of(content_type: str) -> str:
    """Return the format that a Content-Type names; concatenated JSON if it says no more."""
    media = content_type.partition(";")[0].strip().lower()
    if media == "text/event-stream":
        return "sse"
    lines = {"application/x-ndjson", "application/jsonl", "application/x-jsonlines"}
    return "ndjson" if media in lines else "json"


def _check_size(kept: bytes) -> None:
    if len(kept) > DOCUMENT_BYTES_MAX:
        raise Invalid(
            f"The stream holds a record of more than {DOCUMENT_BYTES_MAX >> 20} MB",
            hint="say which format it has: ndjson, json or sse",
            code="document_too_large",
        )
