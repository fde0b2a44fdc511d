"""Sources that are added, paused, resumed, removed and taken over while they are pulled."""

from __future__ import annotations

import dataclasses
import json
import threading
import time
from contextlib import closing, contextmanager

import pytest

from headrace.control import sources
from headrace.control.leases import LEASE_S
from headrace.control.sources import Request, lease_key
from headrace.log.embedded import EmbeddedLog, EmbeddedLogReader
from headrace.model.clock import ManualClock
from headrace.model.errors import Invalid, Unavailable
from headrace.model.layout import Layout
from headrace.model.options import option
from headrace.model.pipeline_options import Options
from headrace.model.plan import Plan, Source, Topic
from headrace.model.source import Page, PulledRecord
from headrace.pull.run import Holder, run_pull

DEADLINE_S = 60
TOPIC = Topic("t", 1)
OPEN = Plan("p", topics=(TOPIC,), options=Options(add_sources=True))


@dataclasses.dataclass(frozen=True)
class FeedOptions:
    """Options of the feed."""

    note: str | None = option(None, doc="Anything.", example="a note")


class Feed:
    """Numbers from 0 on, one a page, until it is closed; `fault` is raised before the first."""

    def __init__(self, name, opened, fault, last):
        self.name, self.opened, self.fault, self.last = name, opened, fault, last
        self.closed = threading.Event()
        self.rests_until_us = None

    def open(self, cursor):
        at = json.loads(cursor) if cursor else 0
        self.opened.append((self.name, at))
        if self.fault:
            raise self.fault
        while not self.closed.wait(0.005):
            is_last = self.last is not None and at >= self.last
            value = json.dumps({"s": self.name, "n": at}).encode()
            records = [] if is_last else [PulledRecord(value)]
            at += not is_last
            yield Page(records, str(at).encode(), done=is_last, progress=(at, self.last))
            if is_last:
                return
            if self.name == "follows" and at > 2:
                self.rests_until_us = 2_000_000_000_000_000
                self.closed.wait()

    def close(self):
        self.closed.set()


class End:
    """The log as one process has it; `is_cut` makes its writes of leases fail."""

    def __init__(self, owner, folder):
        self.owner = owner
        self.reader = EmbeddedLogReader(folder)
        self.is_cut = False

    def append(self, *args):
        return self.owner.append(*args)

    def get(self, key):
        return self.reader.get(key)

    def scan(self, prefix):
        return self.reader.scan(prefix)

    def put_if(self, key, revision, value):
        if self.is_cut and key.endswith("/lease"):
            raise Unavailable("cut off")
        return self.owner.put_if(key, revision, value)


class World:
    """A log, who changes sources, and processes that pull."""

    def __init__(self, root):
        self.layout = Layout.at(root)
        self.log = EmbeddedLog(self.layout.log, ManualClock())
        self.log.create("t", 1)
        self.opened = []
        self.faults = {}
        self.last = {}
        self.clock = ManualClock()

    def add(self, name, plan=OPEN):
        wanted = Request(name, "feed", "t")
        sources.add(plan, self.log, lambda _: FeedOptions, wanted, self.clock)

    def pause(self, name, plan=OPEN):
        sources.pause(plan, self.log, name, self.clock)

    def resume(self, name, plan=OPEN):
        sources.resume(plan, self.log, name, self.clock)

    def remove(self, name):
        sources.remove(OPEN, self.log, name)

    def open_source(self, declared, _):
        name = declared.name
        return Feed(name, self.opened, self.faults.get(name), self.last.get(name))

    def numbers(self, name):
        end = self.log.ends("t")[0]
        rows = [
            json.loads(r["value"]) for b in self.log.read("t", 0, 0, end) for r in b.to_pylist()
        ]
        return [r["n"] for r in rows if r["s"] == name]

    @contextmanager
    def pulling(self, owner="a", plan=OPEN, clock=None, until_idle=None):
        process = Process(self, owner, plan, clock or self.clock, until_idle or threading.Event())
        process.thread.start()
        try:
            yield process
        finally:
            process.stop.set()
            process.thread.join()


