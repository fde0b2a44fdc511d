from __future__ import annotations

import json
import threading
from functools import partial

import pytest

from headrace.app.registry import open_source
from headrace.control.leases import LEASE_S
from headrace.model.batch import UNMARKED, Batch, is_client_chosen
from headrace.model.clock import ManualClock
from headrace.model.errors import Corrupt, Fenced, Internal, Invalid, Unavailable
from headrace.model.ids import client_id
from headrace.model.log import Appended, StateEntry
from headrace.model.plan import Plan, Source, Topic
from headrace.model.schema import Field, Schema, Type
from headrace.model.source import Page, PulledRecord
from headrace.pull.puller import Puller
from headrace.pull.records import Door
from headrace.pull.run import run_pull
from headrace.pull.state import read_state, state_key
from headrace.sources.http import Network

opened = partial(open_source, network=Network(ManualClock()))

TOPIC = Topic("t", 1, Schema("T", (Field("n", "n", Type("integer")),)))


class MemoryLog:
    """Keeps what is appended; `faults` are raised, one an append, before or after it happens."""

    def __init__(self):
        self.records = Batch()
        self.state = {}
        self.faults = []
        self.lock = threading.Lock()
        self.revision = 0

    def append(self, topic, records, state=None, expect=None):
        fault = self.faults.pop(0) if self.faults else None
        if fault and fault[0] == "before":
            raise fault[1]
        with self.lock:
            for key, revision in (expect or {}).items():
                if (self.state[key].revision if key in self.state else 0) != revision:
                    raise Fenced("another revision")
            base = len(self.records)
            self.records.extend(records)
            for key, value in (state or {}).items():
                self.revision += 3
                self.state[key] = StateEntry(key, value, self.revision)
        if fault:
            raise fault[1]
        return [Appended(topic, 0, base, range(len(records)))] if len(records) else []

    def get(self, key):
        return self.state.get(key)

    def scan(self, prefix):
        return [e for k, e in sorted(self.state.copy().items()) if k.startswith(prefix)]

    def put_if(self, key, revision, value):
        with self.lock:
            if (self.state[key].revision if key in self.state else 0) != revision:
                raise Fenced("another revision")
            self.revision += 1
            if value is None:
                del self.state[key]
                return None
            self.state[key] = StateEntry(key, value, self.revision)
            return self.state[key]


class Script:
    """A source of ten pages of three records; `faults` are raised, one an opening."""

    def __init__(self, faults=()):
        self.faults = list(faults)
        self.opened = []

    def open(self, cursor):
        at = json.loads(cursor)["page"] if cursor else 0
        self.opened.append(at)
        fault = self.faults.pop(0) if self.faults else None
        for page in range(at, 10):
            if fault and page == fault[0]:
                raise fault[1]
            records = [PulledRecord(b'{"n":%d}' % (3 * page + i)) for i in range(3)]
            yield Page(records, b'{"page":%d}' % (page + 1), progress=(3 * page + 3, 30))
        yield Page((), b'{"page":10}', done=True, progress=(30, 30))

    def close(self):
        pass


def pull(log, *sources, clock=None, stop=None, report=lambda _: None, **more):
    plan = Plan(
        "p",
        topics=(TOPIC,),
        sources=tuple(Source(f"s{i}", "script", "t", {}) for i in range(len(sources))),
    )
    made = dict(zip([s.name for s in plan.sources], sources, strict=True))
    return run_pull(
        plan,
        log,
        clock or ManualClock(),
        stop or threading.Event(),
        lambda declared, _: made[declared.name],
        report,
        **more,
    )


def pull_one(log, source, report=lambda _: None, clock=None):
    """Run a source's thread here, without a manager; return what became of it."""
    declared, clock = Source("s0", "script", "t", {}), clock or ManualClock()
    door = Door(declared, TOPIC, clock)
    puller = Puller(declared, source, door, log, threading.Lock())
    puller.run(clock, threading.Event(), report)
    return puller


def numbers(log):
    return [json.loads(v)["n"] for v in log.records.values]


def test_everything_comes_once_and_in_order():
    log = MemoryLog()
    (report,) = pull(log, Script())
    assert numbers(log) == list(range(30))
    assert (report.records, report.pages, report.done) == (30, 10, True)
    state = read_state(log.get(state_key("s0")))
    assert (bytes(state.cursor), state.records, state.done) == (b'{"page":10}', 30, True)


