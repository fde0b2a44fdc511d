"""The Spark runner on a standalone cluster: its tasks read a real Kafka."""

from __future__ import annotations

import shutil
import signal
import sys
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass

import psutil
import pytest
from confluent_kafka import Producer

pytest.importorskip("pyspark", reason="pyspark is not installed: pip install 'headrace[spark]'")
if shutil.which("java") is None:
    pytest.skip("Spark needs Java", allow_module_level=True)

from kafka_place import KafkaPlace
from pyspark import cloudpickle
from spark_data import ENGINE, PARTITIONS, PLAN, Data, Sent, event, multiset

from headrace.model.batch import Batch
from headrace.model.clock import ManualClock
from headrace.model.errors import Unavailable
from headrace.model.ids import client_id
from headrace.runner import spark_session
from headrace.runner.local import LocalRunner
from headrace.runner.places import Place
from headrace.runner.spark import Sizes, SparkRunner
from headrace.stage.duplicates import IdIndex
from headrace.tables.delta import DeltaTables
from headrace.tables.storage import open_storage
from headrace.testing.runner_suite import GUARANTEES, Bench

cloudpickle.register_pickle_by_value(sys.modules[__name__])

WHOLE = Sizes()
SPLIT = Sizes(task_bytes_min=1)
SPLIT_AND_MERGED = Sizes(task_bytes_min=1, merged_rows_min=0)


@pytest.fixture(scope="module")
def session(spark_cluster):
    made = spark_session.begin(
        spark_cluster.master,
        {
            **spark_cluster.settings(),
            # More slots than there are: small ranges are cut into several pieces.
            "spark.default.parallelism": "5",
        },
    )
    yield made
    spark_session.end(made)


@pytest.fixture
def place(kafka):
    return KafkaPlace(kafka)


@pytest.fixture
def data(place, tmp_path):
    with closing(Data(tmp_path, place.open(), place.kafka)) as made:
        yield made


@dataclass(frozen=True)
class Unreadable(Place):
    def open_log(self, clock):
        raise Unavailable("The log cannot be read now")


@pytest.mark.parametrize("guarantee", GUARANTEES, ids=lambda g: g.__name__)
def test_the_spark_runner_keeps(guarantee, session, place, tmp_path):
    def make(log, tables, clock):
        kind = Place if log is kept else Unreadable
        there = kind(place.kafka, tmp_path)
        return SparkRunner(log, tables, clock, there, session=session, sizes=SPLIT)

    # The guarantees say what the time is; Kafka keeps its own.
    clock = ManualClock()
    with closing(place.open()) as kept:
        guarantee(Bench(kept, DeltaTables(tmp_path, clock), clock, make))


def send_by_others(place: KafkaPlace, commits: Sequence[bool] = (False, True, False)) -> None:
    """Have another program write messages, some of which it takes back."""
    name = place.kafka.name_of("events")
    producer = Producer(
        {"bootstrap.servers": place.kafka.bootstrap, "transactional.id": name, "log_level": 2}
    )
    producer.init_transactions()
    for is_kept in commits:
        producer.begin_transaction()
        for n in range(7):
            producer.produce(name, event(n=n), key=b"x", partition=n % PARTITIONS)
            headers = [("a", b"1"), ("a", '"ö'.encode())]
            producer.produce(name, None, headers=headers, partition=0)
        producer.flush()
        (producer.commit_transaction if is_kept else producer.abort_transaction)()


def send_with_act(data: Data, *, kept: bool) -> None:
    """Send records with a keyed value, or what a crash in the middle of that leaves behind."""
    batch = Batch()
    for i in range(6):
        batch.add(
            event(n=i),
            received_at=data.clock.now_us(),
            id=client_id("act", "events", f"{kept}{i}"),
            headers=b'{"own":"header"}' if i % 2 else b'{"headrace-seen-at":"2026-01-01"}',
        )
    if kept:
        data.log.append("events", batch, {"cursor": b"6"})
        return
    act = data.clock.new_id().hex()
    data.log._state.begin(act, data.log.describe()["events"])
    data.log._send("events", batch, act)
    data.log._state.abort(act)