class Process:
    """One that pulls, on a thread."""

    def __init__(self, world, owner, plan, clock, until_idle):
        self.stop = threading.Event()
        self.log = End(world.log, world.layout.log)
        self.told = {}
        self.ended = None
        site = Holder(owner, world.layout)

        def run():
            with closing(self.log.reader):
                self.ended = run_pull(
                    plan, self.log, clock, self.stop, world.open_source, self._tell,
                    holder=site, until_idle=until_idle,
                )  # fmt: skip

        self.thread = threading.Thread(target=run)

    def _tell(self, progress):
        self.told = {p.name: p for p in progress}

    def state(self, name):
        told = self.told.get(name)
        return told and told.state


@pytest.fixture
def world(tmp_path):
    made = World(tmp_path)
    yield made
    made.log.close()


def until(is_so):
    deadline_s = time.monotonic() + DEADLINE_S
    while not is_so():
        assert time.monotonic() < deadline_s
        time.sleep(0.01)


def test_from_added_to_removed(world):
    with world.pulling() as process:
        world.add("s")
        until(lambda: len(world.numbers("s")) > 5)
        assert process.state("s") == "running"
        world.pause("s")
        until(lambda: process.state("s") == "paused")
        assert world.log.get(lease_key("s")) is None
        paused_at = world.numbers("s")
        world.add("other")
        until(lambda: world.numbers("other"))
        assert world.numbers("s") == paused_at
        world.resume("s")
        until(lambda: len(world.numbers("s")) > len(paused_at) + 5)
        index = world.layout.index("s")
        index.parent.mkdir()
        index.write_bytes(b"")
        index.with_name(index.name + "-wal").write_bytes(b"")
        kept = world.layout.index("other")
        kept.write_bytes(b"")
        world.remove("s")
        until(lambda: "s" not in process.told)
        until(lambda: not index.exists())
        assert [p.name for p in index.parent.iterdir()] == [kept.name]
        assert world.log.scan("source/s/") == []
        collected = world.numbers("s")
        assert collected == list(range(len(collected)))
        world.add("s")
        until(lambda: len(world.numbers("s")) > len(collected))
        assert world.numbers("s")[len(collected)] == 0
    assert [(p.name, p.state) for p in process.ended] == [("other", "stopped"), ("s", "stopped")]
    assert [e.key for e in world.log.scan("source/") if e.key.endswith("/lease")] == []
    assert world.opened[:3] == [("s", 0), ("other", 0), ("s", len(paused_at))]


def test_a_restart_goes_on_with_what_was_added_and_paused(world):
    world.add("s")
    world.add("still")
    world.pause("still")
    with world.pulling():
        until(lambda: len(world.numbers("s")) > 5)
    before = world.numbers("s")
    with world.pulling("b") as process:
        until(lambda: len(world.numbers("s")) > len(before))
        assert process.state("still") == "paused"
    numbers = world.numbers("s")
    assert numbers == list(range(len(numbers)))
    assert world.opened == [("s", 0), ("s", len(before))]


def test_what_was_removed_while_nothing_ran_leaves_no_file(world):
    world.layout.indexes.mkdir()
    for name in ("s", "gone"):
        world.layout.index(name).write_bytes(b"")
    world.add("s")
    with world.pulling():
        until(lambda: world.numbers("s"))
        assert [p.name for p in world.layout.indexes.iterdir()] == ["s.db"]


def test_a_failure_stands_until_it_is_resumed(world):
    world.faults["s"] = Invalid("gone away", hint="look there")
    with world.pulling() as process:
        world.add("s")
        world.add("other")
        until(lambda: process.state("s") == "failed")
        until(lambda: world.numbers("other"))
        assert (process.told["s"].error, process.told["s"].hint) == ("gone away", "look there")
        assert world.opened.count(("s", 0)) == 1
        world.faults.clear()
        world.resume("s")
        until(lambda: world.numbers("s"))
        assert process.told["s"].error == ""


def test_a_failure_is_tried_again_when_it_is_declared_anew(world):
    world.faults["s"] = Invalid("gone away")
    with world.pulling() as process:
        world.add("s")
        until(lambda: process.state("s") == "failed")
        world.faults.clear()
        world.remove("s")
        world.add("s")
        until(lambda: world.numbers("s"))


def test_resuming_what_runs_changes_nothing(world):
    with world.pulling():
        world.add("s")
        until(lambda: world.numbers("s"))
        world.resume("s")
        world.add("later")
        until(lambda: len(world.numbers("later")) > 3)
    assert world.opened.count(("s", 0)) == 1
    assert [n for n, _ in world.opened] == ["s", "later"]


