from __future__ import annotations

import json
from contextlib import closing

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scripted import HOUR_US, Bench, Scripted, folded, numbered

from headrace.model.clock import rfc3339
from headrace.model.errors import Fenced, Unavailable
from headrace.model.source import PulledRecord
from headrace.pull import sweeps
from headrace.pull.seen import Seen
from headrace.pull.state import state_key


@pytest.fixture
def bench(tmp_path):
    with closing(Bench(tmp_path)) as made:
        yield made


def test_a_sweep_appends_what_is_new_changed_and_gone(bench):
    first = {"a": 1, "b": 1, "c": 1, "d": 1, "e": 1}
    second = {"b": 1, "c": 2, "d": 1, "f": 1}
    report = bench.run(Scripted(first, second))
    records = bench.records()
    assert records[:5] == [(k.encode(), {"k": k, "v": 1}, False) for k in "abcde"]
    assert records[5:] == [
        (b"c", {"k": "c", "v": 2}, False),
        (b"f", {"k": "f", "v": 1}, False),
        (b"a", {"k": "a"}, True),
        (b"e", {"k": "e"}, True),
    ]
    assert (report.sweep, report.sweep_records, report.sweep_pages) == (2, 4, 2)
    assert (report.changed, report.unchanged, report.deleted) == (2, 2, 2)
    assert (report.records, report.pages, report.done) == (9, 4, True)
    assert report.completed_at_us == bench.clock.now_us()


def test_deletions_carry_the_start_of_their_sweep(bench):
    bench.run(Scripted({"a": 1}, {}))
    ((*_, row),) = [b.to_pylist() for b in bench.log.read("t", 0, 0, bench.log.ends("t")[0])]
    assert json.loads(row["headers"])["headrace-seen-at"] == rfc3339(2 * HOUR_US)


def test_what_goes_back_to_what_it_was_is_no_duplicate(bench):
    bench.run(Scripted({"a": 1}, {"a": 2}, {"a": 1}, {}, {"a": 1}))
    assert [value.get("v") for _, value, _ in bench.records()] == [1, 2, 1, None, 1]
    ids = [row["id"] for b in bench.log.read("t", 0, 0, 5) for row in b.to_pylist()]
    assert len(set(ids)) == 5


def test_a_sweep_that_is_not_full_deletes_nothing(bench):
    report = bench.run(Scripted(numbered(7), ({"k00003": 2}, False)))
    assert len(bench.records()) == 8
    assert (report.deleted, report.changed) == (0, 1)
    bench.run(Scripted(numbered(7), ({"k00003": 2}, False), {"k00003": 2}))
    assert folded(bench.records()) == {"k00003": 2}


def test_records_without_key_or_digest_are_always_appended(bench):
    class Plain(Scripted):
        def _record(self, key, version):
            return PulledRecord(b'{"v":1}', key=key.encode() if key < "b" else None)

    bench.run(Plain({"a": 1, "b": 1}, {"a": 1, "b": 1}, {}))
    assert [r[2] for r in bench.records()] == [False] * 4 + [True]


def test_a_source_may_say_itself_that_a_key_is_gone(bench):
    class Says(Scripted):
        def _record(self, key, version):
            record = super()._record(key, version)
            if version > 0:
                return record
            return PulledRecord(record.value, record.key, seen_at_us=1, deleted=True)

    bench.run(Says({"a": 1, "b": 1}, ({"a": -1, "z": -1}, False), ({"a": -1}, False)))
    assert [(key, gone) for key, _, gone in bench.records()] == [
        (b"a", False),
        (b"b", False),
        (b"a", True),
    ]


def test_a_key_given_twice_in_a_page_is_compared_with_itself(bench):
    class Twice(Scripted):
        def _record(self, key, version):
            return super()._record(key[0], version)

    bench.run(Twice({"a1": 1, "a2": 1, "a3": 2}))
    assert [value["v"] for _, value, _ in bench.records()] == [1, 2]


def test_pages_without_news_move_the_cursor(bench):
    bench.run(Scripted(numbered(9)))
    bench.run(Scripted(numbered(9), numbered(9), done=False))
    assert len(bench.records()) == 9
    assert json.loads(bytes(bench.state().cursor)) == [3, 0]


def test_a_run_after_the_end_asks_for_nothing_and_writes_nothing(bench):
    source = Scripted(numbered(5))
    bench.run(source)
    before = bench.log.get(state_key("s"))
    again = Scripted(numbered(5))
    report = bench.run(again)
    assert again.pages == []
    assert bench.log.get(state_key("s")) == before
    assert report.done


def crash_everywhere(tmp_path, scripts, **how):
    """Crash at each effect, go on, and compare with a run that did not crash."""
    with closing(Bench(tmp_path / "whole", **how)) as whole:
        source = Scripted(*scripts)
        whole.run(source)
        expected, asked = whole.records(), len(source.pages)
        counted = whole.records("counts")
        effects = whole.faulty.effects
    assert effects > 10
    for crash_at in range(1, effects + 1):
        with closing(Bench(tmp_path / str(crash_at), **how)) as bench:
            source = Scripted(*scripts)
            assert bench.run(source, crash_at) is None
            report = bench.run(source)
            assert bench.records() == expected, f"effect {crash_at}"
            assert len(source.pages) <= asked + 1
            assert len(bench.records("counts")) == len(counted)
            assert report.done


def test_a_crash_at_any_step_loses_and_repeats_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr("headrace.pull.puller.DELETIONS_MAX", 2)
    scripts = (numbered(7), {"k00001": 2, "k00002": 1, "new": 1}, ({"x": 1}, False), {"x": 1})
    crash_everywhere(tmp_path, scripts, counts=True)