def test_a_second_run_adds_nothing():
    log = MemoryLog()
    pull(log, Script())
    before = dict(log.state)
    source = Script()
    (report,) = pull(log, source)
    assert len(log.records) == 30
    assert source.opened == [10]
    assert log.state == before
    assert (report.records, report.done) == (30, True)


@pytest.mark.parametrize("page", range(10))
def test_a_crash_at_any_page_skips_and_repeats_nothing(page):
    log = MemoryLog()
    crash = Script(faults=[(page, KeyboardInterrupt())])
    with pytest.raises(KeyboardInterrupt):
        pull(log, crash)
    assert numbers(log) == list(range(3 * page))
    pull(log, Script())
    assert numbers(log) == list(range(30))


def test_an_unavailable_service_is_opened_again_at_the_last_durable_page():
    log, clock = MemoryLog(), ManualClock()
    wait = Unavailable("slow down", retry_after_s=30.0)
    source = Script(faults=[(3, wait), (3, wait), (7, wait)])
    waits, pauses_s, etas = [], [], []

    def tell(report):
        waits.append(report.waiting_for)
        if report.goes_on_at_us is not None:
            pauses_s.append((report.goes_on_at_us - clock.now_us()) / 1_000_000)
        if report.goes_on_at_us is not None and report.records_per_s:
            rest_s = report.remaining / report.records_per_s
            etas.append((report.eta_s, pytest.approx(rest_s + pauses_s[-1])))

    pull_one(log, source, tell, clock)
    assert numbers(log) == list(range(30))
    assert source.opened == [0, 3, 3, 7]
    assert waits.count("slow down") == len(pauses_s) == 3
    assert all(30.0 <= pause_s <= 45.0 for pause_s in pauses_s)
    assert etas
    assert all(told == expected for told, expected in etas)
    assert waits[-1] == ""
    assert 90.0 <= clock.monotonic_s() <= 135.0


def test_pauses_grow_while_nothing_comes():
    clock = ManualClock()
    soon = Unavailable("down", retry_after_s=0.0)
    pull(MemoryLog(), Script(faults=[(0, soon)] * 10), clock=clock)
    # 0.5 s doubled nine times, each at most 60 s and up to half longer.
    assert 0.5 + 1 + 2 + 4 + 8 + 16 + 32 + 3 * 60 <= clock.monotonic_s() <= 1.5 * 243.5


def test_an_unavailable_log_is_tried_again():
    log = MemoryLog()
    log.faults = [None, ("before", Unavailable("no room")), None, ("before", Unavailable("again"))]
    pull(log, Script())
    assert numbers(log) == list(range(30))


def test_an_append_whose_answer_was_lost_is_not_repeated():
    log = MemoryLog()
    log.faults = [None, ("after", Unavailable("door gone")), ("after", Fenced("sent twice"))]
    pull(log, Script())
    assert numbers(log) == list(range(30))


def test_a_second_owner_is_fenced():
    log = MemoryLog()

    def meddle(report):
        if report.pages == 4:
            other = log.state[state_key("s0")]
            log.state[state_key("s0")] = StateEntry(other.key, b'{"pages":9}', other.revision + 3)

    puller = pull_one(log, Script(), meddle)
    assert isinstance(puller.failure, Fenced)
    assert "pulled by another process" in puller.failure.message
    assert len(log.records) == 12


def test_a_fenced_source_leaves_the_others_alone_and_comes_back_later():
    log, clock = MemoryLog(), ManualClock()
    log.faults = [("before", Fenced("taken"))]
    seen = []

    def tell(progress):
        seen.append([p.state for p in progress])
        if set(seen[-1]) == {"done", "leased elsewhere"}:
            clock.advance(LEASE_S / 4)

    assert [p.state for p in pull(log, Script(), Script(), clock=clock, report=tell)] == [
        "done"
    ] * 2
    assert any(set(states) == {"done", "leased elsewhere"} for states in seen)
    assert clock.monotonic_s() == LEASE_S
    assert len(log.records) == 60


