"""Who owns a pipeline: several processes that want to, with time moved by hand, on real logs."""

from __future__ import annotations

import threading

import pytest

from headrace.control.leases import RENEWALS
from headrace.log.embedded import EmbeddedLog
from headrace.log.kafka import Kafka, KafkaLog
from headrace.model.batch import Batch
from headrace.model.clock import ManualClock, SystemClock
from headrace.model.errors import Corrupt, Fenced, Unavailable
from headrace.process.standing import LENGTH_S, LOOK_S, Standing


class SteppedClock(ManualClock):
    """A clock whose waits end when the test has moved it far enough."""

    def wait(self, event, timeout_s):
        until_s = self.monotonic_s() + timeout_s
        while not event.is_set() and self.monotonic_s() < until_s:
            event.wait(0.001)
        return event.is_set()


class Faulty:
    """A log of which the next calls can be told to fail, or to let others go first."""

    def __init__(self, log):
        self.log = log
        self.before_get = []
        self.before_put = []

    def get(self, key):
        _next(self.before_get)
        return self.log.get(key)

    def put_if(self, key, revision, value):
        _next(self.before_put)
        return self.log.put_if(key, revision, value)


def _next(acts):
    if acts and (act := acts.pop(0)) is not None:
        act()


def fails(error):
    def act():
        raise error

    return act


@pytest.fixture
def log(tmp_path):
    made = EmbeddedLog(tmp_path, ManualClock())
    yield made
    made.close()


@pytest.fixture(params=["embedded", "kafka"])
def any_log(request, tmp_path):
    if request.param == "embedded":
        made = EmbeddedLog(tmp_path, SystemClock())
    else:
        cluster = request.getfixturevalue("kafka")
        made = KafkaLog(Kafka(cluster.bootstrap, prefix=f"{tmp_path.name}."), SystemClock())
    yield made
    made.close()


def standing(log, owner, clock=None):
    return Standing(log, clock or ManualClock(), "p", owner)


def never():
    return threading.Event()


def stopped():
    event = threading.Event()
    event.set()
    return event


def looks(place, times=1):
    """Stand by for so many looks; return whether it was our turn."""
    left = iter(range(times - 1))
    return place.wait_for_turn(never(), lambda: next(left, None) is None)


def test_one_owns_and_the_others_stand_by(any_log):
    first, second = standing(any_log, "a"), standing(any_log, "b")
    assert looks(first)
    first.check()
    assert not looks(second)
    assert not second.is_owner
    assert second.waiting_for == "a owns the pipeline"
    with pytest.raises(Fenced) as caught:
        second.check()
    assert caught.value.code == "turn_over"


def test_who_is_gone_is_waited_for_no_longer_than_its_lease(any_log):
    clock = ManualClock()
    assert looks(standing(any_log, "a"))
    assert standing(any_log, "b", clock).wait_for_turn(never())
    assert LENGTH_S <= clock.monotonic_s() <= LENGTH_S + LOOK_S


def test_who_gives_its_turn_back_is_not_waited_for(any_log):
    clock = ManualClock()
    first, second = standing(any_log, "a", SteppedClock()), standing(any_log, "b", clock)
    assert looks(first)
    with first.turn():
        assert not looks(second)
    assert not first.is_owner
    before_s = clock.monotonic_s()
    assert looks(second)
    assert clock.monotonic_s() == before_s


def test_who_comes_back_under_its_own_id_goes_on_at_once(any_log):
    assert looks(standing(any_log, "a"))
    assert looks(standing(any_log, "a"))


def test_a_turn_is_kept_up_for_as_long_as_it_lasts(log):
    clock, watcher = SteppedClock(), ManualClock()
    first, second = standing(log, "a", clock), standing(log, "b", watcher)
    assert looks(first)
    with first.turn():
        for _ in range(3 * RENEWALS):
            revision = log.get("owner/p/lease").revision
            while log.get("owner/p/lease").revision == revision:
                clock.advance(LOOK_S)
                threading.Event().wait(0.01)
            first.check()
            assert not looks(second)
            watcher.advance(LENGTH_S - LOOK_S)


