"""Kill -9 at every numbered step, start again, and look for breaches of I1 to I6.

Which steps there are is read from `FAILPOINTS`: a new step is swept as soon as it has a name, and a
step that is never reached fails its test. Those of an act of the log on Kafka are swept in
`tests/log/test_kafka.py`, those of a promotion in `tests/cli/test_promote.py`.
"""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
from sweep import breaches, run

from headrace.model.failpoint import FAILPOINTS

LATER = {"commit.3": 3, "publish.2": 2, "stage.2": 5, "delta.1": 7, "append.2": 2}
"""Points that are killed at a later visit, so that the crash meets a pipeline under way."""


def test_without_a_kill(tmp_path: Path) -> None:
    assert run(tmp_path) == 0
    assert breaches(tmp_path) == []


# The steps of an act are those of the log on Kafka: tests/log/test_kafka.py kills there.
@pytest.mark.parametrize(
    "point", [p for p in FAILPOINTS if not p.startswith(("act.", "anew.", "promote."))]
)
def test_killed_at(tmp_path: Path, point: str) -> None:
    mode, failpoint = "both", f"{point}:{LATER.get(point, 1)}"
    if point.startswith("rollforward"):
        assert run(tmp_path, failpoint="commit.3:2") == -signal.SIGKILL
    if point.startswith(("trim", "expiry")):
        # Past the horizon a retry is a new record, so all is acknowledged before the kill.
        mode = "own"
        assert run(tmp_path, "append") == 0
    assert run(tmp_path, mode, failpoint) == -signal.SIGKILL, f"{point} was not reached"
    assert run(tmp_path, mode) == 0
    assert breaches(tmp_path) == []
