"""Keyed state as a function of a log: what each change in it does, decided by their order alone.

Every writer appends its changes to one partition and reads it up to its own change: whoever folds
the same changes in the same order finds the same puts accepted and the same ones refused. So a put
is a compare-and-swap without a lock, a lease or an owner.

An *act* puts state together with records of other topics. It is begun, its records are appended,
each with the act's name in a header, and it is settled by a `Put`, or aborted by whoever finds it
open for too long; of the two, the first in the log counts. Records of an aborted act are read by
nobody. An act that is neither open nor aborted was settled: most are, and are not remembered.

A `Snapshot` says what the changes up to an offset have come to, in parts, so that those changes can
be deleted. Any writer may write one at any time: all that say the same offset say the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from enum import Enum

import msgspec

from headrace.model.errors import Corrupt
from headrace.model.log import StateEntry

PART_ENTRIES_MAX = 1000
PART_BYTES_MAX = 256 << 10


class Begin(msgspec.Struct, frozen=True, tag="begin"):
    """An act begins; no record of it was appended before."""

    act: str
    topic: str
    incarnation: str


class Put(msgspec.Struct, frozen=True, tag="put"):
    """Values to be put (None: deleted) if all keys have the expected revisions."""

    id: str
    """By which its author finds it again."""
    values: dict[str, bytes | None]
    expect: dict[str, int]
    act: str = ""
    """The act that this settles; empty if there is none."""


class Abort(msgspec.Struct, frozen=True, tag="abort"):
    """An act is given up, unless it was settled before."""

    act: str


class Snapshot(msgspec.Struct, frozen=True, tag="snapshot"):
    """A part of the state after all changes at offsets up to `as_of`."""

    as_of: int
    part: int
    parts: int
    entries: list[StateEntry]
    begun: dict[str, str] = {}
    aborted: dict[str, str] = {}


Change = Begin | Put | Abort | Snapshot
_CHANGES = msgspec.json.Decoder(Change)


class Verdict(Enum):
    """What became of a put."""

    DONE = "done"
    FENCED = "fenced"
    """A key had another revision than expected."""
    ABORTED = "aborted"
    """Its act had been aborted before."""


class State:
    """The state after some changes."""

    def __init__(self) -> None:
        self.entries: dict[str, StateEntry] = {}
        self.begun: dict[str, str] = {}
        """Acts that are open, with the incarnation of their topic."""
        self.aborted: dict[str, str] = {}

    def revision(self, key: str) -> int:
        """Return a key's revision; 0 if it is absent."""
        entry = self.entries.get(key)
        return entry.revision if entry else 0

    def meets(self, expect: dict[str, int]) -> bool:
        """Return whether all keys have these revisions."""
        return all(self.revision(key) == revision for key, revision in expect.items())

    def apply(self, offset: int, change: Change) -> Verdict | None:
        """Do what a change at an offset of the log does; return the verdict on a put."""
        match change:
            case Begin():
                self.begun[change.act] = change.incarnation
            case Abort():
                self._abort(change.act)
            case Put():
                return self._put(offset, change)
        return None

    def _abort(self, act: str) -> None:
        if act in self.begun:
            self.aborted[act] = self.begun.pop(act)

    def _put(self, offset: int, put: Put) -> Verdict:
        if put.act and put.act not in self.begun:
            return Verdict.ABORTED
        if not self.meets(put.expect):
            self._abort(put.act)
            return Verdict.FENCED
        self.begun.pop(put.act, None)
        for key, value in put.values.items():
            if value is None:
                self.entries.pop(key, None)
            else:
                # The log's offsets only grow, so a revision never comes back, not even after a
                # delete; 0 is for keys that are absent.
                self.entries[key] = StateEntry(key, value, offset + 1)
        return Verdict.DONE

    def snapshot(self, as_of: int) -> list[Snapshot]:
        """Return the parts of a snapshot of this state, which is that after offset `as_of`."""
        # By key: two writers' parts of one offset are the same, however each came to the state.
        chunks = list(_chunks([self.entries[key] for key in sorted(self.entries)])) or [[]]
        return [
            Snapshot(
                as_of,
                part,
                len(chunks),
                chunk,
                {} if part else dict(self.begun),
                {} if part else dict(self.aborted),
            )
            for part, chunk in enumerate(chunks)
        ]


def first_state(start: int, changes: Sequence[tuple[int, Change]]) -> tuple[int, State]:
    """Return the state that a log which begins at offset `start` begins with, and the offset after.

    `changes` are those from `start` on, with their offsets; those before the returned offset are in
    the state. Raises `Corrupt`, code `state_gap`, if changes were deleted that no complete snapshot
    among these stands for.
    """
    if start <= 0:
        return 0, State()
    as_of, state = _first_snapshot(start, changes)
    return as_of + 1, state


def encode(change: Change) -> bytes:
    """Return a change as a message of the state's topic holds it: JSON, values as base64."""
    return msgspec.json.encode(change)


def decode_change(data: bytes | None, offset: int) -> Change:
    """Return what `encode` was given; `Corrupt` if it is no change.

    It is not skipped: another version might read it, and decide otherwise on what follows.
    """
    try:
        return _CHANGES.decode(data or b"")
    except msgspec.MsgspecError as error:
        raise Corrupt(
            f"Offset {offset} of the log's state is not what Headrace writes: {error}",
            hint="only Headrace may write its state topic; was this written by a later version?",
            code="state_unreadable",
        ) from error


def _chunks(entries: Sequence[StateEntry]) -> Iterator[list[StateEntry]]:
    chunk: list[StateEntry] = []
    size_bytes = 0
    for entry in entries:
        chunk.append(entry)
        size_bytes += len(entry.value) + len(entry.key)
        if len(chunk) >= PART_ENTRIES_MAX or size_bytes >= PART_BYTES_MAX:
            yield chunk
            chunk, size_bytes = [], 0
    if chunk:
        yield chunk


def _first_snapshot(start: int, changes: Sequence[tuple[int, Change]]) -> tuple[int, State]:
    """Return the first complete snapshot that stands for all before `start`."""
    found: dict[tuple[int, int], dict[int, Snapshot]] = {}
    for _, change in changes:
        if not isinstance(change, Snapshot) or change.as_of < start - 1:
            continue
        parts = found.setdefault((change.as_of, change.parts), {})
        parts[change.part] = change
        if len(parts) == change.parts:
            state = State()
            for part in parts.values():
                state.entries |= {entry.key: entry for entry in part.entries}
                state.begun |= part.begun
                state.aborted |= part.aborted
            return change.as_of, state
    raise Corrupt(
        f"The log's state begins at offset {start}, and no snapshot says what was before",
        hint="its topic must keep everything: set retention.ms and retention.bytes to -1",
        code="state_gap",
    )
