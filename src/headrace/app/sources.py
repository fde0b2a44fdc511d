"""The pull role: a pipeline's sources, opened through the registry, appending at the door."""

from __future__ import annotations

import fcntl
import sys
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from functools import partial
from typing import IO

import msgspec

from headrace.app.registry import open_source
from headrace.control.files import replace
from headrace.control.known_keys import known_keys
from headrace.control.leases import owner_id
from headrace.control.progress import PROGRESS_FILE, SourceProgress
from headrace.model import plan as plans
from headrace.model.clock import Clock
from headrace.model.errors import Invalid
from headrace.model.role import Role
from headrace.model.source import Source
from headrace.pull import metrics
from headrace.pull.run import Holder, run_pull
from headrace.sources.http import Network

OWNER_FILE = "pull.owner"
_ASK_EVERY_S = 0.2


def run_role(role: Role) -> None:
    """Pull until told to stop or, once told to drain, until no source has anything to do.

    `Invalid` when a source ended without being done: its file or its options need mending.
    """
    network = Network(role.clock, private=role.plan.options.private_addresses)
    failed: dict[str, str] = {}

    def opened(declared: plans.Source, clock: Clock) -> Source:
        return open_source(declared, clock, network)

    def tell(progress: Sequence[SourceProgress]) -> None:
        replace(role.layout.run / PROGRESS_FILE, msgspec.json.encode(progress))
        replace(role.layout.run / metrics.METRICS_FILE, metrics.text(progress))
        for source in progress:
            if source.error and failed.get(source.name) != source.error:
                hint = f" ({source.hint})" if source.hint else ""
                sys.stderr.write(f"source {source.name}: {_plain(source.error + hint)}\n")
            failed[source.name] = source.error

    role.ready()
    with owner_of(role) as owner, closing(role.site.log()) as log:
        if owner is None:
            return
        holder = Holder(owner, role.layout, partial(known_keys, role.plan, role.site.tables()))
        ended = run_pull(
            role.plan,
            log,
            role.clock,
            role.stop,
            opened,
            tell,
            holder=holder,
            until_idle=role.drain,
        )
    errors = [p for p in ended if p.state == "failed"]
    if errors and not role.stop.is_set():
        raise Invalid("; ".join(f"source {p.name}: {p.error}" for p in errors), hint=errors[0].hint)


def _plain(text: str) -> str:
    """Return a text without signs that a terminal obeys: a service may have sent it."""
    return "".join(c if c.isprintable() else " " for c in text)


@contextmanager
def owner_of(role: Role) -> Iterator[str | None]:
    """Hold the id under which this data directory's pull role has its leases.

    Another role that still ends is waited for; None if this one is to stop meanwhile. The id is
    kept, so a role that was killed has its leases back at once.
    """
    with (role.layout.run / OWNER_FILE).open("a+") as file:
        while not _locked(file):
            if role.clock.wait(role.stop, _ASK_EVERY_S):
                yield None
                return
        yield owner_id(file, role.clock)


def _locked(file: IO[str]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
