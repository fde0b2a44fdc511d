"""The owner of a pipeline is stopped inside a step, and a standby does the same step.

Two process roles on one log in Kafka and one folder of tables, each with a data directory of its
own. The first is stopped by SIGSTOP; the second takes over and brings everything into the tables;
the first goes on: it stands by, nothing is lost and nothing doubled.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import psutil
import pytest
from live import until
from sweep import VIEWS, keyed_breaches
from worker import BAD_EVERY, BATCH, compiled, event

from headrace.app import deployment_file
from headrace.app.cluster import spark
from headrace.log.kafka import Kafka, KafkaLog
from headrace.model.batch import Batch
from headrace.model.clock import SystemClock
from headrace.model.deployment import Deployment, KafkaSettings, SparkSettings, TableSettings
from headrace.model.ids import client_id
from headrace.model.layout import Layout
from headrace.process.ledger import last_row
from headrace.tables.delta import DeltaTables
from headrace.testing.checker import Checker

ROLE = Path(__file__).parent / "standby_role.py"
TOTAL = 300
SPARK_S = 180.0
"""How long two Sparks may take on a machine that has other things to do."""
STEPS = ["commit.3", "commit.4", "publish.2:2", "compact.1"]


class Place:
    """A log in Kafka, a folder of tables, and machines that share them."""

    def __init__(self, folder: Path, bootstrap: str) -> None:
        self.folder = folder
        self.tables = folder / "shared"
        self._prefix = f"{os.getpid()}-{folder.name}."
        self._bootstrap = bootstrap
        self._plan = compiled("process")

    def append(self, numbers: range) -> None:
        kafka, clock = Kafka(self._bootstrap, prefix=self._prefix), SystemClock()
        with contextlib.closing(KafkaLog(kafka, clock)) as log:
            log.create("events", 3)
            for at in range(numbers.start, numbers.stop, BATCH):
                batch = Batch()
                for n in range(at, min(at + BATCH, numbers.stop)):
                    chosen = client_id("test", "events", f"event-{n}")
                    batch.add(event(n), received_at=clock.now_us(), id=chosen)
                log.append("events", batch)

    def machine(self, name: str, *, cut_bytes: int, spark: str | None = None) -> Path:
        """Make a data directory whose roles use the log and the tables."""
        layout = Layout(self.folder / name)
        layout.run.mkdir(parents=True)
        bounds = {"epoch_bytes_max": cut_bytes, "table_files_max": 2, "commits_per_checkpoint": 3}
        options = dataclasses.replace(self._plan.options, **bounds)
        plan = msgspec.structs.replace(self._plan, options=options)
        layout.plan.write_bytes(msgspec.json.encode(plan))
        kafka = KafkaSettings(self._bootstrap, prefix=self._prefix)
        runner = None if spark is None else SparkSettings(spark)
        deployment_file.keep(layout, Deployment(kafka, TableSettings(str(self.tables)), runner))
        return layout.root

    def processed(self) -> int:
        tables = DeltaTables(self.tables, SystemClock())
        snapshot = tables.snapshot("system/ledger")
        row = last_row(tables, snapshot) if snapshot else None
        return row.topic_totals["events"].read if row else 0

    def breaches(self, total: int) -> list[str]:
        checker = Checker(self.tables, "numbers", "number", VIEWS)
        found = checker.check(range(total), range(total)) + keyed_breaches(self.tables)
        tables = DeltaTables(self.tables, SystemClock())
        row = last_row(tables, tables.snapshot("system/ledger"))
        totals = row.topic_totals["events"]
        assert totals.read == totals.decoded + totals.dead + totals.duplicates
        assert totals.dead == len(range(0, total, BAD_EVERY))
        return found


class Role:
    """A process role that runs."""

    def __init__(self, data: Path, failpoint: str = "") -> None:
        self.data = data
        self._said = data / "said"
        with self._said.open("ab") as said:
            self.process = subprocess.Popen(
                [sys.executable, str(ROLE), "process", "--data", str(data)],
                env={**os.environ, "HEADRACE_FAILPOINT": failpoint},
                stderr=said,
            )

    def state(self) -> str:
        assert self.process.poll() is None, self.said()
        with contextlib.suppress(FileNotFoundError):
            return msgspec.json.decode((self.data / "run" / "process.json").read_bytes())["state"]
        return ""

    def said(self) -> str:
        return self._said.read_text()

    def is_ready_to_run_tasks(self) -> bool:
        """Return whether it has a Spark with a Python worker."""
        count = 0
        for child in psutil.Process(self.process.pid).children(recursive=True):
            with contextlib.suppress(psutil.Error):  # of one that has ended
                count += "pyspark.daemon" in child.cmdline()
        return count > 1  # one begins the others

    def is_stopped(self) -> bool:
        assert self.process.poll() is None, self.said()
        return psutil.Process(self.process.pid).status() == psutil.STATUS_STOPPED

    def end(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)


@contextlib.contextmanager
def running(data: Path, failpoint: str = "") -> Iterator[Role]:
    role = Role(data, failpoint)
    try:
        yield role
    finally:
        role.process.kill()
        role.process.wait()


@pytest.fixture
def place(tmp_path: Path, kafka) -> Place:
    return Place(tmp_path, kafka.bootstrap)


@pytest.mark.parametrize("step", STEPS)
def test_stopped_inside(place: Place, step: str) -> None:
    place.append(range(TOTAL))
    # The second owner cuts the same records into other epochs.
    one, two = place.machine("one", cut_bytes=2000), place.machine("two", cut_bytes=1500)
    with running(one, f"{step}=stop") as first:
        until(first.is_stopped, f"{step} is reached")
        with running(two) as second:
            until(lambda: place.processed() == TOTAL, "the standby takes over")
            first.process.send_signal(signal.SIGCONT)
            until(lambda: "standing by" in first.said(), "the first finds that its turn is over")
            until(lambda: first.state() == "standby", "it stands by")
            assert second.end() == 0, second.said()
        # What the second gave back the first takes up.
        place.append(range(TOTAL, TOTAL + BATCH))
        until(lambda: place.processed() == TOTAL + BATCH, "the first goes on")
        assert first.end() == 0, first.said()
    assert place.breaches(TOTAL + BATCH) == []


def test_a_standby_that_is_told_to_drain_ends_once_all_is_committed(place: Place) -> None:
    with running(place.machine("one", cut_bytes=3000)) as owner:
        until(lambda: owner.state() == "running", "one owns the pipeline")
        with running(place.machine("two", cut_bytes=3000)) as standby:
            until(lambda: standby.state() == "standby", "the other stands by")
            owner.process.send_signal(signal.SIGSTOP)
            place.append(range(TOTAL))
            standby.process.send_signal(signal.SIGUSR1)
            assert standby.process.wait(60) == 0, standby.said()
            # Nobody else worked, so it was the standby that did, after its turn had come.
            assert place.processed() == TOTAL
        owner.process.send_signal(signal.SIGCONT)
        with running(place.folder / "two") as standby:
            until(lambda: {owner.state(), standby.state()} == {"running", "standby"}, "both run")
            drained = standby if standby.state() == "standby" else owner
            drained.process.send_signal(signal.SIGUSR1)
            assert drained.process.wait(60) == 0, drained.said()
    assert place.breaches(TOTAL) == []


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_standby_has_its_spark_before_its_turn_comes(place: Place) -> None:
    if reason := spark.missing():
        pytest.skip(reason)
    place.append(range(TOTAL))
    with running(place.machine("one", cut_bytes=3000, spark="local[1]")) as owner:
        until(lambda: place.processed() == TOTAL, "one owns the pipeline", SPARK_S)
        with running(place.machine("two", cut_bytes=3000, spark="local[1]")) as standby:
            until(lambda: standby.state() == "standby", "the other stands by")
            until(standby.is_ready_to_run_tasks, "it has workers", SPARK_S)
            assert standby.state() == "standby"
            place.append(range(TOTAL, 2 * TOTAL))
            began_s = time.monotonic()
            owner.process.kill()
            until(lambda: place.processed() > TOTAL, "an epoch of the standby", SPARK_S)
            took_s = time.monotonic() - began_s
            sys.stdout.write(f"the first epoch is {took_s:.1f} s after the owner's end\n")
            until(lambda: place.processed() == 2 * TOTAL, "the standby goes on", SPARK_S)
            assert standby.end() == 0, standby.said()
    assert place.breaches(2 * TOTAL) == []
