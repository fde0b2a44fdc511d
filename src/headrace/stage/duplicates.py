"""Which records are duplicates: a function of the log alone, whatever its cut into epochs.

A partition's *clock* is the running maximum of received_at over all of its records. A record is a
duplicate if a client chose its id and an earlier *kept* record (one that was no duplicate itself)
of its partition has the same id, the same validity, and its clock at most the horizon behind.
Validity counts so that a retry of a bad record makes no second dead letter, while the mended record
under the same id is not lost. When received_at jumps back by more than the horizon the clock resets
to it, and the ids that were kept in that partition before count no more. A record replayed for one
table keeps its id and is never a duplicate.

A reset stands among the known ids as a row of its own (`RESET`), so that the next epoch knows what
to forget.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from headrace.model.clock import CHOSEN_BY_CLIENT, UUID_BYTES
from headrace.model.letters import ONLY_HEADER
from headrace.model.plan import KNOWN_ID_SCHEMA
from headrace.model.runner import KnownIds

RESET = bytes(UUID_BYTES)
CARRIED = -1
"""Offset of an id that was kept in an earlier incarnation of its topic: before all offsets."""
_NONE = -2
"""The id, of no record, under which a clock's reset is kept.

`offset` is that of the record that reset the clock, `clock_us` the clock before: no forgotten id
has a later one, so the reset expires after all of them.
"""

_VERSION_BYTE = 6
_DEAD = 9
"""Version nibble under which the id of a dead letter's record is kept."""

Ints = npt.NDArray[np.int64]
Words = npt.NDArray[np.uint64]
Flags = npt.NDArray[np.bool_]


class Partition:
    """Records of one partition in offset order, as the duplicates rule sees them.

    `clock_us` is the clock before the first, None if there was no record before.
    """

    def __init__(
        self, topic: str, partition: int, records: pa.RecordBatch, clock_us: int | None
    ) -> None:
        self._topic = topic
        self._partition = partition
        self._offsets: Ints = records.column("offset").to_numpy()
        self._ids = records.column("id")
        received = records.column("received_at").cast(pa.int64()).to_numpy()
        self._received: Ints = received
        self._before_us = clock_us
        self.is_chosen = chosen_by_client(self._ids) & ~_replayed(records.column("headers"))
        """Whether a client chose the record's id, and it is not replayed for one table."""

    def find(
        self, valid: Flags, known: KnownIds, horizon_us: int
    ) -> tuple[Flags, pa.Table | None, int]:
        """Return which records are duplicates, the ids kept, and the clock after the last.

        `valid` says which records are decoded. The table (`KNOWN_ID_SCHEMA`) is None if it would
        be empty.
        """
        clocks, resets = running_clocks(self._received, self._before_us, horizon_us)
        duplicate = np.zeros(len(clocks), np.bool_)
        candidates = np.flatnonzero(self.is_chosen)
        ids = _by_validity(self._ids.take(pa.array(candidates)), valid[candidates])
        if len(candidates):
            eras = np.searchsorted(resets, candidates, side="right")
            marked = self._mark(ids, eras, clocks[candidates], known, horizon_us)
            duplicate[candidates[marked]] = True
            candidates, ids = candidates[~marked], ids.filter(pa.array(~marked))
        return duplicate, self._kept(ids, candidates, clocks, resets), int(clocks[-1])

    def _mark(
        self, ids: pa.Array, eras: Ints, clocks: Ints, known: KnownIds, horizon_us: int
    ) -> Flags:
        """Return which of the candidates, in offset order, are duplicates."""
        last = np.full(len(ids), np.iinfo(np.int64).min, np.int64)
        if self._before_us is not None:
            found = known.find(self._topic, self._partition, ids, int(self._offsets[0]))
            seen = ~np.asarray(found.is_null()) & (eras == 0)
            last[seen] = found.fill_null(0).to_numpy()[seen]
        # Horizons and clocks are far from the ends of 64 bits; only the filler could overflow.
        duplicate: Flags = last >= clocks - horizon_us
        again = np.flatnonzero(repeated(words(ids)[0]))
        if len(again):
            newest: dict[tuple[int, bytes], int] = {}
            texts = ids.take(pa.array(again)).to_pylist()
            for i, text in zip(again.tolist(), texts, strict=True):
                key = (int(eras[i]), text)
                kept_at = max(newest.get(key, int(last[i])), int(last[i]))
                duplicate[i] = kept_at >= clocks[i] - horizon_us
                if not duplicate[i]:
                    newest[key] = int(clocks[i])
        return duplicate

    def _kept(self, ids: pa.Array, at: Ints, clocks: Ints, resets: Ints) -> pa.Table | None:
        n = len(at) + len(resets)
        if n == 0:
            return None
        before = np.concatenate([[self._before_us or 0], clocks])[resets]
        ids = pa.concat_arrays([pa.array([RESET] * len(resets), pa.binary(UUID_BYTES)), ids])
        columns = [
            pa.repeat(self._topic, n),
            pa.repeat(pa.scalar(self._partition, pa.int32()), n),
            ids,
            pa.array(np.concatenate([before, clocks[at]])),
            pa.array(np.concatenate([self._offsets[resets], self._offsets[at]])),
        ]
        return pa.Table.from_arrays(columns, schema=KNOWN_ID_SCHEMA)


