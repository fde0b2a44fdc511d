"""Machines that share a log in Kafka and a folder of tables: a data directory and runs each."""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import httpx2
import msgspec
from live import Client, Run, until

from headrace.log.kafka import Kafka, KafkaLogReader
from headrace.model.clock import SystemClock

CONFIG = """[kafka]
bootstrap = "BOOTSTRAP"
prefix = "PREFIX"

[tables]
url = "TABLES"
"""


class Machines:
    """A folder with a pipeline, and the deployment that all of its data directories are run in."""

    def __init__(self, folder: Path, bootstrap: str, pipeline: str) -> None:
        self.folder = folder
        self.tables = folder / "shared"
        self.prefix = f"{os.getpid()}-{folder.name}."
        self.bootstrap = bootstrap
        config = CONFIG.replace("BOOTSTRAP", bootstrap).replace("PREFIX", self.prefix)
        (folder / "headrace.toml").write_text(config.replace("TABLES", str(self.tables)))
        (folder / "pipeline.py").write_text(pipeline)

    def run(self, name: str, only: str) -> Run:
        """Return a run of some roles on a machine, to be entered."""
        return Run(self.folder, data=name, only=only)

    @contextlib.contextmanager
    def log(self) -> Iterator[KafkaLogReader]:
        kafka = Kafka(self.bootstrap, prefix=self.prefix)
        with contextlib.closing(KafkaLogReader(kafka, SystemClock())) as log:
            yield log

    def records(self, topic: str) -> list[dict[str, object]]:
        """Return all records of a topic; those of a partition in their order."""
        with self.log() as log:
            found = []
            for partition, end in enumerate(log.ends(topic)):
                at = log.starts(topic)[partition]
                while at < end:
                    for batch in log.read(topic, partition, at, end):
                        found += batch.to_pylist()
                        at = found[-1]["offset"] + 1
            return found


def state(run: Run) -> str:
    """Return what the process role of a run says of itself."""
    assert run.process.poll() is None, run.said()
    try:
        return msgspec.json.decode((run.data / "run" / "process.json").read_bytes())["state"]
    except FileNotFoundError:
        return ""


def owner_and_standby(runs: Sequence[Run]) -> tuple[Run, Run]:
    """Return two runs, the one that owns the pipeline first, once the other stands by."""

    def found() -> tuple[Run, ...]:
        one, two = runs
        states = state(one), state(two)
        if states == ("running", "standby"):
            return one, two
        return (two, one) if states == ("standby", "running") else ()

    until(found, "one owns, one stands by")
    owner, standby = found()
    return owner, standby


class Balanced(Client):
    """A client behind a load balancer: each try goes to the next collector."""

    def __init__(self, urls: Sequence[str], listed: Path) -> None:
        super().__init__(urls[0], listed)
        self._urls = itertools.cycle(f"{url}/v1/topics/events" for url in urls)

    def send(self, http: httpx2.Client, numbers: range) -> bool:
        """See `Client`."""
        self._url = next(self._urls)
        return super().send(http, numbers)
