"""What one commit of the embedded log writes, worked out in memory before anything is written.

A group is a list of appends in the order in which they came. Each is judged and placed on its own:
one that is refused leaves no trace in the group. What a group changes is applied to the head, the
log's knowledge of itself, only after its COMMIT.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from headrace.log import row
from headrace.log.partitioner import split
from headrace.log.segment import PUT_STATE, Contents, state_row
from headrace.model.batch import Batch, encode
from headrace.model.errors import Fenced, HeadraceError, Internal, Invalid
from headrace.model.log import Appended, Done, StateEntry

Key = tuple[int, int]
"""Topic number, partition."""

Statement = tuple[str, tuple[Any, ...]]
Answer = list[Appended] | HeadraceError


@dataclass(slots=True)
class Append:
    """An append that waits for its commit."""

    topic: str
    records: Batch
    size_bytes: int
    done: Done
    state: Mapping[str, bytes] | None = None
    expect: Mapping[str, int] | None = None


@dataclass(slots=True)
class Head:
    """What the writer knows of its log: the newest segment's contents and where each stream ends.

    `topics` maps a name to (number, partitions); `turns` a topic's number to how many batches
    were placed in turn.
    """

    contents: Contents
    ends: dict[Key, int]
    bytes_until: dict[Key, int]
    """Bytes of all blobs that a stream ever had."""
    topics: dict[str, tuple[int, int]] = field(init=False)
    turns: dict[int, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Name the topics."""
        self.topics = {t.name: (id_, t.partitions) for id_, t in self.contents.topics.items()}


class Group:
    """Appends placed one after the other over a head that stays as it is until `apply`."""

    def __init__(self, head: Head, append_bytes_max: int) -> None:
        self.answers: list[Answer] = []
        """One for each append placed, in order; they hold once the group is committed."""
        self._head = head
        self._append_bytes_max = append_bytes_max
        self._batches: dict[Key, list[Batch]] = {}
        self._ends: dict[Key, int] = {}
        self._bytes_until: dict[Key, int] = {}
        self._state: dict[str, StateEntry | None] = {}
        self._revision = head.contents.revision

    def place(self, append: Append) -> None:
        """Place an append, or refuse it, and keep the answer."""
        try:
            self.answers.append(self._place(append))
        except HeadraceError as error:
            self.answers.append(error)

    def put(self, key: str, value: bytes | None) -> None:
        """Put a keyed value; None deletes it."""
        self._revision += 1
        self._state[key] = None if value is None else StateEntry(key, value, self._revision)

    def expect(self, revisions: Mapping[str, int]) -> None:
        """Raise `Fenced` unless keys have these revisions, counting what the group puts itself."""
        for key, expected in revisions.items():
            entry = self._state[key] if key in self._state else self._head.contents.state.get(key)
            found = entry.revision if entry else 0
            if found != expected:
                raise Fenced(
                    f"{key} is at revision {found}, not {expected}: somebody else has put it",
                    hint="read the value again; whoever put it goes on in your place",
                )

    def statements(self) -> list[Statement]:
        """Return what to run in one transaction.

        A record that cannot be encoded makes this raise: place the group's appends one by one to
        find it.
        """
        statements: list[Statement] = [
            (row.INSERT, self._row(key, batches)) for key, batches in self._batches.items()
        ]
        for key, entry in self._state.items():
            statements.append(_state_statement(key, entry))
        if any(entry is None for entry in self._state.values()):
            # A deleted key takes its revision along, and none may come again.
            statements.append(("UPDATE segment SET revision = ?", (self._revision,)))
        return statements

    def apply(self) -> None:
        """Bring the head up to what was committed."""
        self._head.ends.update(self._ends)
        self._head.bytes_until.update(self._bytes_until)
        self._head.contents.revision = self._revision
        state = self._head.contents.state
        for key, entry in self._state.items():
            if entry is None:
                state.pop(key, None)
            else:
                state[key] = entry

    def _place(self, append: Append) -> list[Appended]:
        if append.topic not in self._head.topics:
            raise unknown_topic(append.topic)
        if append.size_bytes > self._append_bytes_max:
            raise Invalid(
                f"{append.size_bytes} bytes cannot be appended at once; the most is"
                f" {self._append_bytes_max}",
                hint="append fewer or smaller records at a time",
                code="batch_too_large",
            )
        if append.expect:
            self.expect(append.expect)
        for key, value in (append.state or {}).items():
            self.put(key, value)
        id_, partitions = self._head.topics[append.topic]
        records = append.records
        if not records:
            return []
        if partitions == 1:
            return [self._add(append.topic, (id_, 0), records, range(len(records)))]
        turn = self._head.turns.get(id_, 0)
        self._head.turns[id_] = turn + 1
        places = split(records, partitions, turn % partitions)
        return [
            self._add(
                append.topic,
                (id_, partition),
                records if len(positions) == len(records) else records.take(positions),
                positions,
            )
            for partition, positions in places.items()
        ]

    def _add(self, topic: str, key: Key, records: Batch, positions: Sequence[int]) -> Appended:
        base = self._ends.get(key)
        if base is None:
            base = self._head.ends[key]
            self._batches[key] = []
        self._batches[key].append(records)
        self._ends[key] = base + len(records)
        return Appended(topic, key[1], base, positions)

    def _row(self, key: Key, batches: list[Batch]) -> row.Row:
        merged = batches[0] if len(batches) == 1 else merge(batches)
        blob = encode(merged)
        n = len(merged)
        if len(blob) != merged.size_bytes or len(merged.ids) != n:
            raise Internal("The columns of a batch do not fit together")
        before = self._head.bytes_until[key]
        self._bytes_until[key] = before + len(blob)
        return row.pack(*key, self._ends[key] - n, n, merged.received_at, before, blob)


def merge(batches: Iterable[Batch]) -> Batch:
    """Return the records of all batches, in order, leaving them as they are."""
    merged = Batch()
    for batch in batches:
        merged.extend(batch)
    return merged


def unknown_topic(topic: str) -> Invalid:
    """Return the error for a topic that does not exist."""
    return Invalid(
        f"There is no topic {topic}",
        hint="topics are created when the pipeline that declares them runs",
        code="unknown_topic",
    )


def _state_statement(key: str, entry: StateEntry | None) -> Statement:
    if entry is None:
        return "DELETE FROM state WHERE key = ?", (key,)
    return PUT_STATE, state_row(entry)
