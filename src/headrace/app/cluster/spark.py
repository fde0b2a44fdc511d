"""A trial cluster's Spark: a master and two workers, out of pyspark's own package.

A worker offers two slots and 1 GB, and an application gets one slot and 512 MB of each: so a
pipeline and somebody who reads what it makes run beside each other. Everything listens on 127.0.0.1
alone, web pages too; work, logs and what tasks spill stay in the cluster's folder.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

import httpx2
import msgspec

from headrace.app.cluster import jars
from headrace.app.cluster.keeper import Program
from headrace.app.cluster.ports import HOST, free_ports
from headrace.model.clock import Clock
from headrace.model.errors import Invalid, Unavailable

WORKERS = 2
READY_S_MAX = 180.0
ANSWER_S_MAX = 5.0
POLL_S = 0.25
_SLOTS = 2
_DAEMONS = {
    "SPARK_LOCAL_IP": HOST,
    "SPARK_DAEMON_MEMORY": "128m",
    # Master and workers do little, so they need no threads of their own to compile and collect.
    "SPARK_DAEMON_JAVA_OPTS": "-XX:+UseSerialGC -XX:TieredStopAtLevel=1",
}


class Spark(msgspec.Struct, frozen=True):
    """What the folder of a trial cluster says of its Spark."""

    port: int
    page_port: int
    """Of the master's web page."""
    worker_ports: list[int]
    worker_page_ports: list[int]

    @property
    def master(self) -> str:
        """The address that applications are given."""
        return f"spark://{HOST}:{self.port}"

    @property
    def page(self) -> str:
        """The master's web page: workers, applications, and their logs."""
        return f"http://{HOST}:{self.page_port}"

    def settings(self) -> dict[str, str]:
        """Spark's own settings with which an application runs here, and can read Kafka."""
        libraries = sorted(jars.jars("spark").glob("*.jar"))
        return {
            "spark.driver.host": HOST,
            "spark.driver.bindAddress": HOST,
            "spark.cores.max": str(WORKERS),
            "spark.executor.memory": "512m",
            "spark.executor.extraJavaOptions": "-XX:+UseSerialGC",
            "spark.pyspark.python": sys.executable,
            "spark.jars": ",".join(str(jar) for jar in libraries),
        }


def missing() -> str | None:
    """Return why Spark cannot be run here; None if it can."""
    if importlib.util.find_spec("pyspark") is None:
        return "pyspark is not installed"
    return jars.missing("spark")


def chosen() -> Spark:
    """Return a Spark on ports that are free now."""
    ports = free_ports(2 + 2 * WORKERS)
    return Spark(ports[0], ports[1], ports[2 : 2 + WORKERS], ports[2 + WORKERS :])


def prepare(folder: Path, spark: Spark) -> list[Program]:
    """Write what master and workers read, into `folder`, and return them.

    `Invalid` if pyspark, Java or Maven is missing, `Unavailable` if the jars cannot be got.
    """
    reason = missing()
    if reason:
        raise Invalid(
            f"The trial cluster has no Spark: {reason}",
            hint="pip install 'headrace[spark]', or leave Spark out with --no-spark",
            code="spark_missing",
        )
    configuration = folder / "conf"
    configuration.mkdir(parents=True, exist_ok=True)
    (configuration / "spark-defaults.conf").write_text(_defaults(spark), "utf-8")
    home = _home()
    environment = {
        **_DAEMONS,
        "SPARK_HOME": str(home),
        "SPARK_CONF_DIR": str(configuration),
        "SPARK_LOCAL_DIRS": str(folder / "local"),
        # A script that names no Python gets `python3`; this one has what its driver has.
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]),
    }
    run = str(home / "bin" / "spark-class")
    address = ["--host", HOST, "--port", str(spark.port), "--webui-port", str(spark.page_port)]
    command = [run, "org.apache.spark.deploy.master.Master", *address]
    programs = [Program("master", command, str(folder / "master.out"), environment)]
    ports = zip(spark.worker_ports, spark.worker_page_ports, strict=True)
    for number, (port, page_port) in enumerate(ports, 1):
        name = f"worker-{number}"
        command = [run, "org.apache.spark.deploy.worker.Worker"]
        command += ["--host", HOST, "--port", str(port), "--webui-port", str(page_port)]
        command += ["--cores", str(_SLOTS), "--memory", "1g", "--work-dir", str(folder / name)]
        command += [spark.master]
        programs.append(Program(name, command, str(folder / f"{name}.out"), environment))
    return programs


def wait_until_ready(spark: Spark, clock: Clock, check: Callable[[], None]) -> None:
    """Return when the master has its workers; `Unavailable` if it does not get them.

    `check` is called again and again meanwhile, and raises if waiting is in vain.
    """
    deadline_s = clock.monotonic_s() + READY_S_MAX
    while workers_alive(spark) < WORKERS:
        check()
        if clock.monotonic_s() > deadline_s:
            raise Unavailable(
                f"The trial cluster's Spark did not come up in {READY_S_MAX:.0f} s",
                hint="master.out and the workers' .out files in the cluster's folder tell why",
                code="cluster_not_ready",
            )
        clock.sleep(POLL_S)


def workers_alive(spark: Spark) -> int:
    """Return how many workers the master has; 0 where there is no master."""
    with suppress(httpx2.HTTPError, msgspec.DecodeError):
        # A proxy of the user's is not for this machine's own address.
        answer = httpx2.get(f"{spark.page}/json/", timeout=ANSWER_S_MAX, trust_env=False)
        return msgspec.json.decode(answer.content, type=_Told).aliveworkers
    return 0


class _Told(msgspec.Struct):
    """What the master's page says of itself."""

    aliveworkers: int = 0


def _defaults(spark: Spark) -> str:
    """Return what master, workers, and PySpark with this `SPARK_CONF_DIR` take for granted."""
    settings: Mapping[str, str] = {
        "spark.master": spark.master,
        **spark.settings(),
        "spark.sql.extensions": "io.delta.sql.DeltaSparkSessionExtension",
        "spark.sql.catalog.spark_catalog": "org.apache.spark.sql.delta.catalog.DeltaCatalog",
        # Two slots have little use for the hundreds of tasks that Spark and Delta take for granted.
        "spark.sql.shuffle.partitions": str(WORKERS),
        "spark.databricks.delta.snapshotPartitions": str(WORKERS),
        "spark.ui.enabled": "false",
        # Applications come by Spark's own protocol; another door is not needed.
        "spark.master.rest.enabled": "false",
        # A pipeline may run for days.
        "spark.executor.logs.rolling.strategy": "size",
        "spark.executor.logs.rolling.maxSize": "10000000",
        "spark.executor.logs.rolling.maxRetainedFiles": "2",
        "spark.worker.cleanup.enabled": "true",
        "spark.worker.cleanup.appDataTtl": "3600",
    }
    return "".join(f"{name} {value}\n" for name, value in settings.items())


def _home() -> Path:
    """Return pyspark's own folder, without importing it: nothing here talks to Spark."""
    found = importlib.util.find_spec("pyspark")
    assert found is not None
    assert found.submodule_search_locations
    return Path(found.submodule_search_locations[0])
