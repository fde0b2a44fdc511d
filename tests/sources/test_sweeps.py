from __future__ import annotations

import json
import threading

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.model.clock import ManualClock, SystemClock
from headrace.model.errors import Invalid, Unavailable
from headrace.model.source import BYTES_MAX, DIGEST_BYTES, RECORDS_MAX, PulledRecord
from headrace.sources.http import Network
from headrace.sources.sweeps import (
    Part,
    SweepOptions,
    SweepSource,
    bounded,
    digest_of,
    keyset_parts,
    read_cursor,
    swept_record,
)
from headrace.testing.source_suite import GUARANTEES, SWEEP_GUARANTEES

NETWORK = Network(ManualClock())


class Shelf(SweepSource):
    """A service in memory: records under keys, given three at a time in the order of the keys."""

    def __init__(self, records, clock=None, counted=None, wanted="all", **options):
        super().__init__(
            SweepOptions(url="http://localhost", **options), clock or ManualClock(), NETWORK
        )
        self.records = records
        self.counted = counted
        self.wanted = wanted
        self.sinces = []
        self.unsound = set()
        self.fails = False

    def filter(self):
        return self.wanted

    def count(self):
        return len(self.records) if self.counted is None else self.counted, self.wanted

    def deletion(self, key):
        return msgspec.json.encode({"id": key.decode()})

    def parts(self, sweep, since_us, position):
        after = json.loads(position) if position else ""
        self.sinces.append(since_us)
        # Time passes while a service answers.
        self.clock.wait(self.closed, 1.0)
        while keys := [key for key in sorted(self.records) if key > after][:3]:
            if self.fails:
                raise Unavailable("the service is ailing")
            records = [
                swept_record(
                    msgspec.json.encode({"id": key, "v": self.records[key]}),
                    "id",
                    self.clock.now_us(),
                )
                for key in keys
            ]
            after = keys[-1]
            sound = after not in self.unsound
            yield Part(records, json.dumps(after).encode(), len(self.records), sound=sound)


def letters(n):
    return {chr(97 + i): i for i in range(n)}


def sweeps(source, n, cursor=None):
    """Return the pages of the next so many sweeps."""
    taken = [[]]
    for page in source.open(cursor):
        taken[-1].append(page)
        if page.sweep_done:
            if len(taken) == n:
                return taken
            taken.append([])
    raise AssertionError("the source ended")


def named(pages):
    return [(p[-1].sweep.number, p[0].sweep.full, p[-1].sweep.full) for p in pages]


# --- the contract


@pytest.mark.parametrize("guarantee", GUARANTEES, ids=lambda g: g.__name__)
def test_one_sweep_keeps(guarantee):
    guarantee(lambda: Shelf(letters(10), follow=False))


@pytest.mark.parametrize("guarantee", SWEEP_GUARANTEES, ids=lambda g: g.__name__)
@pytest.mark.parametrize("full_every", [0, 1, 5])
def test_following_keeps(guarantee, full_every):
    guarantee(lambda: Shelf(letters(9), full_every=full_every))


# --- which sweep is full


def test_after_so_many_sweeps_of_changes_one_is_full():
    source = Shelf(letters(4), full_every=2)
    assert [(n, full) for n, full, _ in named(sweeps(source, 5))] == [
        (1, True),
        (2, False),
        (3, False),
        (4, True),
        (5, False),
    ]


def test_changes_are_asked_for_from_before_the_start_of_the_last_sweep():
    source = Shelf(letters(4), full_every=9, overlap_s=30.0, interval_s=60.0)
    started = [pages[0].sweep.started_at_us for pages in sweeps(source, 3)]
    assert source.sinces == [None, started[0] - 30_000_000, started[1] - 30_000_000]


def test_a_full_sweep_that_gave_less_than_is_counted_is_not_full_and_made_again():
    source = Shelf(letters(4), counted=5, full_every=9)
    (first,) = sweeps(source, 1)
    assert named([first]) == [(1, True, False)]
    source.counted = 4
    assert named(sweeps(source, 2, first[-1].cursor)) == [(2, True, True), (3, False, False)]


