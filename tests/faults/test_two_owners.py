"""Two owners of one pipeline, the lock of the directory bypassed.

One is stopped inside a step by SIGSTOP, the other does the same step with another cut and
finishes, the first resumes: it is fenced, nothing is lost and nothing doubled.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from sweep import TOTAL, WORKER, breaches, run

STEPS = [
    "commit.1",
    "commit.2",
    "commit.3",
    "commit.4",
    "commit.5",
    "delta.1:9",
    "delta.2:9",
    "publish.1",
    "publish.2:2",
    "publish.3",
    "keyed.1",
    "keyed.2:2",
    "keyed.3",
    "compact.1",
    "compact.2",
    "checkpoint.1",
    "checkpoint.2",
    "retention.1",
    "expiry.1",
    "rollforward.1",
]


ATTEMPTS = 3


def state_of(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc to see a stop")
@pytest.mark.parametrize("step", STEPS)
def test_stopped_inside(tmp_path: Path, step: str) -> None:
    for attempt in range(ATTEMPTS):
        (data := tmp_path / str(attempt)).mkdir()
        if is_fenced(data, step):
            return
    pytest.fail(f"{step}: each time the first held a lock of SQLite when it was stopped")


def is_fenced(data: Path, step: str) -> bool:
    """Try it; return False if another thread of the first was stopped inside SQLite.

    It then holds a lock of the segment's shared memory, and nobody reads until it goes on.
    """
    assert run(data, "append") == 0
    if step.startswith("rollforward"):
        assert run(data, "process", failpoint="commit.3:2") == -signal.SIGKILL
    first = subprocess.Popen(
        [sys.executable, str(WORKER), str(data), str(TOTAL), "process"],
        env={**os.environ, "HEADRACE_FAILPOINT": f"{step}=stop"},
        stderr=subprocess.PIPE,
    )
    try:
        deadline = time.monotonic() + 60
        while state_of(first.pid) != "T":
            assert first.poll() is None, f"{step} was not reached: {first.stderr.read().decode()}"
            assert time.monotonic() < deadline
            time.sleep(0.02)
        # The second owner cuts the same records into other epochs.
        env = {**os.environ, "CUT_BYTES": "2500"}
        second = subprocess.run(
            [sys.executable, str(WORKER), str(data), str(TOTAL), "process"],
            env=env,
            capture_output=True,
            timeout=120,
            check=False,
        )
        if second.returncode and b"locking protocol" in second.stderr:
            return False
        assert second.returncode == 0, second.stderr.decode()[-3000:]
        first.send_signal(signal.SIGCONT)
        _, said = first.communicate(timeout=60)
    finally:
        if first.poll() is None:
            first.kill()
            first.wait()
    fenced = first.returncode == 1 and b"Fenced" in said
    harmless = first.returncode == 0 and step in {"checkpoint.1", "checkpoint.2"}
    assert fenced or harmless, said.decode()[-3000:]
    assert breaches(data) == []
    return True
