"""What every log guarantees, as a list that any log's tests run over it.

```python
@pytest.mark.parametrize("guarantee", GUARANTEES, ids=lambda g: g.__name__)
def test_mine_keeps(guarantee, tmp_path):
    guarantee(MyPlace(tmp_path))
```

Each guarantee is a function of a `LogPlace`, at first empty. What must hold when a process dies
stands in `log_crashes`.
"""

from __future__ import annotations

import hashlib
import itertools
import threading
from collections.abc import Callable
from contextlib import closing
from functools import partial

from headrace.model.batch import RECORDS, Batch
from headrace.model.clock import ManualClock
from headrace.model.errors import Closed, Fenced, HeadraceError, Invalid
from headrace.model.log import DELETED, Appended, Log
from headrace.testing.log_place import (
    LogPlace,
    client_id,
    expect_error,
    random_batch,
    read_rows,
    read_values,
    rows_of,
    run_threads,
    server_id,
    values,
)
from headrace.testing.log_worker import numbered

THREADS = 4
BATCHES = 30
RACES = 40
WAIT_S = 60.0

KAFKA_HASHES = {
    b"21": -973932308,
    b"foobar": -790332482,
    b"a-little-bit-long-string": -985981536,
    b"a-little-bit-longer-string": -1486304829,
    b"lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8": -58897971,
    b"abc": 479470107,
}
"""What Kafka's own test of murmur2 expects (`UtilsTest.testMurmur2`)."""

_READING = threading.Lock()
"""A log's reading calls are for one thread at a time."""


# Topics and incarnations.


def a_place_without_a_log_reads_as_empty(place: LogPlace) -> None:
    """A reader may be there before the log is; an unknown topic is `Invalid`."""
    with closing(place.reader()) as reader:
        assert reader.describe() == {}
        assert reader.scan("") == []
        assert reader.get("key") is None
        expect_error(Invalid, lambda: reader.ends("events"))
        with closing(place.open()) as log:
            log.create("events", 1)
            assert reader.ends("events") == [0]


def a_topic_is_created_once(place: LogPlace) -> None:
    """Creating it again gives the same incarnation; another number of partitions is `Invalid`."""
    with closing(place.open()) as log:
        made = log.create("events", 3)
        assert (made.name, made.partitions) == ("events", 3)
        assert log.create("events", 3) == made
        expect_error(Invalid, lambda: log.create("events", 2))
        assert log.ends("events") == log.starts("events") == [0, 0, 0]
    with closing(place.open()) as log:
        assert log.describe() == {"events": made}


def unknown_topics_are_invalid(place: LogPlace) -> None:
    """Whatever is asked of them, and nothing is done."""
    with closing(place.open()) as log:
        expect_error(Invalid, lambda: log.append("no", numbered(0, 1), {"key": b"1"}))
        expect_error(Invalid, lambda: log.delete("no"))
        expect_error(Invalid, lambda: log.trim("no", [0]))
        expect_error(Invalid, lambda: list(log.read("no", 0, 0, 1)))
        log.create("yes", 1)
        expect_error(Invalid, lambda: list(log.read("yes", 1, 0, 1)))
        assert log.get("key") is None


def a_topic_created_again_loses_nothing(place: LogPlace) -> None:
    """It starts at 0 under another incarnation, its old records belong to nobody."""
    with closing(place.open()) as log:
        old = log.create("events", 1)
        log.append("events", values(b"old", b"older"))
        log.create("other", 1)
        log.append("other", values(b"stays"))
        log.delete("events")
        assert sorted(log.describe()) == ["other"]
        new = log.create("events", 1)
        assert new.incarnation != old.incarnation
        assert log.append("events", values(b"new"))[0].base_offset == 0
        log.append("events", values(b"newer"))
    with closing(place.open()) as log:
        assert read_values(log, "events") == [b"new", b"newer"]
        assert read_values(log, "other") == [b"stays"]
        assert log.describe()["events"] == new


def a_deletion_is_remembered_and_a_loss_is_not(place: LogPlace) -> None:
    """So one whose committed offsets are of another incarnation knows which of the two it was."""
    with closing(place.open()) as log:
        deleted = log.create("events", 1).incarnation
        log.delete("events")
        lost = log.create("events", 1).incarnation
        log.append("events", values(b"1"))
    with closing(place.open()) as log:
        remembered = log.get(DELETED + deleted)
        assert remembered is not None
        assert remembered.value == b"events"
    place.wipe()
    with closing(place.open()) as log:
        assert log.create("events", 1).incarnation not in {deleted, lost}
        assert log.ends("events") == [0]
        assert log.get(DELETED + lost) is None


# Appending and reading.


