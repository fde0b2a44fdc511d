"""What every log guarantees when a process that appends to it dies.

Each guarantee takes a `LogPlace` and the name of a failpoint that its log reaches, and kills a
`log_worker` there.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import closing

from headrace.testing.log_place import LogPlace, read_values
from headrace.testing.log_worker import COUNTED, CURSOR, PLAIN, numbered

WORKER_ROUNDS = 40
WAIT_S = 60.0


def a_kill_loses_and_doubles_nothing(place: LogPlace, failpoint: str) -> None:
    """Killed there, an acknowledged record stands once, and state is where the records are."""
    for nth in (1, 4):
        acknowledged = work_until_killed(place, f"{failpoint}:{nth}=kill")
        check_numbered(place, acknowledged)
        acknowledged = run_worker(place)
        check_numbered(place, acknowledged)


def a_stopped_commit_is_not_seen(place: LogPlace, failpoint: str) -> None:
    """While the writer stands before its COMMIT nobody sees what it is about to write."""
    with start_worker(place, f"{failpoint}:9=stop") as process:
        assert process.stdout is not None
        try:
            acknowledged: dict[str, int] = {}
            os.waitid(os.P_PID, process.pid, os.WSTOPPED)
            os.set_blocking(process.stdout.fileno(), False)
            note_acknowledged(process.stdout.read() or "", acknowledged)
            with closing(place.reader()) as reader:
                for topic, end in acknowledged.items():
                    assert reader.ends(topic) == [end]
                    assert read_values(reader, topic, start=end) == []
        finally:
            process.kill()
    check_numbered(place, acknowledged)


def work_until_killed(place: LogPlace, failpoint: str) -> dict[str, int]:
    """Run a worker until it is killed at a failpoint; return what it acknowledged, by topic."""
    acknowledged: dict[str, int] = {}
    with start_worker(place, failpoint) as process:
        output, _ = process.communicate(timeout=WAIT_S)
        note_acknowledged(output, acknowledged)
    assert process.returncode == -signal.SIGKILL, f"{failpoint} was not reached"
    return acknowledged


def run_worker(place: LogPlace) -> dict[str, int]:
    """Run a worker to its end; return what it acknowledged."""
    acknowledged: dict[str, int] = {}
    with start_worker(place, "", rounds=WORKER_ROUNDS // 4) as process:
        output, _ = process.communicate(timeout=WAIT_S)
        note_acknowledged(output, acknowledged)
    assert process.returncode == 0
    return acknowledged


def start_worker(
    place: LogPlace, failpoint: str, rounds: int = WORKER_ROUNDS
) -> subprocess.Popen[str]:
    """Start a process that appends numbered records to the log there."""
    command = [sys.executable, "-m", "headrace.testing.log_worker", *place.worker(), str(rounds)]
    environment = {**os.environ, "HEADRACE_FAILPOINT": failpoint}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)


def note_acknowledged(output: str, acknowledged: dict[str, int]) -> None:
    """Note the ends that a worker printed."""
    for line in output.splitlines():
        topic, _, end = line.partition(" ")
        acknowledged[topic] = int(end)


def check_numbered(place: LogPlace, acknowledged: dict[str, int]) -> None:
    """Assert that every acknowledged record stands once, and that the log goes on behind it."""
    with closing(place.open()) as log:
        for topic in (COUNTED, PLAIN):
            log.create(topic, 1)
            (start,), (end,) = log.starts(topic), log.ends(topic)
            assert start <= acknowledged.get(topic, 0) <= end
            found = read_values(log, topic, start=start)
            assert found == [b"%d" % number for number in range(start, end)]
            assert log.size_between(topic, 0, start, end) >= sum(map(len, found))
        cursor = log.get(CURSOR)
        assert (int(cursor.value) if cursor else 0) == log.ends(COUNTED)[0]
        (end,) = log.ends(PLAIN)
        assert log.append(PLAIN, numbered(end, end + 1))[0].base_offset == end
