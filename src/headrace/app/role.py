"""One role as a process of its own: `python -m headrace.app.role NAME --data DIR ...`.

The plan is read from the data directory, where the supervisor has put it: a role never runs the
user's code. Two pipes tie a role to its supervisor: it says on one that it is ready, and ends when
the other closes, so a supervisor killed outright leaves nothing behind.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from pathlib import Path

import msgspec

from headrace.app.site import open_site
from headrace.model.clock import SystemClock
from headrace.model.errors import Closed, Corrupt, Fenced, HeadraceError, Invalid
from headrace.model.layout import Layout
from headrace.model.plan import Plan
from headrace.model.role import Role

EXIT_USER, EXIT_SYSTEM, EXIT_FATAL = 1, 2, 3
"""Statuses: the user's fault; worth a restart; a restart would end the same way."""


ROLES = {
    "collect": "headrace.collect.run:run_role",
    "process": "headrace.process.run:run_role",
    "pull": "headrace.app.sources:run_role",
    "serve": "headrace.app.serving:run_role",
}
"""Name → where the role's function is."""


def main(arguments: list[str] | None = None) -> int:
    """Run a role until it is told to stop; return the process's exit status."""
    options = _parse(arguments)
    layout, clock = Layout(Path(options.data)), SystemClock()
    role = Role(
        name=options.role,
        plan=msgspec.json.decode(layout.plan.read_bytes(), type=Plan),
        layout=layout,
        site=open_site(layout, clock),
        host=options.host,
        port=options.port,
        beside=tuple(options.beside.split(",")),
        clock=clock,
        stop=threading.Event(),
        drain=threading.Event(),
        ready=_once(lambda: _say_ready(options.ready_fd)),
    )
    signal.signal(signal.SIGTERM, lambda *_: role.stop.set())
    signal.signal(signal.SIGINT, lambda *_: role.stop.set())
    signal.signal(signal.SIGUSR1, lambda *_: role.drain.set())
    if options.lifeline_fd >= 0:
        threading.Thread(target=_die_with, args=(options.lifeline_fd,), daemon=True).start()
    try:
        run(role)
    except HeadraceError as e:
        sys.stderr.write(f"{role.name}: {e}\n")
        return _status(e)
    except Exception:  # noqa: BLE001 - Python's own status would say that it is the user's fault
        traceback.print_exc()
        return EXIT_SYSTEM
    return 0


def run(role: Role) -> None:
    """Run a role; its module is loaded only now, because a role holds only what it needs."""
    module, _, function = ROLES[role.name].partition(":")
    getattr(importlib.import_module(module), function)(role)


def _status(error: HeadraceError) -> int:
    if isinstance(error, Invalid | Closed):
        return EXIT_USER
    return EXIT_FATAL if isinstance(error, Corrupt | Fenced) else EXIT_SYSTEM


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="headrace.app.role")
    parser.add_argument("role", choices=sorted(ROLES))
    parser.add_argument("--data", required=True)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--beside", default="collect,process,serve,pull")
    parser.add_argument("--ready-fd", type=int, default=-1)
    parser.add_argument("--lifeline-fd", type=int, default=-1)
    return parser.parse_args(arguments)


def _once(act: Callable[[], None]) -> Callable[[], None]:
    done = threading.Event()

    def first() -> None:
        if not done.is_set():
            done.set()
            act()

    return first


def _say_ready(descriptor: int) -> None:
    if descriptor >= 0:
        # The supervisor may be stopping and have stopped listening.
        with contextlib.suppress(BrokenPipeError):
            os.write(descriptor, b"ready\n")
        os.close(descriptor)


def _die_with(descriptor: int) -> None:
    os.read(descriptor, 1)
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    sys.exit(main())
