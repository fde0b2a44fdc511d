"""The contract of a source: pages of records, each with the cursor after it.

Who calls what. `pull` opens a source with the cursor that was last made durable (None at first),
takes a page, appends its records *and* its cursor in one act, and takes the next. A source does no
appending and keeps no state of its own beyond the cursor.

What holds. Opening at the cursor of page p yields page p+1 on: no page is skipped, and after a
crash at most the page that was not yet durable comes again. A cursor is opaque JSON bytes. Pages
are bounded (at most `RECORDS_MAX` records or `BYTES_MAX` bytes). A source that ends says so with a
last page whose `done` is true; one that follows never does.

What may fail. `Unavailable(retry_after_s)`: the service asks to wait; the caller opens again at
the last durable cursor. `Invalid`: the options or what the service sends cannot be used.

What is not promised. That records are valid for the topic: they are judged like any other.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

import msgspec

RECORDS_MAX = 10_000
BYTES_MAX = 8 << 20


class PulledRecord(msgspec.Struct, frozen=True):
    """A record as a source has it."""

    value: bytes
    key: bytes | None = None
    id: str | None = None
    """The source's own name for it: becomes the client-chosen id, so a repeat is a duplicate."""


class Page(msgspec.Struct, frozen=True):
    """Some records, and where to go on after them."""

    records: Sequence[PulledRecord]
    cursor: bytes
    done: bool = False
    progress: tuple[int, int | None] = (0, None)
    """Records so far and, where known, records in all."""


class Source(Protocol):
    """Something to pull from. Implementations also declare `Options`, a frozen dataclass."""

    def open(self, cursor: bytes | None) -> Iterator[Page]:
        """Yield pages from after `cursor` on."""

    def close(self) -> None:
        """Release what is held; an iteration under way ends."""
