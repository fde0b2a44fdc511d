"""Kill -9 at every numbered step of stage, commit, compaction and checkpoint; damage on disk."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from pathlib import Path

import pytest
from deltalake import DeltaTable
from table_writer import CHECKPOINT_EVERY, COMPACT_EVERY, NAME, ROWS, SCHEMA, main, rows_of, verify

from headrace.model.clock import SystemClock
from headrace.model.errors import Corrupt, Fenced, Unavailable
from headrace.model.failpoint import FAILPOINTS
from headrace.tables.delta import DeltaTables
from headrace.tables.repair import repair

HERE = Path(__file__).parent
EPOCHS = 13
POINTS = [p for p in FAILPOINTS if p.split(".")[0] in {"stage", "delta", "compact", "checkpoint"}]


def write_until(root, failpoint):
    """Run the writer until it is killed; return the last epoch that it acknowledged."""
    found = subprocess.run(
        [sys.executable, str(HERE / "table_writer.py"), str(root), str(EPOCHS)],
        env={**os.environ, "HEADRACE_FAILPOINT": failpoint},
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.returncode == -9, found.stderr or "the failpoint was not reached"
    return int(found.stdout.split()[-1]) if found.stdout else -1


# The first commit makes the table, the second fills it.
@pytest.mark.parametrize("point", [*(f"{p}:2" for p in POINTS), "delta.1:1", "delta.2:1"])
def test_killed_at(tmp_path, point):
    acknowledged = write_until(tmp_path, f"{point}=kill")
    if (tmp_path / NAME / "_delta_log").exists() and acknowledged >= 0:
        # Others read it as it is, before any repair.
        read = DeltaTable(str(tmp_path / NAME)).to_pyarrow_table().column("number").to_pylist()
        assert set(range((acknowledged + 1) * ROWS)) <= set(read)
        assert len(read) == len(set(read))
    last = verify(tmp_path)
    assert acknowledged <= last <= acknowledged + 1
    main(tmp_path, EPOCHS)
    assert verify(tmp_path) == EPOCHS - 1
    assert list((tmp_path / ".tmp").iterdir()) == []


def made(root, epochs=3):
    tables = DeltaTables(root, SystemClock())
    table = tables.create(NAME, SCHEMA)
    for epoch in range(epochs):
        table.commit([tables.stage(NAME, rows_of(epoch))], txns={"e": epoch})
    return tables, table


def commit_file(table, version):
    return Path(table.snapshot.root) / "_delta_log" / f"{version:020}.json"


def cut_short(path):
    path.write_bytes(path.read_bytes()[:-20])


def append_byte(path):
    path.write_bytes(path.read_bytes() + b"x")


@pytest.mark.parametrize("damage", [lambda p: p.write_bytes(b""), cut_short, append_byte])
def test_a_damaged_newest_commit_is_removed(tmp_path, damage):
    tables, table = made(tmp_path)
    damage(commit_file(table, 3))
    with pytest.raises(Corrupt):
        tables.open(NAME)
    assert repair(tables) == [NAME]
    assert repair(tables) == []
    snapshot = tables.open(NAME).snapshot
    assert (snapshot.version, snapshot.txns) == (2, {"e": 1})
    assert tables.read(snapshot).num_rows == 2 * ROWS


@pytest.mark.parametrize("damage", [Path.unlink, cut_short, append_byte])
def test_a_newest_commit_without_its_whole_file_is_removed(tmp_path, damage):
    tables, table = made(tmp_path)
    damage(Path(table.snapshot.root) / table.snapshot.files[-1].path)
    with pytest.raises(Corrupt):
        tables.read(table.snapshot)
    assert repair(tables) == [NAME]
    assert tables.open(NAME).snapshot.version == 2


@pytest.mark.parametrize("checkpointed", [False, True])
def test_damage_under_a_later_commit_is_corrupt(tmp_path, checkpointed):
    tables, table = made(tmp_path)
    if checkpointed:
        table.checkpoint(0)
        for epoch in range(3, 6):
            table.commit([tables.stage(NAME, rows_of(epoch))])
    cut_short(commit_file(table, table.snapshot.version - 1))
    with pytest.raises(Corrupt):
        repair(tables)


def test_a_missing_commit_is_corrupt(tmp_path):
    tables, table = made(tmp_path)
    commit_file(table, 2).unlink()
    with pytest.raises(Corrupt):
        repair(tables)


def test_a_file_damaged_under_a_later_commit_is_corrupt(tmp_path):
    tables, table = made(tmp_path)
    append_byte(Path(table.snapshot.root) / table.snapshot.files[0].path)
    with pytest.raises(Corrupt):
        repair(tables)


@pytest.mark.parametrize("damage", [lambda p: p.write_bytes(b""), cut_short])
@pytest.mark.parametrize("earlier", [False, True])
def test_a_damaged_checkpoint_is_removed_while_its_commits_are_kept(tmp_path, damage, earlier):
    tables, table = made(tmp_path)
    if earlier:
        table.checkpoint(0)
        table.commit([tables.stage(NAME, rows_of(3))])
    table.checkpoint(3600)
    version = table.snapshot.version
    damage(commit_file(table, version).with_suffix(".checkpoint.parquet"))
    with pytest.raises(Corrupt):
        tables.open(NAME)
    assert repair(tables) == []
    assert tables.open(NAME).snapshot == table.snapshot
    assert DeltaTable(table.snapshot.root).version() == version
    table.checkpoint(0)
    assert tables.open(NAME).snapshot == table.snapshot


def test_a_checkpoint_that_differs_from_its_commits_is_removed(tmp_path):
    tables, table = made(tmp_path)
    _, of_other = made(tmp_path / "other", epochs=3)
    table.checkpoint(3600)
    of_other.checkpoint(3600)
    name = f"{3:020}.checkpoint.parquet"
    wrong = Path(of_other.snapshot.root) / "_delta_log" / name
    (Path(table.snapshot.root) / "_delta_log" / name).write_bytes(wrong.read_bytes())
    repair(tables)
    assert tables.open(NAME).snapshot == table.snapshot


def test_a_damaged_checkpoint_without_its_commits_is_corrupt(tmp_path):
    tables, table = made(tmp_path)
    table.checkpoint(0)
    cut_short(commit_file(table, 3).with_suffix(".checkpoint.parquet"))
    with pytest.raises(Corrupt):
        repair(tables)


def test_a_cut_off_pointer_to_the_checkpoint_is_written_again(tmp_path):
    tables, table = made(tmp_path)
    table.checkpoint(0)
    pointer = Path(table.snapshot.root) / "_delta_log" / "_last_checkpoint"
    for damage in (lambda: pointer.write_bytes(b""), pointer.unlink):
        damage()
        assert tables.names() == [NAME]
        with pytest.raises(Fenced):
            tables.create(NAME, SCHEMA)
        assert repair(tables) == []
        assert tables.open(NAME).snapshot == table.snapshot
        assert DeltaTable(table.snapshot.root).version() == 3


def test_a_flipped_bit_anywhere_in_a_data_file_is_found(tmp_path):
    tables, table = made(tmp_path, epochs=1)
    snapshot = table.snapshot
    path = Path(snapshot.root) / snapshot.files[0].path
    whole, expected = path.read_bytes(), tables.read(snapshot)
    served = []
    for at, bit in itertools.product(range(len(whole)), (0, 7)):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ (1 << bit)]) + whole[at + 1 :])
        try:
            found = tables.read(snapshot)
        except Corrupt:
            continue
        if found != expected:
            served.append((at, bit))
    assert served == []


@pytest.mark.parametrize("point", ["stage.1", "delta.1"])
def test_a_full_disk_leaves_nothing_and_can_be_tried_again(tmp_path, monkeypatch, point):
    tables, table = made(tmp_path)
    before = set(tmp_path.rglob("*"))
    monkeypatch.setenv("HEADRACE_FAILPOINT", f"{point}:1=full")
    monkeypatch.setattr("headrace.model.failpoint._seen", {})
    with pytest.raises(Unavailable):
        table.commit([tables.stage(NAME, rows_of(3))])
    data_files = set(tmp_path.rglob("*")) - before
    assert len(data_files) == (1 if point == "delta.1" else 0), "a staged file may stay, as orphan"
    snapshot = table.commit([tables.stage(NAME, rows_of(3))])
    assert tables.read(snapshot).num_rows == 4 * ROWS


def test_a_failed_sync_after_the_link_stops_the_owner(tmp_path, monkeypatch):
    tables, table = made(tmp_path)
    file = tables.stage(NAME, rows_of(3))
    failing = []

    def fail_for_folders(descriptor):
        failing.append(descriptor)
        if len(failing) > 1:
            raise OSError(5, "Input/output error")

    monkeypatch.setattr(tables.storage, "_fsync", fail_for_folders)
    with pytest.raises(Corrupt):
        table.commit([file])


def test_the_sweep_reaches_compaction_and_checkpoint():
    assert len(POINTS) >= 9
    assert 2 * max(COMPACT_EVERY, CHECKPOINT_EVERY) < EPOCHS
