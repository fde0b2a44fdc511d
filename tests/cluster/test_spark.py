"""A trial cluster's Spark runs what it is given on both workers, and leaves nothing running."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from contextlib import contextmanager, suppress

import psutil
import pytest

from headrace.app import deployment_file
from headrace.app.cluster import spark, trial
from headrace.app.cluster.keeper import STOP_S_MAX
from headrace.model.clock import SystemClock

APPLICATION = """
import json, os, sys
from pyspark.sql import SparkSession

def where(batches):
    import pyarrow as pa
    for batch in batches:
        yield pa.RecordBatch.from_pydict({"at": [os.getcwd()], "python": [sys.prefix]})

session = SparkSession.builder.appName("trial").getOrCreate()
found = session.range(0, 2, 1, 2).mapInArrow(where, "at string, python string").collect()
print(json.dumps([row.asDict() for row in found]), flush=True)
input()
session.stop()
"""


@contextmanager
def application(folder):
    """Run a driver that has run a job; yield where its tasks ran."""
    environment = {**os.environ, "SPARK_CONF_DIR": str(trial.spark_conf(folder))}
    driver = subprocess.Popen(
        [sys.executable, "-c", APPLICATION],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        yield json.loads(driver.stdout.readline())
    finally:
        # Its Java process ends with it.
        driver.kill()
        driver.communicate()


def started(folder):
    """Return the commands of all processes that come from a cluster, whoever started them."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.environ().get("HEADRACE_CLUSTER_FOLDER") == str(folder):
                found.append(" ".join(process.cmdline()))
    return found


@pytest.fixture
def own(tmp_path):
    """The folder of a Spark that this test may stop as it likes."""
    reason = spark.missing()
    if reason:
        pytest.skip(reason)
    trial.up(tmp_path, SystemClock(), with_kafka=False, with_spark=True, until_pid=os.getpid())
    yield tmp_path
    trial.down(tmp_path)


def test_an_application_runs_on_both_workers(spark_folder, spark_cluster):
    with application(spark_folder) as tasks:
        places = {task["at"].removeprefix(f"{spark_folder}/spark/").split("/")[0] for task in tasks}
        assert places == {"worker-1", "worker-2"}
        assert {task["python"] for task in tasks} == {sys.prefix}


def test_its_file_is_one_that_a_run_takes(spark_folder, spark_cluster):
    deployment = deployment_file.read(spark_folder / trial.CONFIG)
    assert deployment.kafka is None
    assert deployment.spark.master == spark_cluster.master
    assert deployment.spark.settings == spark_cluster.settings()


def test_it_listens_on_this_machine_alone(spark_folder):
    pids = trial.pids(spark_folder)
    assert sorted(pids) == ["master", "worker-1", "worker-2"]
    for pid in pids.values():
        listening = [c for c in psutil.Process(pid).net_connections() if c.status == "LISTEN"]
        assert listening
        assert {c.laddr.ip.removeprefix("::ffff:") for c in listening} == {"127.0.0.1"}


def stop(folder):
    assert trial.down(folder)


def kill_all_but_what_they_started(folder):
    keeper = psutil.Process(int((folder / "keeper.lock").read_text()))
    pids = trial.pids(folder)
    keeper.kill()
    keeper.wait(STOP_S_MAX)
    os.kill(pids["worker-1"], signal.SIGKILL)
    assert trial.stop_orphans(folder)


@pytest.mark.slow
@pytest.mark.parametrize("end", [stop, kill_all_but_what_they_started])
def test_executors_end_with_it(end, own):
    with application(own):
        before = started(own)
        assert sum("CoarseGrainedExecutorBackend" in command for command in before) == 2
        assert any("pyspark.daemon" in command for command in before)
        end(own)
        assert started(own) == []
        assert trial.running(own) is None
