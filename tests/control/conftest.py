"""A log on disk with a clock of its own, and who judges the tokens that it holds."""

from __future__ import annotations

from contextlib import closing

import pytest

from headrace.control.admission import Admission
from headrace.log.embedded import EmbeddedLog, EmbeddedLogReader
from headrace.model.clock import ManualClock


@pytest.fixture
def clock():
    return ManualClock()


@pytest.fixture
def log(tmp_path, clock):
    with closing(EmbeddedLog(tmp_path / "log", clock)) as log:
        yield log


@pytest.fixture
def admission(log, clock, tmp_path):
    with closing(EmbeddedLogReader(tmp_path / "log")) as reader:
        yield Admission(reader, clock)
