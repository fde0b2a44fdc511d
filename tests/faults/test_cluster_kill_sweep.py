"""Kill -9 of the process role at its numbered steps, with its log on Kafka and epochs in Spark.

It is killed at one step after another, each time with more records before it, and must reach each:
a chain, because every start of Spark takes seconds. By default it is a few of the steps, where the
runner hands over to the commit; `HEADRACE_TEST_LONG=1` takes all. `stage.1` and `stage.2` come
first in Spark's tasks, so what is killed there is a task's process, and Spark runs it again.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from pathlib import Path

import pytest
from live import until
from test_kill_sweep import LATER
from test_standby import Place, Role, running
from worker import compiled

from headrace.model.failpoint import FAILPOINTS

IS_LONG = os.environ.get("HEADRACE_TEST_LONG") == "1"
ELSEWHERE = ("append.", "act.", "seal.", "trim.", "anew.", "promote.")
"""Steps of the embedded log, and those that other sweeps kill at: see `test_kill_sweep.py`."""
ALL = [point for point in FAILPOINTS if not point.startswith(ELSEWHERE)]
CHAINS = (
    [ALL[at : at + 7] for at in range(0, len(ALL), 7)]
    if IS_LONG
    else [["stage.2", "commit.2", "commit.3", "commit.4", "publish.2"]]
)
RECORDS = 120
"""Before each kill; enough for some epochs."""
CUT_BYTES = 2000
REACHED_S = 120.0


class Swept(Place):
    """A place whose ids come of age at once, so that they expire: nothing is sent again here."""

    def __init__(self, folder: Path, bootstrap: str) -> None:
        super().__init__(folder, bootstrap)
        self._plan = compiled("own")


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("chain", CHAINS, ids=lambda chain: f"{chain[0]}-{chain[-1]}")
def test_killed_at_one_step_after_another(
    chain: list[str], tmp_path: Path, kafka, monkeypatch: pytest.MonkeyPatch
) -> None:
    if shutil.which("java") is None:
        pytest.skip("Spark needs Java")
    place = (Swept if "expiry.1" in chain else Place)(tmp_path, kafka.bootstrap)
    machine = place.machine("one", cut_bytes=CUT_BYTES, spark="local[1]")
    total = 0

    def kill_at(point: str, nth: int) -> None:
        nonlocal total
        place.append(range(total, total + RECORDS))
        total += RECORDS
        once = tmp_path / f"reached-{total}"
        monkeypatch.setenv("HEADRACE_FAILPOINT_ONCE", str(once))
        with running(machine, f"{point}:{nth}") as role:
            if point.startswith("stage."):
                until(lambda: place.processed() == total, "the task is run again", REACHED_S)
                role.process.kill()
            assert ended(role, point) == -signal.SIGKILL, role.said()
        assert once.exists(), point

    for point in chain:
        if point.startswith("rollforward"):
            kill_at("commit.3", 2)
        kill_at(point, 1 if point.startswith("stage.") else LATER.get(point, 1))
    monkeypatch.delenv("HEADRACE_FAILPOINT_ONCE")
    with running(machine) as role:
        until(lambda: place.processed() == total, "all is processed", REACHED_S)
        role.process.send_signal(signal.SIGUSR1)
        assert ended(role, "the end") == 0, role.said()
    assert place.breaches(total) == []


def ended(role: Role, point: str) -> int:
    try:
        return role.process.wait(REACHED_S)
    except subprocess.TimeoutExpired:
        pytest.fail(f"{point} was not reached: {role.said()}")
