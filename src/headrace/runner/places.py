"""How a task on another machine opens the log and the tables: a value that can be sent to it."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from headrace.log.reader import EmbeddedLogReader
from headrace.model.clock import Clock
from headrace.model.log import LogReader
from headrace.model.tables import Tables
from headrace.tables.delta import DeltaTables
from headrace.tables.storage import open_storage

if TYPE_CHECKING:
    from headrace.log.kafka.client import Kafka


@dataclass(frozen=True)
class Place:
    """Where log and tables are. Equal places open the same; it is hashed and pickled.

    Whatever it names must be reachable, under the same name, from every machine that runs tasks: a
    folder is, where tasks run on this machine or share its disk. What opens it there is told the
    secrets among `options` and the properties of Kafka.
    """

    log: Path | Kafka
    """The folder of the embedded log, absolute, or the cluster that keeps the log."""
    tables: Path | str
    """A folder, absolute, or a URL: `s3://bucket/prefix`, `hdfs://host:port/folder`."""
    options: Mapping[str, str] = field(default_factory=dict, hash=False, repr=False)
    """Those of the tables' storage; see `tables.storage.open_storage`."""

    def open_log(self, clock: Clock) -> LogReader:
        """Return a reader of the log."""
        if isinstance(self.log, Path):
            return EmbeddedLogReader(self.log)
        # Kafka's client is an extra, and most logs are folders.
        reader: LogReader = importlib.import_module("headrace.log.kafka.reader").KafkaLogReader(
            self.log, clock
        )
        return reader

    def open_tables(self, clock: Clock) -> Tables:
        """Return the tables, to stage files of."""
        storage = open_storage(self.tables, clock, self.options)
        return DeltaTables(self.tables, clock, storage=storage)