class IdIndex:
    """The client-chosen ids within the horizon, in memory: `model.runner.KnownIds`.

    Sorted NumPy arrays, 32 bytes an id, in runs of which each is at most half as large as the one
    before, so that adding stays cheap and a look-up searches a few runs. Used from one thread.

    At `bytes_max` the oldest ids are forgotten before their time: a repeat of one of them becomes a
    record of its own. `forgotten` counts them, and what was forgotten stays so only until the
    index is made again from the table.
    """

    def __init__(self, bytes_max: int = 1 << 30) -> None:
        self._bytes_max = bytes_max
        self._runs: dict[tuple[str, int], list[_Run]] = {}
        self.forgotten = 0

    @property
    def size_bytes(self) -> int:
        """Bytes that the ids take."""
        return sum(run.size_bytes for runs in self._runs.values() for run in runs)

    def __len__(self) -> int:
        """Return the number of ids."""
        return sum(len(run.clocks) for runs in self._runs.values() for run in runs)

    def add(self, rows: pa.Table) -> None:
        """Add ids that an epoch kept, `KNOWN_ID_SCHEMA`. Adding the same again changes nothing."""
        for topic in rows.column("topic").unique().to_pylist():
            of_topic = rows.filter(pc.equal(rows.column("topic"), topic))
            for partition in of_topic.column("partition").unique().to_pylist():
                one = of_topic.filter(pc.equal(of_topic.column("partition"), partition))
                runs = self._runs.setdefault((topic, partition), [])
                runs.append(_Run.of(one))
                while len(runs) > 1 and 2 * len(runs[-1].clocks) > len(runs[-2].clocks):
                    runs.append(_merged(runs.pop(-2), runs.pop()))
        if self.size_bytes > self._bytes_max:
            self._forget_oldest()

    def find(self, topic: str, partition: int, ids: pa.Array, before: int) -> pa.Array:
        """See `model.runner.KnownIds`."""
        runs = self._runs.get((topic, partition), [])
        reset = pa.array([RESET], pa.binary(UUID_BYTES))
        start = max((int(run.newest(reset, 0, before)[0][0]) for run in runs), default=_NONE)
        offsets = np.full(len(ids), _NONE, np.int64)
        clocks = np.zeros(len(ids), np.int64)
        for run in runs:
            found, found_clocks = run.newest(ids, start, before)
            newer = found > offsets
            offsets[newer], clocks[newer] = found[newer], found_clocks[newer]
        return pa.array(clocks, mask=offsets == _NONE)

    def expire(self, clocks: Mapping[str, int], horizon_us: int) -> None:
        """Forget what is further than the horizon behind its partition's clock.

        `clocks` are by `topic/partition`; a partition that is not named keeps its ids.
        """
        for (topic, partition), runs in self._runs.items():
            clock = clocks.get(f"{topic}/{partition}")
            if clock is not None:
                runs[:] = [k for run in runs if len((k := run.since(clock - horizon_us)).clocks)]

    def knows(self, topic: str) -> bool:
        """Return whether there is any id of a topic."""
        return any(runs for (name, _), runs in self._runs.items() if name == topic)

    def forget(self, topic: str) -> None:
        """Forget the ids of a topic, for when it is created anew and its offsets begin again.

        Those that were carried over from before stay.
        """
        for (name, _), runs in self._runs.items():
            if name == topic:
                runs[:] = [k for run in runs if len((k := run.carried()).clocks)]

    def _forget_oldest(self) -> None:
        """Forget the oldest eighth of all ids, so that this is not done at every `add`."""
        before = len(self)
        clocks = np.concatenate([run.clocks for runs in self._runs.values() for run in runs])
        limit = int(np.partition(clocks, before // 8)[before // 8]) + 1
        for runs in self._runs.values():
            runs[:] = [k for run in runs if len((k := run.since(limit)).clocks)]
        self.forgotten += before - len(self)


class _Run(NamedTuple):
    """Ids of one partition, sorted by their first half, in arrays of one length."""

    high: Words
    low: Words
    clocks: Ints
    offsets: Ints

    @classmethod
    def of(cls, rows: pa.Table) -> _Run:
        rows = rows.combine_chunks()
        high, low = words(rows.column("id").chunk(0))
        clocks, offsets = rows.column("clock_us").to_numpy(), rows.column("offset").to_numpy()
        return _sorted(high, low, clocks, offsets)

    @property
    def size_bytes(self) -> int:
        return 4 * 8 * len(self.clocks)

    def since(self, clock_us: int) -> _Run:
        kept = self.clocks >= clock_us
        if kept.all():
            return self
        return _Run(self.high[kept], self.low[kept], self.clocks[kept], self.offsets[kept])

    def carried(self) -> _Run:
        kept = self.offsets == CARRIED
        return _Run(self.high[kept], self.low[kept], self.clocks[kept], self.offsets[kept])

    def newest(self, ids: pa.Array, start: int, before: int) -> tuple[Ints, Ints]:
        """Return offset (or `_NONE`) and clock of each id's last row in [start, before)."""
        high, low = words(ids)
        offsets = np.full(len(ids), _NONE, np.int64)
        clocks = np.zeros(len(ids), np.int64)
        place = np.searchsorted(self.high, high)
        asked = np.arange(len(ids))
        while True:
            there = place < len(self.high)
            there[there] = self.high[place[there]] == high[asked[there]]
            place, asked = place[there], asked[there]
            if not len(asked):
                return offsets, clocks
            at = self.offsets[place]
            hit = (self.low[place] == low[asked]) & (at >= start) & (at < before)
            hit &= at > offsets[asked]
            offsets[asked[hit]], clocks[asked[hit]] = at[hit], self.clocks[place[hit]]
            place = place + 1


def carried(rows: pa.Table) -> pa.Table:
    """Return known ids, `KNOWN_ID_SCHEMA`, as a topic that is made anew is to know them.

    Each partition keeps what still counts there, each id once, at its newest clock: ids from before
    a reset do not, and the reset itself has done its work.
    """
    if not rows.num_rows:
        return rows
    frame = rows.combine_chunks()
    is_reset = pc.equal(frame.column("id"), pa.scalar(RESET, frame.schema.field("id").type))
    place = ["topic", "partition"]
    resets = frame.filter(is_reset).group_by(place).aggregate([("offset", "max")])
    ids = frame.filter(pc.invert(is_reset)).join(resets, place, join_type="left outer")
    since = pc.fill_null(ids.column("offset_max"), _NONE)
    ids = ids.filter(pc.greater_equal(ids.column("offset"), since))
    newest = ids.group_by([*place, "id"]).aggregate([("clock_us", "max")])
    newest = newest.rename_columns([*place, "id", "clock_us"])
    newest = newest.append_column("offset", pa.array([CARRIED] * len(newest), pa.int64()))
    return newest.select(rows.schema.names).cast(rows.schema)


def _sorted(high: Words, low: Words, clocks: Ints, offsets: Ints) -> _Run:
    order = np.argsort(high, kind="stable")
    return _Run(high[order], low[order], clocks[order], offsets[order])


def _merged(one: _Run, other: _Run) -> _Run:
    return _sorted(
        np.concatenate([one.high, other.high]),
        np.concatenate([one.low, other.low]),
        np.concatenate([one.clocks, other.clocks]),
        np.concatenate([one.offsets, other.offsets]),
    )


def running_clocks(received: Ints, before_us: int | None, horizon_us: int) -> tuple[Ints, Ints]:
    """Return the clock at each record, and the positions of records that reset it."""
    first = received[:1] if before_us is None else np.array([before_us], np.int64)
    clocks: Ints = np.maximum.accumulate(np.concatenate([first, received]))
    if not (received < clocks[:-1] - horizon_us).any():
        return clocks[1:], np.empty(0, np.int64)
    clock, resets = int(first[0]), []
    for i, at in enumerate(received.tolist()):
        if at < clock - horizon_us:
            clock = at
            resets.append(i)
        clock = max(clock, at)
        clocks[i] = clock
    return clocks[:-1], np.array(resets, np.int64)


def chosen_by_client(ids: pa.Array) -> Flags:
    """Return whether a client chose each id; see `model.batch.is_client_chosen`."""
    version = _bytes(ids)[:, _VERSION_BYTE] >> 4
    return version == CHOSEN_BY_CLIENT


def _by_validity(ids: pa.Array, valid: Flags) -> pa.Array:
    """Return ids with those of dead records under a version of their own."""
    if valid.all():
        return ids
    data = _bytes(ids).copy()
    data[~valid, _VERSION_BYTE] = (data[~valid, _VERSION_BYTE] & 0x0F) | (_DEAD << 4)
    return pa.Array.from_buffers(ids.type, len(ids), [None, pa.py_buffer(data)])


def _replayed(headers: pa.Array) -> Flags:
    """Return which records are replayed for one table, by their headers."""
    flags: Flags = pc.match_substring(headers, ONLY_HEADER).to_numpy(zero_copy_only=False)
    return flags


def words(ids: pa.Array) -> tuple[Words, Words]:
    """Return the two halves of 16-byte ids as numbers, each contiguous."""
    halves = _bytes(ids).view(np.uint64)
    return np.ascontiguousarray(halves[:, 0]), np.ascontiguousarray(halves[:, 1])


def repeated(values: Words) -> Flags:
    """Return which values stand more than once."""
    order = np.argsort(values, kind="stable")
    same = np.zeros(len(values) + 1, np.bool_)
    same[1:-1] = values[order][1:] == values[order][:-1]
    flags = np.empty(len(values), np.bool_)
    flags[order] = same[1:] | same[:-1]
    return flags


def _bytes(ids: pa.Array) -> npt.NDArray[np.uint8]:
    data = np.frombuffer(ids.buffers()[1], np.uint8)
    start = ids.offset * UUID_BYTES
    return data[start : start + len(ids) * UUID_BYTES].reshape(-1, UUID_BYTES)
