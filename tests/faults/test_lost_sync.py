"""A disk that fails to sync the log: the collector ends and acknowledges nothing more."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from live import Run, breaches, drain, pipeline_text, sending, until

from headrace.testing.checker import Acknowledged

STRACE = ["strace", "-f", "-qq", "-o", "/dev/null"]
FAILING = ["-e", "inject=fsync,fdatasync:error=EIO"]


@pytest.fixture(scope="module", autouse=True)
def _can_inject() -> None:
    if shutil.which("strace") is None:
        pytest.skip("needs strace, to make a sync fail")
    probe = [*STRACE, *FAILING, "true"]
    found = subprocess.run(probe, capture_output=True, text=True, check=False)
    if found.returncode:
        pytest.skip(f"strace cannot be used here: {found.stderr.strip()}")


def test_a_sync_that_fails_ends_the_collector(tmp_path: Path) -> None:
    (tmp_path / "pipeline.py").write_text(pipeline_text())
    with Run(tmp_path) as run, sending(run) as client:
        until(lambda: client.sent > 200, "events get through")
        collector = run.children()["collect"]
        strace = subprocess.Popen([*STRACE, *FAILING, "-p", str(collector.pid)])
        try:
            until(lambda: not collector.is_running(), "the collector ends")
        finally:
            strace.terminate()
            strace.wait()
        refused = len(client.refused)
        until(lambda: run.children().get("collect", collector) != collector, "it starts again")
        at = client.sent
        until(lambda: client.sent > at + 100, "events get through again")
        client.finish()
        assert run.process.poll() is None
        assert all(r.status_code >= 500 for r in client.refused[:refused])
    drain(tmp_path)
    assert len(Acknowledged(tmp_path / "acknowledged").read()) == client.sent
    assert breaches(tmp_path / "data", client.sent) == []
