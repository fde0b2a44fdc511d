"""The Spark runner on a real local session: what every runner keeps, and what it alone may lose."""

from __future__ import annotations

import shutil
import sys
from contextlib import closing
from dataclasses import dataclass

import pytest

pytest.importorskip("pyspark", reason="pyspark is not installed: pip install 'headrace[spark]'")
if shutil.which("java") is None:
    pytest.skip("Spark needs Java", allow_module_level=True)

from pyspark import cloudpickle

from headrace.log.embedded import EmbeddedLog
from headrace.model.clock import ManualClock
from headrace.model.errors import Unavailable
from headrace.runner import spark_session
from headrace.runner.places import FolderPlace
from headrace.runner.spark import SparkRunner
from headrace.tables.delta import DeltaTables
from headrace.testing.runner_suite import GUARANTEES, Bench

# Workers cannot import a test; what they need of it is sent to them.
cloudpickle.register_pickle_by_value(sys.modules[__name__])


@pytest.fixture(scope="module")
def session():
    made = spark_session.begin("local[2]", {"spark.python.worker.faulthandler.enabled": "true"})
    yield made
    spark_session.end(made)


@dataclass(frozen=True)
class Unreadable(FolderPlace):
    def open_log(self):
        raise Unavailable("The log cannot be read now")


@pytest.mark.parametrize("guarantee", GUARANTEES, ids=lambda g: g.__name__)
def test_the_spark_runner_keeps(guarantee, session, tmp_path):
    def make(log, tables, clock):
        kind = FolderPlace if isinstance(log, EmbeddedLog) else Unreadable
        place = kind(str(tmp_path / "log"), str(tmp_path))
        return SparkRunner(log, tables, clock, place, session=session)

    clock = ManualClock()
    with closing(EmbeddedLog(tmp_path / "log", clock)) as log:
        guarantee(Bench(log, DeltaTables(tmp_path, clock), clock, make))
