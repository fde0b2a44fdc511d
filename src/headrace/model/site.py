"""What every role is handed to reach log, tables and runner, whichever they are."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol

from headrace.model.deployment import Deployment
from headrace.model.layout import Layout
from headrace.model.log import Log, LogReader
from headrace.model.pipeline_options import Options
from headrace.model.runner import Runner
from headrace.model.tables import Tables
from headrace.model.tables_to_read import TablesToRead


class Site(Protocol):
    """A data directory and the deployment that it belongs to; each call opens something new.

    Whoever opens closes. All may raise `Unavailable` if what is far away does not answer, and
    `Invalid` if it refuses us or needs a library that is not installed.
    """

    @property
    def layout(self) -> Layout:
        """The data directory of this machine."""

    @property
    def deployment(self) -> Deployment:
        """Where the pipeline runs."""

    @property
    def is_shared(self) -> bool:
        """Whether roles on other machines may use the same log: then each has it directly."""

    @property
    def tables_folder(self) -> Path | None:
        """Folder in which tables are, if they are files of this machine."""

    def collector_log(self, options: Options) -> Log:
        """Open the log for the collector: the writing end, of which the embedded log has one."""

    def log(self) -> Log:
        """Open the log for another role, to read and, on whatever way leads there, to append."""

    def reader(self) -> LogReader:
        """Open a reading end, for one thread at a time."""

    def reading(self) -> AbstractContextManager[LogReader]:
        """Lend a reading end for a moment, in which it is the caller's alone."""

    def tables(self) -> Tables:
        """Open the tables for their owner, or to look at their snapshots."""

    def tables_to_read(self) -> AbstractContextManager[TablesToRead]:
        """Open the tables to query them."""

    def repair(self) -> list[str]:
        """Check the tables for what a power cut tore; only their owner may. See `tables/repair.py`.

        Returns the names of tables that lost a damaged newest commit.
        """

    def runner(self, log: LogReader, tables: Tables, threads: int) -> Runner:
        """Return what runs epochs; `threads` is for work in this process."""

    def at_risk(self, needed: Mapping[str, int]) -> list[str]:
        """Return what the log is about to delete, or has deleted, before it was needed: sentences.

        `needed` is `topic/partition` → the offset up to which tables contain everything. The
        embedded log deletes only what it is told to. One caller at a time.
        """

    def close(self) -> None:
        """Let go of what is kept for `reading` and `at_risk`."""