def test_one_that_ends_cleanly_is_followed_at_once(world):
    world.add("s")
    with world.pulling("a") as first:
        until(lambda: world.numbers("s"))
        with world.pulling("b") as second:
            until(lambda: second.state("s") == "leased elsewhere")
            assert [n for n, _ in world.opened] == ["s"]
            first.stop.set()
            first.thread.join()
            until(lambda: second.state("s") == "running")
            pulled = len(world.numbers("s"))
            until(lambda: len(world.numbers("s")) > pulled)
    numbers = world.numbers("s")
    assert numbers == list(range(len(numbers)))


def test_one_that_cannot_renew_stops_before_another_takes_over(world):
    world.add("s")
    early, late = ManualClock(), ManualClock()
    with world.pulling("a", clock=early) as first, world.pulling("b", clock=late) as second:
        until(lambda: "leased elsewhere" in (first.state("s"), second.state("s")))
        holder, waiting = (first, second) if first.state("s") == "running" else (second, first)
        clocks = {id(first): early, id(second): late}
        holder.log.is_cut = True
        clocks[id(holder)].advance(LEASE_S)
        until(lambda: holder.state("s") == "leased elsewhere")
        stopped_at = len(world.numbers("s"))
        assert waiting.state("s") == "leased elsewhere"
        clocks[id(waiting)].advance(LEASE_S)
        until(lambda: len(world.numbers("s")) > stopped_at)
        assert waiting.state("s") == "running"
        holder.log.is_cut = False
    numbers = world.numbers("s")
    assert numbers == list(range(len(numbers)))


def test_an_owner_that_was_killed_comes_back_at_once(world):
    world.add("s")
    held = json.dumps({"owner": "a", "length_s": LEASE_S}).encode()
    world.log.put_if(lease_key("s"), 0, held)
    with world.pulling("b") as other, world.pulling("a"):
        until(lambda: world.numbers("s"))
        assert other.state("s") == "leased elsewhere"


def test_until_idle_waits_for_all_that_can_be_done(world):
    until_idle = threading.Event()
    world.last = {"s": 3, "own": 3}
    world.faults["bad"] = Invalid("gone away")
    for name in ("s", "bad", "still", "held"):
        world.add(name)
    world.pause("still")
    world.log.put_if(lease_key("held"), 0, b'{"owner": "x", "length_s": 10.0}')
    world.last["held"] = 2
    with world.pulling(until_idle=until_idle) as process:
        until(lambda: process.state("s") == "done" and process.state("bad") == "failed")
        until_idle.set()
        until(lambda: process.state("held") == "leased elsewhere")
        assert process.thread.is_alive()
        world.clock.advance(LEASE_S)
        process.thread.join(DEADLINE_S)
        states = {p.name: p.state for p in process.ended}
    assert states == {"s": "done", "bad": "failed", "still": "paused", "held": "done"}


def test_a_source_that_rests_until_its_next_sweep_is_idle(world):
    until_idle = threading.Event()
    until_idle.set()
    world.add("follows")
    with world.pulling(until_idle=until_idle) as process:
        process.thread.join(DEADLINE_S)
        assert not process.thread.is_alive()
    assert world.numbers("follows") == [0, 1, 2]


def test_a_source_that_rests_does_not_end_a_run(world):
    world.add("follows")
    with world.pulling() as process:
        until(lambda: process.state("follows") == "resting")
        assert process.thread.is_alive()


def test_a_run_to_which_nothing_can_be_added_ends_when_all_is_done(world):
    closed = Plan("p", topics=(TOPIC,), sources=(Source("own", "feed", "t", {}),))
    world.last["own"] = 3
    world.pause("own", closed)
    with world.pulling(plan=closed) as process:
        until(lambda: process.state("own") == "paused")
        world.resume("own", closed)
        process.thread.join(DEADLINE_S)
        assert process.state("own") == "done"
    assert world.numbers("own") == [0, 1, 2]


def test_what_was_added_does_not_run_once_the_owner_allows_it_no_more(world):
    world.add("s")
    closed = Plan("p", topics=(TOPIC,), sources=(Source("own", "feed", "t", {}),))
    with world.pulling(plan=closed) as process:
        until(lambda: world.numbers("own"))
        assert process.state("s") == "failed"
    assert world.numbers("s") == []
