"""A data directory as the command line opens it: whether or not a run is alive on it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager

import msgspec

from headrace.app.site import open_site
from headrace.app.supervisor import held
from headrace.log.embedded import EmbeddedLog
from headrace.model.clock import Clock, SystemClock
from headrace.model.errors import Invalid
from headrace.model.layout import Layout
from headrace.model.log import Log, LogReader
from headrace.model.plan import Plan
from headrace.model.tables import Tables


def require(layout: Layout) -> None:
    """Return if there is a data directory, else raise `Invalid`."""
    if not (layout.log.is_dir() or layout.deployment.exists()):
        raise Invalid(
            f"There is no data directory at {layout.root}",
            hint="name it with --data DIR or HEADRACE_DATA; `headrace run` makes one",
            code="no_data_directory",
        )


def find_plan(layout: Layout) -> Plan | None:
    """Return the plan that ran last on a data directory; None before the first run."""
    try:
        return msgspec.json.decode(layout.plan.read_bytes(), type=Plan)
    except FileNotFoundError:
        return None
    except msgspec.DecodeError as error:
        raise Invalid(
            f"{layout.plan} is no plan that this version can read: {error}",
            hint="run the pipeline once with this version",
            code="unreadable_plan",
        ) from error


def read_plan(layout: Layout) -> Plan:
    """Return the plan that ran last; `Invalid` if none did."""
    require(layout)
    plan = find_plan(layout)
    if plan is None:
        raise Invalid(
            f"No pipeline has run on {layout.root} yet",
            hint="`headrace run PIPELINE.py` keeps the plan there",
            code="no_plan",
        )
    return plan


@contextmanager
def reading_log(layout: Layout) -> Iterator[LogReader]:
    """Open the log to read; a run may be alive beside."""
    require(layout)
    with closing(open_site(layout, SystemClock()).reader()) as log:
        yield log


@contextmanager
def writing_log(layout: Layout, clock: Clock) -> Iterator[Log]:
    """Open the log to append: through the door of the run that is alive, else the log itself.

    In the second case the directory's lock is held meanwhile, so that no run begins. A log that is
    shared needs neither.
    """
    site = open_site(layout, clock)
    try:
        if not site.is_shared:
            with held(layout):
                with closing(EmbeddedLog(layout.log, clock)) as own:
                    yield own
                return
    except Invalid as error:
        if error.code != "already_running":
            raise
    with closing(site.log()) as log:
        yield log


def open_tables(layout: Layout, clock: Clock) -> Tables:
    """Open the tables."""
    require(layout)
    return open_site(layout, clock).tables()
