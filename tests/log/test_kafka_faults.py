"""What the log on Kafka keeps while brokers die, hang and come back."""

from __future__ import annotations

import os
import signal
import threading
from collections import Counter
from contextlib import closing

import pytest
from kafka_place import KafkaPlace

from headrace.app.cluster import trial
from headrace.model.clock import SystemClock
from headrace.model.errors import Fenced, HeadraceError, Unavailable
from headrace.testing.log_place import read_values, values

ROUNDS_BEFORE, ROUNDS_AFTER = 20, 20
PAUSE_S = 0.02
"""Between rounds: the brokers share this machine with the load, and are to come back soon."""
WAIT_S = 90.0


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


def test_while_no_broker_answers_little_waits_and_the_rest_is_refused(place, kafka_alone):
    """What was taken before is durable once they answer; nothing is kept in memory for it."""
    answers = []
    accepted = 0
    pids = trial.pids(kafka_alone).values()
    queue_bytes_max = 1 << 20
    with closing(place.open(queue_bytes_max=queue_bytes_max)) as log:
        log.create("events", 1)
        log.append("events", values(b"first"))
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        try:
            with pytest.raises(Unavailable) as full:  # noqa: PT012 - until it is refused
                while accepted < 10_000:
                    log.submit("events", values(b"%d" % accepted * 100), answers.append)
                    accepted += 1
        finally:
            for pid in pids:
                os.kill(pid, signal.SIGCONT)
        assert full.value.code == "log_queue_full"
        assert 0 < accepted * 100 < queue_bytes_max
    assert [a for a in answers if isinstance(a, HeadraceError)] == []
    with closing(place.reader()) as reader:
        assert read_values(reader, "events")[1:] == [b"%d" % n * 100 for n in range(accepted)]
