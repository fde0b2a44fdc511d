"""The collector as a process: the log's writing end and its two doors.

Order of effects of a start:

1. The log is opened: what an earlier process acknowledged is there. The plan's topics exist.
2. The Unix-socket door opens for the other roles.
3. The HTTP door opens, and `ready` is called.

On SIGTERM or SIGINT they close in reverse, within ten seconds: everything that was acknowledged is
durable by then, as it was when it was acknowledged.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack, closing
from pathlib import Path

from headrace.collect.collector import Admit, admit_all
from headrace.collect.door import HttpDoor
from headrace.collect.limits import Limits
from headrace.log.embedded import EmbeddedLog, EmbeddedLogReader
from headrace.log.wire import serve_door
from headrace.model.clock import Clock
from headrace.model.plan import Plan

LOG_DOOR = "log.sock"
"""Socket in the data directory's `run/` through which the other roles append."""


def run_collect(
    plan: Plan,
    *,
    data_dir: Path,
    host: str,
    port: int,
    upstream: Path | None,
    limits: Limits,
    clock: Clock,
    ready: Callable[[], None],
    admit: Admit = admit_all,
) -> None:
    """Run the collector until SIGTERM or SIGINT.

    `upstream` is the socket of the `serve` role, if there is one. Raises `Invalid` if the port is
    taken, and whatever the log failed with if it must not go on: the caller ends the process.
    """
    run_dir = data_dir / "run"
    run_dir.mkdir(parents=True, exist_ok=True)
    log_dir = data_dir / "log"
    with ExitStack() as stack:
        # 1
        log = stack.enter_context(closing(EmbeddedLog(log_dir, clock)))
        for topic in plan.topics:
            log.create(topic.name, topic.partitions)
        # 2
        stack.enter_context(closing(serve_door(log, run_dir / LOG_DOOR)))
        # 3
        http = HttpDoor(
            plan,
            log,
            clock,
            limits,
            run_dir=run_dir,
            upstream=upstream,
            admit=admit,
            reader=lambda: closing(EmbeddedLogReader(log_dir)),
        )
        http.run(host, port, ready)
