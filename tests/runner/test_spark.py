"""The Spark runner on a real local session: what every runner keeps, and what it alone may lose."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import msgspec
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

pytest.importorskip("pyspark", reason="pyspark is not installed: pip install 'headrace[spark]'")
if shutil.which("java") is None:
    pytest.skip("Spark needs Java", allow_module_level=True)

from pyspark import cloudpickle
from spark_data import ENGINE, MERGED, NOTHING, PLAN, RECORDS, SMALL, Data, Sent, event

from headrace.log.embedded import EmbeddedLog
from headrace.model.clock import ManualClock
from headrace.model.errors import Internal, Unavailable
from headrace.runner import gather, spark_session
from headrace.runner.local import LocalRunner
from headrace.runner.places import Place
from headrace.runner.spark import SparkRunner
from headrace.runner.task import BODY_BYTES_MAX, bodies, table_of
from headrace.stage.duplicates import IdIndex
from headrace.stage.fold import ViewState
from headrace.tables.delta import DeltaTables
from headrace.testing.runner_suite import GUARANTEES, Bench

# Workers cannot import a test; what they need of it is sent to them.
cloudpickle.register_pickle_by_value(sys.modules[__name__])


@pytest.fixture(scope="module")
def session():
    # More slots than there are: small ranges are cut into several pieces.
    made = spark_session.begin("local[2]", {"spark.default.parallelism": "5"})
    yield made
    spark_session.end(made)


@dataclass(frozen=True)
class Unreadable(Place):
    def open_log(self, clock):
        raise Unavailable("The log cannot be read now")


@pytest.mark.parametrize("guarantee", GUARANTEES, ids=lambda g: g.__name__)
def test_the_spark_runner_keeps(guarantee, session, tmp_path):
    def make(log, tables, clock):
        kind = Place if isinstance(log, EmbeddedLog) else Unreadable
        place = kind(tmp_path / "log", tmp_path)
        return SparkRunner(log, tables, clock, place, session=session)

    clock = ManualClock()
    with closing(EmbeddedLog(tmp_path / "log", clock)) as log:
        guarantee(Bench(log, DeltaTables(tmp_path, clock), clock, make))


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """A log that every example adds to, so that workers keep what they have compiled."""
    with (
        closing(Data(tmp_path_factory.mktemp("both"))) as data,
        closing(LocalRunner(data.log, data.tables, data.clock, threads=1)) as local,
    ):
        yield data, local


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(sent=RECORDS, share=st.sampled_from([0.5, 1.0]), is_merged=st.booleans())
def test_an_outcome_is_the_local_runners(sent, share, is_merged, session, both):
    data, local = both
    spark = data.spark(session, sizes=MERGED if is_merged else SMALL)
    ids, before = IdIndex(), msgspec.structs.replace(NOTHING, ranges=data.epoch(1, None).ranges)
    data.send(sent)
    for number in (1, 2):
        epoch = data.epoch(number, before, share if number == 1 else 1.0)
        outcome = local.run(epoch, ids)
        assert data.said(spark.run(epoch, ids)) == data.said(outcome)
        if outcome.known_ids is not None:
            ids.add(outcome.known_ids)
        before = outcome


@pytest.fixture
def data(tmp_path):
    with closing(Data(tmp_path)) as made:
        yield made


@pytest.fixture
def reruns(monkeypatch):
    """Which partitions were run again, epoch by epoch."""
    found = []
    again = gather.again

    def noted(results, wrong, *rest):
        found.append(sorted(wrong))
        return again(results, wrong, *rest)

    monkeypatch.setattr(gather, "again", noted)
    return found


def send_events(data: Data, *names: str | None, gaps: dict[int, int] | None = None) -> None:
    data.send([Sent("events", 0, (gaps or {}).get(i, 0), n, event()) for i, n in enumerate(names)])


def test_ids_that_do_not_repeat_are_run_once_in_pieces(data, session, reruns):
    send_events(data, *map(str, range(40)))
    outcome = data.spark(session, sizes=SMALL).run(data.epoch(1, None), IdIndex())
    assert reruns == []
    assert len(outcome.files["tables/events"]) > 1
    assert outcome.tables["events"].rows == 40


def test_an_id_in_two_pieces_has_its_partition_run_in_one(data, session, reruns):
    send_events(data, *map(str, range(39)), "0")
    outcome = data.spark(session, sizes=SMALL).run(data.epoch(1, None), IdIndex())
    (partition,) = {(r.topic, r.partition) for r in data.epoch(1, None).ranges if r.end}
    assert reruns == [[partition]]
    assert outcome.topics["events"].duplicates == 1
    assert len(outcome.files["tables/events"]) == 1


def test_a_clock_that_is_reset_has_its_partition_run_in_one(data, session, reruns):
    send_events(data, *[None] * 20, "i", *[None] * 19, gaps={20: -3600})
    outcome = data.spark(session, sizes=SMALL).run(data.epoch(1, None), IdIndex())
    assert len(reruns) == 1
    assert outcome.known_ids.num_rows == 2
    assert list(outcome.clocks.values()) == [data.clock.now_us()]


@dataclass(frozen=True)
class Failing(Place):
    """Opens the log only after it was tried before, on whatever worker."""

    def open_log(self, clock):
        tried = self.tables / "tried"
        if not tried.exists():
            tried.touch()
            self.fail()
        return super().open_log(clock)

    def fail(self):
        raise RuntimeError("the disk of this machine is broken")


@dataclass(frozen=True)
class Dying(Failing):
    def fail(self):
        os._exit(9)


@dataclass(frozen=True)
class Broken(Failing):
    def open_log(self, clock):
        raise RuntimeError("the disk of every machine is broken")


@dataclass(frozen=True)
class Full(Place):
    """Fails once after its rows are staged: what they are staged as is an orphan."""

    def open_tables(self, clock):
        return Halfway(self.tables, clock)


class Halfway(DeltaTables):
    def stage(self, name, rows, **options):
        file = super().stage(name, rows, **options)
        tried = Path(self.storage.uri("tried"))
        if not tried.exists():
            tried.touch()
            raise RuntimeError("the machine is gone")
        return file


@pytest.mark.parametrize("kind", [Failing, Dying, Full])
def test_a_task_that_fails_is_run_again(kind, data, session):
    send_events(data, "i", "i", *[None] * 20)
    outcome = data.spark(session, kind).run(data.epoch(1, None), IdIndex())
    assert (data.folder / "tried").exists()
    assert outcome.tables["events"].rows == 21
    assert data.rows("tables/events", outcome).num_rows == 21
    staged = list((data.folder / "tables/events").glob("*.parquet"))
    assert len(staged) == (2 if kind is Full else 1)


def test_a_task_that_always_fails_is_an_error_with_its_reason(data, session):
    send_events(data, None)
    with pytest.raises(Internal, match="the disk of every machine is broken"):
        data.spark(session, Broken).run(data.epoch(1, None), IdIndex())
    outcome = data.spark(session).run(data.epoch(1, None), IdIndex())
    assert outcome.tables["events"].rows == 1


def test_partials_that_are_many_are_merged_in_tasks(data, session):
    data.send([Sent("events", 0, 0, None, event(kind=str(i % 7), x=i % 3)) for i in range(200)])
    epoch = data.epoch(1, None)
    apart = data.spark(session, sizes=SMALL).run(epoch, IdIndex())
    merged = data.spark(session, sizes=MERGED).run(epoch, IdIndex())
    groups = [o.partials["arrived"]["groups"].num_rows for o in (apart, merged)]
    assert groups[0] > groups[1] == 7
    assert data.said(apart)["views"] == data.said(merged)["views"]


def test_a_task_keeps_to_its_memory(data, session):
    texts = [Sent("events", 0, 0, None, event(kind=f"{i:0200}")) for i in range(3000)]
    data.send(texts)
    outcome = data.spark(session, memory_limit="4MB").run(data.epoch(1, None), IdIndex())
    state = ViewState(next(v for v in PLAN.views if v.name == "arrived"), ENGINE)
    state.add(outcome.partials["arrived"])
    assert state.final().num_rows == 3000
    with pytest.raises(Unavailable) as caught:
        data.spark(session, memory_limit="1MB").run(data.epoch(1, None), IdIndex())
    assert caught.value.code == "out_of_memory"


def test_a_large_table_comes_in_several_bodies():
    rows = pa.table({"x": pa.array([b"x" * (1 << 20)] * 40)})
    found = list(bodies(rows))
    assert max(map(len, found)) <= BODY_BYTES_MAX + (1 << 20)
    assert pa.concat_tables(map(table_of, found)).equals(rows)


ALONE = """
import json, sys
from contextlib import closing
from pathlib import Path

