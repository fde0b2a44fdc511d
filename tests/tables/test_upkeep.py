"""Compaction and retention: what they choose, and that rows stay what they are."""

from __future__ import annotations

import threading

import pyarrow as pa
import pytest

from headrace.model.clock import ManualClock
from headrace.model.errors import Corrupt
from headrace.model.tables import DataFile, Snapshot
from headrace.tables.compact import compact, plan_compaction
from headrace.tables.delta import DeltaTables
from headrace.tables.expire import expire_rows

NAME = "tables/events"
TXN = "test/events#files"
UTC = pa.timestamp("us", tz="UTC")
SCHEMA = pa.schema([("n", pa.int64()), ("received_at", UTC)])


def rows(start, end):
    times = pa.array([n * 1000 for n in range(start, end)], UTC)
    return pa.table({"n": list(range(start, end)), "received_at": times}, schema=SCHEMA)


def snapshot_of(*files):
    return Snapshot("t", "/t", "id", 0, tuple(files), {}, SCHEMA, {})


def files_of(*sizes, **tags):
    return [DataFile(f"part-{i}-{s}", 1, s, tags=tags) for i, s in enumerate(sizes)]


@pytest.fixture
def tables(tmp_path):
    return DeltaTables(tmp_path, ManualClock())


@pytest.fixture
def table(tables):
    made = tables.create(NAME, SCHEMA)
    for n in range(0, 50, 5):
        made.commit([tables.stage(NAME, rows(n, n + 5))])
    return made


def numbers(tables, snapshot):
    return tables.read(snapshot).column("n").to_pylist()


# --- the plan


def test_few_or_big_files_are_left_alone():
    assert plan_compaction(snapshot_of(*files_of(*[2000] * 11))) == []
    assert plan_compaction(snapshot_of(*files_of(*[100 << 20] * 500)), target_bytes=128 << 20) == []


def test_files_of_a_size_are_merged_in_their_order():
    small, big = files_of(*[2000] * 20), files_of(*[20 << 20] * 3)
    assert plan_compaction(snapshot_of(*small[:10], *big, *small[10:])) == [small]


def test_groups_stay_under_the_target():
    groups = plan_compaction(snapshot_of(*files_of(*[3 << 20] * 40)), target_bytes=32 << 20)
    assert [len(g) for g in groups] == [10, 10, 10, 10]
    assert all(sum(f.size_bytes for f in g) <= 32 << 20 for g in groups)


def test_files_with_different_tags_are_not_merged():
    one, other = files_of(*[2000] * 15, part="a"), files_of(*[2000] * 15, part="b")
    mixed = [f for pair in zip(one, other, strict=True) for f in pair]
    assert plan_compaction(snapshot_of(*mixed)) == [one, other]


def test_files_stay_few_and_rows_are_rewritten_few_times():
    commits, size_bytes = 20_000, 4000
    live, most, rewritten = [], 0, 0
    for n in range(commits):
        live.append(DataFile(f"f{n}", 1, size_bytes))
        if n % 100:
            continue
        for _ in range(10):
            groups = plan_compaction(snapshot_of(*live))
            for number, group in enumerate(groups):
                total = sum(f.size_bytes for f in group)
                rewritten += total
                live = [f for f in live if f not in group]
                live.append(DataFile(f"c{n}-{number}-{total}", len(group), total))
            if not groups:
                break
        most = max(most, len(live))
    assert most <= 100
    # 4 kB to 80 MB in tiers of 12: each byte moves once a tier.
    assert rewritten <= 5 * commits * size_bytes


# --- compaction


def test_rows_and_their_order_stay(tables, table):
    group = table.snapshot.files[2:6]
    snapshot = compact(tables, table, group, txn=TXN)
    assert snapshot == table.snapshot == tables.snapshot(NAME)
    assert len(snapshot.files) == 7
    assert snapshot.txns == {TXN: 1}
    assert numbers(tables, snapshot) == [*range(10), *range(30, 50), *range(10, 30)]
    (added,) = table.added_since(snapshot.version - 1)
    assert (added.files, added.removed_rows) == ((), False)


def test_it_reads_older_files_in_the_schema_of_now(tables, table):
    wider = SCHEMA.append(pa.field("more", pa.string()))
    table.commit(schema=wider)
    snapshot = compact(tables, table, table.snapshot.files, txn=TXN)
    assert tables.read(snapshot).schema == wider
    assert numbers(tables, snapshot) == list(range(50))


def test_an_epoch_beside_it_is_no_reason_to_discard_it(tables, table):
    group = table.snapshot.files
    lock = CommitsWhenEntered(2, lambda: table.commit([tables.stage(NAME, rows(50, 60))]))
    assert compact(tables, table, group, txn=TXN, lock=lock) is not None
    assert sorted(numbers(tables, table.snapshot)) == list(range(60))


def test_it_is_discarded_when_files_were_removed_beside_it(tables, table):
    group = table.snapshot.files
    lock = CommitsWhenEntered(2, lambda: compact(tables, table, group[:3], txn=TXN))
    assert compact(tables, table, group[5:], txn=TXN, lock=lock) is None
    assert table.snapshot.txns == {TXN: 1}
    assert sorted(numbers(tables, table.snapshot)) == list(range(50))


class CommitsWhenEntered:
    """A lock before which, the nth time, something else happens."""

    def __init__(self, nth, act):
        self.left, self.act, self.lock = nth, act, threading.Lock()

    def __enter__(self):
        self.left -= 1
        if self.left == 0:
            self.act()
        self.lock.acquire()

    def __exit__(self, *_):
        self.lock.release()


def test_damage_stops_it(tables, table, tmp_path):
    broken = tmp_path / NAME / table.snapshot.files[1].path
    broken.write_bytes(broken.read_bytes()[::-1])
    before = table.snapshot
    with pytest.raises(Corrupt):
        compact(tables, table, before.files, txn=TXN)
    assert table.refresh() == before


# --- retention


def test_rows_before_the_cut_leave(tables, table):
    before = table.snapshot
    add, remove, gone = expire_rows(tables, table, "received_at", 12_000)
    assert table.refresh() == before, "only staged"
    assert (gone, len(add), remove) == (12, 1, list(before.files[:3]))
    after = table.commit(add, remove)
    assert sorted(numbers(tables, after)) == list(range(12, 50))
    assert expire_rows(tables, table, "received_at", 12_000) == ([], [], 0)


def test_statistics_are_no_substitute_for_the_rows(tables, table):
    # Bounds are rounded to milliseconds, so a cut inside one must look at the rows.
    _, _, gone = expire_rows(tables, table, "received_at", 12_001)
    assert gone == 13


def test_rows_without_a_time_and_files_without_statistics(tables):
    table = tables.create("tables/nulls", SCHEMA)
    times = pa.array([0, None, 10_000], UTC)
    file = tables.stage("tables/nulls", pa.table({"n": [0, 1, 2], "received_at": times}))
    silent = DataFile(file.path, file.rows, file.size_bytes, tags={"part": "x"})
    silent = table.commit([silent]).files[0]
    assert (silent.rows, silent.stats) == (3, '{"numRecords":3}')
    add, remove, gone = expire_rows(tables, table, "received_at", 5_000)
    assert (gone, remove, add[0].tags) == (1, [silent], {"part": "x"})
    assert numbers(tables, table.commit(add, remove)) == [1, 2]


def test_a_whole_table_can_expire(tables, table):
    add, remove, gone = expire_rows(tables, table, "received_at", 10**9)
    assert (add, len(remove), gone) == ([], 10, 50)
    assert numbers(tables, table.commit(add, remove)) == []
