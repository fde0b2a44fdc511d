"""Real engines for tests in any folder, started once a run."""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import os
from pathlib import Path

import pytest

from headrace.app.cluster import spark, trial
from headrace.app.cluster.jars import missing
from headrace.model.clock import SystemClock
from headrace.model.errors import Unavailable
from headrace.testing.object_server import BUCKET, object_server

_PREFIXES = itertools.count()


@pytest.fixture(scope="session")
def kafka_folder(tmp_path_factory):
    """The folder of the one Kafka cluster of a test run, which runs while the tests do.

    Where tests run in several processes, the first one to want it starts it for all; its keeper
    stops it once the process that started those has ended. `HEADRACE_TEST_CLUSTER` names the folder
    of one that runs already, and goes on running.
    """
    reason = missing("kafka")
    if reason:
        pytest.skip(reason)
    named = os.environ.get("HEADRACE_TEST_CLUSTER")
    if named:
        yield Path(named)
        return
    with _started(tmp_path_factory, "kafka", with_kafka=True) as folder:
        yield folder


@pytest.fixture
def kafka(kafka_folder):
    """The cluster, with all its brokers there as long as the test runs."""
    with _held(kafka_folder, fcntl.LOCK_SH):
        yield trial.running(kafka_folder).kafka


@pytest.fixture(scope="module")
def kafka_of_file(kafka_folder):
    """As `kafka`, for all tests of a file: none of them may ask for `kafka_alone`."""
    with _held(kafka_folder, fcntl.LOCK_SH):
        yield trial.running(kafka_folder).kafka


@pytest.fixture
def kafka_alone(kafka_folder):
    """The folder of the cluster, for a test that breaks it while no other one uses it."""
    with _held(kafka_folder, fcntl.LOCK_EX):
        yield kafka_folder
        trial.start_missing(kafka_folder, SystemClock())


@pytest.fixture(scope="session")
def spark_folder(tmp_path_factory):
    """The folder of the one Spark cluster of a test run, which is kept as Kafka's is."""
    reason = spark.missing()
    if reason:
        pytest.skip(reason)
    with _started(tmp_path_factory, "spark", with_spark=True) as folder:
        yield folder


@pytest.fixture(scope="session")
def spark_cluster(spark_folder):
    """A master and two workers: its `master`, the `settings()` that an application needs, its page.

    There is room for two applications at a time, so whoever begins a session ends it.
    """
    return trial.running(spark_folder).spark


@contextlib.contextmanager
def _started(tmp_path_factory, name, *, with_kafka=False, with_spark=False):
    base = tmp_path_factory.getbasetemp()
    is_shared = "PYTEST_XDIST_WORKER" in os.environ
    folder = (base.parent if is_shared else base) / name
    folder.mkdir(exist_ok=True)
    with (folder / "start.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if trial.running(folder) is None:
            until_pid = os.getppid() if is_shared else os.getpid()
            trial.up(
                folder,
                SystemClock(),
                with_kafka=with_kafka,
                with_spark=with_spark,
                until_pid=until_pid,
            )
    yield folder
    if not is_shared:
        trial.down(folder)


@contextlib.contextmanager
def _held(folder, how):
    with (folder / "use.lock").open("w") as lock:
        fcntl.flock(lock, how)
        yield


@pytest.fixture(scope="module")
def s3(tmp_path_factory):
    """A real S3 server; the first test that asks for it may have to build it."""
    try:
        with object_server(tmp_path_factory.mktemp("s3"), SystemClock()) as running:
            yield running
    except Unavailable as e:
        pytest.skip(str(e))


@pytest.fixture
def url():
    """A prefix of the server's bucket that nobody else uses."""
    return f"s3://{BUCKET}/deep/{next(_PREFIXES)}"


@pytest.fixture
def s3_environment(s3, monkeypatch):
    """The server's address and keys in the environment, as AWS's tools have them."""
    for name, value in s3.environment().items():
        monkeypatch.setenv(name, value)
