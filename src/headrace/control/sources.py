"""Sources at run time: declared, paused and removed in keyed state, at which `pull` keeps looking.

Keys of a source are `source/<name>/` and then

=========  ======================================================================
key        value, JSON
=========  ======================================================================
declared   `Declared`; not for a source of the pipeline file
paused     `Paused`; each pause and resume moves its revision
cursor     how far it has come, written by `pull` with each page
lease      who pulls it (`control/leases.py`)
=========  ======================================================================

Every page is appended expecting the revision of `declared`, so once that is deleted nothing of the
source can follow, and what else is kept of it can be deleted in peace.

Whoever may add a source chooses what this machine asks. So it takes `add_sources=True` in the
pipeline file, only kinds that read no files of this machine, and addresses that are checked.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Protocol

import msgspec

from headrace.model import plan as plans
from headrace.model.clock import Clock
from headrace.model.errors import Fenced, Invalid, Unavailable
from headrace.model.log import StateEntry
from headrace.model.options import Scalar, declared, read_options
from headrace.sources.addresses import check_url

PREFIX = "source/"
ADDED_MAX = 100
"""Sources that may be added to one pipeline: each has a thread."""
TEXT_MAX = 10_000
"""Characters that an option's text may have."""
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}")
"""As in the pipeline file."""
_TRIES = 5

OptionsOf = Callable[[str], type]
"""From a kind that may be added to its options; `Invalid` for another."""


class SourcesLog(Protocol):
    """What of `Log` is needed here."""

    def get(self, key: str) -> StateEntry | None:
        """See `LogReader`."""

    def scan(self, prefix: str) -> list[StateEntry]:
        """See `LogReader`."""

    def put_if(self, key: str, expected_revision: int, value: bytes | None) -> StateEntry | None:
        """See `Log`."""


class SourcesReader(Protocol):
    """What of `LogReader` is needed to list sources."""

    def scan(self, prefix: str) -> list[StateEntry]:
        """See `LogReader`."""


