"""How sources fare: what `pull` tells in `run/pull.json`, and the list that people are shown.

What has to be right after a crash comes from the log; what only matters while it runs, such as the
rate, from the file.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import msgspec

from headrace.control.sources import SourcesReader, Wanted, wanted_sources
from headrace.model.clock import Clock, rfc3339
from headrace.model.options import Scalar
from headrace.model.plan import Plan

PROGRESS_FILE = "pull.json"
STALE_S = 10.0
"""Older than this, the file tells nothing of what runs: it is written each second."""

State = Literal[
    "running",
    "waiting",
    "resting",
    "paused",
    "done",
    "failed",
    "leased elsewhere",
    "starting",
    "stopped",
]
"""`waiting`: for the service or the log. `resting`: until the next sweep is due. `stopped`: no pull
role runs."""


class SourceProgress(msgspec.Struct):
    """What `pull` tells of a source; null is what it does not know."""

    name: str
    state: State
    records: int = 0
    """Pulled and durable, since the source first ran."""
    pages: int = 0
    done: bool = False
    sweep: int | None = None
    """Number of the sweep that is under way, or was last."""
    sweep_records: int = 0
    """Given by the service in that sweep; those unchanged are not pulled again."""
    changed: int = 0
    unchanged: int = 0
    deleted: int = 0
    records_in_all: int | None = None
    """Of the sweep, or of all there is to read."""
    remaining: int | None = None
    records_per_s: float | None = None
    eta_s: float | None = None
    """Seconds until nothing remains, at that rate; while it waits, that pause too."""
    goes_on_at_us: int | None = None
    """When it asks again, of one that waits, or begins its next sweep, of one that rests."""
    completed_at_us: int | None = None
    """When the last full sweep was complete, microseconds."""
    notice: str = ""
    """What people should know though it goes on."""
    waiting_for: str = ""
    error: str = ""
    hint: str = ""


class Listed(SourceProgress, kw_only=True):
    """A source in a list: as it is declared, and how it fares."""

    kind: str
    topic: str
    counts: str | None
    options: dict[str, Scalar]
    added_at: str | None
    """RFC 3339; null for a source of the pipeline file."""


class Told(NamedTuple):
    """What `pull` told last."""

    is_alive: bool
    """Whether it tells still."""
    sources: Sequence[SourceProgress] = ()


def read_progress(run: Path, clock: Clock) -> Told:
    """Return what `pull` told last in the folder `run`."""
    path = run / PROGRESS_FILE
    try:
        age_s = clock.now_us() / 1e6 - path.stat().st_mtime
        found = msgspec.json.decode(path.read_bytes(), type=list[SourceProgress])
    except (FileNotFoundError, msgspec.DecodeError):
        return Told(is_alive=False)
    return Told(age_s < STALE_S, found)


def list_sources(plan: Plan, log: SourcesReader, told: Told) -> list[Listed]:
    """Return every source of the pipeline file and every one added, with how it fares."""
    by_name = {p.name: p for p in told.sources}
    return [
        _listed(wanted, by_name.get(wanted.source.name), is_alive=told.is_alive)
        for wanted in wanted_sources(plan, log)
    ]


def _listed(wanted: Wanted, told: SourceProgress | None, *, is_alive: bool) -> Listed:
    source = wanted.source
    if told is not None and is_alive:
        progress = told
    else:
        # Why a source failed is worth telling also when nothing runs.
        error, hint = (told.error, told.hint) if told else ("", "")
        state: State = "starting" if is_alive else "stopped"
        progress = SourceProgress(source.name, state, error=error, hint=hint)
    progress.records, progress.pages = wanted.kept.records, wanted.kept.pages
    progress.done = wanted.kept.done
    if wanted.fault is not None:
        progress.error, progress.hint = wanted.fault.message, wanted.fault.hint
    if wanted.paused:
        progress.state = "paused"
    elif progress.error:
        progress.state = "failed"
    elif wanted.kept.done:
        progress.state = "done"
    elif progress.state == "paused":
        # It was resumed; the role looks twice a second.
        progress.state = "starting"
    added_at_us = wanted.added_at_us
    return Listed(
        **msgspec.structs.asdict(progress),
        kind=source.kind,
        topic=source.topic,
        counts=source.counts,
        options=dict(source.options),
        added_at=None if added_at_us is None else rfc3339(added_at_us),
    )
