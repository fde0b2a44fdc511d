"""The process role: begin as the owner, run the loop, say how it goes.

On a log that machines share several may run this role. Each stands by until it is its turn, works
for as long as that is, and stands by again after another has taken over: see `standing.py`.
"""

from __future__ import annotations

import fcntl
import socket
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from typing import IO

from headrace.control.leases import owner_id
from headrace.model.errors import Fenced, HeadraceError, Invalid
from headrace.model.layout import Layout
from headrace.model.plan import LEDGER
from headrace.model.role import Role
from headrace.process import status
from headrace.process.gate import Gate
from headrace.process.ledger import last_row
from headrace.process.loop import EpochProgress, run_owner
from headrace.process.owner import Owner
from headrace.process.ranges import waiting
from headrace.process.recover import recover
from headrace.process.standing import LOOK_S, Standing
from headrace.stage.engine import Engine

STATUS_EVERY_S = 1.0
GUARD_EVERY_S = 10.0
PREPARE_EVERY_S = 30.0
"""How often a standby has the runner stay ready."""
THREADS = 2
"""Threads of each DuckDB engine."""


def run_role(role: Role) -> None:
    """Run until told to stop, or, once told to drain, until everything is committed."""
    with owned(role.layout) as lock:
        process = _Process(role)
        try:
            with process.reporting():
                if role.site.is_shared:
                    process.run_in_turns(owner_id(lock, role.clock))
                else:
                    process.run_owner(Gate(role.layout.run).turn)
        finally:
            process.close()


class _Process:
    """What the role has open, and how it is said to be."""

    def __init__(self, role: Role) -> None:
        self._role = role
        self._progress = EpochProgress()
        self._state = "beginning"
        self._owner: Owner | None = None
        self._log = role.site.log()
        self._tables = role.site.tables()
        self._engine = Engine(threads=THREADS)
        self._runner = role.site.runner(self._log, self._tables, THREADS)
        self._prepared_s = -PREPARE_EVERY_S
        self._saying = threading.Lock()

    def run_in_turns(self, id_: str) -> None:
        """Own the pipeline whenever it is our turn, until all is done or the role is to stop."""
        role = self._role
        standing = Standing(self._log, role.clock, name_of(role), id_)
        gate = Gate(role.layout.run)

        @contextmanager
        def turn() -> Iterator[None]:
            with gate.turn():
                standing.check()
                yield

        def is_over() -> bool:
            self._progress.waiting_for = standing.waiting_for
            self._say("standby")
            self._stay_ready()
            role.ready()
            return role.drain.is_set() and self._is_all_committed()

        while standing.wait_for_turn(role.stop, is_over):
            self._progress.waiting_for = ""
            self._say("beginning")
            with standing.turn():
                try:
                    self.run_owner(turn, standing.expect)
                except Exception as error:
                    # What somebody meets whose turn is over says nothing: another one is at work.
                    if standing.is_owner and not isinstance(error, Fenced):
                        raise
                    sys.stderr.write(f"process: standing by: {error}\n")
                else:
                    return
            self._drop_owner()
            role.clock.wait(role.stop, LOOK_S)

    def run_owner(
        self,
        gate: Callable[[], AbstractContextManager[None]],
        expect: Callable[[], Mapping[str, int]] = dict,
    ) -> None:
        """Own the pipeline; `expect` is what every append expects of keyed state."""
        role = self._role
        # Beside recovery.
        self._runner.prepare(role.plan)

        def begin() -> Owner:
            self._drop_owner()
            self._owner = recover(
                role.plan,
                self._log,
                self._tables,
                self._runner,
                role.clock,
                self._engine,
                role.layout.keys,
                role.site.repair,
                expect,
            )
            self._say("running")
            role.ready()
            return self._owner

        try:
            run_owner(begin, role.clock, role.stop, self._progress, role.drain.is_set, gate)
        finally:
            if self._owner is not None:
                self._owner.close()

    def _stay_ready(self) -> None:
        now_s = self._role.clock.monotonic_s()
        if now_s - self._prepared_s >= PREPARE_EVERY_S:
            self._prepared_s = now_s
            self._runner.prepare(self._role.plan)

    @contextmanager
    def reporting(self) -> Iterator[None]:
        """Say each second how it goes."""
        done = threading.Event()

        def keep_saying() -> None:
            while not self._role.clock.wait(done, STATUS_EVERY_S):
                self._say(self._state)

        self._say(self._state)
        threads = [threading.Thread(target=keep_saying, name="status", daemon=True)]
        if self._role.site.is_shared:
            guard = threading.Thread(target=self._guard, args=(done,), name="guard", daemon=True)
            threads.append(guard)
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            done.set()
            for thread in threads:
                thread.join()
            self._say("stopped")

    def _guard(self, done: threading.Event) -> None:
        """Look again and again what Kafka's own retention is about to take."""
        told = ""
        while True:
            owner = self._owner
            last = owner.ledger.last if owner is not None else None
            if last is not None:
                with suppress(HeadraceError):  # a broker that does not answer is told elsewhere
                    self._progress.at_risk = "; ".join(self._role.site.at_risk(last.offsets))
            if self._progress.at_risk and self._progress.at_risk != told:
                sys.stderr.write(f"process: {self._progress.at_risk}\n")
            told = self._progress.at_risk
            if self._role.clock.wait(done, GUARD_EVERY_S):
                return

    def close(self) -> None:
        """Release what runs epochs, and the log."""
        self._runner.close()
        self._log.close()
        self._role.site.close()

    def _say(self, state: str) -> None:
        self._state = state
        last = self._owner.ledger.last if self._owner else None
        with self._saying:
            said = status.status_of(self._progress, last, self._role.clock, state)
            status.write(self._role.layout.run, said, self._progress)

    def _drop_owner(self) -> None:
        if self._owner is not None:
            self._owner.close()
            self._owner = None

    def _is_all_committed(self) -> bool:
        """Return whether the tables, whoever owns them, contain all that the log has."""
        with suppress(HeadraceError):  # what another owner is cleaning up may be gone
            ledger = self._tables.snapshot(LEDGER)
            last = last_row(self._tables, ledger) if ledger else None
            return not waiting(self._log, self._role.plan, self._log.describe(), last)
        return False


def name_of(role: Role) -> str:
    """Return what the owners of a pipeline's tables compete under, wherever they run."""
    tables = role.site.deployment.tables.url or f"{socket.gethostname()}:{role.layout.root}"
    return f"{role.plan.name}@{tables.rstrip('/')}"


@contextmanager
def owned(layout: Layout) -> Iterator[IO[str]]:
    """Hold the lock of the process role; `Invalid` if another process has it."""
    path = layout.run / "process.lock"
    with path.open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as e:
            raise Invalid(
                f"Another process role runs on {layout.root}",
                hint="Stop it first: one owner commits to a pipeline's tables.",
                code="already_running",
            ) from e
        yield file