def what_is_appended_is_read(place: LogPlace) -> None:
    """Every column of every record, in order, by the writer, a reader, and after opening anew."""
    clock = ManualClock()
    batches = [random_batch(clock, 1 + number % 7) for number in range(BATCHES)]
    sent = [fields for batch in batches for fields in rows_of(batch)]
    with closing(place.open()) as log, closing(place.reader()) as reader:
        log.create("events", 1)
        for batch in batches:
            (appended,) = log.append("events", batch)
            assert list(appended.positions) == list(range(len(batch)))
        assert read_rows(log, "events") == sent
        assert read_rows(reader, "events") == sent
    with closing(place.open()) as log:
        assert read_rows(log, "events") == sent


def a_read_is_exactly_its_range(place: LogPlace) -> None:
    """However the range lies across batches; beyond the end there is nothing."""
    count = 25
    with closing(place.open()) as log:
        log.create("events", 1)
        for start in range(0, count, 5):
            log.append("events", numbered(start, start + 5))
        for start in range(count):
            for end in range(start, count + 3, 4):
                found = list(log.read("events", 0, start, end))
                offsets = [o for batch in found for o in batch.column("offset").to_pylist()]
                assert offsets == list(range(start, min(end, count)))
                assert all(batch.schema == RECORDS for batch in found)
        assert list(log.read("events", 0, count, count + 1)) == []


def a_read_stops_past_its_bytes(place: LogPlace) -> None:
    """With at least one batch; going on from the last offset reads everything once."""
    count = 30
    with closing(place.open()) as log:
        log.create("events", 1)
        for _ in range(count):
            log.append("events", values(b"x" * 1000))
        at, calls = 0, 0
        while at < count:
            batches = list(log.read("events", 0, at, count, bytes_max=4000))
            offsets = [o for batch in batches for o in batch.column("offset").to_pylist()]
            assert offsets == list(range(at, offsets[-1] + 1))
            at, calls = offsets[-1] + 1, calls + 1
        assert calls > 1


def sizes_follow_the_records(place: LogPlace) -> None:
    """About as many bytes as the range holds, and none of an empty one."""
    with closing(place.open()) as log:
        log.create("events", 1)
        for _ in range(20):
            log.append("events", values(b"x" * 1000, b"y" * 1000))
        for start, end in ((0, 40), (3, 4), (7, 33)):
            size_bytes = log.size_between("events", 0, start, end)
            assert (end - start) * 1000 <= size_bytes <= (end - start) * 1200
        assert log.size_between("events", 0, 5, 5) == 0
        assert log.size_between("events", 0, 40, 90) == 0


def a_stamp_changes_with_every_append(place: LogPlace) -> None:
    """For the writer and for readers; while nothing is appended it may stay as it is."""
    with closing(place.reader()) as reader:
        stamps = [reader.stamp()]
        for _ in range(2):
            with closing(place.open()) as log:
                log.create("events", 2)
                for number in range(BATCHES):
                    before = log.stamp()
                    log.append("events", values(b"%d" % number))
                    assert log.stamp() != before
                    stamps.append(reader.stamp())
    assert all(a != b for a, b in itertools.pairwise(stamps))


def large_records_come_back(place: LogPlace) -> None:
    """A value of 10 MB and one of no bytes, beside each other."""
    incompressible = hashlib.shake_256(b"large").digest(10 << 20)
    sent = [b"", incompressible, b"a" * (1 << 20), b""]
    with closing(place.open()) as log:
        log.create("events", 1)
        log.append("events", values(*sent))
        assert read_values(log, "events") == sent


def an_unfit_batch_harms_only_itself(place: LogPlace) -> None:
    """A batch whose columns do not fit together is refused, its neighbours are appended."""
    unfit = numbered(0, 2)
    unfit.ids[1] = b"short"
    refused: dict[str, bool] = {}
    finished = threading.Semaphore(0)

    def done(name: str, answer: list[Appended] | HeadraceError) -> None:
        refused[name] = isinstance(answer, HeadraceError)
        finished.release()

    with closing(place.open()) as log:
        log.create("events", 1)
        sent = {"before": values(b"before"), "unfit": unfit, "after": values(b"after")}
        for name, batch in sent.items():
            log.submit("events", batch, partial(done, name))
        for _ in range(3):
            assert finished.acquire(timeout=WAIT_S)
        assert refused == {"before": False, "unfit": True, "after": False}
        assert read_values(log, "events") == [b"before", b"after"]


