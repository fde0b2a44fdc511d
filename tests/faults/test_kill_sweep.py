"""Kill -9 at every numbered step, start again, and look for breaches of I1 to I6.

Which steps there are is read from `FAILPOINTS`: a new step is swept as soon as it has a name, and a
step that is never reached fails its test.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from headrace.log.embedded import EmbeddedLogReader
from worker import BAD_EVERY

from headrace.model.clock import SystemClock
from headrace.model.failpoint import FAILPOINTS
from headrace.process.ledger import last_row
from headrace.tables.delta import DeltaTables
from headrace.testing.checker import Acknowledged, Checker

WORKER = Path(__file__).parent / "worker.py"
TOTAL = 600
VIEWS = {
    "by_kind": """SELECT kind, count(*), sum(amount), count(DISTINCT bucket)
        FROM rows GROUP BY kind""",
}
LATER = {"commit.3": 3, "publish.2": 2, "stage.2": 5, "delta.1": 7, "append.2": 2}
"""Points that are killed at a later visit, so that the crash meets a pipeline under way."""


def run(data: Path, mode: str = "both", failpoint: str = "", total: int = TOTAL) -> int:
    env = {**os.environ, "HEADRACE_FAILPOINT": failpoint}
    done = subprocess.run(
        [sys.executable, str(WORKER), str(data), str(total), mode],
        env=env,
        capture_output=True,
        timeout=120,
        check=False,
    )
    if done.returncode not in (0, -signal.SIGKILL):
        pytest.fail(done.stderr.decode()[-3000:])
    return done.returncode


def breaches(data: Path, total: int = TOTAL) -> list[str]:
    checker = Checker(data, "numbers", "number", VIEWS)
    acknowledged = Acknowledged(data / "acknowledged").read()
    assert len(acknowledged) == total
    found = checker.check(acknowledged, range(total))
    log = EmbeddedLogReader(data / "log")
    tables = DeltaTables(data, SystemClock())
    row = last_row(tables, tables.snapshot("system/ledger"))
    starts = {f"events/{p}": s for p, s in enumerate(log.starts("events"))}
    found += checker.check_log(starts, row.offsets)
    totals = row.topic_totals["events"]
    assert totals.read == totals.decoded + totals.dead + totals.duplicates
    assert totals.dead == len(range(0, total, BAD_EVERY))
    return found


def test_without_a_kill(tmp_path: Path) -> None:
    assert run(tmp_path) == 0
    assert breaches(tmp_path) == []


@pytest.mark.parametrize("point", FAILPOINTS)
def test_killed_at(tmp_path: Path, point: str) -> None:
    if point.startswith("rollforward"):
        assert run(tmp_path, failpoint="commit.3:2") == -signal.SIGKILL
        failpoint = point
    else:
        failpoint = f"{point}:{LATER.get(point, 1)}"
    assert run(tmp_path, failpoint=failpoint) == -signal.SIGKILL, f"{point} was not reached"
    assert run(tmp_path) == 0
    assert breaches(tmp_path) == []
