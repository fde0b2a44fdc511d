from __future__ import annotations

from contextlib import closing

import pytest

from headrace.log.embedded import EmbeddedLog
from headrace.model.clock import ManualClock
from headrace.runner.local import LocalRunner
from headrace.tables.delta import DeltaTables
from headrace.testing.runner_suite import GUARANTEES, Bench


@pytest.mark.parametrize("guarantee", GUARANTEES, ids=lambda g: g.__name__)
def test_the_local_runner_keeps(guarantee, tmp_path):
    clock = ManualClock()
    with closing(EmbeddedLog(tmp_path / "log", clock)) as log:
        guarantee(Bench(log, DeltaTables(tmp_path, clock), clock, LocalRunner))
