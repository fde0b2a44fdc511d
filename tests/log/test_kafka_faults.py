"""What the log on Kafka keeps while brokers die, hang and come back."""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import threading
from collections import Counter
from contextlib import closing

import psutil
import pytest
from kafka_place import KafkaPlace

from headrace.app.cluster import trial
from headrace.log.kafka import sender, tail
from headrace.model.batch import Batch
from headrace.model.clock import SystemClock
from headrace.model.errors import Fenced, HeadraceError, Unavailable
from headrace.testing.log_place import read_values, values

ROUNDS_BEFORE, ROUNDS_AFTER = 20, 20
PAUSE_S = 0.02
"""Between rounds: the brokers share this machine with the load, and are to come back soon."""
WAIT_S = 150.0
IS_LONG = os.environ.get("HEADRACE_TEST_LONG") == "1"
KILLS, STOP_S = (12, 30.0) if IS_LONG else (2, 8.0)
KILL_EVERY_S = 10.0


@pytest.fixture
def place(kafka_alone):
    place = KafkaPlace(trial.running(kafka_alone).kafka, delivery_s_max=60.0, timeout_s=30.0)
    yield place
    trial.start_missing(kafka_alone, SystemClock())
    place.wipe()


class Load(threading.Thread):
    """Does rounds of something until it is told to stop, and counts those that were done."""

    def __init__(self, act):
        super().__init__()
        self.act = act
        self.done = 0
        self.ended = threading.Event()
        self.failure = None

    def run(self):
        try:
            while not self.ended.wait(PAUSE_S):
                self.done += self.act()
        except BaseException as error:  # noqa: BLE001 - raised again by `stop`
            self.failure = error

    def wait_for(self, rounds):
        target = self.done + rounds
        waited = threading.Event()
        for _ in range(int(WAIT_S / 0.05)):
            if self.done >= target or not self.is_alive():
                return
            waited.wait(0.05)
        msg = f"{self.done} of {target} rounds were done"
        raise AssertionError(msg)

    def stop(self):
        self.ended.set()
        self.join(WAIT_S)
        if self.failure:
            raise self.failure


def leader_of(place, topic):
    """Return the name of the node that leads a topic's first partition."""
    name = place.kafka.prefix + topic
    found = place.admin().list_topics(name, timeout=20).topics[name]
    return f"node-{found.partitions[0].leader}"


@pytest.mark.slow
@pytest.mark.parametrize("topic", ["events", "headrace-state"])
def test_a_killed_leader_loses_and_doubles_nothing(topic, place, kafka_alone):
    """Neither records, nor pages that go with their cursor, nor puts."""
    acknowledged = []
    refused = Counter()

    with closing(place.open()) as log, closing(place.open()) as other:
        log.create("events", 1)
        log.create("pages", 2)
        numbers = iter(range(1_000_000))

        def append():
            sent = values(*[b"%d" % next(numbers) for _ in range(50)])
            try:
                log.append("events", sent)
            except Unavailable as error:
                refused[error.code] += 1
                return 0
            acknowledged.extend(sent.values)
            return 1

        def put_page():
            try:
                cursor = other.get("cursor")
                at = int(cursor.value) if cursor else 0
                page = values(*[b"%d %d" % (at, n) for n in range(3)])
                expect = {"cursor": cursor.revision if cursor else 0}
                other.append("pages", page, {"cursor": b"%d" % (at + 1)}, expect)
            except (Unavailable, Fenced) as error:
                refused[error.code] += 1
                return 0
            return 1

        loads = [Load(append), Load(put_page)]
        for load in loads:
            load.start()
        try:
            for load in loads:
                load.wait_for(ROUNDS_BEFORE)
            os.kill(trial.pids(kafka_alone)[leader_of(place, topic)], signal.SIGKILL)
            for load in loads:
                load.wait_for(ROUNDS_AFTER)
        finally:
            for load in loads:
                load.stop()
        found = Counter(read_values(log, "events"))
        assert [v for v in acknowledged if v not in found] == []
        assert [v for v, count in found.items() if count > 1] == []
        order = [int(v) for v in read_values(log, "events")]
        assert order == sorted(order)
        pages = [*read_values(log, "pages", 0), *read_values(log, "pages", 1)]
        at = int(log.get("cursor").value)
        assert Counter(pages) == Counter(b"%d %d" % (p, n) for p in range(at) for n in range(3))


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_appends_outlive_killed_leaders_and_a_stop_of_all_brokers(kafka_alone, place):
    """Acknowledged ones are there once and in order; of the others each was told that it failed."""
    place = KafkaPlace(trial.running(kafka_alone).kafka, delivery_s_max=6.0, timeout_s=30.0)
    acknowledged, refused, sent = [], [], [0]
    with closing(place.open()) as log:
        log.create("events", 2)

        def submit():
            batch = Batch()
            for _ in range(20):
                number = sent[0] = sent[0] + 1
                key = b"%d" % (number % 5)
                batch.add(b"%d" % number, received_at=0, id=b"%016d" % number, key=key)

            def done(answer):
                if isinstance(answer, HeadraceError):
                    refused.append(answer)
                else:
                    acknowledged.extend(batch.values)

            try:
                log.submit("events", batch, done)
            except Unavailable as error:
                refused.append(error)
            return 1

        load = Load(submit)
        load.start()
        try:
            for _ in range(KILLS):
                load.wait_for(ROUNDS_BEFORE)
                os.kill(trial.pids(kafka_alone)[leader_of(place, "events")], signal.SIGKILL)
                load.ended.wait(KILL_EVERY_S)
                trial.start_missing(kafka_alone, SystemClock())
            before = len(refused)
            with stopped(trial.pids(kafka_alone).values()):
                load.ended.wait(STOP_S)
            assert len(refused) > before
            goal = len(acknowledged) + 20 * ROUNDS_AFTER
            for _ in range(int(WAIT_S / 0.05)):
                if len(acknowledged) >= goal:
                    break
                load.ended.wait(0.05)
            assert len(acknowledged) >= goal
        finally:
            load.stop()
    assert [e for e in refused if not (isinstance(e, Unavailable) and e.retry_after_s > 0)] == []
    with closing(place.reader()) as reader:
        found = [list(map(int, read_values(reader, "events", p))) for p in range(2)]
    place.wipe()
    counts = Counter(found[0] + found[1])
    assert max(counts.values()) == 1
    assert {int(value) for value in acknowledged} <= counts.keys() <= set(range(1, sent[0] + 1))
    for numbers, key in itertools.product(found, range(5)):
        of_key = [n for n in numbers if n % 5 == key]
        assert of_key == sorted(of_key)


