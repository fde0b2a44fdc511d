"""The process role: begin as the owner, run the loop, say how it goes."""

from __future__ import annotations

import fcntl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO

from headrace.model.errors import Invalid
from headrace.model.layout import Layout
from headrace.model.role import Role
from headrace.process import status
from headrace.process.gate import Gate
from headrace.process.loop import Progress, run_owner
from headrace.process.owner import Owner
from headrace.process.recover import recover
from headrace.stage.engine import Engine

STATUS_EVERY_S = 1.0
THREADS = 2
"""Threads of each DuckDB engine."""


def run_role(role: Role) -> None:
    """Run until told to stop, or, once told to drain, until everything is committed."""
    plan, layout, clock = role.plan, role.layout, role.clock
    with owned(layout):
        progress = Progress()
        current: list[Owner] = []
        log = role.site.log()
        tables = role.site.tables()
        runner = role.site.runner(log, tables, THREADS)
        engine = Engine(threads=THREADS)

        saying = threading.Lock()

        def say(state: str) -> None:
            last = next((owner.ledger.last for owner in current), None)
            with saying:
                status.write(layout.run, status.status_of(progress, last, clock, state), progress)

        def begin() -> Owner:
            for before in current:
                before.close()
            current.clear()
            repair = role.site.repair
            owner = recover(plan, log, tables, runner, clock, engine, layout.keys, repair)
            current[:] = [owner]
            say("running")
            role.ready()
            return owner

        say("beginning")
        done = threading.Event()

        def keep_saying() -> None:
            while not clock.wait(done, STATUS_EVERY_S):
                say("running" if current else "beginning")

        reporter = threading.Thread(target=keep_saying, name="status", daemon=True)
        reporter.start()
        try:
            run_owner(begin, clock, role.stop, progress, role.drain.is_set, Gate(layout.run).turn)
        finally:
            done.set()
            reporter.join()
            say("stopped")
            for owner in current:
                owner.close()
            runner.close()
            log.close()


@contextmanager
def owned(layout: Layout) -> Iterator[IO[str]]:
    """Hold the lock of the process role; `Invalid` if another process has it."""
    path = layout.run / "process.lock"
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as e:
            raise Invalid(
                f"Another process role runs on {layout.root}",
                hint="Stop it first: one owner commits to a pipeline's tables.",
                code="already_running",
            ) from e
        yield file
