from __future__ import annotations

import json
import threading
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from headrace.log.embedded import EmbeddedLog
from headrace.model.clock import ManualClock, rfc3339
from headrace.model.errors import Fenced, Unavailable
from headrace.model.plan import Source, Topic
from headrace.model.source import Page, PulledRecord, Sweep
from headrace.pull import sweeps
from headrace.pull.puller import Puller
from headrace.pull.records import Door
from headrace.pull.seen import Seen
from headrace.pull.state import read_state, state_key

TOPIC = Topic("t", 1, key_field="k")
COUNTS = Topic("counts", 1)
PER_PAGE = 3
HOUR_US = 3_600_000_000


class Crash(BaseException):
    """The process ends here."""


class Scripted:
    """A service whose sweeps are given: dicts of key → version. Cursor: [sweep, page].

    A sweep is a dict, or a pair of one and whether it is full. The last page of the last sweep is
    done. `pages` are those that were asked for, by number, in order.
    """

    def __init__(self, *scripts, done=True):
        self.scripts = [s if isinstance(s, tuple) else (s, True) for s in scripts]
        self.done = done
        self.pages = []
        self.counted = 0

    def open(self, cursor):
        number, page = json.loads(cursor) if cursor else (1, 0)
        for n in range(number, len(self.scripts) + 1):
            records, full = self.scripts[n - 1]
            keys = list(records)
            pages = [keys[i : i + PER_PAGE] for i in range(0, len(keys), PER_PAGE)] or [[]]
            for p in range(page, len(pages)):
                self.pages.append((n, p))
                last = p == len(pages) - 1
                yield Page(
                    [self._record(key, records[key]) for key in pages[p]],
                    json.dumps([n + 1, 0] if last else [n, p + 1]).encode(),
                    done=last and n == len(self.scripts) and self.done,
                    progress=(p * PER_PAGE + len(pages[p]), len(keys)),
                    sweep=Sweep(n, n * HOUR_US, full),
                    sweep_done=last,
                )
            page = 0
        if self.done and number > len(self.scripts):
            last = self.scripts[-1]
            sweep = Sweep(len(self.scripts), len(self.scripts) * HOUR_US, last[1])
            yield Page((), cursor, done=True, sweep=sweep, sweep_done=True)

    def _record(self, key, version):
        return PulledRecord(
            json.dumps({"k": key, "v": version}).encode(),
            key=key.encode(),
            id=key,
            digest=b"%016d" % version,
        )

    def deletion(self, key):
        return json.dumps({"k": key.decode()}).encode()

    def count(self):
        self.counted += 1
        return 100 + self.counted, "everything"

    def close(self):
        pass


class Faulty:
    """A log, and an index beside it, that end the process before or after the n-th effect."""

    def __init__(self, log):
        self.log = log
        self.effects = 0
        self.crash_at = None
        self.fault = Crash()

    def effect(self, act):
        """Do something that lasts; the process may end right before or right after."""
        self._step()
        result = act()
        self._step()
        return result

    def _step(self):
        self.effects += 1
        if self.effects == self.crash_at:
            raise self.fault

    def append(self, *args):
        return self.effect(lambda: self.log.append(*args))

    def get(self, key):
        return self.log.get(key)

    def scan(self, prefix):
        return self.log.scan(prefix)


class Bench:
    """One source, its log and its index, that can be run again and again."""

    def __init__(self, folder: Path, *, counts=False):
        self.clock = ManualClock()
        self.folder = folder
        self.log = EmbeddedLog(folder / "log", self.clock)
        for topic in (TOPIC, COUNTS):
            self.log.create(topic.name, topic.partitions)
        self.declared = Source("s", "scripted", "t", {}, "counts" if counts else None)
        self.known = ()
        self.faulty = Faulty(self.log)
        self.reports = []

    @property
    def index(self):
        return self.folder / "sources" / "s.db"

    def run(self, source, crash_at=None, fault=None, stop=None):
        """Run a new process; return its report, or None if it crashed."""
        self.faulty.effects, self.faulty.crash_at = 0, crash_at
        self.faulty.fault = fault or Crash()
        counts = Door(self.declared, COUNTS, self.clock) if self.declared.counts else None
        puller = Puller(
            self.declared,
            source,
            Door(self.declared, TOPIC, self.clock),
            self.faulty,
            threading.Lock(),
            index=self.index,
            counts=counts,
            known_keys=lambda _: self.known,
        )
        write = Seen.write

        def seen_write(seen, *args):
            self.faulty.effect(lambda: write(seen, *args))

        Seen.write = seen_write
        try:
            puller.run(self.clock, stop or threading.Event(), self._keep)
        finally:
            Seen.write = write
        if isinstance(puller.failure, Crash):
            return None
        if puller.failure is not None:
            raise puller.failure
        assert puller.report.error == ""
        return puller.report

    def _keep(self, report):
        self.reports.append((report.sweep, report.sweep_records, report.deleted, report.notice))

    def records(self, topic="t"):
        """Return (key, value, deleted) of everything in the log, in order."""
        end = self.log.ends(topic)[0]
        found = []
        for batch in self.log.read(topic, 0, 0, end):
            for row in batch.to_pylist():
                headers = json.loads(row["headers"] or b"{}")
                deleted = headers.get("headrace-deleted") == "true"
                if deleted:
                    assert "headrace-seen-at" in headers
                found.append((row["key"], json.loads(row["value"]), deleted))
        return found

    def state(self):
        return read_state(self.log.get(state_key("s")))

    def close(self):
        self.log.close()


@pytest.fixture
def bench(tmp_path):
    with closing(Bench(tmp_path)) as made:
        yield made


