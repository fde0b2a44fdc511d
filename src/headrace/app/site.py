"""Opens log, tables and runner as a data directory's deployment says.

Their modules are loaded when they are asked for: a role holds in memory only what it needs.
"""

from __future__ import annotations

import abc
import dataclasses
import importlib
import os
import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from headrace.app import deployment_file
from headrace.log.embedded import EmbeddedLog, EmbeddedLogReader
from headrace.log.remote import RemoteLog
from headrace.model.clock import Clock
from headrace.model.deployment import Deployment, KafkaSettings
from headrace.model.errors import Invalid
from headrace.model.layout import Layout
from headrace.model.log import Log, LogReader
from headrace.model.pipeline_options import Options
from headrace.model.runner import Runner
from headrace.model.site import Site
from headrace.model.tables import Tables
from headrace.model.tables_to_read import TablesToRead

if TYPE_CHECKING:
    from headrace.log.kafka import AtRisk, Kafka, RetentionGuard
    from headrace.tables.delta import DeltaTables

_VARIABLE = re.compile(r"\$\{(\w+)\}")


def open_site(layout: Layout, clock: Clock) -> Site:
    """Return the site of a data directory, by the deployment that is kept there."""
    return site_of(layout, clock, deployment_file.kept(layout) or Deployment())


def site_of(layout: Layout, clock: Clock, deployment: Deployment) -> Site:
    """Return the site of a data directory in a deployment."""
    if deployment.kafka is None:
        return EmbeddedSite(layout, clock, deployment)
    return KafkaSite(layout, clock, deployment, deployment.kafka)


class _Site(abc.ABC):
    """Tables and runner, which are the same wherever the log is. See `model.site.Site`."""

    def __init__(self, layout: Layout, clock: Clock, deployment: Deployment) -> None:
        self.layout = layout
        self.deployment = deployment
        self._clock = clock
        url = deployment.tables.url
        self._place: Path | str = url if "://" in url else Path(url or layout.root)
        self._options = expanded(deployment.tables.options)

    @property
    def tables_folder(self) -> Path | None:
        """See `Site`."""
        return self._place if isinstance(self._place, Path) else None

    def tables(self) -> DeltaTables:
        """See `Site`."""
        storage = _loaded("tables.storage").open_storage(self._place, self._clock, self._options)
        tables: DeltaTables = _loaded("tables.delta").DeltaTables(
            self._place, self._clock, storage=storage
        )
        return tables

    @contextmanager
    def tables_to_read(self) -> Iterator[TablesToRead]:
        """See `Site`; files of tables far away come into the data directory's `run/near`."""
        tables = self.tables()
        if self.tables_folder is not None:
            yield tables
            return
        near_tables = _loaded("tables.near").NearTables
        with closing(near_tables(tables, self.layout.near, self._clock)) as near:
            yield near

    def repair(self) -> list[str]:
        """See `Site`."""
        names: list[str] = _loaded("tables.repair").repair(self.tables())
        return names

    def runner(self, log: LogReader, tables: Tables, threads: int) -> Runner:
        """See `Site`."""
        if self.deployment.spark is None:
            local = _loaded("runner.local").LocalRunner
            runner: Runner = local(log, tables, self._clock, threads=threads)
            return runner
        return self._spark_runner(log, tables)

    def _spark_runner(self, log: LogReader, tables: Tables) -> Runner:
        spark = self.deployment.spark
        assert spark is not None
        try:
            module = importlib.import_module("headrace.runner.spark")
        except ModuleNotFoundError as e:
            raise _not_installed("Spark", e, "spark") from e
        runner: Runner = module.SparkRunner(
            log,
            tables,
            self._clock,
            _loaded("runner.places").Place(self._log_place(), self._place, self._options),
            master=spark.master,
            settings=expanded(spark.settings),
            memory_limit=spark.memory_limit,
        )
        return runner

    @abc.abstractmethod
    def _log_place(self) -> Path | Kafka:
        """Return where the log is, as a task on another machine is told."""


