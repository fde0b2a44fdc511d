"""A log in memory with the embedded log's manners: its own thread, an answer a submit."""

from __future__ import annotations

import queue
import socket
import threading
import uuid

import pyarrow as pa
import pytest

from headrace.model.batch import RECORDS, Batch, decode, encode
from headrace.model.errors import Invalid, Unavailable
from headrace.model.log import Appended, TopicInfo


class MemoryLog:
    """Keeps batches by topic, one partition each."""

    def __init__(self):
        self.batches: dict[str, list[Batch]] = {}
        self.refuse: Exception | None = None
        """What `submit` raises."""
        self.fail: Exception | None = None
        """What appends are answered with."""
        self.hold = threading.Event()
        self.hold.set()
        self.submits = 0
        self._queue: queue.SimpleQueue = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def create(self, topic, partitions):
        self.batches.setdefault(topic, [])
        return TopicInfo(topic, str(uuid.uuid5(uuid.NAMESPACE_DNS, topic)), partitions)

    def submit(self, topic, records, done, state=None, expect=None):
        assert len(records) > 0
        self.submits += 1
        if self.refuse is not None:
            raise self.refuse
        self._queue.put((topic, records, done))

    def describe(self):
        return {name: TopicInfo(name, "i", 1) for name in self.batches}

    def starts(self, topic):
        return [0]

    def ends(self, topic):
        return [sum(map(len, self.batches[topic]))]

    def read(self, topic, partition, start, end, *, bytes_max=32 << 20):
        if start < 0:
            raise Invalid("trimmed", code="offset_trimmed")
        table = pa.Table.from_batches(self.decoded(topic), RECORDS).combine_chunks()
        yield from table.slice(start, end - start).to_batches()

    def decoded(self, topic):
        blobs, base = [], 0
        for batch in self.batches[topic]:
            blobs.append((base, len(batch), encode(batch)))
            base += len(batch)
        return [decode(blobs)] if blobs else []

    def all(self, topic) -> Batch:
        """Return every record of a topic as one batch."""
        together = Batch()
        for batch in self.batches[topic]:
            together.extend(batch)
        return together

    def close(self):
        self._queue.put(None)
        self._thread.join()

    def _run(self):
        while (one := self._queue.get()) is not None:
            topic, records, done = one
            self.hold.wait()
            if self.fail is not None:
                done(self.fail)
                continue
            base = sum(map(len, self.batches[topic]))
            self.batches[topic].append(records)
            done([Appended(topic, 0, base, range(len(records)))])


@pytest.fixture
def log():
    log = MemoryLog()
    yield log
    log.hold.set()
    log.close()


@pytest.fixture
def full():
    return Unavailable("full", code="log_full", retry_after_s=2.0)


@pytest.fixture
def port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]
