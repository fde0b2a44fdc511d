"""Checks a data directory against what was acknowledged, with nothing of the product's own code.

A producer numbers its events in a field and keeps an fsynced list of the numbers that were
acknowledged. Afterwards `check` reads the Delta tables with `deltalake` and DuckDB and looks for
breaches of:

====  ==========================================================================
I1    every acknowledged event is a row or a dead letter
I2    none is there twice
I3    nothing is there that was not sent
I4    every view equals its SQL over the tables
I5    every table opens, and its version never went back
I6    the log's start is at or before the lowest committed offset
====  ==========================================================================
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import duckdb
from deltalake import DeltaTable


class Acknowledged:
    """The list of acknowledged numbers: a line each, on disk before `add` returns."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def add(self, numbers: Iterable[int]) -> None:
        """Append numbers, durably."""
        with self._path.open("a") as file:
            file.write("".join(f"{n}\n" for n in numbers))
            file.flush()
            os.fsync(file.fileno())

    def read(self) -> list[int]:
        """Return all numbers; a last line that a crash cut off is left out."""
        if not self._path.exists():
            return []
        text = self._path.read_text()
        return [int(line) for line in text[: text.rfind("\n") + 1].split()]


@dataclass
class Checker:
    """What there is to check: the table of numbered rows, and the views over it."""

    data: Path
    table: str
    number: str
    """Column of the table, and JSON key of a dead letter's record, that holds the number."""
    views: Mapping[str, str] = field(default_factory=dict)
    """View → SELECT over the relation `rows`, its columns in the order of the view's."""
    versions: dict[str, int] = field(default_factory=dict)
    tables_url: str = ""
    """Where the tables are if not in `data`; its address and keys are in the environment."""

    def check(self, acknowledged: Iterable[int], sent: Iterable[int]) -> list[str]:
        """Return every breach that is found, as sentences; empty when all holds."""
        breaches = self._opens()
        if breaches:
            return breaches
        rows = [int(str(r[0])) for r in self._query(f"SELECT {self.number} FROM rows")]
        dead = [self._number_of(v) for v in self._dead_values()]
        there = Counter(rows + dead)
        lost = set(acknowledged) - set(there)
        twice = [n for n, count in there.items() if count > 1]
        foreign = set(there) - set(sent)
        if lost:
            breaches.append(f"I1: {len(lost)} acknowledged events are lost: {sorted(lost)[:5]}")
        if twice:
            breaches.append(f"I2: {len(twice)} events are there twice: {sorted(twice)[:5]}")
        if foreign:
            breaches.append(f"I3: {len(foreign)} events were never sent: {sorted(foreign)[:5]}")
        for name, sql in self.views.items():
            want, got = Counter(self._query(sql)), Counter(self._query_view(name))
            if want != got:
                some = list((want - got).items())[:3], list((got - want).items())[:3]
                breaches.append(f"I4: view {name} differs: missing {some[0]}, excess {some[1]}")
        return breaches

    def check_log(self, starts: Mapping[str, int], committed: Mapping[str, int]) -> list[str]:
        """Return breaches of I6, given `topic/partition` → offset of both."""
        return [
            f"I6: the log of {key} starts at {start}, past the committed {committed.get(key, 0)}"
            for key, start in starts.items()
            if start > committed.get(key, 0)
        ]

    def _opens(self) -> list[str]:
        breaches = []
        for name in self._names():
            try:
                table = DeltaTable(self._at(name))
                table.to_pyarrow_table()
            except Exception as e:  # noqa: BLE001 - whatever a reader meets is the finding
                breaches.append(f"I5: {name} does not open: {e}")
                continue
            before = self.versions.get(name, 0)
            if table.version() < before:
                breaches.append(f"I5: {name} went from version {before} to {table.version()}")
            self.versions[name] = table.version()
        return breaches

    def _names(self) -> list[str]:
        if self.tables_url:
            views = [f"views/{name}" for name in self.views]
            return [f"tables/{self.table}", *views, "system/ledger"]
        found = sorted(self.data.glob("*/*/_delta_log"))
        return [str(log.parent.relative_to(self.data)) for log in found]

    def _at(self, name: str) -> str:
        return f"{self.tables_url or self.data}/{name}"

    def _query(self, sql: str) -> list[tuple[object, ...]]:
        rows = DeltaTable(self._at(f"tables/{self.table}")).to_pyarrow_table()
        with duckdb.connect() as connection:
            connection.execute("SET TimeZone = 'UTC'")
            connection.register("rows", rows)
            return connection.execute(sql).fetchall()

    def _query_view(self, name: str) -> list[tuple[object, ...]]:
        rows = DeltaTable(self._at(f"views/{name}")).to_pyarrow_table()
        with duckdb.connect() as connection:
            connection.execute("SET TimeZone = 'UTC'")
            connection.register("view_rows", rows)
            return connection.execute("SELECT * FROM view_rows").fetchall()

    def _dead_values(self) -> list[bytes]:
        letters = self._at("system/dead_letters")
        if not DeltaTable.is_deltatable(letters):
            return []
        return DeltaTable(letters).to_pyarrow_table().column("value").to_pylist()

    def _number_of(self, value: bytes) -> int:
        return int(json.loads(value)[self.number])