def a_key_keeps_to_its_partition(place: LogPlace) -> None:
    """By key, else by client-chosen id, else all of a call together; Kafka's places for keys."""
    with closing(place.open()) as log:
        log.create("events", 9)
        for key, hashed in KAFKA_HASHES.items():
            partition = (hashed & 0x7FFFFFFF) % 9
            batch = Batch()
            batch.add(b"", received_at=0, id=server_id(), key=key)
            assert [a.partition for a in log.append("events", batch)] == [partition]
        chosen = Batch()
        for number in (1, 2, 1, 2, 3, 1):
            chosen.add(b"%d" % number, received_at=0, id=client_id(number))
        log.append("events", chosen)
        found = [read_values(log, "events", partition) for partition in range(9)]
        assert sum(b"1" in part for part in found) == sum(b"2" in part for part in found) == 1
        turns = {tuple(a.partition for a in log.append("events", numbered(0, 3))) for _ in range(9)}
        assert sorted(turns) == [(partition,) for partition in range(9)]


def positions_name_the_records_of_each_partition(place: LogPlace) -> None:
    """Each record of a batch stands once among the answers, where they say."""
    batch = Batch()
    for number in range(50):
        batch.add(b"%d" % number, received_at=0, id=server_id(), key=b"%d" % (number % 11))
    with closing(place.open()) as log:
        log.create("events", 4)
        answers = log.append("events", batch)
        assert sorted(p for a in answers for p in a.positions) == list(range(50))
        for appended in answers:
            found = read_values(log, "events", appended.partition)
            expected = [batch.values[p] for p in appended.positions]
            assert found[appended.base_offset :][: len(expected)] == expected


def every_caller_keeps_its_order(place: LogPlace) -> None:
    """Threads that append at once, each without waiting, get their records in their own order."""
    finished = threading.Semaphore(0)
    failures: list[HeadraceError] = []

    def done(answer: list[Appended] | HeadraceError) -> None:
        if isinstance(answer, HeadraceError):
            failures.append(answer)
        finished.release()

    def send(log: Log, thread: int) -> None:
        for number in range(BATCHES):
            log.submit("events", values(b"%d %d" % (thread, number)), done)

    with closing(place.open()) as log:
        log.create("events", 1)
        run_threads([partial(send, log, thread) for thread in range(THREADS)])
        for _ in range(THREADS * BATCHES):
            assert finished.acquire(timeout=WAIT_S)
        assert failures == []
        found = [tuple(map(int, v.split())) for v in read_values(log, "events")]
        for thread in range(THREADS):
            assert [n for t, n in found if t == thread] == list(range(BATCHES))


def appended_offsets_are_true(place: LogPlace) -> None:
    """Of threads that wait for each append, every answer names the place of its own record."""
    answers: dict[int, bytes] = {}

    def send(log: Log, thread: int) -> None:
        for number in range(BATCHES):
            value = b"%d %d" % (thread, number)
            (appended,) = log.append("events", values(value))
            answers[appended.base_offset] = value

    with closing(place.open()) as log:
        log.create("events", 1)
        run_threads([partial(send, log, thread) for thread in range(THREADS)])
        assert [answers[o] for o in range(THREADS * BATCHES)] == read_values(log, "events")


# Keyed state.


def keyed_values_are_compared_and_put(place: LogPlace) -> None:
    """Revisions grow, also across a delete and opening anew; a wrong one is `Fenced`."""
    with closing(place.open()) as log:
        first = log.put_if("a/1", 0, b"one")
        assert first is not None
        assert log.get("a/1") == first
        expect_error(Fenced, lambda: log.put_if("a/1", 0, b"no"))
        second = log.put_if("a/1", first.revision, b"two")
        assert second is not None
        assert second.revision > first.revision
        log.put_if("a/2", 0, b"")
        log.put_if("b", 0, b"other")
        assert [e.key for e in log.scan("a/")] == ["a/1", "a/2"]
        assert log.put_if("a/1", second.revision, None) is None
        assert log.get("a/1") is None
        expect_error(Fenced, lambda: log.put_if("a/1", second.revision, b"no"))
    with closing(place.open()) as log:
        third = log.put_if("a/1", 0, b"again")
        assert third is not None
        assert third.revision > second.revision
        assert [e.value for e in log.scan("a/")] == [b"again", b""]


def state_goes_with_the_records(place: LogPlace) -> None:
    """Both or none; an empty batch puts the state alone; an unmet `expect` does nothing at all."""
    with closing(place.open()) as log, closing(place.reader()) as reader:
        log.create("events", 1)
        log.append("events", values(b"1"), {"x": b"1", "y": b"1"}, {"x": 0})
        x = log.get("x")
        assert x is not None
        before = log.scan("")
        expect_error(
            Fenced, lambda: log.append("events", values(b"no"), {"y": b"no"}, {"x": x.revision + 1})
        )
        expect_error(Fenced, lambda: log.append("events", Batch(), {"y": b"no"}, {"x": 0}))
        assert (log.scan(""), log.ends("events")) == (before, [1])
        assert log.append("events", Batch(), {"y": b"2"}, {"x": x.revision}) == []
        assert [(e.key, e.value) for e in reader.scan("")] == [("x", b"1"), ("y", b"2")]
        assert reader.ends("events") == [1]