class Request(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What somebody who adds a source says."""

    name: str
    kind: str
    topic: str
    options: dict[str, Scalar] = {}
    counts: str | None = None
    """Topic that gets the service's own counts."""


class Declared(msgspec.Struct, frozen=True):
    """A source that was added at run time."""

    name: str
    kind: str
    topic: str
    options: dict[str, Scalar]
    counts: str | None
    added_at_us: int

    @property
    def source(self) -> plans.Source:
        """The source as the pipeline file would declare it."""
        return plans.Source(self.name, self.kind, self.topic, self.options, self.counts)


class Paused(msgspec.Struct, frozen=True):
    """Whether a source is to wait, and since when (microseconds)."""

    paused: bool
    at_us: int


class Kept(msgspec.Struct, frozen=True):
    """What people are shown of a source's state in the log, which `pull` writes."""

    records: int = 0
    pages: int = 0
    done: bool = False


class Wanted(msgspec.Struct, frozen=True):
    """A source as it stands in the pipeline file and in keyed state."""

    source: plans.Source
    added_at_us: int | None
    """None for a source of the pipeline file."""
    paused: bool
    declared_revision: int
    """0 for a source of the pipeline file."""
    paused_revision: int
    kept: Kept
    fault: Invalid | None = None
    """Why it cannot be pulled although it is declared."""

    @property
    def expect(self) -> dict[str, int]:
        """Revisions that must stand whenever a page of the source is appended."""
        return {declared_key(self.source.name): self.declared_revision}

    @property
    def attempt(self) -> tuple[int, int]:
        """What moves when the source is declared anew, paused or resumed."""
        return self.declared_revision, self.paused_revision


def declared_key(name: str) -> str:
    """Return the key of a source's declaration."""
    return f"{PREFIX}{name}/declared"


def paused_key(name: str) -> str:
    """Return the key that says whether a source is paused."""
    return f"{PREFIX}{name}/paused"


def lease_key(name: str) -> str:
    """Return the key of a source's lease."""
    return f"{PREFIX}{name}/lease"


def wanted_sources(plan: plans.Plan, log: SourcesReader) -> list[Wanted]:
    """Return every source: those of the pipeline file in its order, then those added, by name."""
    kept: dict[str, dict[str, StateEntry]] = {}
    for entry in log.scan(PREFIX):
        name, _, what = entry.key.removeprefix(PREFIX).partition("/")
        kept.setdefault(name, {})[what] = entry
    found = [_wanted(s, None, kept.get(s.name, {})) for s in plan.sources]
    own = {s.name for s in plan.sources}
    for name, entries in sorted(kept.items()):
        if "declared" in entries and name not in own:
            added = msgspec.json.decode(entries["declared"].value, type=Declared)
            found.append(_wanted(added.source, added, entries, _fault(plan, added)))
    return found


def add(
    plan: plans.Plan, log: SourcesLog, options_of: OptionsOf, wanted: Request, clock: Clock
) -> Declared:
    """Declare a source, to be pulled from within seconds; return the declaration.

    Raises `Invalid`: `sources_closed`, `bad_name`, `source_exists`, `too_many_sources`,
    `unknown_source_kind`, `unknown_topic`, `invalid_options`, or what is wrong with a URL; then
    nothing was done. Of several who add one name at a time one wins and the others are told.
    Resolving the host of a URL may take its time.
    """
    _require_open(plan)
    _check_name(plan, log, wanted.name)
    _check_topics(plan, wanted)
    options = _checked_options(plan, options_of(wanted.kind), wanted)
    # What is left of a removal that broke off, or of a source that a pipeline file had.
    _clear(log, wanted.name)
    made = Declared(wanted.name, wanted.kind, wanted.topic, options, wanted.counts, clock.now_us())
    try:
        log.put_if(declared_key(wanted.name), 0, msgspec.json.encode(made))
    except Fenced as e:
        raise _exists(wanted.name) from e
    return made


def pause(plan: plans.Plan, log: SourcesLog, name: str, clock: Clock) -> None:
    """Have a source wait until it is resumed; `Invalid` if there is none."""
    _set_paused(plan, log, name, clock, paused=True)


def resume(plan: plans.Plan, log: SourcesLog, name: str, clock: Clock) -> None:
    """Have a source go on, also one that had ended with an error; `Invalid` if there is none."""
    _set_paused(plan, log, name, clock, paused=False)


def remove(plan: plans.Plan, log: SourcesLog, name: str) -> None:
    """Forget a source that was added: its declaration, how far it came, and its lease.

    What it collected stays. Raises `Invalid` for a source of the pipeline file and an unknown one.
    """
    entry = log.get(declared_key(name))
    if entry is None:
        if any(s.name == name for s in plan.sources):
            raise Invalid(
                f"Source {name} stands in the pipeline file",
                hint="Take it out there, or pause it.",
                code="source_of_pipeline",
            )
        raise unknown_source(name)
    try:
        log.put_if(entry.key, entry.revision, None)
    except Fenced as e:
        raise unknown_source(name) from e
    _clear(log, name)


def _wanted(
    source: plans.Source,
    added: Declared | None,
    entries: Mapping[str, StateEntry],
    fault: Invalid | None = None,
) -> Wanted:
    declaration, paused, cursor = (entries.get(k) for k in ("declared", "paused", "cursor"))
    if added is None and declaration is not None:
        fault = Invalid(
            f"A source named {source.name} was added while the pipeline ran",
            hint=f"headrace sources remove {source.name}, or name this one otherwise.",
            code="source_exists",
        )
    return Wanted(
        source,
        added.added_at_us if added else None,
        paused is not None and msgspec.json.decode(paused.value, type=Paused).paused,
        declaration.revision if declaration else 0,
        paused.revision if paused else 0,
        msgspec.json.decode(cursor.value, type=Kept) if cursor else Kept(),
        fault,
    )


def _fault(plan: plans.Plan, added: Declared) -> Invalid | None:
    """Return why a source that was added under an earlier plan cannot be pulled under this one."""
    try:
        _require_open(plan)
        _check_topics(plan, added)
    except Invalid as e:
        return e
    return None


def _require_open(plan: plans.Plan) -> None:
    if not plan.options.add_sources:
        raise Invalid(
            f"The pipeline {plan.name} takes no sources while it runs",
            hint="Its owner may allow it: Pipeline(..., add_sources=True).",
            code="sources_closed",
        )


def _check_name(plan: plans.Plan, log: SourcesReader, name: str) -> None:
    if not _NAME.fullmatch(name):
        raise Invalid(
            f"{name[:120]!r} is no name for a source",
            hint="Up to 100 letters, digits and _ . -, not beginning with . or -.",
            code="bad_name",
        )
    there = wanted_sources(plan, log)
    if any(w.source.name.lower() == name.lower() for w in there):
        raise _exists(name)
    if sum(w.added_at_us is not None for w in there) >= ADDED_MAX:
        raise Invalid(
            f"There are {ADDED_MAX} added sources already",
            hint="Remove one that is done.",
            code="too_many_sources",
        )


def _check_topics(plan: plans.Plan, wanted: Request | Declared) -> None:
    names = [t.name for t in plan.topics if t.name not in plan.change_topics]
    for topic in (wanted.topic, wanted.counts):
        if topic is not None and topic not in names:
            raise Invalid(
                f"There is no topic {topic[:120]!r} that a source could fill",
                hint=f"The topics are {', '.join(names)}.",
                code="unknown_topic",
            )


def _checked_options(plan: plans.Plan, options: type, wanted: Request) -> dict[str, Scalar]:
    given = wanted.options
    if long := [n for n, v in given.items() if isinstance(v, str) and len(v) > TEXT_MAX]:
        raise Invalid(
            f"Option {long[0]} has more than {TEXT_MAX:,} characters", code="invalid_options"
        )
    read_options(options, given, f'source "{wanted.name}"')
    if owners := [d.name for d in declared(options) if d.owner and d.name in given]:
        raise Invalid(
            f"Option {owners[0]} can only be said in the pipeline file",
            hint="It reaches into this machine, or into an account of its owner.",
            code="invalid_options",
        )
    for name, value in given.items():
        # Each connection is judged again as it is made; this tells whoever adds it, and at once.
        if isinstance(value, str) and (name == "url" or name.endswith("_url")):
            check_url(value, private=plan.options.private_addresses)
    return dict(given)


def _set_paused(
    plan: plans.Plan, log: SourcesLog, name: str, clock: Clock, *, paused: bool
) -> None:
    for _ in range(_TRIES):
        if not any(w.source.name == name for w in wanted_sources(plan, log)):
            raise unknown_source(name)
        entry = log.get(paused_key(name))
        value = msgspec.json.encode(Paused(paused, clock.now_us()))
        with suppress(Fenced):
            log.put_if(paused_key(name), entry.revision if entry else 0, value)
            return
    raise _busy(name)


def _clear(log: SourcesLog, name: str) -> None:
    """Delete all that is kept of a source, unless it is declared again meanwhile."""
    for _ in range(_TRIES):
        entries = log.scan(f"{PREFIX}{name}/")
        if not entries or any(e.key == declared_key(name) for e in entries):
            return
        for entry in entries:
            # Its lease may be renewed in this moment, for the last time.
            with suppress(Fenced):
                log.put_if(entry.key, entry.revision, None)
    raise _busy(name)


def _exists(name: str) -> Invalid:
    return Invalid(
        f"There already is a source named {name}",
        hint="Upper and lower case count as the same. Name it otherwise, or remove that one first.",
        code="source_exists",
    )


def unknown_source(name: str) -> Invalid:
    """Return the error that says that there is no such source."""
    return Invalid(
        f"There is no source {name[:120]!r}",
        hint="`headrace sources list` and GET /v1/sources list those there are.",
        code="unknown_source",
    )


def _busy(name: str) -> Unavailable:
    return Unavailable(f"Others change source {name} at the same time", hint="Try again.")
