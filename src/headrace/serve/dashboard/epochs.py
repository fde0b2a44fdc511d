"""The latest epochs, as charts of throughput and freshness need them."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Mapping, Sequence

import msgspec

from headrace.model.plan import LEDGER
from headrace.model.tables import DataFile, Snapshot
from headrace.serve.relations import Snapshots

HISTORY_S = 900
"""How far back charts go."""
EPOCHS_MAX = 4_096
"""Epochs that are held: a quarter of an hour, at the four a second of a busy pipeline."""
BUCKETS = 90
"""Points of a chart."""


class Count(msgspec.Struct, frozen=True):
    """What an epoch did with a topic's records."""

    read: int = 0
    dead: int = 0
    duplicates: int = 0


class _Body(msgspec.Struct, frozen=True):
    """The part of a ledger row that matters here; `process.ledger.LedgerRow` has all of it."""

    epoch: int
    committed_at_us: int
    kind: str = "epoch"
    read_from: dict[str, int] = {}
    clocks: dict[str, int] = {}
    topics: dict[str, Count] = {}


class Epoch(msgspec.Struct, frozen=True):
    """One epoch."""

    number: int
    committed_at_us: int
    kind: str
    topics: dict[str, Count]
    lag_s: float | None
    """From the newest of its records being received to its commit; None if it read none."""

    @property
    def read(self) -> int:
        """How many records it read."""
        return sum(c.read for c in self.topics.values())

    @property
    def dead(self) -> int:
        """How many of them died."""
        return sum(c.dead for c in self.topics.values())


class Epochs:
    """The latest epochs, read further as the ledger grows; safe to use from many threads."""

    def __init__(self, snapshots: Snapshots) -> None:
        self._snapshots = snapshots
        self._lock = threading.Lock()
        self._table_id = ""
        self._version = -1
        self._held: deque[Epoch] = deque(maxlen=EPOCHS_MAX)

    def latest(self) -> Sequence[Epoch]:
        """Return the epochs that are held, oldest first."""
        snapshot = self._snapshots.newest(LEDGER)
        with self._lock:
            if snapshot is None:
                return ()
            if snapshot.table_id != self._table_id:
                self._held.clear()
                self._table_id = snapshot.table_id
                self._version = -1
            if snapshot.version != self._version:
                self._read(snapshot)
                self._version = snapshot.version
            return tuple(self._held)

    def _read(self, snapshot: Snapshot) -> None:
        known = self._held[-1].number if self._held else 0
        files = sorted(snapshot.files, key=_epoch_max)
        wanted: list[DataFile] = []
        rows = 0
        for file in reversed(files):
            if _epoch_max(file) <= known or rows >= EPOCHS_MAX:
                break
            wanted.append(file)
            rows += file.rows
        if not wanted:
            return
        table = self._snapshots.reader.read(snapshot, wanted).select(["epoch", "body"])
        table = table.sort_by("epoch").slice(max(0, table.num_rows - EPOCHS_MAX))
        for number, body in zip(*(c.to_pylist() for c in table.columns), strict=True):
            if number > known:
                self._held.append(_epoch(msgspec.json.decode(body, type=_Body)))


def throughput(epochs: Sequence[Epoch], now_us: int) -> Mapping[str, object]:
    """Return records a second by topic, over the last `HISTORY_S`, as a chart."""
    width_us = HISTORY_S * 1_000_000 // BUCKETS
    first = now_us // width_us - BUCKETS + 1
    topics = sorted({t for e in epochs for t in e.topics})
    counts = {t: [0] * BUCKETS for t in topics}
    for epoch in epochs:
        at = epoch.committed_at_us // width_us - first
        if 0 <= at < BUCKETS:
            for topic, count in epoch.topics.items():
                counts[topic][at] += count.read
    per_s = width_us / 1_000_000
    return {
        "x": [(first + i) * width_us // 1_000_000 for i in range(BUCKETS)],
        "series": [{"name": t, "y": [n / per_s for n in counts[t]]} for t in topics],
        "unit": "/s",
    }


def freshness(epochs: Sequence[Epoch], now_us: int) -> Mapping[str, object]:
    """Return the longest time from a record to its commit, over the last `HISTORY_S`."""
    width_us = HISTORY_S * 1_000_000 // BUCKETS
    first = now_us // width_us - BUCKETS + 1
    longest: list[float | None] = [None] * BUCKETS
    for epoch in epochs:
        at = epoch.committed_at_us // width_us - first
        if 0 <= at < BUCKETS and epoch.lag_s is not None:
            longest[at] = max(longest[at] or 0.0, epoch.lag_s)
    return {
        "x": [(first + i) * width_us // 1_000_000 for i in range(BUCKETS)],
        "series": [{"name": "received to committed", "y": longest}],
        "unit": " s",
    }


def rate_per_s(epochs: Sequence[Epoch], now_us: int, topic: str | None = None) -> float:
    """Return records a second over the last minute, of one topic or of all."""
    since_us = now_us - 60_000_000
    read = 0
    for epoch in reversed(epochs):
        if epoch.committed_at_us < since_us:
            break
        read += epoch.read if topic is None else epoch.topics.get(topic, Count()).read
    return read / 60


def _epoch(body: _Body) -> Epoch:
    # A clock is the highest time of receipt so far, so of a partition that was read it is new.
    newest_us = max((body.clocks[p] for p in body.read_from if p in body.clocks), default=0)
    lag_s = max(0.0, (body.committed_at_us - newest_us) / 1e6) if newest_us else None
    return Epoch(body.epoch, body.committed_at_us, body.kind, body.topics, lag_s)


def _epoch_max(file: DataFile) -> int:
    stats = msgspec.json.decode(file.stats) if file.stats else {}
    return int(stats.get("maxValues", {}).get("epoch", 0))