def one_of_many_puts_wins(place: LogPlace) -> None:
    """Threads that race for the same revision: each revision is won once, and no put is lost."""
    wins: list[int] = []

    def race(log: Log) -> None:
        for _ in range(RACES):
            with _READING:
                entry = log.get("counter")
            revision, count = (entry.revision, int(entry.value)) if entry else (0, 0)
            try:
                log.put_if("counter", revision, b"%d" % (count + 1))
                wins.append(count + 1)
            except Fenced:
                continue

    with closing(place.open()) as log:
        run_threads([partial(race, log)] * THREADS)
        assert sorted(wins) == list(range(1, len(wins) + 1))
        entry = log.get("counter")
        assert entry is not None
        assert int(entry.value) == len(wins) >= RACES


# Trimming and reading meanwhile.


def trimming_keeps_what_is_needed(place: LogPlace) -> None:
    """Every record from `before` on stays; below the start a read is `Invalid`, never empty."""
    with closing(place.open()) as log:
        log.create("events", 1)
        log.create("slow", 1)
        for number in range(60):
            log.append("events", numbered(number, number + 1))
            log.append("slow", numbered(number, number + 1))
        log.trim("events", [50])
        log.trim("slow", [30])
        for topic, before in (("events", 50), ("slow", 30)):
            (start,) = log.starts(topic)
            assert start <= before
            expected = [b"%d" % n for n in range(before, 60)]
            assert read_values(log, topic, start=before) == expected
            if start:
                below = partial(read_values, log, topic, start=start - 1)
                error = expect_error(Invalid, below)
                assert error.code == "offset_trimmed"
        expect_error(Invalid, lambda: log.trim("events", [1, 2]))


def a_reader_never_sees_a_gap(place: LogPlace) -> None:
    """While segments come and go under it, it reads every record once, in order, and durable."""
    count = 400
    acknowledged = threading.Event()

    def write(log: Log) -> None:
        for number in range(count):
            log.append("events", numbered(number, number + 1))
            if number % 20 == 0 and number > RACES:
                log.trim("events", [number - RACES])
        acknowledged.set()

    with closing(place.open()) as log, closing(place.reader()) as reader:
        log.create("events", 1)
        writer = threading.Thread(target=write, args=(log,))
        writer.start()
        at = 0
        while at < count:
            is_last = acknowledged.is_set()
            try:
                found = read_values(reader, "events", start=at)
            except Invalid:
                (start,) = reader.starts("events")
                assert start > at
                at = start
                continue
            assert found == [b"%d" % n for n in range(at, at + len(found))]
            at += len(found)
            assert found or not is_last
        writer.join()
        assert reader.ends("events") == [count]


def a_closed_log_says_so(place: LogPlace) -> None:
    """Closing finishes what was submitted; afterwards every call is `Closed`."""
    finished = threading.Semaphore(0)
    log = place.open()
    log.create("events", 1)
    log.append("events", values(b"0"))
    log.close()
    log.close()
    expect_error(Closed, lambda: log.append("events", values(b"1")))
    expect_error(Closed, lambda: log.submit("events", values(b"1"), lambda _: finished.release()))
    expect_error(Closed, lambda: log.create("events", 1))
    expect_error(Closed, lambda: log.ends("events"))
    with closing(place.reader()) as reader:
        assert read_values(reader, "events") == [b"0"]
    assert not finished.acquire(blocking=False)


GUARANTEES: list[Callable[[LogPlace], None]] = [
    a_place_without_a_log_reads_as_empty,
    a_topic_is_created_once,
    unknown_topics_are_invalid,
    a_topic_created_again_loses_nothing,
    a_deletion_is_remembered_and_a_loss_is_not,
    what_is_appended_is_read,
    a_read_is_exactly_its_range,
    a_read_stops_past_its_bytes,
    sizes_follow_the_records,
    a_stamp_changes_with_every_append,
    large_records_come_back,
    an_unfit_batch_harms_only_itself,
    a_key_keeps_to_its_partition,
    positions_name_the_records_of_each_partition,
    every_caller_keeps_its_order,
    appended_offsets_are_true,
    keyed_values_are_compared_and_put,
    state_goes_with_the_records,
    one_of_many_puts_wins,
    trimming_keeps_what_is_needed,
    a_reader_never_sees_a_gap,
    a_closed_log_says_so,
]
"""Every guarantee that needs no crash."""
