"""What the serve role and an SQL worker say to each other, over a pair of sockets.

A frame is its kind (a byte), its length (four bytes, big-endian) and its bytes. One exchange:

======  =============  =================================================================
from    frame          what it holds
======  =============  =================================================================
serve   ASK            `Ask`, as JSON
worker  NEED           `Need`: which tables and views the statement names
serve   GIVE           `Give`: their SQL, and the files that may be read
worker  HEAD           `Head`: the result is there, whole
worker  BODY, often    the result's bytes
worker  END            nothing
======  =============  =================================================================

Instead of NEED or HEAD may come FAILED, a `Failed`; then the exchange is over.
"""

from __future__ import annotations

import struct
from enum import IntEnum

import msgspec

FRAME = struct.Struct("!BI")
BODY_BYTES_MAX = 1 << 20
"""About how large a BODY is."""


class Kind(IntEnum):
    """Kinds of frames."""

    ASK = 1
    NEED = 2
    GIVE = 3
    HEAD = 4
    BODY = 5
    END = 6
    FAILED = 7


class Ask(msgspec.Struct, frozen=True):
    """A statement to run."""

    sql: str
    format: str
    """One of `formats.MEDIA_TYPES`."""
    rows_max: int
    """Rows of the result that are answered; further ones are left away."""
    timeout_s: float
    names: list[str]
    """Every table and view that there is."""


class Need(msgspec.Struct, frozen=True):
    """Which of the names a statement reads."""

    names: list[str]


class Give(msgspec.Struct, frozen=True):
    """How to read them."""

    selects: dict[str, str]
    """Name → SELECT of all of its rows."""
    paths: list[str]
    """Files that these read; no others are opened."""


class Column(msgspec.Struct, frozen=True):
    """A column of a result; the type is DuckDB's name of it."""

    name: str
    type: str


class Head(msgspec.Struct, frozen=True):
    """What is known of a result before its bytes."""

    columns: list[Column]
    truncated: bool
    """Whether there were more rows than `rows_max`."""
    rows: int


class Failed(msgspec.Struct, frozen=True):
    """An error: `kind` is `errors.HeadraceError.kind_code`."""

    kind: str
    message: str
    hint: str
    code: str


def frame(kind: Kind, body: bytes | msgspec.Struct = b"") -> bytes:
    """Return a frame's bytes."""
    data = msgspec.json.encode(body) if isinstance(body, msgspec.Struct) else body
    return FRAME.pack(kind, len(data)) + data