def test_where_the_count_is_always_off_a_full_sweep_is_made_again_once():
    source = Shelf(letters(4), counted=5, full_every=2)
    assert [full for _, full, _ in named(sweeps(source, 6))] == [
        True,
        True,
        False,
        False,
        True,
        True,
    ]


def test_a_sweep_that_gave_more_than_is_counted_at_its_end_is_full():
    assert named(sweeps(Shelf(letters(4), counted=3), 1)) == [(1, True, True)]


def test_an_unsound_part_makes_the_sweep_not_full_from_there_on_also_after_a_crash():
    source = Shelf(letters(7))
    source.unsound = {"f"}
    (pages,) = sweeps(source, 1)
    assert [p.sweep.full for p in pages] == [True, False, False, False]
    again = Shelf(letters(7))
    assert named(sweeps(again, 1, pages[1].cursor)) == [(1, False, False)]


def test_repeats_count_once():
    class Repeating(Shelf):
        def parts(self, sweep, since_us, position):
            for part in super().parts(sweep, since_us, position):
                yield part
                yield part._replace(repeats=len(part.records))

    assert named(sweeps(Repeating(letters(4)), 1)) == [(1, True, True)]
    assert named(sweeps(Repeating(letters(4), counted=5), 1)) == [(1, True, False)]


# --- when the next sweep is due


def test_the_next_sweep_waits_for_its_interval():
    clock = ManualClock()
    source = Shelf(letters(4), clock, interval_s=100.0)
    pages = source.open(None)
    while not next(pages).sweep_done:
        pass
    ended_s = clock.monotonic_s()
    next(pages)
    assert clock.monotonic_s() - ended_s == pytest.approx(101.0)


@pytest.mark.parametrize(("gone_s", "rest_s"), [(0, 100), (70, 30), (500, 0), (-900, 100)])
def test_opened_between_two_sweeps_it_waits_for_the_rest(gone_s, rest_s):
    clock = ManualClock()
    (pages,) = sweeps(Shelf(letters(4), clock, interval_s=100.0), 1)
    clock.set_now_us(clock.now_us() + gone_s * 1_000_000)
    opened_s = clock.monotonic_s()
    next(Shelf(letters(4), clock, interval_s=100.0).open(pages[-1].cursor))
    assert clock.monotonic_s() - opened_s == pytest.approx(rest_s + 1.0)


def test_it_says_that_it_rests_and_closing_ends_the_wait():
    source = Shelf(letters(4), SystemClock(), interval_s=10_000.0)
    pages = source.open(None)
    while not next(pages).sweep_done:
        pass
    rested, now_us = [], SystemClock().now_us()

    def look_and_close():
        rested.append(source.rests_until_us - now_us)
        source.close()

    threading.Timer(0.05, look_and_close).start()
    assert list(pages) == []
    assert [round(rest_us / 60_000_000) for rest_us in rested] == [round(10_000 / 60)]
    assert source.rests_until_us is None


# --- the cursor


def test_a_cursor_of_another_filter_begins_a_new_full_sweep():
    first, _ = sweeps(Shelf(letters(9)), 2)
    other = Shelf(letters(9), wanted="other")
    (pages,) = sweeps(other, 1, first[0].cursor)
    assert named([pages]) == [(2, True, True)]
    assert len([r for p in pages for r in p.records]) == 9


def test_a_source_that_swept_once_can_be_told_to_follow():
    once = list(Shelf(letters(4), follow=False).open(None))
    assert (once[-1].done, once[-1].sweep_done) == (True, True)
    again = list(Shelf(letters(4), follow=False).open(once[-1].cursor))
    assert [(p.done, p.sweep_done, len(p.records)) for p in again] == [(True, False, 0)]
    assert named(sweeps(Shelf(letters(4)), 1, once[-1].cursor))[0][0] == 2


