"""A log in memory with the embedded log's manners: its own thread, an answer a submit."""

from __future__ import annotations

import asyncio
import queue
import threading
import uuid

import pyarrow as pa
import pytest

from headrace.app.cluster.ports import free_port
from headrace.collect.collector import Collector
from headrace.collect.exchange import HeaderList, Request
from headrace.collect.limits import Limits, Share
from headrace.model.batch import RECORDS, Batch, decode, encode
from headrace.model.clock import ManualClock
from headrace.model.errors import Invalid, Unavailable
from headrace.model.log import Appended, TopicInfo
from headrace.model.plan import Plan, Route, Topic
from headrace.model.schema import Field, Schema, Type


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


EVENTS = Schema(
    "Event",
    (
        Field("event_type", "event_type", Type("string")),
        Field("n", "n", Type("integer"), nullable=True, required=False),
        Field("host", "Host", Type("string"), nullable=True, required=False),
    ),
)
GAME = Plan(
    "game",
    topics=(
        Topic("events", 3, EVENTS),
        Topic("named", 1, None, id_field="id", key_field="player"),
        Topic("free", 1),
    ),
    routes=(
        Route("/buy", "events", {"event_type": "buy"}, "Bought!\n"),
        Route("/join/{guild}", "events", {"event_type": "join", "guild": "{guild}"}, "ok"),
        Route("/typed", "events", {"event_type": "t", "n": "not a number"}, "typed"),
    ),
)
LIMITS = Limits(records_max=5_000, body_bytes_max=12 << 20, inline_bytes_max=4_000)


class Door:
    """A collector without a server: one request, one answer."""

    def __init__(self, log, limits=LIMITS, plan=GAME, **options):
        for topic in plan.topics:
            log.create(topic.name, topic.partitions)
        for name in plan.change_topics:
            log.create(name, 1)
        self.log = log
        self.clock = ManualClock()
        self.lost = []
        self.mark = EVENTS.fingerprint
        self.collector = Collector(
            plan, log, self.clock, limits, on_lost=self.lost.append, **options
        )

    def __call__(self, method, target, body=b"", headers=(), content_type="application/json"):
        return self.all([(method, target, body, headers, content_type)])[0]

    def all(self, requests):
        async def run():
            return await asyncio.gather(*[self._one(*request) for request in requests])

        return asyncio.run(run())

    async def _one(self, method, target, body=b"", headers=(), content_type="application/json"):
        path, _, query = target.partition("?")
        sent = [*headers]
        if content_type is not None:
            sent.append(("content-type", content_type))
        if body:
            sent.append(("content-length", str(len(body))))

        async def read():
            return body

        share = Share(self.collector.budget)
        answer = await self.collector.respond(
            Request(method, path, query, HeaderList(sent), read, share)
        )
        share.give_back()
        if answer is None:
            return None
        assert answer.status != 500
        return answer

    def post(self, body, topic="events", query="", **options):
        return self("POST", f"/v1/topics/{topic}{query}", body, **options)

    def close(self):
        self.collector.close()


@pytest.fixture
def open_door(log):
    """Return a function that opens a collector over the log, with limits and options."""
    doors = []

    def open_door(limits=LIMITS, **options):
        doors.append(Door(log, limits, **options))
        return doors[-1]

    yield open_door
    for door in doors:
        door.close()


@pytest.fixture
def door(open_door):
    return open_door()


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
    return free_port()
