"""How a task on another machine opens the log and the tables: a value that can be sent to it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from headrace.log.reader import EmbeddedLogReader
from headrace.model.clock import Clock
from headrace.model.log import LogReader
from headrace.model.tables import Tables
from headrace.tables.delta import DeltaTables


class Place(Protocol):
    """Where log and tables are. Equal places open the same; it is hashed and pickled.

    Everything it names must be reachable, under the same name, from every machine that runs tasks.
    """

    def open_log(self) -> LogReader:
        """Return a reader of the log."""

    def open_tables(self, clock: Clock) -> Tables:
        """Return the tables, to stage files of."""


@dataclass(frozen=True)
class FolderPlace:
    """The embedded log and tables in folders, for tasks on the machine that has them.

    `log` and `tables` are absolute paths.
    """

    log: str
    tables: str

    def open_log(self) -> LogReader:
        """See `Place`."""
        return EmbeddedLogReader(Path(self.log))

    def open_tables(self, clock: Clock) -> Tables:
        """See `Place`."""
        return DeltaTables(Path(self.tables), clock)