def test_a_failure_in_a_sweep_goes_on_in_it():
    source = Shelf(letters(9))
    pages = source.open(None)
    first = next(pages)
    source.fails = True
    with pytest.raises(Unavailable):
        next(pages)
    source.fails = False
    (rest,) = sweeps(source, 1, first.cursor)
    assert [r.key for p in rest for r in p.records] == [k.encode() for k in "defghi"]
    assert rest[0].sweep == first.sweep


@pytest.mark.parametrize("cursor", [b"{", b"[]", b'{"file":"a"}', b'{"number":"1"}'])
def test_what_is_no_cursor_is_refused(cursor):
    with pytest.raises(Invalid) as refused:
        next(Shelf(letters(4)).open(cursor))
    assert refused.value.code == "unknown_cursor"


def test_no_cursor_is_the_start():
    assert read_cursor(None) is read_cursor(b"") is read_cursor(b"null") is None


# --- records


def test_records_are_cut_into_pages_by_number_and_by_size():
    small = [PulledRecord(b"x")] * (2 * RECORDS_MAX + 1)
    assert [len(cut) for cut in bounded(small)] == [RECORDS_MAX, RECORDS_MAX, 1]
    large = [PulledRecord(b"x" * (BYTES_MAX // 2))] * 5
    assert [len(cut) for cut in bounded(large)] == [2, 2, 1]
    assert [len(cut) for cut in bounded([PulledRecord(b"x" * (2 * BYTES_MAX))] * 2)] == [1, 1]
    assert list(bounded([])) == []


@given(st.lists(st.integers(0, 50)), st.integers(0, 50))
def test_a_page_goes_on_behind_its_highest_key_and_counts_what_is_not_behind(numbers, after):
    records = [swept_record(b'{"id":"%02d"}' % n, "id", 0) for n in numbers]
    behind = f"{after:02d}"
    if not any(n > after for n in numbers):
        if records:
            with pytest.raises(Unavailable):
                list(keyset_parts(records, behind, str.encode))
        return
    (part,) = keyset_parts(records, behind, str.encode, total=9)
    assert part.position == b"%02d" % max(numbers)
    highest, repeats = after, 0
    for n in numbers:
        repeats += n <= highest
        highest = max(highest, n)
    assert (part.repeats, part.total, len(part.records)) == (repeats, 9, len(numbers))


@pytest.mark.parametrize(
    ("value", "key"),
    [
        (b'{"id":"a"}', b"a"),
        (b'{"id":18446744073709551617}', b"18446744073709551617"),
        (b'{"id":"\\u00e9"}', "é".encode()),
        (b'{"id":""}', None),
        (b'{"id":null}', None),
        (b'{"id":true}', None),
        (b'{"other":1}', None),
    ],
)
def test_a_record_is_keyed_by_its_id(value, key):
    record = swept_record(value, "id", 7)
    assert (record.value, record.key, record.seen_at_us, record.id) == (value, key, 7, None)
    assert (record.digest is None) == (key is None)


@pytest.mark.parametrize("value", [b"7", b"[]", b"{", b"{\xff}"])
def test_a_record_that_is_no_object_is_asked_again(value):
    with pytest.raises(Unavailable, match="no JSON object"):
        swept_record(value, "id", 0)


def test_a_digest_is_of_the_content():
    same = [
        b'{"a":1,"b":{"c":2,"d":[1,2]}}',
        b'{ "b" : {"d":[1,2],"c":2}, "a":1 }',
        b'{"a":1,"b":{"c":2,"d":[1,2]},"crawled":"today"}',
    ]
    digests = {digest_of(json.loads(v), frozenset({"crawled"})) for v in same}
    assert {len(d) for d in digests} == {DIGEST_BYTES}
    assert len(digests) == 1
    for other in (b'{"a":2,"b":{"c":2,"d":[1,2]}}', b'{"a":1,"b":{"c":2,"d":[2,1]}}'):
        assert digest_of(json.loads(other), frozenset()) not in digests