class Endless:
    """A source that follows something until it is closed."""

    def __init__(self):
        self.closed = threading.Event()

    def open(self, cursor):
        while not self.closed.wait(0.01):
            yield Page([PulledRecord(b'{"n":0}')], b"1", progress=(1, None))

    def close(self):
        self.closed.set()


def test_a_source_that_cannot_go_on_says_why_and_the_others_end():
    log = MemoryLog()
    bad = Script(faults=[(2, Invalid("no such file", hint="look at path"))])
    first, second = pull(log, bad, Script())
    assert (first.error, first.hint, first.done) == ("no such file", "look at path", False)
    assert (second.error, second.records, second.done) == ("", 30, True)
    assert first.records == 6


@pytest.mark.parametrize("bug", [Internal("broken promise"), KeyError("x")])
def test_a_bug_is_told_and_raised_when_the_others_have_ended(bug):
    log, told = MemoryLog(), []
    with pytest.raises(type(bug)):
        pull(log, Script(faults=[(1, bug)]), Script(), report=told.append)
    first, second = told[-1]
    assert (first.state, first.records, type(bug).__name__ in first.error) == ("failed", 3, True)
    assert (second.state, second.records) == ("done", 30)


def test_a_damaged_log_stops_all():
    with pytest.raises(Corrupt):
        pull(MemoryLog(), Script(faults=[(1, Corrupt("bits"))]), Endless())


def test_stop_ends_sources_that_follow():
    log, stop = MemoryLog(), threading.Event()

    def enough(progress):
        if progress[0].pages >= 5:
            stop.set()

    (report,) = pull(log, Endless(), stop=stop, report=enough)
    assert not report.done
    assert report.error == ""
    assert len(log.records) >= 5
    assert not [k for k in log.state if k.endswith("lease")]


def test_records_are_judged_named_and_keyed_at_the_door():
    class Some:
        def open(self, _):
            yield Page(
                [
                    PulledRecord(b'{"n":1}', id="a"),
                    PulledRecord(b'{"n":"x","i":5}', key=b"k"),
                    PulledRecord(b'{"n":2,"i":6,"k":"z"}'),
                    PulledRecord(b"nonsense"),
                ],
                b"1",
                done=True,
            )

        def close(self):
            pass

    log = MemoryLog()
    topic = Topic("t", 1, TOPIC.schema, id_field="i", key_field="k")
    plan = Plan("p", topics=(topic,), sources=(Source("s", "some", "t", {}),))
    run_pull(plan, log, ManualClock(), threading.Event(), lambda *_: Some())
    batch = log.records
    assert batch.marks == [TOPIC.schema.fingerprint, UNMARKED, TOPIC.schema.fingerprint, UNMARKED]
    assert batch.keys == [None, b"k", b"z", None]
    scope = "source/some/s"
    assert batch.ids[:3] == [client_id(scope, "t", name) for name in ("a", "5", "6")]
    assert not is_client_chosen(batch.ids[3])
    assert set(batch.received_at) == {ManualClock().now_us()}


def test_a_replay_goes_into_the_log(tmp_path):
    path = tmp_path / "r.ndjson"
    path.write_text("".join(f'{{"n":{n}}}\n' for n in range(100)))
    plan = Plan("p", topics=(TOPIC,), sources=(Source("r", "replay", "t", {"path": str(path)}),))
    log = MemoryLog()
    (report,) = run_pull(plan, log, ManualClock(), threading.Event(), opened)
    assert numbers(log) == list(range(100))
    assert report.records_in_all == 100


def test_wrong_options_are_told_and_the_others_go_on(tmp_path):
    path = tmp_path / "r.ndjson"
    path.write_text('{"n":1}\n')
    sources = (
        Source("bad", "replay", "t", {"pth": "x"}),
        Source("good", "replay", "t", {"path": str(path)}),
    )
    log = MemoryLog()
    bad, good = run_pull(
        Plan("p", topics=(TOPIC,), sources=sources),
        log,
        ManualClock(),
        threading.Event(),
        opened,
    )
    assert (bad.state, 'source "bad"' in bad.error) == ("failed", True)
    assert (good.state, good.records) == ("done", 1)


def test_an_unknown_kind_is_told_with_a_suggestion():
    with pytest.raises(Invalid, match="no source of kind") as refused:
        opened(Source("s", "repaly", "t", {}), ManualClock())
    assert refused.value.hint == "did you mean replay?"
