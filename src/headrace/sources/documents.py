"""JSON documents of a file, as bytes: lines or the elements of an array, plain or gzip.

What a file holds is seen from its first bytes, never from its name. Nothing is parsed beyond what
it takes to tell where a document ends, so a broken one comes out as it stands and its neighbours
are not touched. A document is held in memory whole, a file never is.
"""

from __future__ import annotations

import gzip
import io
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from headrace.model.errors import Invalid, Unavailable

DOCUMENT_BYTES_MAX = 64 << 20
"""Longest document that is read: more is a file of another kind, or one that lost its line ends."""

_CHUNK_BYTES = 1 << 20
_GZIP = b"\x1f\x8b"
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_BLANKS = b" \t\r\n"
_QUOTE, _COMMA = ord('"'), ord(",")
_STEPS = {_QUOTE: 0, _COMMA: 0, **dict.fromkeys(b"[{", 1), **dict.fromkeys(b"]}", -1)}

# A whole string, or one sign of the structure. A quote alone begins a string whose end is not in
# the buffer yet. The possessive `++` and `*+` keep a long string from being tried twice.
_TOKEN = re.compile(rb'"(?:[^"\\]++|\\.)*+"|["\[\]{},]', re.DOTALL)


def documents(path: Path) -> Iterator[bytes]:
    """Yield every document of a file in order, without blanks around it; blank lines are left out.

    Raises `Invalid` if the file is missing, is cut in the middle of its gzip stream, or holds a
    document of more than `DOCUMENT_BYTES_MAX`; `Unavailable` if it cannot be read now. What was
    yielded before stands.
    """
    try:
        with io.BufferedReader(io.FileIO(path), _CHUNK_BYTES) as plain:
            if plain.peek(2)[:2] != _GZIP:
                yield from _split(plain, path)
                return
            with io.BufferedReader(_Unpacked(plain), _CHUNK_BYTES) as unpacked:
                yield from _split(unpacked, path)
    except (EOFError, gzip.BadGzipFile, zlib.error) as damage:
        msg = f"{path} cannot be unpacked: {damage}"
        hint = "copy the file again: it is damaged or was cut while it was written"
        raise Invalid(msg, hint=hint, code="damaged_file") from damage
    except (FileNotFoundError, IsADirectoryError, PermissionError) as missing:
        msg = f"{path} cannot be opened: {missing.strerror}"
        raise Invalid(msg, hint="look at the source's path", code="unreadable_file") from missing
    except OSError as failure:
        msg = f"{path} cannot be read: {failure.strerror or failure}"
        raise Unavailable(msg, code="unreadable_file") from failure


class _Unpacked(io.RawIOBase):
    """A gzip stream for a buffer to read from, so that lines are cut in C.

    It gives what is there: before the error that tells of a damaged stream come all its bytes.
    """

    def __init__(self, packed: io.BufferedReader[Any]) -> None:
        self._file = gzip.GzipFile(fileobj=packed)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:  # noqa: ANN401 - any writable buffer, as its base says
        data = self._file.read1(len(buffer))
        buffer[: len(data)] = data
        return len(data)


def _split(stream: io.BufferedReader[Any], path: Path) -> Iterator[bytes]:
    if stream.peek(3)[:3] == _BYTE_ORDER_MARK:
        stream.read(3)
    head = b""
    while not head.strip(_BLANKS) and (more := stream.readline(_CHUNK_BYTES)):
        head = more
    head = head.lstrip(_BLANKS)
    pieces = _elements if head[:1] == b"[" else _lines
    for piece in pieces(head, stream, path):
        if document := piece.strip(_BLANKS):
            yield document


def _lines(head: bytes, stream: io.BufferedReader[Any], path: Path) -> Iterator[bytes]:
    """Yield the lines of `head` and of what follows it."""
    *whole, begun = head.split(b"\n")
    yield from whole
    line = begun + stream.readline(DOCUMENT_BYTES_MAX + 1)
    while line:
        _check_size(line, path)
        yield line
        line = stream.readline(DOCUMENT_BYTES_MAX + 1)


def _elements(head: bytes, stream: io.BufferedReader[Any], path: Path) -> Iterator[bytes]:
    """Yield the elements of an array that begins with `head`; what follows it counts as lines."""
    array = _Array(head)
    while True:
        yield from array.complete()
        if array.ended:
            yield from _lines(array.rest(), stream, path)
            return
        more = stream.read(_CHUNK_BYTES)
        if not more:
            yield array.rest()
            return
        array.add(more)
        _check_size(array.buffer, path)


class _Array:
    """Cuts the text of a JSON array, as far as it was read, into its elements."""

    def __init__(self, head: bytes) -> None:
        self.buffer = head
        self._begin = self._scanned = self._depth = 1

    @property
    def ended(self) -> bool:
        return self._depth == 0

    def add(self, more: bytes) -> None:
        self.buffer = self.buffer[self._begin :] + more
        self._scanned -= self._begin
        self._begin = 0

    def rest(self) -> bytes:
        return self.buffer[self._begin :]

    def complete(self) -> Iterator[bytes]:
        """Yield each element whose end is in the buffer."""
        for token in _TOKEN.finditer(self.buffer, self._scanned):
            sign = self.buffer[token.start()]
            if sign == _QUOTE and token.end() - token.start() == 1:
                self._scanned = token.start()
                return
            self._scanned = token.end()
            self._depth += _STEPS[sign]
            if self.ended or (sign == _COMMA and self._depth == 1):
                yield self.buffer[self._begin : token.start()]
                self._begin = token.end()
            if self.ended:
                return
        self._scanned = len(self.buffer)


def _check_size(document: bytes, path: Path) -> None:
    if len(document) > DOCUMENT_BYTES_MAX + _CHUNK_BYTES:
        msg = f"{path} holds a document of more than {DOCUMENT_BYTES_MAX >> 20} MB"
        hint = "write one JSON document a line, or one JSON array"
        raise Invalid(msg, hint=hint, code="document_too_large")
