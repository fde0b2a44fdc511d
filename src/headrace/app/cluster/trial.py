"""A trial cluster's folder: starting, stopping and finding what runs in it.

A cluster has three Kafka brokers, a Spark of one master and two workers, or both. It is no
production cluster: all share one machine and one disk.
"""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import msgspec
import psutil

from headrace.app.cluster import brokers, spark
from headrace.app.cluster.brokers import Brokers
from headrace.app.cluster.keeper import (
    LOCK,
    PIDS,
    PROGRAMS,
    STOP_S_MAX,
    Program,
    kill_started,
    runs,
)
from headrace.app.cluster.spark import Spark
from headrace.control.files import replace
from headrace.model.clock import Clock
from headrace.model.errors import Invalid, Unavailable

CONFIG = "headrace.toml"
"""The file in a cluster's folder with which `headrace run` uses the cluster."""
_CLUSTER = "cluster.json"
_KEEPER_OUTPUT = "keeper.out"
_SPARK = "spark"
_LAST_LINES = 5
_LAST_BYTES = 16_384


class Cluster(msgspec.Struct, frozen=True):
    """What runs in a folder; None: that does not."""

    kafka: Brokers | None = None
    spark: Spark | None = None


def up(
    folder: Path,
    clock: Clock,
    *,
    with_kafka: bool = True,
    with_spark: bool = False,
    until_pid: int | None = None,
) -> Cluster:
    """Start the cluster in `folder`, made if need be, and return when all its nodes are there.

    It runs on until `down`, or until the process `until_pid` has ended. Of one that runs already
    what is missing is started. Raises `Invalid` if Java, Maven or pyspark is missing, `Unavailable`
    if the nodes do not come up, at once if one of them ends.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    keeper = _keeper(folder)
    before = _cluster(folder) or Cluster()
    if keeper is None:
        stop_orphans(folder)
        # Spark keeps nothing between two runs but the logs and files of the applications.
        shutil.rmtree(folder / _SPARK, ignore_errors=True)
    with_kafka |= keeper is not None and before.kafka is not None
    with_spark |= keeper is not None and before.spark is not None
    cluster = Cluster(
        (before.kafka or brokers.chosen(clock)) if with_kafka else None,
        (before.spark or spark.chosen()) if with_spark else None,
    )
    programs = [] if cluster.kafka is None else brokers.prepare(folder, cluster.kafka, clock)
    programs += [] if cluster.spark is None else spark.prepare(folder / _SPARK, cluster.spark)
    replace(folder / _CLUSTER, msgspec.json.encode(cluster))
    replace(folder / CONFIG, _config(cluster).encode())
    replace(folder / PROGRAMS, msgspec.json.encode(programs))
    if keeper is not None:
        _start_again(folder, keeper, cluster, clock)
        return cluster
    started = _start_keeper(folder, until_pid)
    try:
        _wait_until_ready(folder, psutil.Process(started.pid), cluster, clock)
    except BaseException:
        started.terminate()
        started.wait()
        raise
    return cluster


def down(folder: Path) -> bool:
    """Stop the cluster in `folder`; return whether there was anything to stop."""
    keeper = _keeper(folder)
    if keeper is not None:
        keeper.terminate()
        # The keeper kills what hangs, so it needs little longer than that itself.
        with suppress(psutil.TimeoutExpired):
            keeper.wait(2 * STOP_S_MAX)
    return stop_orphans(folder) or keeper is not None


def running(folder: Path) -> Cluster | None:
    """Return the cluster in `folder` if its keeper runs."""
    return _cluster(folder) if _keeper(folder) is not None else None


def pids(folder: Path) -> dict[str, int]:
    """Return the process ids of the programs that were started, by name."""
    try:
        return msgspec.json.decode((folder / PIDS).read_bytes(), type=dict[str, int])
    except FileNotFoundError:
        return {}


def spark_conf(folder: Path) -> Path:
    """Return the folder that as `SPARK_CONF_DIR` makes PySpark use the Spark of a cluster.

    With it PySpark reads Kafka and Delta tables, too.
    """
    return folder / _SPARK / "conf"


def start_missing(folder: Path, clock: Clock) -> None:
    """Start those programs of a running cluster again that have ended, and wait for them."""
    keeper, cluster = _keeper(folder), _cluster(folder)
    if keeper is None or cluster is None:
        raise Invalid(f"No cluster runs in {folder}", code="cluster_down")
    _start_again(folder, keeper, cluster, clock)


def stop_orphans(folder: Path) -> bool:
    """Kill what a killed keeper has left; return whether there was anything."""
    if _keeper(folder) is not None:
        return False
    found = kill_started(folder)
    (folder / PIDS).unlink(missing_ok=True)
    return found


def _start_again(folder: Path, keeper: psutil.Process, cluster: Cluster, clock: Clock) -> None:
    # The keeper writes them anew; those that ended before are no news.
    (folder / PIDS).unlink(missing_ok=True)
    keeper.send_signal(signal.SIGHUP)
    _wait_until_ready(folder, keeper, cluster, clock)


def _wait_until_ready(folder: Path, keeper: psutil.Process, cluster: Cluster, clock: Clock) -> None:
    """Return when all nodes of a cluster are there; `Unavailable` if they do not come."""

    def check() -> None:
        _check_running(folder, keeper)

    if cluster.kafka is not None:
        brokers.wait_until_ready(cluster.kafka, clock, check)
    if cluster.spark is not None:
        spark.wait_until_ready(cluster.spark, clock, check)


def _check_running(folder: Path, keeper: psutil.Process) -> None:
    """Raise `Unavailable`, with the last that it printed, if a program that was started ended."""
    # Asked for before the keeper's children are: those that are missing there have ended.
    started, running = pids(folder), set[int]()
    with suppress(psutil.NoSuchProcess):
        running = {child.pid for child in keeper.children() if runs(child)}
    if not runs(keeper):
        raise _ended("keeper", folder / _KEEPER_OUTPUT)
    ended = next((name for name, pid in started.items() if pid not in running), None)
    if ended is not None:
        programs = msgspec.json.decode((folder / PROGRAMS).read_bytes(), type=list[Program])
        raise _ended(ended, *(Path(p.output) for p in programs if p.name == ended))


def _ended(name: str, output: Path) -> Unavailable:
    with output.open("rb") as file:
        file.seek(max(0, output.stat().st_size - _LAST_BYTES))
        lines = file.read().decode(errors="replace").splitlines()
    # Java tells the reason, and then at length where it was.
    lines = [line for line in lines if not line.startswith(("\tat ", "\t... "))][-_LAST_LINES:]
    return Unavailable(
        f"The trial cluster's {name} ended while it began",
        hint="\n".join([f"{output} ends with", *lines]),
        code="cluster_not_ready",
    )


def _start_keeper(folder: Path, until_pid: int | None) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "headrace.app.cluster.keeper", str(folder)]
    command += [] if until_pid is None else [str(until_pid)]
    with (folder / _KEEPER_OUTPUT).open("ab") as output:
        return subprocess.Popen(  # noqa: S603 - our own interpreter and module
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def _keeper(folder: Path) -> psutil.Process | None:
    """Return the keeper of this folder, told by its command: ids are given out again."""
    try:
        process = psutil.Process(int((folder / LOCK).read_text()))
        words = process.cmdline()
    except (OSError, ValueError, psutil.Error):
        return None
    return process if "headrace.app.cluster.keeper" in words and str(folder) in words else None


def _cluster(folder: Path) -> Cluster | None:
    try:
        return msgspec.json.decode((folder / _CLUSTER).read_bytes(), type=Cluster)
    except FileNotFoundError:
        return None


def _config(cluster: Cluster) -> str:
    """Return a `headrace.toml` for the cluster."""
    lines = ["# Of a trial cluster, and written anew when that starts.", ""]
    if cluster.kafka is not None:
        lines += ["[kafka]", f"bootstrap = {_text(cluster.kafka.bootstrap)}"]
        lines += ["replication = 3", "insync_min = 2", ""]
    if cluster.spark is not None:
        lines += ["[spark]", f"master = {_text(cluster.spark.master)}", 'memory_limit = "512MB"']
        lines += ["", "[spark.settings]", *_pairs(cluster.spark.settings()), ""]
    return "\n".join(lines)


def _pairs(values: Mapping[str, str]) -> list[str]:
    return [f"{_text(name)} = {_text(value)}" for name, value in values.items()]


def _text(value: str) -> str:
    """Return a string as TOML has it, which is as JSON has it."""
    return json.dumps(value, ensure_ascii=False)