class EmbeddedSite(_Site):
    """The log is in the data directory; the collector owns it."""

    is_shared = False

    def collector_log(self, options: Options) -> Log:
        """See `Site`."""
        return EmbeddedLog(
            self.layout.log,
            self._clock,
            segment_bytes_max=options.segment_bytes_max,
            segment_age_s_max=options.segment_age_max_s,
        )

    def log(self) -> Log:
        """See `Site`."""
        return RemoteLog(self.layout.log, self.layout.door)

    def reader(self) -> LogReader:
        """See `Site`."""
        return EmbeddedLogReader(self.layout.log)

    def reading(self) -> AbstractContextManager[LogReader]:
        """See `Site`; opened each time, so that no old segment is held."""
        return closing(EmbeddedLogReader(self.layout.log))

    def at_risk(self, needed: Mapping[str, int]) -> list[str]:  # noqa: ARG002 - see `Site`
        """See `Site`."""
        return []

    def close(self) -> None:
        """See `Site`."""

    def _log_place(self) -> Path:
        return self.layout.log


class KafkaSite(_Site):
    """The log is in Kafka, and every role has it directly."""

    is_shared = True

    def __init__(
        self, layout: Layout, clock: Clock, deployment: Deployment, settings: KafkaSettings
    ) -> None:
        super().__init__(layout, clock, deployment)
        self._kafka = kafka_of(settings)
        self._lock = threading.Lock()
        self._kept: LogReader | None = None
        self._guard: RetentionGuard | None = None

    def collector_log(self, options: Options) -> Log:  # noqa: ARG002 - Kafka keeps segments itself
        """See `Site`."""
        return self.log()

    def log(self) -> Log:
        """See `Site`."""
        log: Log = importlib.import_module("headrace.log.kafka").KafkaLog(self._kafka, self._clock)
        return log

    def reader(self) -> LogReader:
        """See `Site`."""
        module = importlib.import_module("headrace.log.kafka")
        reader: LogReader = module.KafkaLogReader(self._kafka, self._clock)
        return reader

    @contextmanager
    def reading(self) -> Iterator[LogReader]:
        """See `Site`; one is kept, because to begin one asks the brokers several times."""
        with self._lock:
            if self._kept is None:
                self._kept = self.reader()
            yield self._kept

    def at_risk(self, needed: Mapping[str, int]) -> list[str]:
        """See `Site`."""
        if self._guard is None:
            module = importlib.import_module("headrace.log.kafka")
            self._guard = module.RetentionGuard(self._kafka, self._clock)
        return [_words(risk) for risk in self._guard.at_risk(needed)]

    def close(self) -> None:
        """See `Site`."""
        if self._guard is not None:
            self._guard.close()
            self._guard = None
        with self._lock:
            if self._kept is not None:
                self._kept.close()
                self._kept = None

    def _log_place(self) -> Kafka:
        return self._kafka


def _words(risk: AtRisk) -> str:
    place = f"{risk.topic}/{risk.partition}"
    if risk.gone:
        return f"Kafka has deleted {risk.gone} records of {place} that no table contains"
    when = f"in {max(0.0, risk.left_s):.0f} s" if risk.left_s is not None else "by size"
    return f"Kafka is about to delete records of {place} that no table contains, {when}"


def kafka_of(settings: KafkaSettings) -> Kafka:
    """Return a cluster as the log takes it, with what is in the environment filled in."""
    try:
        module = importlib.import_module("headrace.log.kafka")
    except ModuleNotFoundError as e:
        raise _not_installed("Kafka", e, "kafka") from e
    told = msgspec.structs.asdict(settings)
    names = {field.name for field in dataclasses.fields(module.Kafka)}
    told = {name: value for name, value in told.items() if name in names}
    kafka: Kafka = module.Kafka(**told | {"properties": expanded(settings.properties)})
    return kafka


def expanded(values: Mapping[str, str], environ: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return values with each `${NAME}` replaced from the environment; `Invalid` if one is unset.

    So a file, and what is kept in the data directory, names a secret and does not hold it.
    """
    known = os.environ if environ is None else environ

    def found(match: re.Match[str]) -> str:
        if match[1] not in known:
            raise Invalid(
                f"The environment has no {match[1]}, which the deployment asks for",
                hint=f"Set {match[1]}, or write the value in its place.",
                code="unset_variable",
            )
        return known[match[1]]

    return {name: _VARIABLE.sub(found, value) for name, value in values.items()}


def _loaded(name: str) -> Any:  # noqa: ANN401 - a module of ours
    return importlib.import_module(f"headrace.{name}")


def _not_installed(what: str, error: ModuleNotFoundError, extra: str) -> Invalid:
    return Invalid(
        f"{what} needs a library that is not installed: {error.name}",
        hint=f"pip install 'headrace[{extra}]'",
        code="not_installed",
    )
