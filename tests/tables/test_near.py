"""Copies of far tables for queries: what is brought, when it goes, and who shares the place."""

from __future__ import annotations

from pathlib import Path

import pytest
from table_writer import NAME, ROWS, SCHEMA, rows_of

from headrace.app.site import open_site
from headrace.model.clock import ManualClock, SystemClock
from headrace.model.errors import Corrupt, Unavailable
from headrace.model.layout import Layout
from headrace.tables.delta import DeltaTables
from headrace.tables.near import ASK_AGAIN_S, KEPT_S, NearTables


@pytest.fixture
def clock():
    return ManualClock()


@pytest.fixture
def far(tmp_path, clock):
    """Another folder plays the storage that is far away."""
    return DeltaTables(tmp_path / "far", clock)


@pytest.fixture
def near(tmp_path, far, clock):
    opened = NearTables(far, tmp_path / "near", clock)
    yield opened
    opened.close()


def copies(snapshot):
    return {p.name for p in Path(snapshot.root).glob("*.parquet")}


def made(tables, epochs=2):
    table = tables.create(NAME, SCHEMA)
    for epoch in range(epochs):
        table.commit([tables.stage(NAME, rows_of(epoch))])
    return table


def test_files_come_when_they_are_wanted(far, near):
    assert near.snapshot(NAME) is None
    table = made(far)
    snapshot = near.snapshot(NAME)
    assert (snapshot.version, snapshot.files) == (2, table.snapshot.files)
    assert near.names() == [NAME]
    assert copies(snapshot) == set()
    near.fetch(snapshot, snapshot.files[:1])
    assert copies(snapshot) == {snapshot.files[0].path}
    assert near.read(snapshot) == far.read(table.snapshot)
    assert copies(snapshot) == {f.path for f in snapshot.files}
    assert near.snapshot(NAME, 1).files == snapshot.files[:1]


def test_the_newest_version_is_seen_after_a_moment_and_is_the_same_object_until_then(
    far, near, clock
):
    table = made(far)
    first = near.snapshot(NAME)
    table.commit([far.stage(NAME, rows_of(2))])
    assert near.snapshot(NAME) is first
    clock.advance(ASK_AGAIN_S)
    second = near.snapshot(NAME)
    assert second.version == 3
    clock.advance(ASK_AGAIN_S)
    assert near.snapshot(NAME) is second


def test_a_copy_goes_a_while_after_nothing_names_it(far, near, clock):
    table = made(far)
    old = near.snapshot(NAME)
    near.fetch(old)
    table.commit([far.stage(NAME, rows_of(5))], old.files)
    clock.advance(1)
    new = near.snapshot(NAME)
    near.fetch(new)
    assert copies(new) == {f.path for f in (*old.files, *new.files)}
    clock.advance(KEPT_S + 1)
    near.fetch(new)
    assert copies(new) == {f.path for f in new.files}
    assert near.read(new).num_rows == ROWS


def test_a_file_that_was_cleaned_away_is_gone_and_the_next_snapshot_is_the_newest(far, near, clock):
    table = made(far)
    old = near.snapshot(NAME)
    table.commit([far.stage(NAME, rows_of(5))], old.files)
    clock.advance(10)
    table.clean(clock.now_us(), table.snapshot.version)
    with pytest.raises(Unavailable) as gone:
        near.fetch(old)
    assert gone.value.code == "file_gone"
    assert near.read(near.snapshot(NAME)).num_rows == ROWS


def test_a_copy_that_is_not_whole_is_never_read(far, near):
    snapshot = made(far).snapshot
    path = Path(snapshot.root) / snapshot.files[0].path
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    with pytest.raises(Corrupt):
        near.read(near.snapshot(NAME))
    path.write_bytes(whole)
    assert near.read(near.snapshot(NAME)) == far.read(snapshot)


def test_processes_share_the_place_and_remove_what_the_dead_left(tmp_path, far, near):
    made(far)
    snapshot = near.snapshot(NAME)
    near.fetch(snapshot)
    place = tmp_path / "near"
    left = place / "0190-left-by-a-dead-process"
    left.mkdir()
    (left / "lease").touch()
    other = NearTables(far, place, SystemClock())
    assert not left.exists()
    other.read(other.snapshot(NAME))
    other.close()
    assert copies(snapshot) == {f.path for f in snapshot.files}
    assert len([p for p in place.iterdir() if p.is_dir()]) == 1


def test_tables_at_home_are_read_where_they_are(tmp_path, clock):
    layout = Layout.at(tmp_path)
    made(DeltaTables(layout.root, clock))
    with open_site(layout, clock).tables_to_read() as tables:
        assert tables.snapshot(NAME).root == str(tmp_path / NAME)
    assert not layout.near.exists()
