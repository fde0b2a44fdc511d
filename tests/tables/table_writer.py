"""A process that owns one table and commits numbered rows to it, until told or made to stop.

`python table_writer.py ROOT EPOCHS [UNSYNCED]` goes on where the table stands at ROOT, a folder or
a URL: epoch n has the rows n*3, n*3+1 and n*3+2. It prints `acknowledged n` once epoch n is
committed. Every 4th epoch it compacts, every 6th it makes a checkpoint, cleans the log and deletes
old files. UNSYNCED (`files`, `folders`) is left out of every fsync, to show what then becomes of
the table.
"""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa

from headrace.model.clock import SystemClock
from headrace.tables.compact import compact
from headrace.tables.delta import DeltaTables
from headrace.tables.repair import repair
from headrace.tables.storage import LocalStorage, fsync, open_storage

NAME = "tables/numbers"
EPOCH = "test/numbers#epoch"
FILES = "test/numbers#files"
ROWS = 3
COMPACT_EVERY = 4
CHECKPOINT_EVERY = 6
SCHEMA = pa.schema([("number", pa.int64()), ("word", pa.string())])


def rows_of(epoch: int) -> pa.Table:
    numbers = [epoch * ROWS + i for i in range(ROWS)]
    return pa.table({"number": numbers, "word": [f"word {n}" for n in numbers]}, schema=SCHEMA)


def sync_all_but(unsynced: str) -> Callable[[int], None]:
    def sync(descriptor: int) -> None:
        is_folder = stat.S_ISDIR(os.fstat(descriptor).st_mode)
        if unsynced != ("folders" if is_folder else "files"):
            fsync(descriptor)

    return sync


def main(root: Path | str, epochs: int, unsynced: str = "") -> None:
    clock = SystemClock()
    storage = open_storage(root, clock)
    if unsynced:
        storage = LocalStorage(root, clock, fsync=sync_all_but(unsynced))
    tables = DeltaTables(root, clock, storage=storage)
    repair(tables)
    table = tables.open(NAME) or tables.create(NAME, SCHEMA)
    for epoch in range(table.snapshot.txns.get(EPOCH, -1) + 1, epochs):
        table.commit([tables.stage(NAME, rows_of(epoch))], txns={EPOCH: epoch})
        sys.stdout.write(f"acknowledged {epoch}\n")
        sys.stdout.flush()
        if epoch % COMPACT_EVERY == COMPACT_EVERY - 1:
            compact(tables, table, table.snapshot.files, txn=FILES)
        if epoch % CHECKPOINT_EVERY == CHECKPOINT_EVERY - 1:
            # Before the checkpoint, in which this process may be stopped: another owner's files,
            # staged meanwhile, are not to be taken for orphans.
            before_us = clock.now_us()
            table.checkpoint(0)
            table.clean(before_us, table.snapshot.version)


def verify(root: Path | str) -> int:
    """Repair as a restart does, check that no row is lost or doubled; return the last epoch."""
    tables = DeltaTables(root, SystemClock())
    repair(tables)
    snapshot = tables.snapshot(NAME)
    if snapshot is None:
        return -1
    last = snapshot.txns.get(EPOCH, -1)
    numbers = tables.read(snapshot).column("number").to_pylist()
    assert sorted(numbers) == list(range((last + 1) * ROWS)), (last, sorted(numbers))
    return last


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), *sys.argv[3:])
