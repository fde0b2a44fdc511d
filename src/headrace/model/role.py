"""What a role is given when it is started: the plan, where things lie, and how to end."""

from __future__ import annotations

import threading
from collections.abc import Callable

import msgspec

from headrace.model.clock import Clock
from headrace.model.layout import Layout
from headrace.model.plan import Plan
from headrace.model.site import Site


class Role(msgspec.Struct, frozen=True):
    """How a role was started. A role's `run.py` has `run_role(role)`, which returns at its end."""

    name: str
    plan: Plan
    layout: Layout
    site: Site
    """Log, tables and runner."""
    host: str
    """Address to listen on, of the roles that listen."""
    port: int
    """TCP port; 0 takes a free one."""
    beside: tuple[str, ...]
    """All roles of this run; the port belongs to `collect`, or to `serve` where that is not."""
    clock: Clock
    stop: threading.Event
    """Set when the role is to end: finish what was promised, within 10 seconds."""
    drain: threading.Event
    """Set when the role is to end by itself as soon as nothing waits."""
    ready: Callable[[], None]
    """To be called when the role does its work; calls after the first do nothing."""
