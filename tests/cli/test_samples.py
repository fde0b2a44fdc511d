"""Samples of the roles, and the table that many nodes append them to."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections import Counter
from contextlib import ExitStack

import psutil
import pyarrow as pa
import pytest
from deltalake import DeltaTable

from headrace.app.sampler import ROWS_WAITING_MAX, Sampler
from headrace.app.samples import COMMITS_PER_TIDY, FILES_MAX, SamplesTable
from headrace.model.clock import ManualClock, SystemClock
from headrace.model.errors import Unavailable
from headrace.model.samples import SAMPLE_SCHEMA, SAMPLES
from headrace.process.gate import Gate
from headrace.tables import log_entries
from headrace.tables.delta import DeltaTables
from headrace.tables.repair import repair

DAY_S = 86_400.0
KEEP_S = 3 * DAY_S
BUSY = "while True: pass"
STARTS_ANOTHER = f"""
import subprocess, sys
other = subprocess.Popen([sys.executable, "-c", {BUSY!r}])
print(other.pid, flush=True)
other.wait()
"""


class Place:
    """A folder of tables, and rows that can be told apart by their pid."""

    def __init__(self, folder):
        self.folder = folder
        self.clock = ManualClock()
        self.tables = self.opened()

    def opened(self):
        return DeltaTables(self.folder, self.clock)

    def node(self, tables=None, **how):
        return SamplesTable(tables or self.opened(), self.clock, keep_s=KEEP_S, **how)

    def row(self, number):
        row = {"sampled_at": self.clock.now_us(), "node": "n", "role": "serve", "pid": number}
        return pa.Table.from_pylist([row], schema=SAMPLE_SCHEMA)

    def pids(self):
        """Return the pids of all rows, as another engine reads them."""
        table = DeltaTable(str(self.folder / SAMPLES)).to_pyarrow_table()
        return sorted(table.column("pid").to_pylist())

    def snapshot(self):
        return self.opened().snapshot(SAMPLES)

    def log(self):
        return sorted((self.folder / SAMPLES / "_delta_log").glob("*.json"))


@pytest.fixture
def place(tmp_path):
    return Place(tmp_path)


def test_several_nodes_append_at_once(place):
    each, failures = 40, []

    def work(node, first):
        try:
            for number in range(first, first + each):
                node.commit(node.stage(place.row(number)))
        except BaseException as error:  # noqa: BLE001 - told to the test's thread
            failures.append(error)

    threads = [
        threading.Thread(target=work, args=(place.node(is_shared=True), n * each)) for n in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert place.pids() == list(range(3 * each))


def test_a_commit_whose_answer_was_lost_is_made_once(place, monkeypatch):
    node = place.node()
    node.commit(node.stage(place.row(0)))
    staged = node.stage(place.row(1))
    storage = node._tables.storage
    put_new = storage.put_new

    def put_and_fail(*arguments, **how):
        put_new(*arguments, **how)
        raise Unavailable("no answer", hint="")

    with monkeypatch.context() as patch:
        patch.setattr(storage, "put_new", put_and_fail)
        with pytest.raises(Unavailable):
            node.commit(staged)
    node.commit(staged)
    node.commit(staged)
    assert place.pids() == [0, 1]


def test_files_and_log_stay_bounded_and_old_days_go(place):
    node, commits = place.node(), 6 * COMMITS_PER_TIDY
    for number in range(commits):
        node.commit(node.stage(place.row(number)))
        place.clock.advance(10 * DAY_S / commits)
    snapshot = place.snapshot()
    days = Counter(file.tags["day"] for file in snapshot.files)
    kept = sum(file.rows for file in snapshot.files)
    assert place.pids() == list(range(commits - kept, commits))
    assert KEEP_S / DAY_S <= len(days) <= KEEP_S / DAY_S + 4
    assert len(snapshot.files) <= COMMITS_PER_TIDY + len(days)
    # A checkpoint goes with the log before the one before it.
    assert len(place.log()) <= 2 * COMMITS_PER_TIDY
    assert len(list((place.folder / SAMPLES).glob("*.parquet"))) < commits / 2


def test_many_files_of_one_day_become_few(place):
    node = place.node()
    for number in range(4 * COMMITS_PER_TIDY):
        node.commit(node.stage(place.row(number)))
        place.clock.advance(1)
    assert place.pids() == list(range(4 * COMMITS_PER_TIDY))
    assert len(place.snapshot().files) <= FILES_MAX + COMMITS_PER_TIDY


def test_what_is_damaged_is_begun_anew_and_stops_nobody(place):
    node = place.node()
    for number in range(4):
        node.commit(node.stage(place.row(number)))
    (place.folder / log_entries.commit_path(SAMPLES, 2)).write_bytes(b"{")
    assert repair(place.opened()) == []
    again = place.node()
    again.commit(again.stage(place.row(9)))
    assert place.pids() == [9]


def test_a_torn_newest_commit_is_taken_back(place):
    node = place.node()
    for number in range(3):
        node.commit(node.stage(place.row(number)))
    place.log()[-1].write_bytes(b"")
    again = place.node()
    again.commit(again.stage(place.row(9)))
    assert place.pids() == [0, 1, 9]


def test_a_backup_keeps_commits_out(place, tmp_path):
    gate = Gate(tmp_path)
    node = place.node(turn=gate.turn)
    node.commit(node.stage(place.row(0)))
    thread = threading.Thread(target=lambda: node.commit(node.stage(place.row(1))))
    with gate.quiet():
        thread.start()
        thread.join(0.2)
        assert place.pids() == [0]
    thread.join()
    assert place.pids() == [0, 1]


class Memory:
    """Keeps samples in memory, or fails to."""

    def __init__(self):
        self.fails = False
        self.rows = []
        self.is_old = False

    def stage(self, rows):
        return rows

    def commit(self, staged):
        if self.fails:
            raise Unavailable("the disk is full", hint="")
        self.rows += staged.to_pylist()

    def is_too_old(self, staged):
        return self.is_old


@pytest.fixture
def said():
    return []


@pytest.fixture
def kept():
    return Memory()


@pytest.fixture
def sampler(tmp_path, kept, said):
    return Sampler(tmp_path, lambda: kept, SystemClock(), 2.0, said.append)


@pytest.fixture
def children():
    with ExitStack() as stack:

        def start(code):
            child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
            stack.callback(child.wait)
            stack.callback(child.kill)
            return child

        yield start


def test_a_role_is_counted_with_what_it_started(sampler, kept, children):
    busy, parent = children(BUSY), children(STARTS_ANOTHER)
    grandchild = psutil.Process(int(parent.stdout.readline()))
    try:
        pids = {"serve": busy.pid, "process": parent.pid}
        sampler.take(pids)
        while min(psutil.Process(p).cpu_times().user for p in (busy.pid, grandchild.pid)) < 0.1:
            threading.Event().wait(0.05)
        sampler.take(pids)
        sampler.keep()
    finally:
        grandchild.kill()
    newest = {row["role"]: row for row in kept.rows[-3:]}
    assert set(newest) == {"serve", "process", "supervisor"}
    assert newest["serve"]["processes"] == 1
    assert newest["process"]["processes"] == 2
    assert newest["process"]["pid"] == parent.pid
    assert newest["supervisor"]["pid"] == os.getpid()
    assert newest["serve"]["cpu_percent"] > 0
    assert newest["process"]["cpu_percent"] > 0
    for row in newest.values():
        assert 1 << 20 < row["memory_bytes"] < row["host_memory_bytes"]
        assert 0 <= row["host_cpu_percent"] <= 100
        assert row["epoch"] is None


def test_a_role_that_has_ended_has_no_row(sampler, kept, children):
    child = children("pass")
    child.wait()
    sampler.take({"serve": child.pid})
    sampler.keep()
    assert {row["role"] for row in kept.rows} == {"supervisor"}


def test_what_the_process_role_says_is_kept_while_it_is_true(tmp_path, sampler, kept):
    def say(state, epoch, at_us, epoch_s=0.5):
        (tmp_path / "process.json").write_text(
            f'{{"at_us": {at_us}, "state": "{state}", "epoch": {epoch}, "epoch_s": {epoch_s},'
            '"freshness_s": 0.7, "behind": 3, "topics": {"a": {"read": 2}, "b": {"read": 5}}}'
        )

    now_us = SystemClock().now_us()
    for state, epoch, at_us in [
        ("running", 1, now_us),
        ("running", 1, now_us),
        ("standby", 2, now_us),
        ("running", 2, now_us - 60_000_000),
    ]:
        say(state, epoch, at_us)
        sampler.take({"process": os.getpid()})
    # One that has just started found the newest epoch there: it has run none.
    say("running", 3, now_us, 0.0)
    sampler.take({"process": os.getpid()})
    sampler.keep()
    facts = [
        tuple(row[name] for name in ("epoch", "records", "behind", "epoch_s", "freshness_s"))
        for row in kept.rows
        if row["role"] == "process"
    ]
    nothing = (None,) * 5
    found = (3, 7, 3, None, None)
    assert facts == [(1, 7, 3, 0.5, 0.7), (1, 7, 3, None, None), nothing, nothing, found]


def test_what_cannot_be_kept_waits_bounded_and_is_said_once(sampler, kept, said):
    kept.fails = True
    for _ in range(3):
        sampler.take({})
        sampler._guarded(sampler.keep)
    assert len(said) == 1
    assert "the disk is full" in said[0]
    kept.fails = False
    sampler.keep()
    sampler.keep()
    assert len(kept.rows) == 3
    sampler._waiting = [{"pid": n} for n in range(2 * ROWS_WAITING_MAX)]
    sampler.take({})
    assert len(sampler._waiting) == ROWS_WAITING_MAX


def test_a_file_that_waited_too_long_is_given_up(sampler, kept):
    kept.fails = kept.is_old = True
    sampler.take({})
    with pytest.raises(Unavailable):
        sampler.keep()
    kept.fails = False
    sampler.take({})
    sampler.keep()
    assert len(kept.rows) == 1


def test_no_sample_is_taken_if_none_is_wanted(tmp_path, kept, said):
    sampler = Sampler(tmp_path, lambda: kept, SystemClock(), 0.0, said.append)
    sampler.begin(dict)
    sampler.end()
    assert kept.rows == said == []


def test_the_thread_samples_and_keeps_the_rest_at_its_end(tmp_path, kept, said):
    sampler = Sampler(tmp_path, lambda: kept, SystemClock(), 0.01, said.append)
    sampler.begin(lambda: {"serve": os.getpid()})
    while len(kept.rows) < 2:
        threading.Event().wait(0.01)
    while not sampler._waiting:
        threading.Event().wait(0.01)
    sampler.end()
    assert sampler._waiting == said == []
    assert {row["role"] for row in kept.rows} == {"serve", "supervisor"}
