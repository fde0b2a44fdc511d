"""Kill -9 of random roles, and of the supervisor, while a client sends: I1 to I6 hold."""

from __future__ import annotations

import contextlib
import random
import time
from pathlib import Path

import psutil
import pytest
from live import Run, breaches, drain, free_port, pipeline_text, sending, until

SEED = 20_260_101
KILLS = 50
KILLS_PER_RUN = 10
"""After so many the supervisor is killed too: it pauses longer before each restart of a role."""
ROLES = ("collect", "process", "serve")


@pytest.mark.slow
def test_random_kills(tmp_path: Path) -> None:
    chance = random.Random(SEED)
    (tmp_path / "pipeline.py").write_text(pipeline_text())
    port = free_port()
    killed = sent = 0
    while killed < KILLS:
        with Run(tmp_path, port=port) as run, sending(run, sent) as client:
            for _ in range(KILLS_PER_RUN):
                kill_a_role(run, chance)
                killed += 1
                time.sleep(chance.uniform(0, 0.3))
            at = client.sent
            until(lambda client=client, at=at: client.sent > at, "a batch gets through")
            run.kill()
        # What was under way is sent again by nobody: it may be there or not.
        sent = client.sent
    drain(tmp_path)
    assert breaches(tmp_path / "data", sent) == []


def kill_a_role(run: Run, chance: random.Random) -> None:
    """Kill one of the roles that run now: some are still beginning, some wait to be started."""
    until(lambda: run.children() or run.process.poll() is not None, "a role runs")
    assert run.process.poll() is None, run.said()
    while True:
        role = chance.choice(ROLES)
        with contextlib.suppress(psutil.NoSuchProcess, KeyError):
            run.children()[role].kill()
            return
