"""The traps of deltalake that our own commits avoid, shown on the library that is installed.

A test here that fails after an upgrade says that the library has changed: read what it says before
loosening the pin.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pytest
from deltalake import CommitProperties, DeltaTable, Transaction, write_deltalake
from deltalake.exceptions import CommitFailedError

from headrace.model.clock import SystemClock
from headrace.model.errors import Fenced
from headrace.tables.compact import compact
from headrace.tables.delta import DeltaTables

HERE = Path(__file__).parent
APP = "test/events#epoch"
NAME = "tables/events"
SCHEMA = pa.schema([("n", pa.int64())])


def rows(*numbers):
    return pa.table({"n": list(numbers)}, schema=SCHEMA)


def library_append(table, number, epoch=None):
    txns = None if epoch is None else [Transaction(APP, epoch)]
    properties = CommitProperties(app_transactions=txns)
    write_deltalake(table, rows(number), mode="append", commit_properties=properties)


def count(path):
    return DeltaTable(str(path)).to_pyarrow_table().num_rows


# --- the library


def test_library_accepts_a_replay_and_a_lower_number_from_a_fresh_snapshot(tmp_path):
    library_append(str(tmp_path), 1, epoch=1)
    library_append(str(tmp_path), 2, epoch=2)
    library_append(DeltaTable(str(tmp_path)), 2, epoch=2)
    library_append(DeltaTable(str(tmp_path)), 1, epoch=1)
    assert count(tmp_path) == 4


def test_library_rejects_a_replay_only_from_a_stale_snapshot(tmp_path):
    library_append(str(tmp_path), 1, epoch=1)
    stale = DeltaTable(str(tmp_path))
    library_append(str(tmp_path), 2, epoch=2)
    with pytest.raises(CommitFailedError):
        library_append(stale, 2, epoch=2)
    assert count(tmp_path) == 2


def test_library_appends_from_a_stale_snapshot_when_there_is_no_number(tmp_path):
    library_append(str(tmp_path), 1)
    stale = DeltaTable(str(tmp_path))
    library_append(str(tmp_path), 2)
    library_append(stale, 3)
    assert count(tmp_path) == 3


def test_library_accepts_two_compactions_at_once_and_doubles_the_rows(tmp_path):
    for n in range(5):
        library_append(str(tmp_path), n)
    one, other = DeltaTable(str(tmp_path)), DeltaTable(str(tmp_path))
    one.optimize.compact()
    other.optimize.compact()
    assert count(tmp_path) == 10


# --- nothing is synced by the library; everything is by us


def traced(tmp_path, *command):
    if shutil.which("strace") is None:
        pytest.skip("needs strace")
    trace = tmp_path / "trace"
    command = ["strace", "-f", "-y", "-e", "trace=fsync,fdatasync", "-o", str(trace), *command]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    if "ptrace" in found.stderr:
        pytest.skip("strace may not trace here")
    assert found.returncode == 0, found.stderr
    return re.findall(r"f(?:data)?sync\(\d+<([^>]*)>", trace.read_text())


LIBRARY = """
import sys, pyarrow as pa, pyarrow.parquet as pq
from deltalake import DeltaTable, write_deltalake
for n in range(3):
    write_deltalake(sys.argv[1], pa.table({"n": [n]}), mode="append")
