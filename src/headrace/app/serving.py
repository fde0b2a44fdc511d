"""The serve role, told by the registry which kinds of sources may be added while it runs."""

from __future__ import annotations

from headrace.app.registry import AT_RUN_TIME, options_at_run_time
from headrace.model.role import Role
from headrace.serve import run


def run_role(role: Role) -> None:
    """Answer reads until told to stop; see `serve/run.py`."""
    run.run_role(
        role, options_at_run_time, {kind: options_at_run_time(kind) for kind in AT_RUN_TIME}
    )