def test_every_way_to_share_the_work_makes_the_same_outcome(data, place, session):
    ids, before = IdIndex(), None
    with (
        closing(place.reader()) as reader,
        closing(LocalRunner(reader, data.tables, data.clock, threads=1)) as local,
    ):
        for number in (1, 2):
            send_by_others(place)
            data.send([Sent("events", i % 2, 1, str(i // 4), event(n=i)) for i in range(9)])
            send_with_act(data, kept=True)
            send_with_act(data, kept=False)
            data.send([Sent("things", 0, 0, None, b'{"key":"p","n":1}')] * 3)
            send_by_others(place)
            epoch = data.epoch(number, before)
            before = local.run(epoch, ids)
            said = data.said(before)
            for sizes in (WHOLE, SPLIT, SPLIT_AND_MERGED):
                outcome = data.spark(session, sizes=sizes).run(epoch, ids)
                assert data.said(outcome) == said, sizes
            ids.add(before.known_ids)
    assert before.topics["events"].duplicates
    offsets = sum(r.end - r.start for r in epoch.ranges if r.topic == "events")
    assert before.topics["events"].read < offsets


def test_messages_that_were_all_taken_back_are_read_as_a_gap(data, place, session):
    send_by_others(place, commits=(False,))
    while 0 in data.log.ends("events"):
        # What says that they were taken back is written a moment later.
        time.sleep(0.05)
    epoch = data.epoch(1, None)
    outcome = data.spark(session, sizes=SPLIT).run(epoch, IdIndex())
    assert (outcome.ranges, outcome.files) == (epoch.ranges, {})


def executor() -> psutil.Process:
    """Return the executor that this task runs in."""
    return next(p for p in psutil.Process().parents() if p.name() == "java")


class Dying(DeltaTables):
    """Tables whose executor dies once, after a file is staged: what was staged is an orphan."""

    def __init__(self, folder, clock):
        super().__init__(folder, clock)
        self.folder = folder

    def stage(self, name, rows, **options):
        file = super().stage(name, rows, **options)
        try:
            (self.folder / "first").touch(exist_ok=False)
        except FileExistsError:
            return file
        executor().send_signal(signal.SIGKILL)
        return file


@dataclass(frozen=True)
class Lost(Place):
    def open_tables(self, clock):
        return Dying(self.tables, clock)


@pytest.mark.parametrize("sizes", [SPLIT, SPLIT_AND_MERGED], ids=["split", "merged"])
def test_an_executor_that_is_lost_leaves_the_result_right(sizes, data, session):
    # A name twice: its partition runs again in one piece, after what was lost.
    names = [*map(str, range(30)), None, "7"]
    data.send([Sent("events", i % 2, 1, name, event(n=i)) for i, name in enumerate(names)])
    epoch = data.epoch(1, None)
    outcome = data.spark(session, Lost, sizes=sizes).run(epoch, IdIndex())
    assert (data.folder / "first").exists()
    with closing(LocalRunner(data.log, data.tables, data.clock, threads=1)) as local:
        assert data.said(outcome) == data.said(local.run(epoch, IdIndex()))
    assert outcome.tables["events"].rows == len(set(names))


def test_tasks_stage_on_object_storage(place, data, session, s3, url):
    data.send([Sent("events", i % 2, 1, str(i), event(n=i)) for i in range(40)])
    options = s3.options()
    tables = DeltaTables(url, data.clock, storage=open_storage(url, data.clock, options))
    there = Place(place.kafka, url, options)
    runner = SparkRunner(data.log, tables, data.clock, there, session=session, sizes=SPLIT)
    epoch = data.epoch(1, None)
    outcome = runner.run(epoch, IdIndex())
    schema = next(t for t in PLAN.tables if t.name == "events")
    owned = tables.create(schema.storage, ENGINE.arrow_schema(schema.columns))
    owned.commit(outcome.files[schema.storage])
    rows = tables.read(tables.snapshot(schema.storage))
    with closing(LocalRunner(data.log, data.tables, data.clock, threads=1)) as local:
        expected = data.rows(schema.storage, local.run(epoch, IdIndex()))
    assert multiset(rows) == multiset(expected)
