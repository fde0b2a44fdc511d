"""How a run of real processes starts, stops, and is kept from being started twice."""

from __future__ import annotations

import signal
import socket
import time
from pathlib import Path

import httpx2
import psutil
import pytest
from live import (
    Run,
    breaches,
    drain,
    free_port,
    headrace,
    pipeline_text,
    sending,
    stop_by,
    until,
)

from headrace.app.supervisor import READY_TIMEOUT_S

STOP_TIMEOUT_S = 10.0
"""What is promised for a stop."""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "pipeline.py").write_text(pipeline_text())
    return tmp_path


def answers(run: Run) -> bool:
    try:
        return httpx2.get(f"{run.url}/v1/topics").status_code == httpx2.codes.OK
    except httpx2.TransportError:
        return False


def is_held_by(run: Run) -> bool:
    lock = run.data / "run" / "headrace.lock"
    return lock.exists() and lock.read_text() == str(run.process.pid)


def test_sigterm_under_load(folder: Path) -> None:
    with Run(folder) as run, sending(run) as client:
        until(lambda: client.sent > 500, "events get through")
        assert stop_by(run.process, signal.SIGTERM, STOP_TIMEOUT_S) == 0
    drain(folder)
    assert breaches(folder / "data", client.sent) == []


def test_children_end_with_their_supervisor_and_a_new_run_goes_on(folder: Path) -> None:
    with Run(folder) as run, sending(run) as client:
        until(lambda: client.sent > 100, "events get through")
        run.kill()
        with Run(folder, port=run.port):
            at = client.sent
            until(lambda: client.sent > at, "events get through again")
            client.finish()
    drain(folder)
    assert breaches(folder / "data", client.sent) == []


def test_a_second_run_is_refused(folder: Path) -> None:
    with Run(folder):
        said = headrace(folder, "run", "pipeline.py", "--port", free_port(), status=1)
        assert "already" in said
        assert "hint" in said


def test_a_taken_port_is_refused(folder: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        said = headrace(folder, "run", "pipeline.py", "--port", port, status=1)
    assert str(port) in said
    assert "--port" in said


def test_a_role_that_is_slow_to_start_again_holds_no_other_up(folder: Path) -> None:
    with Run(folder) as run:
        first = run.children()["process"]
        first.kill()
        until(lambda: run.children().get("process", first) != first, "process starts again")
        slow = run.children()["process"]
        slow.suspend()
        try:
            run.children()["collect"].kill()
            until(lambda: not answers(run), "the door is shut")
            until(lambda: answers(run), "the door opens again", READY_TIMEOUT_S / 2)
            assert slow.status() == psutil.STATUS_STOPPED
        finally:
            slow.resume()
        with sending(run) as client:
            until(lambda: client.sent > 100, "events get through")
            client.finish()
        assert stop_by(run.process, signal.SIGTERM, STOP_TIMEOUT_S) == 0
    drain(folder)
    assert breaches(folder / "data", client.sent) == []


def test_a_stop_while_roles_begin(folder: Path) -> None:
    for wait_s in (0.0, 0.5, 1.5):
        run = Run(folder)
        try:
            until(lambda run=run: is_held_by(run), "it begins")
            time.sleep(wait_s)
            assert stop_by(run.process, signal.SIGTERM, STOP_TIMEOUT_S) == 0, run.said()
        finally:
            run.__exit__()
