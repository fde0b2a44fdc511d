"""The collector as a process: the log's writing end and its two doors.

Order of effects of a start:

1. The log is opened: what an earlier process acknowledged is there. The plan's topics exist.
2. The Unix-socket door opens for the other roles, if the log is this process's own.
3. The HTTP door opens, and the role is ready.

When it is told to stop they close in reverse, within ten seconds: everything that was acknowledged
is durable by then, as it was when it was acknowledged.
"""

from __future__ import annotations

import gc
import sys
import threading
from collections.abc import Callable
from contextlib import ExitStack, closing

from headrace.collect.door import HttpDoor
from headrace.collect.gate import Gate, OpenGate, TokenGate
from headrace.collect.host_gate import HostGate
from headrace.collect.limits import Limits
from headrace.control.admission import Admission
from headrace.control.open_files import allow_open_files
from headrace.control.public_port import reached
from headrace.log.embedded import EmbeddedLog
from headrace.log.wire import serve_door
from headrace.model.clock import Clock
from headrace.model.plan import Plan
from headrace.model.role import Role
from headrace.model.site import Site

_SWITCH_INTERVAL_S = 0.0005
"""The log's thread takes the interpreter back from a busy event loop this soon after a commit, not
after Python's 5 ms: requests wait for it."""

_COLLECT_EVERY = (50_000, 20, 100)
"""Thresholds of the garbage collector. A request leaves no cycles behind; looking through all that
lives for some each 700 new objects made the slowest in a hundred requests wait 18 ms, not 5."""

_OTHER_FILES = 1_024
"""Open files beside connections: segments, sockets of other roles, bridged requests."""


def run_role(role: Role) -> None:
    """Run the role `collect`."""
    run_collect(
        role.plan,
        role.site,
        role.clock,
        host=role.host,
        port=role.port,
        stop=role.stop,
        ready=role.ready,
    )


def run_collect(
    plan: Plan,
    site: Site,
    clock: Clock,
    *,
    host: str,
    port: int,
    stop: threading.Event,
    ready: Callable[[], None],
    limits: Limits | None = None,
) -> None:
    """Run the collector of a site until `stop` is set.

    Raises `Invalid` if the port or the log is taken, and what the log failed with if it must not
    go on.
    """
    limits = limits or Limits()
    sys.setswitchinterval(_SWITCH_INTERVAL_S)
    allow_open_files(limits.connections_max + _OTHER_FILES)
    layout = site.layout
    layout.run.mkdir(mode=0o700, parents=True, exist_ok=True)
    with ExitStack() as stack:
        # 1
        options = plan.options
        log = stack.enter_context(closing(site.collector_log(options)))
        for topic in plan.topics:
            log.create(topic.name, topic.partitions)
        for name in plan.change_topics:
            # One partition: of two changes of a row the later one stands later.
            log.create(name, 1)
        # 2
        if isinstance(log, EmbeddedLog):
            stack.enter_context(closing(serve_door(log, layout.door)))
        # 3
        told = reached(site.deployment.http, host, tokens=options.tokens)
        gate: Gate = OpenGate() if told.hosts is None else HostGate(told.hosts)
        if options.tokens:
            tokens_log = stack.enter_context(closing(site.reader()))
            gate = TokenGate(Admission(tokens_log, clock))
        door = HttpDoor(
            plan,
            log,
            clock,
            limits,
            run_dir=layout.run,
            upstream=layout.serve,
            gate=gate,
            reached=told,
            reader=site.reading,
        )
        # What lives by now lives to the end, so it need not be looked through again.
        gc.freeze()
        gc.set_threshold(*_COLLECT_EVERY)
        door.run(host, port, stop=stop, ready=ready)