def test_the_state_is_one_for_all_while_its_leader_is_killed(place, kafka_alone, monkeypatch):
    """Two writers count together, with snapshots all the time, and who comes new sees the same."""
    monkeypatch.setattr(tail, "SNAPSHOT_EVERY", 7)
    wins, refused = [], Counter()

    def count(log):
        try:
            entry = log.get("counter")
            revision, number = (entry.revision, int(entry.value)) if entry else (0, 0)
            made = log.put_if("counter", revision, b"%d" % (number + 1))
        except (Fenced, Unavailable) as error:
            refused[error.code] += 1
            return 0
        wins.append((number + 1, made.revision))
        return 1

    def come_new():
        with closing(place.reader()) as reader, contextlib.suppress(Unavailable):
            reader.scan("")
            return 1
        return 0

    with closing(place.open()) as one, closing(place.open()) as two:
        loads = [Load(lambda: count(one)), Load(lambda: count(two)), Load(come_new)]
        for load in loads:
            load.start()
        try:
            for _ in range(2):
                for load in loads:
                    load.wait_for(5)
                leader = leader_of(place, "headrace-state")
                os.kill(trial.pids(kafka_alone)[leader], signal.SIGKILL)
                for load in loads:
                    load.wait_for(5)
                trial.start_missing(kafka_alone, SystemClock())
        finally:
            for load in loads:
                load.stop()
        assert one.scan("") == two.scan("")
        with closing(place.reader()) as new:
            assert new.scan("") == one.scan("")
        # A put whose answer was lost may count too; two that both count never have one number.
        assert len({number for number, _ in wins}) == len(wins)
        assert sorted(wins) == sorted(wins, key=lambda win: win[1])
        assert int(one.get("counter").value) - len(wins) <= refused["outcome_unknown"]


@contextlib.contextmanager
def stopped(pids):
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)


def test_memory_is_bounded_while_no_broker_answers(place, kafka_alone):
    """Fifty times what may wait is offered."""
    queue_bytes_max = 4 << 20
    process = psutil.Process()
    with closing(place.open(queue_bytes_max=queue_bytes_max)) as log:
        log.create("events", 1)
        log.append("events", values(b"first"))
        taken = refused = 0
        with stopped(trial.pids(kafka_alone).values()):
            before_bytes = process.memory_info().rss
            for number in range(2000):
                try:
                    log.submit("events", values(b"%08d" % number * 12_500), lambda _: None)
                    taken += 1
                except Unavailable:
                    refused += 1
            grown_bytes = process.memory_info().rss - before_bytes
    assert 0 < taken < 50
    assert refused == 2000 - taken
    assert grown_bytes < 10 * queue_bytes_max
    with closing(place.reader()) as reader:
        assert len(read_values(reader, "events")) == 1 + taken


def test_while_no_broker_answers_little_waits_and_the_rest_is_refused(place, kafka_alone):
    """What was taken before is durable once they answer; nothing is kept in memory for it."""
    answers = []
    accepted = 0
    pids = trial.pids(kafka_alone).values()
    queue_bytes_max = 1 << 20
    with closing(place.open(queue_bytes_max=queue_bytes_max)) as log:
        log.create("events", 1)
        log.append("events", values(b"first"))
        with stopped(pids), pytest.raises(Unavailable) as full:  # noqa: PT012 - until it is refused
            while accepted < 10_000:
                log.submit("events", values(b"%d" % accepted * 100), answers.append)
                accepted += 1
        assert full.value.code == "log_queue_full"
        assert 0 < accepted * 100 < queue_bytes_max
    assert [a for a in answers if isinstance(a, HeadraceError)] == []
    with closing(place.reader()) as reader:
        assert read_values(reader, "events")[1:] == [b"%d" % n * 100 for n in range(accepted)]


def test_once_nothing_was_kept_for_long_more_is_refused_at_once(place, kafka_alone, monkeypatch):
    """Who sends hears of it before records are given up; what waits is kept all the same."""
    monkeypatch.setattr(sender, "STALLED_S", 1.0)
    answers, waited = [], threading.Event()
    with closing(place.open()) as log:
        log.create("events", 1)
        log.append("events", values(b"first"))
        with stopped(trial.pids(kafka_alone).values()):
            log.submit("events", values(b"waits"), answers.append)
            waited.wait(1.5)
            with pytest.raises(Unavailable) as stalled:
                log.submit("events", values(b"too late"), answers.append)
            assert stalled.value.code == "log_stalled"
            assert answers == []
        for _ in range(int(WAIT_S / 0.05)):
            if answers:
                break
            waited.wait(0.05)
        log.append("events", values(b"after"))
    assert not isinstance(answers[0], HeadraceError)
    with closing(place.reader()) as reader:
        assert read_values(reader, "events") == [b"first", b"waits", b"after"]
