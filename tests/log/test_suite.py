from __future__ import annotations

import pytest

from headrace.model.failpoint import FAILPOINTS
from headrace.testing import log_crashes
from headrace.testing.log_suite import GUARANTEES

POINTS = [name for name in FAILPOINTS if name.partition(".")[0] in {"append", "seal", "trim"}]


@pytest.mark.parametrize("guarantee", GUARANTEES, ids=lambda g: g.__name__)
def test_log_keeps(guarantee, place):
    guarantee(place)


def test_the_sweep_knows_every_point():
    assert len(POINTS) == 8


@pytest.mark.parametrize("failpoint", POINTS)
def test_a_kill_loses_and_doubles_nothing(failpoint, tiny):
    log_crashes.a_kill_loses_and_doubles_nothing(tiny, failpoint)


@pytest.mark.parametrize("failpoint", ["append.1", "append.2"])
def test_a_stopped_commit_is_not_seen(failpoint, tiny):
    log_crashes.a_stopped_commit_is_not_seen(tiny, failpoint)