DeltaTable(sys.argv[1]).optimize.compact()
DeltaTable(sys.argv[1]).create_checkpoint()
pq.write_table(pa.table({"n": [1]}), sys.argv[1] + "/more.parquet")
"""


def test_library_syncs_nothing(tmp_path):
    synced = traced(tmp_path, sys.executable, "-c", LIBRARY, str(tmp_path / "t"))
    assert count(tmp_path / "t") == 3
    assert synced == []


def test_we_sync_every_file_and_every_folder(tmp_path):
    data = tmp_path / "data"
    synced = traced(tmp_path, sys.executable, str(HERE / "table_writer.py"), str(data), "10")
    left = [p for p in data.rglob("*") if ".tmp" not in p.parts]
    # What is in the log is synced under a temporary name, before it has its own.
    log = {p for p in left if p.parent.name == "_delta_log"}
    unsynced = {str(p) for p in left if p not in log} - set(synced)
    assert unsynced == set()
    assert {str(tmp_path), str(data)} <= set(synced)
    temporary = {p for p in synced if ".tmp/" in p}
    commits = max(int(p.stem) for p in log if p.suffix == ".json") + 1
    assert len(temporary) == commits + len(["checkpoint", "_last_checkpoint"])
    assert any("checkpoint.parquet" in p.name for p in log)


# --- the fence


def test_a_commit_over_a_stale_version_is_fenced_even_without_numbers(tmp_path):
    tables = DeltaTables(tmp_path, SystemClock())
    owner = tables.create(NAME, SCHEMA)
    stale = tables.open(NAME)
    owner.commit([tables.stage(NAME, rows(1))])
    with pytest.raises(Fenced):
        stale.commit([tables.stage(NAME, rows(2))])
    assert count(owner.snapshot.root) == 1


def test_two_compactions_at_once_keep_the_rows(tmp_path):
    tables = DeltaTables(tmp_path, SystemClock())
    owner = tables.create(NAME, SCHEMA)
    for n in range(5):
        owner.commit([tables.stage(NAME, rows(n))])
    other = tables.open(NAME)
    assert compact(tables, owner, owner.snapshot.files, txn="files") is not None
    with pytest.raises(Fenced):
        compact(tables, other, other.snapshot.files, txn="files")
    assert count(owner.snapshot.root) == 5


def test_an_owner_that_slept_through_log_cleanup_is_fenced(tmp_path):
    tables = DeltaTables(tmp_path, SystemClock())
    zombie = tables.create(NAME, SCHEMA)
    owner = tables.open(NAME)
    for n in range(4):
        owner.commit([tables.stage(NAME, rows(n))])
    owner.checkpoint(0)
    log = Path(owner.snapshot.root) / "_delta_log"
    assert not (log / f"{1:020}.json").exists(), "the zombie's version must be free again"
    with pytest.raises(Fenced):
        zombie.commit([tables.stage(NAME, rows(99))])
    assert count(owner.snapshot.root) == 4
    assert tables.snapshot(NAME).version == 4


def test_a_pointer_moved_back_by_a_stalled_owner_misleads_nobody(tmp_path):
    # Stopped between its checkpoint and the pointer to it, it may go on after log clean-up.
    tables = DeltaTables(tmp_path, SystemClock())
    zombie = tables.create(NAME, SCHEMA)
    zombie.checkpoint(3600)
    pointer = Path(zombie.snapshot.root) / "_delta_log" / "_last_checkpoint"
    written_late = pointer.read_bytes()
    owner = tables.open(NAME)
    for n in range(4):
        owner.commit([tables.stage(NAME, rows(n))])
    owner.checkpoint(0)
    pointer.write_bytes(written_late)
    with pytest.raises(Fenced):
        zombie.commit([tables.stage(NAME, rows(99))])
    assert tables.snapshot(NAME) == tables.open(NAME).snapshot
    assert tables.open(NAME).snapshot.version == 4
    assert count(owner.snapshot.root) == 4
    owner.commit([tables.stage(NAME, rows(4))])
    assert count(owner.snapshot.root) == 5


def test_files_of_others_in_the_log_do_not_slow_or_confuse(tmp_path):
    tables = DeltaTables(tmp_path, SystemClock())
    owner = tables.create(NAME, SCHEMA)
    log = Path(owner.snapshot.root) / "_delta_log"
    for n in range(50):
        (log / f"other-{n}.tmp").write_bytes(os.urandom(10))
        (log / f".{n:020}.json.swp").write_bytes(b"")
    owner.commit([tables.stage(NAME, rows(1))])
    owner.checkpoint(0)
    assert tables.open(NAME).snapshot == owner.snapshot
    assert count(owner.snapshot.root) == 1