def test_a_log_that_is_unavailable_at_any_step_changes_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr("headrace.pull.puller.DELETIONS_MAX", 2)
    scripts = (numbered(7), {"k00001": 2, "k00002": 1, "new": 1})
    with closing(Bench(tmp_path / "whole")) as whole:
        whole.run(Scripted(*scripts))
        expected, effects = whole.records(), whole.faulty.effects
    for at in range(1, effects + 1):
        with closing(Bench(tmp_path / str(at))) as bench:
            report = bench.run(Scripted(*scripts), at, Unavailable("no answer"))
            assert bench.records() == expected, f"effect {at}"
            assert report.done


def test_an_append_that_lands_late_is_not_taken_for_the_one_after_it(bench):
    late = []
    append = bench.faulty.append

    def lands_late(*args):
        if not late:
            late.append(args)
            raise Unavailable("did not answer in time")
        bench.log.append(*late[0])
        bench.faulty.append = append
        return append(*args)

    bench.faulty.append = lands_late

    class Changing(Scripted):
        def _record(self, key, version):
            return super()._record(key, version + len(late))

    with pytest.raises(Fenced):
        bench.run(Changing({"a": 1}, {"a": 1}))
    assert [value["v"] for _, value, _ in bench.records()] == [1]
    assert bench.run(Changing({"a": 1}, {"a": 1})).done
    assert folded(bench.records()) == {"a": 2}


VERSIONS = st.dictionaries(st.sampled_from("abcdefghij"), st.integers(1, 3), max_size=10)
SWEEPS = st.lists(st.tuples(VERSIONS, st.booleans()), min_size=1, max_size=5)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(scripts=SWEEPS, crashes=st.lists(st.integers(1, 40), max_size=6))
def test_any_history_with_crashes_folds_to_what_the_service_has(tmp_path_factory, scripts, crashes):
    folder = tmp_path_factory.mktemp("history")
    with closing(Bench(folder)) as bench:
        source, crashed, report = Scripted(*scripts), 0, None
        for crash_at in crashes:
            report = bench.run(source, crash_at)
            crashed += report is None
        report = bench.run(source)
        assert report.done
        truth = {}
        for records, full in scripts:
            truth = dict(records) if full else truth | records
        assert folded(bench.records()) == truth
        assert len(source.pages) - len(set(source.pages)) <= crashed
        with_index = Seen(bench.index)
        with closing(with_index):
            assert with_index.settle(bench.log.get(state_key("s")).value)
            assert with_index.size() == len(truth)


def test_a_full_sweep_that_misses_too_much_waits_for_another_that_agrees(bench):
    n = sweeps.DOUBTED_KEYS_MIN
    whole, rest = numbered(n), numbered(n // 2 - 1)
    report = bench.run(Scripted(whole, rest, done=False, per_page=n))
    assert report.deleted == 0
    assert f"missed {n // 2 + 1} of {n} keys" in report.notice
    report = bench.run(Scripted(whole, rest, rest, done=False, per_page=n))
    assert report.deleted == n // 2 + 1
    assert report.notice == ""
    assert folded(bench.records()) == rest


def test_what_was_missed_once_and_came_back_was_never_gone(bench):
    n = sweeps.DOUBTED_KEYS_MIN
    report = bench.run(Scripted(numbered(n), {}, numbered(n), per_page=n))
    assert report.deleted == 0
    assert folded(bench.records()) == numbered(n)
    assert len(bench.records()) == n


@pytest.mark.parametrize(
    ("known", "missed", "twice", "believed"),
    [
        (999, 999, 0, True),
        (1000, 500, 0, True),
        (1000, 501, 0, False),
        (1000, 501, 500, False),
        (1000, 501, 501, True),
        (1000, 1000, 0, False),
    ],
)
def test_what_is_believed(known, missed, twice, believed):
    assert sweeps.is_believed(known, missed, twice) is believed


def test_the_services_own_count_follows_each_full_sweep(tmp_path):
    with closing(Bench(tmp_path, counts=True)) as bench:
        bench.run(Scripted({"a": 1}, ({"b": 1}, False), {"b": 1}))
        counts = [value for _, value, _ in bench.records("counts")]
        assert [c["records"] for c in counts] == [101, 102]
        assert counts[0] == {
            "source": "s",
            "kind": "scripted",
            "filter": "everything",
            "records": 101,
            "asked_at": rfc3339(bench.clock.now_us()),
        }


def test_a_count_that_cannot_be_had_now_is_asked_for_again(tmp_path):
    class Busy(Scripted):
        def count(self):
            if not self.counted:
                self.counted += 1
                raise Unavailable("busy")
            return super().count()

    with closing(Bench(tmp_path, counts=True)) as bench:
        assert bench.run(Busy({"a": 1})).done
        assert len(bench.records("counts")) == 1


def test_a_second_owner_is_fenced_at_the_index(bench):
    class Overtaken(Scripted):
        def open(self, cursor):
            for page in super().open(cursor):
                if self.pages == [(1, 0), (1, 1)]:
                    bench.run(Scripted(numbered(9), done=False))
                yield page

    with pytest.raises(Fenced):
        bench.run(Overtaken(numbered(9)))
    assert folded(bench.records()) == numbered(9)


def test_the_report_tells_pace_and_what_remains(bench):
    class Slow(Scripted):
        def open(self, cursor):
            for page in super().open(cursor):
                bench.clock.advance(3)
                yield page

    told = []
    bench._keep = lambda r: told.append((r.sweep_records, r.records_per_s, r.remaining, r.eta_s))
    bench.run(Slow(numbered(9)))
    assert told[1] == (6, 1.0, 3, 3.0)
    assert told[0] == (3, None, 6, None)
