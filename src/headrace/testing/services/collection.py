"""The records of one service as they stand now, and which of them a query means.

A collection holds the *facts* of each record (the values that can be asked for), not the record:
that is made again when it is served. So a hundred thousand generated records take a few dozen
megabytes, and a change costs a record.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import msgspec

Record = dict[str, Any]
Fact = str | int | float
Facts = tuple[tuple[Fact, ...], ...]
"""For each field that can be asked for, in their order, the values that a record has of it."""

SELECTIONS_MAX = 32
"""Answers to queries that are remembered: the pages of a sweep ask the same thing again."""


class Condition(msgspec.Struct, frozen=True):
    """One thing asked of a field. Conditions beside one another must all hold.

    With `values`, one of them; else, with `low` or `high`, a value between them, both included;
    else any value at all. `negated`: the records for which that is not so.
    """

    field: str
    values: tuple[Fact, ...] | None = None
    low: Fact | None = None
    high: Fact | None = None
    negated: bool = False


class AnyOf(msgspec.Struct, frozen=True):
    """A record of which one of the alternatives holds; each is conditions that must all hold."""

    alternatives: tuple[tuple[Test, ...], ...]
    negated: bool = False


Test = Condition | AnyOf


class Shape(msgspec.Struct, frozen=True):
    """How records of a service are read."""

    fields: tuple[str, ...]
    key: Callable[[Record], str]
    facts: Callable[[Record], Facts]
    order: Callable[[Record], Any]
    """What the service orders records by where nothing else is asked for."""


class Collection:
    """Records under keys, in the service's order. May be used by several threads."""

    def __init__(self, shape: Shape, records: Sequence[Record]) -> None:
        """Start with the records given; they are read by position again and again."""
        self._shape = shape
        self._field = {name: n for n, name in enumerate(shape.fields)}
        self.lock = threading.RLock()
        """Held by who asks for several things that must agree with one another."""
        self._given: Sequence[Record] = ()
        self._place: dict[str, int] = {}
        self._changed: dict[str, Record] = {}
        self._about: dict[str, tuple[Any, Facts]] = {}
        self._same: dict[object, Any] = {}
        self.replace(records)

    def __len__(self) -> int:
        """Return how many records there are."""
        return len(self._about)

    def __contains__(self, key: str) -> bool:
        """Return whether there is a record under this key."""
        return key in self._about

    def replace(self, records: Sequence[Record]) -> None:
        """Hold these records instead of all others."""
        with self.lock:
            self._given, self._changed = records, {}
            self._place, self._about, self._same = {}, {}, {}
            for place in range(len(records)):
                record = records[place]
                key = self._shape.key(record)
                self._place[key] = place
                self._about[key] = self._read(record)
            self._forget()

    def put(self, records: Iterable[Record]) -> None:
        """Add records, or change those that are there."""
        with self.lock:
            for record in records:
                key = self._shape.key(record)
                self._changed[key] = record
                self._about[key] = self._read(record)
            self._forget()

    def remove(self, keys: Iterable[str]) -> None:
        """Take records out; raise `KeyError` for one that is not there."""
        with self.lock:
            for key in keys:
                del self._about[key]
                self._changed.pop(key, None)
            self._forget()

    def get(self, key: str) -> Record | None:
        """Return the record under a key, or None."""
        with self.lock:
            if key not in self._about:
                return None
            return self._changed[key] if key in self._changed else self._given[self._place[key]]

    def keys(self) -> list[str]:
        """Return all keys in the service's order."""
        with self.lock:
            return list(self._ordered())

    def records(self) -> Iterator[Record]:
        """Yield all records in the service's order, as they are when their turn comes."""
        return (record for key in self.keys() if (record := self.get(key)) is not None)

    def select(self, tests: tuple[Test, ...]) -> Sequence[str]:
        """Return the keys of the records for which every test holds, in the service's order."""
        with self.lock:
            if not tests:
                return self._ordered()
            if tests not in self._selected:
                if len(self._selected) >= SELECTIONS_MAX:
                    self._selected.pop(next(iter(self._selected)))
                ordered = self._ordered()
                self._selected[tests] = [ordered[n] for n in sorted(self._all_hold(tests))]
            return self._selected[tests]

    def column(self, field: str, keys: Sequence[str]) -> list[tuple[Fact, ...]]:
        """Return what each of the records has of a field."""
        n = self._field[field]
        with self.lock:
            about = self._about
            return [about[key][1][n] for key in keys if key in about]

    def distinct(self, field: str) -> list[Fact]:
        """Return the values that records have of a field."""
        with self.lock:
            return list(self._where(field))

    def counts(self, field: str, keys: Sequence[str]) -> Mapping[Fact, int]:
        """Return how many of the records have each value of a field."""
        return Counter(value for values in self.column(field, keys) for value in values)

    def _read(self, record: Record) -> tuple[Any, Facts]:
        # Most values are had by many records: each is kept once.
        same = self._same
        facts = tuple(same.setdefault(values, values) for values in self._shape.facts(record))
        return self._shape.order(record), same.setdefault(facts, facts)

    def _forget(self) -> None:
        self._order: list[str] | None = None
        self._positions: dict[str, dict[Fact, list[int]]] = {}
        self._selected: dict[tuple[Test, ...], list[str]] = {}

    def _ordered(self) -> list[str]:
        if self._order is None:
            self._order = sorted(self._about, key=lambda key: self._about[key][0])
        return self._order

    def _all_hold(self, tests: tuple[Test, ...]) -> set[int]:
        held = [self._holds(test) for test in tests]
        held.sort(key=len)
        return held[0].intersection(*held[1:]) if held else set(range(len(self._about)))

    def _holds(self, test: Test) -> set[int]:
        if isinstance(test, AnyOf):
            found = set().union(*(self._all_hold(tests) for tests in test.alternatives))
        else:
            found = self._has(test)
        return set(range(len(self._about))) - found if test.negated else found

    def _has(self, test: Condition) -> set[int]:
        at = self._where(test.field)
        if test.values is not None:
            wanted: Iterable[Fact] = [v for v in test.values if v in at]
        else:
            wanted = [v for v in at if _between(test.low, v, test.high)]
        return set().union(*(at[value] for value in wanted))

    def _where(self, field: str) -> dict[Fact, list[int]]:
        if field not in self._positions:
            n = self._field[field]
            at: dict[Fact, list[int]] = {}
            for position, key in enumerate(self._ordered()):
                for value in self._about[key][1][n]:
                    at.setdefault(value, []).append(position)
            self._positions[field] = at
        return self._positions[field]


def _between(low: Any, value: Any, high: Any) -> bool:  # noqa: ANN401 - numbers or words, alike
    return (low is None or low <= value) and (high is None or value <= high)
