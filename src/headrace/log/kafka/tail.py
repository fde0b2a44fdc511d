"""Keyed state as one process sees it: reads the state's topic to its end, and appends to it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress

from headrace.log.kafka.client import (
    RETRY_S,
    STATE_TOPIC,
    UNKNOWN_TRIES,
    Admin,
    Kafka,
    outcome_unknown,
)
from headrace.log.kafka.fetch import Fetcher
from headrace.log.kafka.sender import Sender
from headrace.log.kafka.state import (
    Abort,
    Begin,
    Change,
    Put,
    Snapshot,
    State,
    Verdict,
    decode_change,
    encode,
    first_state,
)
from headrace.model.clock import Clock
from headrace.model.errors import Corrupt, Fenced, Invalid, Unavailable
from headrace.model.log import StateEntry, TopicInfo

ACT_S_MAX = 10.0
"""A reader that meets an act still open after so long aborts it: its author is gone or stuck."""
ACT_POLL_S = 0.01
_AT = "@"
LINGER_MS = 500
SNAPSHOT_EVERY = 5000
"""So many changes are kept beside the last snapshot before there is a new one. What lies before the
last but one is deleted: who reads along has that many changes' time to see them."""
STATE_CONFIG = {"cleanup.policy": "delete", "retention.ms": "-1", "retention.bytes": "-1"}
"""Not compacted: Kafka would keep the last put of each key, also where that was refused."""


class StateLog:
    """The state's topic; safe to use from many threads.

    `sender` gives what to write with; readers seldom need it.
    """

    def __init__(
        self, kafka: Kafka, clock: Clock, admin: Admin, sender: Callable[[], Sender]
    ) -> None:
        self._kafka = kafka
        self._clock = clock
        self._admin = admin
        self._sender = sender
        self._fetcher = Fetcher(kafka, clock, linger_ms=LINGER_MS)
        self._lock = threading.Lock()
        self._state = State()
        self._incarnation = ""
        self._position: int | None = None
        """Offset of the next change to read; None while nothing was read."""
        self._snapshot_at = 0
        """Changes before this offset are in a snapshot."""
        self._awaited: dict[str, Verdict | None] = {}
        """Puts of this process whose verdict is wanted, by their ids."""

    def close(self) -> None:
        """Let the connections go."""
        with self._lock:
            self._fetcher.close()

    def get(self, key: str) -> StateEntry | None:
        """Return a key's value as it is now."""
        with self._lock:
            self._read()
            return self._state.entries.get(key)

    def scan(self, prefix: str) -> list[StateEntry]:
        """Return the values whose keys start so, by key."""
        with self._lock:
            self._read()
            entries = self._state.entries
            return [entries[key] for key in sorted(entries) if key.startswith(prefix)]

    def end(self) -> int:
        """Return the offset after the last change; 0 if there is no state yet."""
        return self._bound(latest=True) or 0

    def create(self) -> None:
        """Make the topic if it is not there."""
        self._admin.create(self._kafka.state_topic, 1, STATE_CONFIG)

    def check(self, expect: Mapping[str, int]) -> None:
        """Raise `Fenced` unless all keys have these revisions now."""
        with self._lock:
            self._read()
            if not self._state.meets(dict(expect)):
                raise fenced(expect)

    def put(
        self, values: Mapping[str, bytes | None], expect: Mapping[str, int], act: str = ""
    ) -> int:
        """Put values if all keys have the expected revisions, settling an act; return the revision.

        Raises `Fenced` if one has another, `Unavailable` if the act was aborted meanwhile.
        """
        id_ = self._clock.new_id().hex()
        with self._lock:
            self._read()
            self._awaited[id_] = None
        try:
            offset = self._append(Put(id_, dict(values), dict(expect), act))
            with self._lock:
                self._read(offset + 1)
                verdict = self._awaited[id_]
        finally:
            with self._lock:
                del self._awaited[id_]
        if verdict is None:
            raise outcome_unknown("the state was read anew before the put was found in it")
        if verdict is Verdict.FENCED:
            raise fenced(expect)
        if verdict is Verdict.ABORTED:
            raise Unavailable(
                "A reader gave the append up, for it took too long; nothing of it is read",
                hint="append again",
                code="act_aborted",
            )
        self._snapshot_if_due()
        return offset + 1

    def begin(self, act: str, info: TopicInfo) -> str:
        """Begin an act, before its first record is sent; return how its records name it."""
        offset = self._append(Begin(act, info.name, info.incarnation))
        return f"{act}{_AT}{offset}"

    def abort(self, act: str) -> None:
        """Give an act up, unless it was settled."""
        self._append(Abort(act))

    def aborted(self, named: set[str]) -> set[str]:
        """Return which acts were aborted, once none of them is open; as their records name them.

        Waits for those that are, and aborts them itself after `ACT_S_MAX`. So long it also waits to
        hear of their beginning: a broker that has been stopped, and goes on as if it still led, may
        not know of it. What was never begun here is no act of ours.
        """
        acts = {name: name.partition(_AT)[0] for name in named}
        begun_at = max((_begun_at(name) for name in named), default=-1)
        deadline_s = self._clock.monotonic_s() + ACT_S_MAX
        while True:
            with self._lock:
                self._read()
                knows = (self._position or 0) > begun_at
                begun = set(acts.values()) & self._state.begun.keys()
                if knows and not begun:
                    return {name for name, act in acts.items() if act in self._state.aborted}
            if self._clock.monotonic_s() < deadline_s:
                self._clock.sleep(ACT_POLL_S)
                continue
            begun_at = -1
            for act in sorted(begun):
                self.abort(act)

    def _append(self, change: Change) -> int:
        return self._sender().send_one(self._kafka.state_topic, encode(change))

    # With the lock held.

    def _read(self, until: int | None = None) -> None:
        """Read the changes before an offset, those of now if it is not given."""
        end = until if until is not None else self._end()
        if end is None:
            self._state, self._position = State(), None
            return
        if self._position is not None and end < self._position and self._is_another():
            self._position = None
        if self._position is not None:
            try:
                self._apply(self._position, self._fetched(self._position, end))
                self._position = max(self._position, end)
            except Invalid as error:
                if error.code != "offset_trimmed":
                    raise
            else:
                return
        self._load(end)

    def _end(self) -> int | None:
        """Return the topic's end; None if there is no topic."""
        end = self._bound(latest=True)
        # Where it was before, a broker may just not know it yet.
        for _ in range(0 if self._position is None else UNKNOWN_TRIES):
            if end is not None:
                break
            self._clock.sleep(RETRY_S)
            end = self._bound(latest=True)
        return end

    def _is_another(self) -> bool:
        """Return whether the topic is another one of its name; the state that was is lost."""
        return self._admin.topic(STATE_TOPIC).incarnation != self._incarnation

    def _load(self, until: int) -> None:
        """Read the state from its start: nothing was read yet, or what comes next was deleted.

        Another writer may write a snapshot and delete what it stands for between any two of these
        questions. So the end is asked for after the start, for that snapshot lies before it; and
        what does not fit together is asked for again.
        """
        deadline_s = self._clock.monotonic_s() + self._kafka.timeout_s
        while True:
            incarnation = self._admin.topic(STATE_TOPIC).incarnation
            start = self._bound(latest=False) or 0
            end = max(until, self._bound(latest=True) or 0)
            try:
                changes = self._fetched(start, end)
                position, state = first_state(start, changes)
                break
            except (Invalid, Corrupt) as error:
                is_late = self._clock.monotonic_s() > deadline_s
                if is_late or error.code not in {"offset_trimmed", "state_gap"}:
                    raise
            self._clock.sleep(RETRY_S)
        self._incarnation, self._state, self._snapshot_at = incarnation, state, position
        self._apply(position, changes)
        self._position = max(start, end)

    def _apply(self, position: int, changes: Sequence[tuple[int, Change]]) -> None:
        """Apply the changes from an offset on."""
        for offset, change in changes:
            if offset < position:
                continue
            verdict = self._state.apply(offset, change)
            if isinstance(change, Put) and change.id in self._awaited:
                self._awaited[change.id] = verdict
            if isinstance(change, Snapshot) and change.part == change.parts - 1:
                self._snapshot_at = max(self._snapshot_at, change.as_of + 1)

    def _fetched(self, start: int, end: int) -> list[tuple[int, Change]]:
        found: list[tuple[int, Change]] = []
        at = start
        while at < end:
            messages, at = self._fetcher.fetch(self._kafka.state_topic, 0, at, end)
            found += [(m.offset(), decode_change(m.value(), m.offset())) for m in messages]
        return found

    def _bound(self, *, latest: bool) -> int | None:
        """Return the end or the start of the topic; None if there is none."""
        return self._admin.bound(self._kafka.state_topic, latest=latest)

    def _snapshot_if_due(self) -> None:
        """Write a snapshot and delete what the one before stands for; that it works matters little.

        Not what this one stands for: others, who are still to read those changes, want to know what
        became of their puts among them.
        """
        with self._lock:
            before = self._snapshot_at
            if self._position is None or self._position - before < SNAPSHOT_EVERY:
                return
            as_of = self._position - 1
            parts = self._state.snapshot(as_of)
            self._snapshot_at = as_of + 1
        with suppress(Unavailable):
            for part in parts:
                self._append(part)
            self._admin.delete_before(self._kafka.state_topic, before)


def _begun_at(name: str) -> int:
    """Return the offset at which an act was begun; -1 if its name does not say it."""
    offset = name.partition(_AT)[2]
    return int(offset) if offset.isdecimal() else -1


def fenced(expect: Mapping[str, int]) -> Fenced:
    """Return the error of a put whose keys do not have the revisions that it expects."""
    return Fenced(
        f"Another owner has changed {' or '.join(sorted(expect))}",
        hint="read the keys again, and stop if they are another owner's now",
        code="revision_changed",
    )
