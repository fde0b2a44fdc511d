"""Leases: two owners that want one, with time moved by hand."""

from __future__ import annotations

import pytest

from headrace.control.leases import LEASE_S, RENEWALS, Lease
from headrace.log.embedded import EmbeddedLog
from headrace.model.clock import ManualClock
from headrace.model.errors import Unavailable

KEY = "source/s/lease"


class Faulty:
    """A log whose next writes fail, before they happen or after."""

    def __init__(self, log):
        self.log = log
        self.faults = []

    def get(self, key):
        return self.log.get(key)

    def put_if(self, key, revision, value):
        fault = self.faults.pop(0) if self.faults else None
        if fault == "before":
            raise Unavailable("not now")
        done = self.log.put_if(key, revision, value)
        if fault == "after":
            raise Unavailable("who knows", code="outcome_unknown")
        return done


@pytest.fixture
def log(tmp_path):
    made = EmbeddedLog(tmp_path, ManualClock())
    yield Faulty(made)
    made.close()


@pytest.fixture
def clock():
    return ManualClock()


def lease(log, owner, clock):
    return Lease(log, KEY, owner, clock)


def test_one_of_two_has_it_for_as_long_as_it_renews(log, clock):
    first, second = lease(log, "a", clock), lease(log, "b", clock)
    assert first.take()
    for _ in range(20):
        clock.advance(LEASE_S / 2)
        first.renew()
        assert first.is_held
        assert not second.take()
        assert not second.is_held


def test_one_that_is_given_back_is_free_at_once(log, clock):
    first, second = lease(log, "a", clock), lease(log, "b", clock)
    assert first.take()
    first.give_back()
    assert not first.is_held
    assert log.get(KEY) is None
    assert second.take()


def test_a_stalled_owner_loses_it_and_gets_to_know(log, clock):
    first, second = lease(log, "a", clock), lease(log, "b", clock)
    assert first.take()
    assert not second.take()
    clock.advance(LEASE_S - 0.1)
    assert not second.take()
    assert first.is_held
    clock.advance(0.1)
    assert not first.is_held
    assert second.take()
    first.renew()
    assert not first.is_held
    assert not first.take()
    first.give_back()
    assert second.is_held
    assert log.get(KEY) is not None


def test_what_counts_is_how_long_the_watcher_has_watched(log, clock):
    first, late = lease(log, "a", clock), ManualClock()
    assert first.take()
    late.advance(1000 * LEASE_S)
    second = lease(log, "b", late)
    assert not second.take()
    late.set_now_us(2 * late.now_us())
    assert not second.take()
    late.advance(LEASE_S)
    assert second.take()


def test_a_holders_length_is_what_others_wait_for(log, clock):
    first, second = Lease(log, KEY, "a", clock, 5 * LEASE_S), lease(log, "b", clock)
    assert first.take()
    assert not second.take()
    clock.advance(4 * LEASE_S)
    assert first.is_held
    assert not second.take()
    clock.advance(LEASE_S)
    assert second.take()


def test_an_owner_that_comes_back_does_not_wait_for_itself(log, clock):
    assert lease(log, "a", clock).take()
    assert lease(log, "a", ManualClock()).take()


def test_it_is_renewed_no_more_often_than_it_takes(log, clock):
    first = lease(log, "a", clock)
    first.take()
    before = log.get(KEY).revision
    first.renew()
    assert log.get(KEY).revision == before
    clock.advance(LEASE_S / RENEWALS)
    first.renew()
    assert log.get(KEY).revision > before


def test_a_renewal_that_fails_is_tried_again_until_the_length_is_over(log, clock):
    first = lease(log, "a", clock)
    first.take()
    log.faults = ["before"] * 3
    for _ in range(3):
        clock.advance(LEASE_S / RENEWALS)
        first.renew()
        assert first.is_held
    first.renew()
    clock.advance(LEASE_S - 0.1)
    assert first.is_held
    log.faults = ["before"]
    first.renew()
    clock.advance(0.1)
    assert not first.is_held


def test_a_renewal_whose_answer_was_lost_is_ours(log, clock):
    first = lease(log, "a", clock)
    first.take()
    clock.advance(LEASE_S / 2)
    log.faults = ["after"]
    first.renew()
    first.renew()
    assert first.is_held
    clock.advance(LEASE_S / 2 - 0.1)
    first.renew()
    assert first.is_held
    first.give_back()
    assert log.get(KEY) is None


def test_a_lease_that_was_deleted_is_lost(log, clock):
    first = lease(log, "a", clock)
    first.take()
    log.put_if(KEY, log.get(KEY).revision, None)
    clock.advance(LEASE_S / 2)
    first.renew()
    assert not first.is_held


def test_of_two_who_take_a_free_one_at_a_time_one_has_it(log, clock):
    first, second = lease(log, "a", clock), lease(log, "b", clock)
    asked = log.get

    def meanwhile(key):
        log.get = asked
        found = asked(key)
        assert second.take()
        return found

    log.get = meanwhile
    assert not first.take()
    assert second.is_held
