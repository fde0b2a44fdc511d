"""Runs the roles of a pipeline: starts them in order, restarts what dies, stops all together.

Order of the start: collect, because it may own the log, then process, serve and pull beside one
another. Order of the stop: pull, collect, process, serve, so that what was acknowledged is in the
log before its reader ends. Every role is a child process; stopping is by process id, never by name.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import BinaryIO, Protocol

import msgspec

from headrace.app.role import EXIT_FATAL, EXIT_USER
from headrace.control.files import replace
from headrace.model.clock import Clock
from headrace.model.errors import Internal, Invalid, Unavailable
from headrace.model.layout import Layout
from headrace.model.plan import Plan

ROLES_IN_ORDER = ("collect", "process", "serve", "pull")
READY_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 10.0
BACKOFF_S_MIN, BACKOFF_S_MAX = 0.2, 5.0
"""Bounds of the pause before a role that died is started again; it doubles each time."""
STEADY_S = 30.0
"""A role that ran this long is started again without delay."""
POLL_S = 0.05


@dataclass
class Child:
    """A role that runs, and how it fared before."""

    role: str
    process: subprocess.Popen[bytes]
    started_s: float
    readiness: BinaryIO | None
    """Pipe on which it says that it is ready; None once it has, or has ended before."""
    is_ready: bool = False
    is_draining: bool = False
    backoff_s: float = BACKOFF_S_MIN
    restart_at_s: float | None = None
    """When it is started again; None while it is not known to have ended."""

    def hear(self, wait_s: float = 0.0) -> None:
        """Find out whether it has become ready; it may take `wait_s` to say so."""
        if self.readiness is None or not select.select([self.readiness], [], [], wait_s)[0]:
            return
        self.is_ready = bool(self.readiness.read(64))
        self.close()

    def close(self) -> None:
        """Listen no longer."""
        if self.readiness is not None:
            self.readiness.close()
            self.readiness = None


@dataclass(frozen=True)
class Address:
    """Where the public port is."""

    host: str
    port: int


class Observer(Protocol):
    """Something that looks at the roles while they run; the data directory is locked meanwhile."""

    def begin(self, pids: Callable[[], Mapping[str, int]]) -> None:
        """Begin, before the first role does; `pids` tells which run at the moment."""

    def end(self) -> None:
        """Come to an end soon; no role runs any more."""


class Supervisor:
    """Runs roles of one data directory, whose lock it holds."""

    def __init__(
        self,
        plan: Plan,
        layout: Layout,
        clock: Clock,
        address: Address,
        *,
        only: Sequence[str] = ROLES_IN_ORDER,
        say: Callable[[str], None] = lambda _: None,
        observers: Sequence[Observer] = (),
    ) -> None:
        self._observers = observers
        self._plan = plan
        self._layout = layout
        self._clock = clock
        self._address = address
        pulls = plan.sources or plan.options.add_sources
        self._roles = [r for r in ROLES_IN_ORDER if r in only and (r != "pull" or pulls)]
        self._say = say
        self._children: dict[str, Child] = {}
        self._lifeline: tuple[int, int] = (-1, -1)
        self._draining = False
        self.stop = threading.Event()

    def run(
        self,
        *,
        until_idle: bool = False,
        check: Callable[[], None] = lambda: None,
        ready: Callable[[], None] = lambda: None,
    ) -> None:
        """Start the roles and watch them until `stop` is set or, with `until_idle`, all is done.

        `check` is called while nobody else runs the directory and before anything in it is touched.
        Raises the kind of error that ended a role for good; all roles are stopped by then.
        """
        with held(self._layout):
            check()
            replace(self._layout.plan, msgspec.json.encode(self._plan))
            self._lifeline = os.pipe()
            try:
                for observer in self._observers:
                    observer.begin(self.pids)
                if "collect" in self._roles:
                    self._wait_ready(self._start("collect"))
                for child in [self._start(r) for r in self._roles if r != "collect"]:
                    self._wait_ready(child)
                ready()
                self._watch(until_idle=until_idle)
            finally:
                self._stop_all()
                for descriptor in self._lifeline:
                    os.close(descriptor)
                for observer in self._observers:
                    observer.end()

    def pids(self) -> dict[str, int]:
        """Return the process id of each role that runs now; from any thread."""
        children = list(self._children.items())
        return {r: c.process.pid for r, c in children if c.process.returncode is None}

    def _start(self, role: str) -> Child:
        reader, writer = os.pipe()
        lifeline = self._lifeline[0]
        command = [sys.executable, "-m", "headrace.app.role", role]
        command += ["--data", str(self._layout.root), "--host", self._address.host]
        command += ["--port", str(self._address.port), "--beside", ",".join(self._roles)]
        command += ["--ready-fd", str(writer), "--lifeline-fd", str(lifeline)]
        process = subprocess.Popen(  # noqa: S603 - our own interpreter and module
            command, pass_fds=(writer, lifeline), stdin=subprocess.DEVNULL, start_new_session=True
        )
        os.close(writer)
        readiness = os.fdopen(reader, "rb", buffering=0)
        child = Child(role, process, self._clock.monotonic_s(), readiness)
        self._children[role] = child
        return child

    def _wait_ready(self, child: Child) -> None:
        deadline = self._clock.monotonic_s() + READY_TIMEOUT_S
        while not self.stop.is_set():
            child.hear(POLL_S)
            if child.is_ready:
                return
            if child.process.poll() is not None:
                self._raise_if_final(child)
                return
            if self._clock.monotonic_s() > deadline:
                self._say(f"{child.role} is still beginning after {READY_TIMEOUT_S:.0f} s")
                return

    def _watch(self, *, until_idle: bool) -> None:
        while not self.stop.is_set():
            for child in list(self._children.values()):
                if self._tend(child, until_idle=until_idle):
                    return
            self._draining = self._draining or (until_idle and self._sources_done())
            self._clock.wait(self.stop, POLL_S)

    def _tend(self, child: Child, *, until_idle: bool) -> bool:
        """Do what one child needs now, never waiting; return whether the whole run is done.

        A role that is slow to begin again must not keep the supervisor from another one.
        """
        status = child.process.poll()
        if status is None:
            child.hear()
            drains = {"pull": until_idle, "process": self._draining}
            # Before it is ready the signal would end it.
            if drains.get(child.role) and child.is_ready:
                self._tell_to_drain(child)
            return False
        if status == 0 and child.role == "pull":
            return False
        if status == 0 and child.role == "process" and self._draining:
            return True
        self._raise_if_final(child)
        self._restart(child)
        return False

    def _sources_done(self) -> bool:
        pull = self._children.get("pull")
        return pull is None or pull.process.poll() == 0

    def _raise_if_final(self, child: Child) -> None:
        status = child.process.returncode
        if status == EXIT_USER:
            raise Invalid(f"The {child.role} role ended; its reason stands above")
        if status == EXIT_FATAL:
            raise Internal(f"The {child.role} role cannot go on; its reason stands above")

    def _restart(self, child: Child) -> None:
        """Start a role again that has ended, once its pause is over."""
        now_s = self._clock.monotonic_s()
        if child.restart_at_s is None:
            child.close()
            if now_s - child.started_s > STEADY_S:
                child.backoff_s = BACKOFF_S_MIN
            child.restart_at_s = now_s + child.backoff_s
            self._say(
                f"{child.role} ended with status {child.process.returncode}; "
                f"starting it again in {child.backoff_s:.1f} s"
            )
        if now_s >= child.restart_at_s:
            again = self._start(child.role)
            again.backoff_s = min(child.backoff_s * 2, BACKOFF_S_MAX)

    def _tell_to_drain(self, child: Child) -> None:
        if not child.is_draining:
            child.is_draining = True
            child.process.send_signal(signal.SIGUSR1)

    def _stop_all(self) -> None:
        deadline = self._clock.monotonic_s() + STOP_TIMEOUT_S
        for each in self._children.values():
            each.close()
        for role in ("pull", "collect", "process", "serve"):
            child = self._children.get(role)
            if child is None or child.process.poll() is not None:
                continue
            child.process.terminate()
            try:
                child.process.wait(max(0.1, deadline - self._clock.monotonic_s()))
            except subprocess.TimeoutExpired:
                self._say(f"{role} did not stop in time; killing process {child.process.pid}")
                child.process.kill()
                child.process.wait()


def ask_to_stop(layout: Layout, clock: Clock, number: signal.Signals, timeout_s: float) -> None:
    """Send a signal to whoever runs a data directory, if anybody does, and wait for its end.

    `Unavailable` if it has not ended in time.
    """
    deadline_s = clock.monotonic_s() + timeout_s
    asked = False
    while True:
        try:
            with held(layout):
                return
        except Invalid as e:
            if e.code != "already_running":
                raise
        pid = layout.lock.read_text().strip()
        if not asked and pid.isdigit():
            # Its lock is held, so the process of that number is the one.
            os.kill(int(pid), number)
            asked = True
        if clock.monotonic_s() > deadline_s:
            raise Unavailable(
                f"Process {pid or '?'} still runs {layout.root}", hint="Stop it, then try again."
            )
        clock.sleep(POLL_S)


@contextlib.contextmanager
def held(layout: Layout) -> Iterator[None]:
    """Make the data directory, private to its owner, and hold its lock."""
    os.umask(0o077)
    try:
        layout.run.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise Invalid(
            f"The data directory {layout.root} cannot be written: {e.strerror}",
            hint="Name another with --data, or let this user write there.",
            code="data_not_writable",
        ) from e
    with layout.lock.open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as e:
            file.seek(0)
            raise Invalid(
                f"{layout.root} is being run already, by process {file.read().strip() or '?'}",
                hint="Stop that one, or give this one a folder of its own with --data.",
                code="already_running",
            ) from e
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield
