"""An epoch's ranges cut into tasks of about one size.

A task takes at most one piece of a partition, and small ranges share one, so that a small epoch is
one task and writes one file a table. A partition's range may be cut into several pieces although
its duplicates depend on what came before: `gather.py` finds the cases in which that made a
difference, and has the partition run again in one piece.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import NamedTuple

import pyarrow as pa

from headrace.model.log import LogReader
from headrace.model.runner import Epoch, Range

TASK_BYTES_MIN, TASK_BYTES_MAX = 8 << 20, 128 << 20
"""Bounds of what a task reads: less is not worth one, more is not worth the memory."""

PartitionId = tuple[str, int]
"""Topic and partition."""


class Piece(NamedTuple):
    """A part of a partition's range, or all of it, as a task gets it."""

    part: Range
    incarnation: str
    clock_us: int | None
    """The clock before it; of a split partition, the clock before the whole range or 0."""
    is_split: bool
    size_bytes: int
    known: pa.Table | None = None
    """What was found of the ids that the piece asks for: `id`, `clock_us`."""

    @property
    def partition(self) -> PartitionId:
        """Which partition it is of."""
        return self.part.topic, self.part.partition


Task = tuple[Piece, ...]


def whole(epoch: Epoch, asked: Range, size_bytes: int, known: pa.Table | None = None) -> Piece:
    """Return a range as one piece."""
    clock_us = epoch.clocks.get(f"{asked.topic}/{asked.partition}")
    return Piece(asked, epoch.incarnations[asked.topic], clock_us, False, size_bytes, known)


def cut(epoch: Epoch, log: LogReader, slots: int, bytes_min: int = TASK_BYTES_MIN) -> list[Task]:
    """Return the tasks of an epoch; `slots` is how many of them can run at a time."""
    ranges = [r for r in epoch.ranges if r.end > r.start]
    sizes = [max(1, log.size_between(r.topic, r.partition, r.start, r.end)) for r in ranges]
    # Two rounds of tasks, so that ranges of one size fill an uneven number of slots better.
    target = min(max(sum(sizes) // (2 * slots), bytes_min), TASK_BYTES_MAX)
    pieces: list[Piece] = []
    for asked, size in zip(ranges, sizes, strict=True):
        # A remainder of less than a quarter is not worth a task.
        count = min(max(1, round(size / target + 0.25)), asked.end - asked.start)
        pieces += _split(whole(epoch, asked, size), count)
    return packed(pieces, target)


def packed(pieces: Iterable[Piece], target_bytes: int) -> list[Task]:
    """Return pieces, in their order, as tasks of at most `target_bytes` and a piece at least."""
    tasks: list[list[Piece]] = []
    size = 0
    for piece in pieces:
        last = tasks[-1] if tasks else None
        fits = size + piece.size_bytes <= target_bytes * 1.25
        if last is not None and fits and all(p.partition != piece.partition for p in last):
            last.append(piece)
            size += piece.size_bytes
        else:
            tasks.append([piece])
            size = piece.size_bytes
    return [tuple(task) for task in tasks]


def _split(piece: Piece, count: int) -> Sequence[Piece]:
    if count == 1:
        return [piece]
    start, end = piece.part.start, piece.part.end
    edges = [start + (end - start) * i // count for i in range(count + 1)]
    return [
        piece._replace(
            part=Range(piece.part.topic, piece.part.partition, first, last),
            # No record is before 1970, so this clock lies before any, and ids are asked for.
            clock_us=piece.clock_us or 0,
            is_split=True,
            size_bytes=piece.size_bytes // count,
        )
        for first, last in pairwise(edges)
    ]
