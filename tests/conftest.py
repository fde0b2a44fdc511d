"""Real engines for tests in any folder, started once a run."""

from __future__ import annotations

import contextlib
import fcntl
import os
from pathlib import Path

import pytest

from headrace.app.cluster import brokers
from headrace.app.cluster.jars import missing
from headrace.model.clock import SystemClock


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
    base = tmp_path_factory.getbasetemp()
    is_shared = "PYTEST_XDIST_WORKER" in os.environ
    folder = (base.parent if is_shared else base) / "kafka"
    folder.mkdir(exist_ok=True)
    with (folder / "start.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if brokers.running(folder) is None:
            until_pid = os.getppid() if is_shared else os.getpid()
            brokers.up(folder, SystemClock(), until_pid=until_pid)
    yield folder
    if not is_shared:
        brokers.down(folder)


@pytest.fixture
def kafka(kafka_folder):
    """The cluster, with all its brokers there as long as the test runs."""
    with _held(kafka_folder, fcntl.LOCK_SH):
        yield brokers.running(kafka_folder)


@pytest.fixture
def kafka_alone(kafka_folder):
    """The folder of the cluster, for a test that breaks it while no other one uses it."""
    with _held(kafka_folder, fcntl.LOCK_EX):
        yield kafka_folder
        brokers.start_missing(kafka_folder, SystemClock())


@contextlib.contextmanager
def _held(folder, how):
    with (folder / "use.lock").open("w") as lock:
        fcntl.flock(lock, how)
        yield
