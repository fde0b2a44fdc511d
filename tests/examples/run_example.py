"""`headrace` as a user runs it: a process of its own, stopped by its id."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from headrace.app.cluster.ports import free_port

ROOT = Path(__file__).resolve().parents[2]
HEADRACE = Path(sys.executable).parent / "headrace"
DEADLINE_S = 90


def headrace(*words, env=None):
    """Return what a verb prints; fail with what it says if it fails."""
    ended = subprocess.run(
        [HEADRACE, *map(str, words)],
        env={**os.environ, **(env or {})},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert ended.returncode == 0, (words, ended.stdout, ended.stderr)
    return ended.stdout


def told(*words, env=None):
    """Return what a verb prints with `--json`."""
    return json.loads(headrace(*words, "--json", env=env))


def until(ask, is_so):
    """Ask again until the answer is as expected; fail with it after a while."""
    deadline_s = time.monotonic() + DEADLINE_S
    while not is_so(answer := ask()):
        assert time.monotonic() < deadline_s, answer
        time.sleep(0.2)
    return answer


class Run:
    """`headrace run` in the background."""

    def __init__(self, pipeline, data, *options):
        self.data = data
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        command = [HEADRACE, "run", pipeline, "--data", data, "--port", self.port, "--until-eof"]
        command += options
        pipes = {"stdin": subprocess.PIPE, "stderr": subprocess.PIPE}
        self.process = subprocess.Popen(map(str, command), text=True, **pipes)

    def __enter__(self):
        for line in self.process.stderr:
            if self.url in line:
                return self
        raise AssertionError(f"ended with status {self.process.wait()}")

    def __exit__(self, *_):
        self.process.send_signal(signal.SIGINT)
        self.ended = self.process.wait(30)
        self.process.stdin.close()
        self.process.stderr.close()