import psutil

from headrace.log.embedded import EmbeddedLog
from headrace.model.clock import SystemClock
from headrace.model.errors import Unavailable
from headrace.runner.places import Place
from headrace.runner.spark import SparkRunner
from headrace.tables.delta import DeltaTables
from headrace.testing.runner_suite import GOOD, Bench
from headrace.stage.duplicates import IdIndex

folder, clock, me = Path(sys.argv[1]), SystemClock(), psutil.Process()
tables, found = DeltaTables(folder, clock), []
with closing(EmbeddedLog(folder / "log", clock)) as log:
    place = Place(folder / "log", folder)
    bench = Bench(log, tables, clock, None)
    bench.send(*GOOD)
    runner = SparkRunner(log, tables, clock, place, master="local[1]")
    found.append(runner.run(bench.epoch(), IdIndex()).tables["events"].rows)
    started = me.children(recursive=True)
    (java,) = [child for child in me.children() if child.name() == "java"]
    java.kill()
    java.wait()
    try:
        runner.run(bench.epoch(), IdIndex())
    except Unavailable as error:
        found.append(error.code)
    found.append(runner.run(bench.epoch(), IdIndex()).tables["events"].rows)
    started += me.children(recursive=True)
    runner.close()
gone, alive = psutil.wait_procs(started, timeout=30)
print(json.dumps([*found, len(started) > 3, [p.cmdline() for p in alive]]))
"""


def test_a_lost_spark_is_begun_again_and_the_end_leaves_no_process(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", ALONE, str(tmp_path)],
        stdout=subprocess.PIPE,
        cwd=tmp_path,
        check=True,
        timeout=280,
    )
    assert json.loads(done.stdout) == [4, "spark_failed", 4, True, []]
