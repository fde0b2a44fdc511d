"""The process that runs a trial cluster's programs: starts them, and stops them with itself.

`python -m headrace.app.cluster.keeper FOLDER [PID]` starts what `FOLDER/programs.json` lists and
writes their process ids into `FOLDER/pids.json`. It stops them and ends on SIGTERM or SIGINT, and
once the process PID has ended: so they outlive nobody, however that process ended. SIGHUP reads the
list again, and starts those of it that do not run.

Stopping: SIGTERM to all, and SIGKILL after `STOP_S_MAX` to those that hang, as a broker sometimes
does. The keeper is their parent, so their process ids are nobody else's meanwhile. What they have
started in turn, as Spark's workers do, is told by its environment: each program gets the cluster's
folder in it, and hands it on.
"""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path
from types import FrameType

import msgspec
import psutil

from headrace.control.files import replace
from headrace.model.clock import Clock, SystemClock

STOP_S_MAX = 15.0
POLL_S = 0.25
LOCK, PIDS, PROGRAMS = "keeper.lock", "pids.json", "programs.json"
_MARK = "HEADRACE_CLUSTER_FOLDER"


class Program(msgspec.Struct, frozen=True):
    """A program of the cluster, and the file that gets what it prints."""

    name: str
    command: list[str]
    output: str
    environment: dict[str, str] = {}
    """What its environment has beside the keeper's own."""


def kill_started(folder: Path) -> bool:
    """Kill whatever the programs of a cluster's folder are or have started; say if there was any.

    Spark's executors outlive a worker that was killed, and their Python workers an executor.
    """
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):
            if process.environ().get(_MARK) == str(folder):
                process.kill()
                found.append(process)
    psutil.wait_procs(found, STOP_S_MAX)
    return bool(found)


def runs(process: psutil.Process) -> bool:
    """Return whether a process runs still."""
    try:
        # A zombie has ended too: its parent alone has not noticed.
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


class Keeper:
    """Runs the programs of one cluster's folder."""

    def __init__(self, folder: Path, until: psutil.Process | None, clock: Clock) -> None:
        self._folder = folder
        self._until = until
        self._clock = clock
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        self.stop, self.again = threading.Event(), threading.Event()

    def run(self) -> None:
        """Run the programs until it is time to stop."""
        try:
            self._start_missing()
            while not self.stop.is_set() and self._is_wanted():
                self._clock.wait(self.stop, POLL_S)
                for process in self._running.values():
                    process.poll()
                if self.again.is_set():
                    self.again.clear()
                    self._start_missing()
        finally:
            self._stop_all()

    def _is_wanted(self) -> bool:
        return self._until is None or runs(self._until)

    def _start_missing(self) -> None:
        programs = msgspec.json.decode((self._folder / PROGRAMS).read_bytes(), type=list[Program])
        for program in programs:
            process = self._running.get(program.name)
            if process is not None and process.poll() is None:
                continue
            with Path(program.output).open("ab") as output:
                # A session of its own, so that Ctrl-C in a terminal reaches the keeper alone.
                self._running[program.name] = subprocess.Popen(  # noqa: S603 - our own list
                    program.command,
                    env={**os.environ, **program.environment, _MARK: str(self._folder)},
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
        pids = {name: process.pid for name, process in self._running.items()}
        replace(self._folder / PIDS, msgspec.json.encode(pids))

    def _stop_all(self) -> None:
        for process in self._running.values():
            process.terminate()
        deadline_s = self._clock.monotonic_s() + STOP_S_MAX
        for process in self._running.values():
            try:
                process.wait(max(0.0, deadline_s - self._clock.monotonic_s()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        kill_started(self._folder)
        (self._folder / PIDS).unlink(missing_ok=True)


def main(arguments: list[str]) -> None:
    """Run a keeper; it ends at once if the folder has one."""
    folder = Path(arguments[0])
    until = psutil.Process(int(arguments[1])) if len(arguments) > 1 else None
    with (folder / LOCK).open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        keeper = Keeper(folder, until, SystemClock())

        def stop(_number: int, _frame: FrameType | None) -> None:
            keeper.stop.set()

        def again(_number: int, _frame: FrameType | None) -> None:
            keeper.again.set()

        signal.signal(signal.SIGTERM, stop)
        signal.signal(signal.SIGINT, stop)
        signal.signal(signal.SIGHUP, again)
        keeper.run()


if __name__ == "__main__":
    main(sys.argv[1:])