def test_a_turn_that_could_not_be_kept_up_is_over(log):
    faulty, clock = Faulty(log), SteppedClock()
    first, second = standing(faulty, "a", clock), standing(log, "b")
    assert looks(first)
    faulty.before_put = [fails(Unavailable("not now"))] * 100
    with first.turn():
        clock.advance(LENGTH_S - 0.1)
        first.check()
        clock.advance(0.1)
        with pytest.raises(Fenced):
            first.check()
    assert second.wait_for_turn(never())


def test_a_turn_that_is_kept_up_late_goes_on_if_nobody_took_it(log):
    clock = ManualClock()
    first, second = standing(log, "a", clock), standing(log, "b")
    assert looks(first)
    expected = first.expect()
    clock.advance(10 * LENGTH_S)
    assert not first.is_owner
    first.check()
    assert first.is_owner
    assert first.expect() == expected
    assert not looks(second)
    clock.advance(10 * LENGTH_S)
    assert second.wait_for_turn(never())
    with pytest.raises(Fenced):
        first.check()


def test_what_makes_renewals_impossible_is_told(log):
    faulty, clock = Faulty(log), SteppedClock()
    first = standing(faulty, "a", clock)
    assert looks(first)
    faulty.before_put = [fails(Corrupt("the state cannot be read"))]
    with first.turn():
        clock.advance(LENGTH_S / 2)
        while faulty.before_put:
            threading.Event().wait(0.001)
    with pytest.raises(Corrupt):
        first.check()


def test_a_standby_ends_when_it_is_told_to(log):
    assert looks(standing(log, "a"))
    clock = ManualClock()
    second = standing(log, "b", clock)
    assert not second.wait_for_turn(stopped())
    assert not looks(second)
    assert clock.monotonic_s() == 0


def test_whether_it_is_over_is_not_asked_while_nobody_else_owns(log):
    assert standing(log, "a").wait_for_turn(never(), fails(AssertionError("asked")))


def test_a_log_that_does_not_answer_is_asked_again(log):
    faulty, clock = Faulty(log), ManualClock()
    told = []

    def nobody_answers():
        told.append(first.waiting_for)
        raise Unavailable("no broker answers")

    first = standing(faulty, "a", clock)
    faulty.before_get = [nobody_answers] * 3
    faulty.before_put = [fails(Unavailable("who knows", code="outcome_unknown"))]
    assert first.wait_for_turn(never())
    assert told == ["", "no broker answers", "no broker answers"]
    assert clock.monotonic_s() == 4 * LOOK_S


def test_of_two_who_take_a_free_turn_at_a_time_one_has_it(log):
    faulty = Faulty(log)
    first, second = standing(faulty, "a"), standing(log, "b")
    faulty.before_put = [lambda: looks(second)]
    assert not looks(first)
    assert second.is_owner
    assert not first.is_owner


def test_who_stalls_while_it_begins_its_turn_does_not_begin_it(log):
    faulty = Faulty(log)
    first, second = standing(faulty, "a"), standing(log, "b")
    # It has the lease, and is stopped before it writes the turn's key.
    faulty.before_put = [None, lambda: second.wait_for_turn(never())]
    assert not looks(first)
    assert second.is_owner
    second_expects = second.expect()
    assert log.get("owner/p/turn").value == b"b"
    assert {"owner/p/turn": log.get("owner/p/turn").revision} == second_expects


def test_an_owner_whose_turn_is_over_appends_nothing_more(any_log):
    any_log.create("told", 1)
    first, second = standing(any_log, "a"), standing(any_log, "b")
    assert looks(first)
    any_log.append("told", record(b"1"), expect=first.expect())
    assert second.wait_for_turn(never())
    any_log.append("told", record(b"2"), expect=second.expect())
    with pytest.raises(Fenced):
        any_log.append("told", record(b"3"), expect=first.expect())
    any_log.append("told", record(b"4"), expect=second.expect())
    (end,) = any_log.ends("told")
    read = any_log.read("told", 0, 0, end)
    assert [v for batch in read for v in batch.column("value").to_pylist()] == [b"1", b"2", b"4"]


def test_pipelines_of_one_log_have_owners_of_their_own(log):
    clock = ManualClock()
    assert looks(standing(log, "a", clock))
    assert looks(Standing(log, clock, "q", "b"))


def record(value):
    batch = Batch()
    clock = ManualClock()
    batch.add(value, received_at=clock.now_us(), id=clock.new_id())
    return batch
