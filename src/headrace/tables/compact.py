"""Compaction: many small files become few, with the same rows, by our own commit.

Never `deltalake`'s `optimize.compact`: two at once are both accepted and double the rows, and it
syncs nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext

import pyarrow as pa

from headrace.model.errors import Internal
from headrace.model.failpoint import failpoint
from headrace.model.tables import DataFile, Snapshot, Table, Tables

TARGET_BYTES = 128 << 20
_TIERS = 8
"""Tiers that small files spread over; each holds fewer files than its share of the bound."""


def plan_compaction(
    snapshot: Snapshot, *, files_max: int = 100, target_bytes: int = TARGET_BYTES
) -> list[list[DataFile]]:
    """Return groups of files, each to become one file of at most about `target_bytes`.

    Files are tiered by size, each tier `files_max / 8` times the one below, and a tier is merged
    when it holds that many files. So a row is rewritten once a tier, a number that grows with the
    logarithm of the table's size, and a table has at most about `files_max` small files. Files with
    different tags are never merged.
    """
    fanout = max(2, files_max // _TIERS)
    tiers: dict[tuple[object, ...], list[DataFile]] = {}
    for file in snapshot.files:
        if file.size_bytes <= target_bytes // 2:
            tier = int(math.log(max(file.size_bytes, 1), fanout))
            tiers.setdefault((tier, *sorted(file.tags.items())), []).append(file)
    return [
        group
        for files in tiers.values()
        if len(files) >= fanout
        for group in _split(files, target_bytes)
        if len(group) > 1
    ]


def compact(
    tables: Tables,
    table: Table,
    group: Sequence[DataFile],
    *,
    txn: str,
    lock: AbstractContextManager[object] | None = None,
    squeeze: Callable[[pa.Table], pa.Table | None] | None = None,
) -> Snapshot | None:
    """Replace a group of a table's files by one with their rows in order; None if it was not done.

    `txn` names the application number (`<pipeline>/<table>#files`) that every commit that
    removes files carries and increments. `lock` is the table's; it is not held while files are read
    and written, so it must be a lock that can be taken twice in turn. `squeeze` returns those of
    the group's rows, all of them in memory then, that are still of use, or None if it is not worth
    while; without it all are kept.

    The order of effects:
    1. read the group and stage its rows as one file, durable and invisible;
    2. under the lock, commit; unless a commit has removed files since: then the staged file is an
       orphan, and clean-up takes it.
    """
    held = lock if lock is not None else nullcontext()
    with held:
        before = table.snapshot
    squeezed = squeeze(tables.read(before, group)) if squeeze else None
    if squeeze and squeezed is None:
        return None
    rows = sum(f.rows for f in group) if squeezed is None else squeezed.num_rows
    source = tables.scan(before, group) if squeezed is None else squeezed
    staged = [tables.stage(before.name, source, tags=group[0].tags)] if rows else []  # 1
    if (made := sum(f.rows for f in staged)) != rows:
        raise Internal(f"Compaction of {before.name} made {made} rows of {rows}")
    failpoint("compact.1")
    with held:  # 2
        now = table.snapshot
        number = now.txns.get(txn, 0)
        current = {f.path for f in now.files}
        if number != before.txns.get(txn, 0) or any(f.path not in current for f in group):
            return None
        after = table.commit(staged, group, txns={txn: number + 1}, data_change=False)
    failpoint("compact.2")
    return after


def _split(files: Sequence[DataFile], target_bytes: int) -> Iterator[list[DataFile]]:
    """Yield runs of files that together have at most `target_bytes`."""
    run: list[DataFile] = []
    size_bytes = 0
    for file in files:
        if run and size_bytes + file.size_bytes > target_bytes:
            yield run
            run, size_bytes = [], 0
        run.append(file)
        size_bytes += file.size_bytes
    yield run
