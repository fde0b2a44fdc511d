"""The contract of a source: pages of records, each with the cursor after it.

Who calls what. `pull` opens a source with the cursor that was last made durable (None at first),
takes a page, appends its records *and* its cursor in one act, and takes the next. A source does no
appending and keeps no state of its own beyond the cursor.

What holds. Opening at the cursor of page p yields page p+1 on: no page is skipped, and after a
crash at most the page that was not yet durable comes again. A cursor is opaque JSON bytes. Pages
are bounded (at most `RECORDS_MAX` records or `BYTES_MAX` bytes). A source that ends says so with a
last page whose `done` is true; one that follows never does.

A source that follows sweeps its service again and again. A sweep has a number and the time when it
began; a *full* one gives every record that the service has, so what an earlier sweep gave and this
one did not is gone, and `pull` appends a deletion for it. Which records are new or changed is found
out by `pull` too, from their digests: the source gives all of them. The last page of a sweep says
so; a sweep that may have missed something is ended as one that is not full.

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


SEEN_AT_HEADER = "headrace-seen-at"
"""Record header that says when the record was seen where it comes from, RFC 3339."""
DELETED_HEADER = "headrace-deleted"
"""Record header, "true", of a record that says that its key is gone. Its seen-at is the start of
the sweep that found it out."""

DIGEST_BYTES = 16


class PulledRecord(msgspec.Struct, frozen=True):
    """A record as a source has it."""

    value: bytes
    key: bytes | None = None
    id: str | None = None
    """The source's own name for it: becomes the client-chosen id, so a repeat is a duplicate."""
    digest: bytes | None = None
    """`DIGEST_BYTES` of a hash of what matters in it. With a key and a sweep, the record is only
    appended if it is not what the key had before."""
    seen_at_us: int | None = None
    """When the record was seen, if that is not now, microseconds."""
    deleted: bool = False
    """Whether the record says that its key is gone."""


class Sweep(msgspec.Struct, frozen=True):
    """One reading of everything, or of what changed lately."""

    number: int
    """From 1; grows by one with each sweep."""
    started_at_us: int
    full: bool
    """Whether what it does not give is gone. A sweep may turn out not to be, never to be."""


class Count(msgspec.Struct, frozen=True):
    """How many records the service itself says it has, of what the source asks for.

    Appended as JSON to the topic that `plan.Source.counts` names.
    """

    source: str
    """Name of the source in the pipeline."""
    kind: str
    filter: str
    """What was counted, as a person reads it: the query of the request."""
    records: int
    asked_at: str
    """RFC 3339, UTC."""


class Page(msgspec.Struct, frozen=True):
    """Some records, and where to go on after them."""

    records: Sequence[PulledRecord]
    cursor: bytes
    done: bool = False
    progress: tuple[int, int | None] = (0, None)
    """Records so far (of this sweep, if it sweeps) and, where known, records in all."""
    sweep: Sweep | None = None
    """The sweep that the page is of, if the source follows."""
    sweep_done: bool = False
    """Whether this is the last page of its sweep."""
    notice: str = ""
    """What people should know of a source that does not sweep, though it goes on."""


class Source(Protocol):
    """Something to pull from. Implementations also declare `Options`, a frozen dataclass."""

    def open(self, cursor: bytes | None) -> Iterator[Page]:
        """Yield pages from after `cursor` on."""

    def close(self) -> None:
        """Release what is held; an iteration under way ends."""


class Swept(Source, Protocol):
    """A source that sweeps: what `pull` asks of it beside pages. Called from the same thread."""

    rests_until_us: int | None
    """Until when it waits for its next sweep, microseconds since 1970; None while it does not. May
    be read from any thread."""

    def deletion(self, key: bytes) -> bytes:
        """Return the value of a record that says that `key` is gone: valid, and no more than it."""

    def count(self) -> tuple[int, str]:
        """Ask the service how many records it has of what is asked for; return it and the filter.

        Raises what `open` raises.
        """
