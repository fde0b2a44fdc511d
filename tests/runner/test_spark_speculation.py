"""Two copies of one task run at once: Spark starts the second because the first is slow.

Spark starts no copy on the host that the first runs on, so the workers of this file's own cluster
have different addresses of this machine.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from contextlib import closing, suppress
from dataclasses import dataclass

import msgspec
import pytest

pytest.importorskip("pyspark", reason="pyspark is not installed: pip install 'headrace[spark]'")

from pyspark import TaskContext, cloudpickle
from spark_data import SMALL, Data, Sent, event

from headrace.app.cluster import spark, trial
from headrace.app.cluster.keeper import PROGRAMS
from headrace.app.cluster.ports import HOST
from headrace.model.clock import SystemClock
from headrace.runner import spark_session
from headrace.runner.local import LocalRunner
from headrace.runner.places import Place
from headrace.stage.duplicates import IdIndex
from headrace.tables.delta import DeltaTables

cloudpickle.register_pickle_by_value(sys.modules[__name__])

OTHER_HOST = "127.0.0.2"
SPECULATION = {
    "spark.speculation": "true",
    "spark.speculation.interval": "100ms",
    "spark.speculation.multiplier": "1.1",
    "spark.speculation.quantile": "0.1",
    "spark.speculation.minTaskRuntime": "100ms",
    "spark.speculation.efficiency.enabled": "false",
}


@pytest.fixture
def master(tmp_path_factory):
    """A master, with two workers at addresses of their own."""
    if reason := spark.missing():
        pytest.skip(reason)
    try:
        with socket.socket() as probe:
            probe.bind((OTHER_HOST, 0))
    except OSError:
        pytest.skip(f"this machine has no {OTHER_HOST}")
    folder = tmp_path_factory.mktemp("two-hosts")
    chosen = spark.chosen()
    programs = spark.prepare(folder, chosen)
    programs[-1] = msgspec.structs.replace(
        programs[-1],
        command=[OTHER_HOST if word == HOST else word for word in programs[-1].command],
        environment={**programs[-1].environment, "SPARK_LOCAL_IP": OTHER_HOST},
    )
    (folder / PROGRAMS).write_bytes(msgspec.json.encode(programs))
    command = [sys.executable, "-m", "headrace.app.cluster.keeper", str(folder), str(os.getpid())]
    keeper = subprocess.Popen(command, stdin=subprocess.DEVNULL)
    try:
        spark.wait_until_ready(chosen, SystemClock(), lambda: None)
        yield chosen
    finally:
        keeper.terminate()
        keeper.wait()
        trial.stop_orphans(folder)


class Slow(DeltaTables):
    """Tables that stop the first task to stage a file right after, and tell who stages."""

    def __init__(self, folder, clock):
        super().__init__(folder, clock)
        self.folder = folder

    def stage(self, name, rows, **options):
        file = super().stage(name, rows, **options)
        task = TaskContext.get()
        (self.folder / f"staged-{task.partitionId()}-{task.attemptNumber()}").touch()
        with suppress(FileExistsError), (self.folder / "stopped").open("x") as stopped:
            stopped.write(f"{task.partitionId()} {name} {file.path}")
            stopped.flush()
            os.kill(os.getpid(), signal.SIGSTOP)
        return file


@dataclass(frozen=True)
class Stopped(Place):
    def open_tables(self, clock):
        return Slow(self.tables, clock)


@pytest.fixture
def session(master):
    made = spark_session.begin(master.master, {**master.settings(), **SPECULATION})
    yield made
    spark_session.end(made)


def test_of_two_copies_of_a_task_one_counts(session, tmp_path):
    with closing(Data(tmp_path)) as data:
        data.send([Sent("events", i % 2, 1, str(i), event(n=i)) for i in range(30)])
        epoch = data.epoch(1, None)
        # It ends because a copy does what the stopped task cannot.
        outcome = data.spark(session, Stopped, sizes=SMALL).run(epoch, IdIndex())
        task, name, path = (tmp_path / "stopped").read_text().split()
        assert {file.name for file in tmp_path.glob(f"staged-{task}-*")} == {
            f"staged-{task}-0",
            f"staged-{task}-1",
        }
        assert (tmp_path / name / path).exists()
        assert path not in {file.path for file in outcome.files[name]}
        with closing(LocalRunner(data.log, data.tables, data.clock, threads=1)) as local:
            assert data.said(outcome) == data.said(local.run(epoch, IdIndex()))