def folded(records):
    """Return what a keyed table would hold."""
    held = {}
    for key, value, deleted in records:
        if deleted:
            del held[key.decode()]  # of a key that is there: never twice
        else:
            assert held.get(key.decode()) != value["v"], "appended though unchanged"
            held[key.decode()] = value["v"]
    return held


def numbered(n, version=1):
    return {f"k{i:05}": version for i in range(n)}


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


@pytest.mark.parametrize("fault", [Unavailable("no room"), Unavailable("lost the answer")])
def test_a_log_that_is_unavailable_at_any_step_changes_nothing(tmp_path, monkeypatch, fault):
    monkeypatch.setattr("headrace.pull.puller.DELETIONS_MAX", 2)
    scripts = (numbered(7), {"k00001": 2, "k00002": 1, "new": 1})
    with closing(Bench(tmp_path / "whole")) as whole:
        whole.run(Scripted(*scripts))
        expected, effects = whole.records(), whole.faulty.effects
    for at in range(1, effects + 1):
        with closing(Bench(tmp_path / str(at))) as bench:
            report = bench.run(Scripted(*scripts), at, fault)
            assert bench.records() == expected, f"effect {at}"
            assert report.done


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


def test_a_lost_index_appends_everything_again_and_still_finds_what_vanished(bench):
    bench.run(Scripted(numbered(7)))
    bench.index.unlink()
    bench.known = [f"k{i:05}".encode() for i in range(7)]
    after = numbered(5)
    report = bench.run(Scripted(numbered(7), after))
    records = bench.records()[7:]
    assert {k.decode(): v["v"] for k, v, gone in records if not gone} == after
    assert [k for k, _, gone in records if gone] == [b"k00005", b"k00006"]
    assert report.deleted == 2


def test_an_index_lost_during_a_sweep_deletes_nothing_that_was_given(bench):
    scripts = (numbered(9), numbered(9), numbered(6))
    source = Scripted(*scripts)
    # The first sweep is 3 pages of 4 effects; the end of a sweep takes 4 more.
    assert bench.run(source, crash_at=12 + 4 + 8) is None
    assert bench.state().sweep.number == 2
    assert not bench.state().sweep.ended
    bench.index.unlink()
    bench.known = [key.encode() for key in numbered(9)]
    bench.run(source)
    held = {}
    for key, value, gone in bench.records():
        if gone:
            del held[key.decode()]
        else:
            held[key.decode()] = value["v"]
    assert held == numbered(6)
    assert [k for k, _, gone in bench.records() if gone] == [b"k00006", b"k00007", b"k00008"]


def test_an_index_lost_during_deletions_is_made_good_by_the_next_full_sweep(bench, monkeypatch):
    monkeypatch.setattr("headrace.pull.puller.DELETIONS_MAX", 2)
    scripts = (numbered(9), numbered(3), numbered(3))
    source = Scripted(*scripts)
    assert bench.run(source, crash_at=12 + 4 + 4 + 4) is None
    assert bench.state().deleting == b"k00004"
    bench.index.unlink()
    bench.known = [key.encode() for key in numbered(9)]
    bench.run(source)
    gone = [key.decode() for key, _, is_gone in bench.records() if is_gone]
    assert set(gone) == set(numbered(9)) - set(numbered(3))


@pytest.mark.parametrize("damage", ["nonsense", "older", "empty"])
def test_an_index_that_does_not_fit_is_made_anew(bench, damage):
    bench.run(Scripted(numbered(7), done=False))
    with closing(Seen(bench.index)) as seen:
        seen._open().wal_checkpoint(mode=3)
    kept = bench.index.read_bytes()
    bench.run(Scripted(numbered(7), numbered(8), done=False))
    bytes_of = {"nonsense": b"x" * 5000, "older": kept, "empty": b""}
    bench.index.write_bytes(bytes_of[damage])
    report = bench.run(Scripted(numbered(7), numbered(8), numbered(8)))
    assert len(bench.records()) == 7 + 1 + 8
    assert report.done


def test_an_index_that_is_damaged_on_the_way_is_made_anew(bench):
    bench.run(Scripted(numbered(300), done=False))
    with closing(Seen(bench.index)) as seen:
        seen._open().wal_checkpoint(mode=3)
    data = bytearray(bench.index.read_bytes())
    data[3 * 4096 : 5 * 4096] = b"\xff" * (2 * 4096)
    bench.index.write_bytes(data)
    report = bench.run(Scripted(numbered(300), numbered(300)))
    assert report.done
    assert len(bench.records()) == 600


def test_another_source_of_the_topic_keeps_its_keys(bench):
    bench.run(Scripted(numbered(2)))
    other = bench.state()
    bench.log.put_if(state_key("other"), 0, json.dumps({"topic": other.topic}).encode())
    bench.index.unlink()
    bench.known = [b"k00000", b"k00001", b"of-the-other"]
    report = bench.run(Scripted(numbered(2), numbered(1)))
    assert [k for k, _, gone in bench.records() if gone] == []
    assert "other" in report.notice


def test_a_full_sweep_that_misses_too_much_waits_for_another_that_agrees(bench):
    n = sweeps.DOUBTED_KEYS_MIN
    whole, rest = numbered(n), numbered(n // 2 - 1)
    source = Scripted(whole, rest, done=False)
    report = bench.run(source)
    assert report.deleted == 0
    assert f"missed {n // 2 + 1} of {n} keys" in report.notice
    report = bench.run(Scripted(whole, rest, rest, done=False))
    assert report.deleted == n // 2 + 1
    assert report.notice == ""
    assert folded(bench.records()) == rest


def test_what_was_missed_once_and_came_back_was_never_gone(bench):
    n = sweeps.DOUBTED_KEYS_MIN
    report = bench.run(Scripted(numbered(n), {}, numbered(n)))
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
