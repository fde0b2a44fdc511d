"""A Spark session that this process begins and ends, leaving no process behind."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping

from pyspark import SparkContext
from pyspark.sql import SparkSession

TASK_TRIES = 4
"""How often Spark tries a task on one machine, as it does on a cluster by itself."""

STOP_S = 15.0
"""How long the Java process may take to end before it is killed."""

_LOCAL = re.compile(r"local\[(\d+|\*)\]")
_ON_THIS_MACHINE = re.compile(r"local.*|spark://(127\.\d+\.\d+\.\d+|localhost|\[::1\]):\d+")

_SETTINGS = {
    "spark.ui.enabled": "false",
    "spark.ui.showConsoleProgress": "false",
    "spark.sql.session.timeZone": "UTC",
    # An epoch's job is planned by us; planning it anew between its steps only takes time.
    "spark.sql.adaptive.enabled": "false",
    # Messages are small, rows of a result hold tables of some megabytes each.
    "spark.sql.execution.arrow.maxRecordsPerBatch": "20000",
    "spark.sql.execution.arrow.maxBytesPerBatch": str(32 << 20),
    # All but Kafka: the second version of that source makes columns of what it reads in one go.
    "spark.sql.sources.useV1SourceList": "avro,csv,json,orc,parquet,text",
    # A task that waits for the executor that it would like best waits longer than it runs.
    "spark.locality.wait": "0s",
    "spark.sql.artifact.isolation.enabled": "false",
}
_SETTINGS_LOCAL = {
    # Nothing outside this machine takes part.
    "spark.driver.host": "127.0.0.1",
    "spark.driver.bindAddress": "127.0.0.1",
}


def begin(master: str, settings: Mapping[str, str]) -> SparkSession:
    """Return a new session; `settings` are Spark's own and go before ours.

    Tasks need Python with Headrace and what it needs. On this machine that is the Python that runs
    now. On a cluster, `spark.pyspark.python` names it on every machine; it can be one that
    `spark.archives` brings along (`env.tar.gz#env`, then `./env/bin/python`).
    """
    local = _LOCAL.fullmatch(master)
    is_here = _ON_THIS_MACHINE.fullmatch(master) is not None
    ours = _SETTINGS | (_SETTINGS_LOCAL if is_here else {})
    builder = SparkSession.builder.appName("headrace")
    builder = builder.master(f"local[{local[1]},{TASK_TRIES}]" if local else master)
    for name, value in {**ours, **settings}.items():
        builder = builder.config(name, value)
    in_main = threading.current_thread() is threading.main_thread()
    before = signal.getsignal(signal.SIGINT) if in_main else None
    session = builder.getOrCreate()
    if before is not None:
        # Spark takes Ctrl-C for itself; who runs us has decided what it means.
        signal.signal(signal.SIGINT, before)
    session.sparkContext.setLogLevel("ERROR")
    named = session.sparkContext.getConf().get("spark.pyspark.python")
    if named:
        # Spark's own setting, which else `spark-submit` alone would heed.
        session.sparkContext.pythonExec = named
    elif is_here and "PYSPARK_PYTHON" not in os.environ:
        # Spark would take whatever python3 is in the path. A cluster's machines have their own.
        session.sparkContext.pythonExec = sys.executable
    return session


def is_alive(session: SparkSession) -> bool:
    """Return whether a session can still run jobs."""
    try:
        return not session.sparkContext._jsc.sc().isStopped()  # noqa: SLF001 - asked nowhere else
    except Exception:  # noqa: BLE001 - whatever it is, the Java process does not answer
        return False


def end(session: SparkSession) -> None:
    """Stop a session and the Java process that it ran in; its Python workers end with that."""
    gateway = SparkContext._gateway  # noqa: SLF001 - Spark keeps the process until Python exits
    try:
        session.stop()
    except Exception:  # noqa: BLE001 - a Java process that is gone cannot be asked to stop
        SparkContext._active_spark_context = None  # noqa: SLF001 - else none could begin again
    if gateway is None:
        return
    process: subprocess.Popen[bytes] | None = getattr(gateway, "proc", None)
    gateway.shutdown()
    SparkContext._gateway = SparkContext._jvm = None  # noqa: SLF001 - as above
    if process is not None:
        if process.stdin is not None:
            # The Java process ends when its input does.
            process.stdin.close()
        try:
            process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
