"""The peer of `pipeline`: Structured Streaming on this machine alone, over the same events."""

from __future__ import annotations

import itertools
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path

import structured_streaming as peer
from measure import Figures
from workload import VIEWS, make_plan

from cluster import PREFIX, fill, small, spread
from headrace.app.cluster import trial
from headrace.app.cluster.jars import jars
from headrace.log.kafka import Kafka, KafkaLog
from headrace.model.clock import SystemClock
from headrace.runner import spark_session

Way = Callable[[], Figures]
MEMORY = "4g"
"""Of the Java process, in which everything runs."""


@contextmanager
def ways(values: Iterator[bytes], records: int, folder: Path) -> Iterator[dict[str, Way]]:
    """Start brokers and a warm session; yield what runs one batch of all records, by its name.

    The topic has every record twice: the first batch of a run warms up.
    """
    clock, job, numbers = SystemClock(), small().job, itertools.count()
    brokers = trial.up(folder / "cluster", clock, until_pid=os.getpid()).kafka
    assert brokers is not None
    try:
        with closing(KafkaLog(Kafka(brokers.bootstrap, prefix=PREFIX), clock)) as log:
            fill(log, spread(make_plan(VIEWS)).topic("events"), values)
        libraries = ",".join(map(str, jars("spark").glob("*.jar")))
        settings = {"spark.jars": libraries, "spark.driver.memory": MEMORY}
        session = peer.tuned(spark_session.begin(f"local[{peer.SLOTS}]", settings))

        def run(way: peer.Way) -> Figures:
            home = folder / f"streamed-{next(numbers)}"
            batch_s = peer.run(session, brokers.bootstrap, job, way, home, records, 1, 1)
            shutil.rmtree(home)
            return {"wall_s": batch_s}

        yield {name: partial(run, way) for name, way in peer.WAYS.items()}
        spark_session.end(session)
    finally:
        trial.down(folder / "cluster")
