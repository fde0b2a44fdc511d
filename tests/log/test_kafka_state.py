"""The state is a function of its log, also where snapshots stand for what was deleted."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.log.kafka import state
from headrace.log.kafka.state import Abort, Begin, Put, State, Verdict, first_state
from headrace.model.errors import Corrupt

KEYS = st.sampled_from(["a", "b", "c"])
ACTS = st.sampled_from(["x", "y"])
PUTS = st.builds(
    Put,
    id=st.just("id"),
    values=st.dictionaries(KEYS, st.none() | st.binary(max_size=2), min_size=1),
    expect=st.dictionaries(KEYS, st.integers(0, 8), max_size=1),
    act=st.just("") | ACTS,
)
CHANGES = st.one_of(
    PUTS, st.builds(Begin, ACTS, st.just("t"), st.just("i")), st.builds(Abort, ACTS)
)


def folded(changes):
    made = State()
    for offset, change in enumerate(changes):
        made.apply(offset, change)
    return made


def load(start, changes):
    """The state after all changes of a log that begins at an offset."""
    position, made = first_state(start, changes)
    for offset, change in changes:
        if offset >= position:
            made.apply(offset, change)
    return made


def seen(made):
    return made.entries, made.begun, made.aborted


@settings(deadline=None)
@given(changes=st.lists(CHANGES, max_size=30), data=st.data())
def test_a_snapshot_stands_for_what_was_before(changes, data, monkeypatch_parts):
    """Whatever is appended between the state's being read and the snapshot's being written."""
    as_of = data.draw(st.integers(-1, len(changes) - 1))
    between = data.draw(st.integers(as_of + 1, len(changes)))
    parts = folded(changes[: as_of + 1]).snapshot(as_of)
    log = [*changes[:between], *parts, *changes[between:]]
    offsets = list(enumerate(log))
    # Snapshots take offsets too, so what follows them has other revisions than without.
    whole = load(0, offsets)
    start = data.draw(st.integers(0, as_of + 1))
    assert seen(load(start, offsets[start:])) == seen(whole)


@pytest.fixture(scope="module")
def monkeypatch_parts():
    """Let two entries fill a part, so that snapshots have several."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(state, "PART_ENTRIES_MAX", 2)
        yield


def test_the_first_of_two_puts_wins():
    made = State()
    assert made.apply(0, Put("1", {"k": b"1"}, {"k": 0})) is Verdict.DONE
    assert made.apply(1, Put("2", {"k": b"2"}, {"k": 0})) is Verdict.FENCED
    assert made.apply(2, Put("3", {"k": b"3"}, {"k": 1})) is Verdict.DONE
    assert made.entries["k"].value == b"3"


def test_a_revision_never_comes_back():
    made = State()
    made.apply(0, Put("1", {"k": b"1"}, {}))
    made.apply(1, Put("2", {"k": None}, {}))
    assert made.revision("k") == 0
    made.apply(2, Put("3", {"k": b"1"}, {"k": 0}))
    assert made.revision("k") == 3


def test_what_settles_or_aborts_an_act_first_counts():
    made = State()
    for act in ("settled", "aborted", "fenced"):
        made.apply(0, Begin(act, "t", "i"))
    assert made.apply(1, Put("1", {"k": b"1"}, {}, "settled")) is Verdict.DONE
    made.apply(2, Abort("settled"))
    made.apply(3, Abort("aborted"))
    assert made.apply(4, Put("2", {"k": b"2"}, {}, "aborted")) is Verdict.ABORTED
    assert made.apply(5, Put("3", {"k": b"3"}, {"k": 9}, "fenced")) is Verdict.FENCED
    assert made.entries["k"].value == b"1"
    assert (made.begun, made.aborted) == ({}, {"aborted": "i", "fenced": "i"})


def test_a_snapshot_that_misses_a_part_stands_for_nothing(monkeypatch_parts):
    made = folded([Put("1", dict.fromkeys("abc", b"1"), {})])
    first, second = made.snapshot(0)
    with pytest.raises(Corrupt):
        load(1, [(1, first)])
    with pytest.raises(Corrupt):
        load(1, [])
    assert seen(load(1, [(1, first), (4, second)])) == seen(made)


def test_snapshots_of_one_offset_are_the_same_however_the_state_came_about(monkeypatch_parts):
    """Two writers' parts lie between one another, and each part may come from either."""
    changes = [Put(key, {key: b"1"}, {}) for key in "cabd"]
    one = folded(changes)
    first, second = one.snapshot(3)
    two = load(4, [(4, second), (5, first)])
    assert two.snapshot(3) == one.snapshot(3)


def test_what_nobody_of_us_wrote_is_corrupt():
    for data in (None, b"", b"{}", b'{"type":"later"}'):
        with pytest.raises(Corrupt):
            state.decode_change(data, 3)
    change = Put("1", {"k": b"\x00\xff", "gone": None}, {"k": 3}, "x")
    assert state.decode_change(state.encode(change), 0) == change
