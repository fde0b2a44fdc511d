"""Runs a changing set of sources, each in a thread of its own while this process has its lease.

Which sources there are stands in the plan and in keyed state (`control/sources.py`). The manager
looks at both again and again, begins what is wanted and leased, and ends what was paused, removed,
changed, or whose lease is lost. What a source's thread does is `puller.py`.

==================  =======================================================================
a source …          then
==================  =======================================================================
is done             its lease is given back; it is opened again at the next start
fails               its error stands in the report until it is resumed, changed, or the next start
is fenced           another owner has it: its lease is wanted again after a lease's length
breaks a promise    as if it had failed, and the run ends with that in the end
==================  =======================================================================

None of these ends another source. What makes going on unsafe for all, such as a damaged log, does.
"""

from __future__ import annotations

import threading
import traceback
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass

from headrace.control.leases import LEASE_S, Lease
from headrace.control.progress import SourceProgress, State
from headrace.control.sources import PREFIX, Wanted, lease_key, wanted_sources
from headrace.control.turns import InTurn, TurnLog
from headrace.model import plan as plans
from headrace.model.clock import Clock
from headrace.model.errors import Corrupt, Fenced, HeadraceError, Invalid, Unavailable
from headrace.model.layout import Layout
from headrace.model.source import Source
from headrace.pull.puller import KnownKeys, Puller, no_keys
from headrace.pull.records import Door
from headrace.pull.seen import remove_index
from headrace.pull.state import SourceReport

LOOK_S = 0.5
"""How often keyed state is looked at, and leases are."""

_ENDS = ("done", "failed", "paused")
"""States in which nothing is left to be done until somebody changes something."""
_TOLD = tuple(n for n in SourceProgress.__struct_fields__ if n not in ("name", "state"))

OpenSource = Callable[[plans.Source, Clock], Source]
"""Makes a source of its declaration; `Invalid` if its options cannot be used."""
Report = Callable[[Sequence[SourceProgress]], None]


@dataclass(frozen=True)
class Holder:
    """Who pulls, and what is at hand there."""

    owner: str
    """Id under which leases are held; of this process alone."""
    layout: Layout | None = None
    """Where sources that sweep keep what they have seen; without, there may be none that do."""
    known_keys: KnownKeys = no_keys
    """See `puller.py`."""


def run_pull(
    plan: plans.Plan,
    log: TurnLog,
    clock: Clock,
    stop: threading.Event,
    open_source: OpenSource,
    report: Report = lambda _: None,
    *,
    holder: Holder | None = None,
    until_idle: threading.Event | None = None,
) -> list[SourceProgress]:
    """Pull every source that is wanted until `stop` is set or nothing is to be done; say how.

    With `until_idle` the run goes on, for what may be added, paused or resumed, until that is set
    and every source is done, or rests until its next sweep; or until every source is done, if none
    may be added. `report` is called with all sources
    whenever something has changed and each half second, by the calling thread.

    Raises what makes going on unsafe, and at the end the first broken promise; all threads have
    ended and all leases are given back by then.
    """
    manager = _Manager(plan, log, clock, open_source, holder or Holder(clock.new_id().hex()))
    keeper = threading.Thread(target=manager.keep_leases, name="leases", daemon=True)
    keeper.start()
    try:
        while True:
            manager.look()
            report(manager.progress())
            if stop.is_set() or manager.is_idle(may_wait=until_idle):
                break
            manager.wait()
    finally:
        manager.close()
        keeper.join()
    report(manager.progress())
    if manager.broken:
        raise manager.broken[0]
    return manager.progress()


class _Manager:
    """The sources of this process; its methods are called from one thread but where it is said."""

    def __init__(
        self, plan: plans.Plan, log: TurnLog, clock: Clock, open_source: OpenSource, holder: Holder
    ) -> None:
        self.broken: list[BaseException] = []
        self._plan = plan
        self._clock = clock
        self._open_source = open_source
        self._holder = holder
        self._log = InTurn(log)
        self._ones: dict[str, _One] = {}
        self._has_looked = False
        self._something = threading.Event()
        self._closed = threading.Event()

    def look(self) -> None:
        """Begin and end what has to be."""
        try:
            wanted = wanted_sources(self._plan, self._log)
        except Unavailable:
            # Those that run go on; what is to change waits for the next look.
            return
        names = {w.source.name for w in wanted}
        gone = [n for n in self._ones if n not in names and self._ones[n].end()]
        for name in gone:
            self._collect(self._ones[name])
            self._ones.pop(name).lease.give_back()
            if self._holder.layout is not None:
                remove_index(self._holder.layout.index(name))
        if not self._has_looked:
            self._tidy(names)
        for each in wanted:
            self._tend(each)
        self._has_looked = True

    def progress(self) -> list[SourceProgress]:
        """Return how every source fares."""
        return [one.progress() for one in self._ones.values()]

    def is_idle(self, *, may_wait: threading.Event | None) -> bool:
        """Return whether nothing is left to be done."""
        if not self._has_looked:
            return False
        if may_wait is None or may_wait.is_set():
            return all(one.state in _ENDS or one.rests for one in self._ones.values())
        closed = not self._plan.options.add_sources
        return closed and all(one.state == "done" for one in self._ones.values())

    def wait(self) -> None:
        """Return after a while, or when a source has ended."""
        self._something.wait(LOOK_S)
        self._something.clear()

    def keep_leases(self) -> None:
        """Renew leases until the manager is closed: on another thread, for the log may be slow."""
        while not self._closed.wait(LOOK_S):
            for one in list(self._ones.values()):
                one.lease.renew()

    def close(self) -> None:
        """End every source, then give the leases back."""
        self._closed.set()
        for one in self._ones.values():
            one.end()
        for one in self._ones.values():
            if one.task is not None:
                one.task.thread.join()
            one.lease.give_back()
        for one in self._ones.values():
            self._collect(one)
            if one.state not in _ENDS:
                one.state = "stopped"

    def _tend(self, wanted: Wanted) -> None:
        name = wanted.source.name
        one = self._ones.get(name)
        if one is None:
            lease = Lease(self._log, lease_key(name), self._holder.owner, self._clock)
            one = self._ones[name] = _One(wanted, lease, self._clock)
        runs = not wanted.paused and wanted.fault is None
        if one.task is not None:
            same = wanted.expect == one.wanted.expect
            if not (runs and same and one.lease.is_held):
                one.end()
            if one.task.thread.is_alive():
                if same:
                    # Whoever resumes it while it runs gets what they want already.
                    one.wanted, one.tried = wanted, wanted.attempt
                return
            self._collect(one)
        one.wanted = wanted
        if not runs:
            one.lease.give_back()
            one.tried = None
            one.state = "paused"
            if wanted.fault is not None:
                one.fail(wanted.fault)
        elif one.tried != wanted.attempt and one.may_take():
            self._begin(one)

    def _begin(self, one: _One) -> None:
        one.tried = one.wanted.attempt
        declared = one.wanted.source
        try:
            source = self._open_source(declared, self._clock)
        except Invalid as error:
            one.fail(error)
            return
        except Exception as error:  # noqa: BLE001 - a bug of one source is not that of the others
            self._break(one, error)
            return
        door = Door(declared, self._plan.topic(declared.topic), self._clock)
        layout = self._holder.layout
        counts = declared.counts and Door(declared, self._plan.topic(declared.counts), self._clock)
        puller = Puller(
            declared,
            source,
            door,
            self._log.expecting(one.wanted.expect),
            threading.Lock(),
            index=layout.index(declared.name) if layout else None,
            counts=counts or None,
            known_keys=self._holder.known_keys,
        )
        one.begin(_Task(source, puller, self._clock, self._something))

    def _tidy(self, names: Collection[str]) -> None:
        """Remove what sources had seen that were removed while nothing ran."""
        if self._holder.layout is not None:
            kept = {e.key.removeprefix(PREFIX).partition("/")[0] for e in self._log.scan(PREFIX)}
            for index in self._holder.layout.indexes.glob("*.db"):
                if index.stem not in kept and index.stem not in names:
                    remove_index(index)

    def _collect(self, one: _One) -> None:
        """Take over how a source's thread has ended."""
        task, one.task = one.task, None
        if task is None:
            return
        failure, report = task.puller.failure, task.puller.report
        one.report = report
        if isinstance(failure, Fenced):
            one.lose(self._clock.monotonic_s() + LEASE_S)
        elif failure is not None and not _follows_halt(task, failure):
            self._break(one, failure)
        elif report.error:
            one.fail(None)
        elif report.done:
            one.state = "done"
            one.lease.give_back()
        else:
            one.tried = None

    def _break(self, one: _One, failure: BaseException) -> None:
        if isinstance(failure, Corrupt) or not isinstance(failure, Exception):
            raise failure
        traceback.print_exception(failure)
        self.broken.append(failure)
        what = f"{type(failure).__name__}: {failure}"
        one.fail(HeadraceError(what, hint="This may be a bug worth reporting."))


def _follows_halt(task: _Task, failure: BaseException) -> bool:
    """Return whether a source ended like this because it was told to end."""
    return task.halt.is_set() and isinstance(failure, HeadraceError)


class _One:
    """A source and what becomes of it."""

    def __init__(self, wanted: Wanted, lease: Lease, clock: Clock) -> None:
        self.wanted = wanted
        self.lease = lease
        self.task: _Task | None = None
        self.state: State = "starting"
        self.report = SourceReport(wanted.source.name, wanted.source.topic)
        self.tried: tuple[int, int] | None = None
        """The attempt that was begun last, unless it is to be begun again."""
        self._clock = clock
        self._not_before_s = 0.0

    @property
    def rests(self) -> bool:
        """Return whether the source, which follows, has nothing to do until its next sweep."""
        return self._rests_until_us is not None

    @property
    def _rests_until_us(self) -> int | None:
        return self.task.rests_until_us if self.task and self.state == "running" else None

    def may_take(self) -> bool:
        """Return whether the lease is ours, taking it if it is free."""
        taken = False
        if self._clock.monotonic_s() >= self._not_before_s:
            with suppress(Unavailable):
                taken = self.lease.take()
        if not taken:
            self.state = "leased elsewhere"
        return taken

    def begin(self, task: _Task) -> None:
        """Have the source's thread run."""
        self.task, self.report, self.state = task, task.puller.report, "running"
        task.thread.start()

    def end(self) -> bool:
        """Tell the source's thread to end; return whether it has."""
        if self.task is None:
            return True
        self.task.end()
        return not self.task.thread.is_alive()

    def fail(self, error: HeadraceError | None) -> None:
        """Keep why the source cannot go on; None if the report says so already."""
        if error is not None:
            self.report.error, self.report.hint = error.message, error.hint
        self.state = "failed"
        self.lease.give_back()

    def lose(self, not_before_s: float) -> None:
        """Leave the source to whoever has fenced us."""
        self.tried = None
        self.state = "leased elsewhere"
        self._not_before_s = not_before_s
        self.lease.give_back()

    def progress(self) -> SourceProgress:
        """Return how the source fares."""
        report, state = self.report, self.state
        if state == "running" and report.waiting_for:
            state = "waiting"
        told = {n: getattr(report, n) for n in _TOLD}
        rests_until_us = self._rests_until_us
        if state == "running" and rests_until_us is not None:
            state = "resting"
            told |= {"records_per_s": None, "eta_s": None, "goes_on_at_us": rests_until_us}
        return SourceProgress(name=report.name, state=state, **told)


class _Task:
    """A source's thread."""

    def __init__(
        self, source: Source, puller: Puller, clock: Clock, ended: threading.Event
    ) -> None:
        self.puller = puller
        self.halt = threading.Event()
        self._source = source

        def run() -> None:
            try:
                puller.run(clock, self.halt, lambda _: None)
            finally:
                source.close()
                ended.set()

        self.thread = threading.Thread(target=run, name=f"source {puller.report.name}")

    @property
    def rests_until_us(self) -> int | None:
        """Return until when the source says that it waits for its next sweep."""
        return getattr(self._source, "rests_until_us", None)

    def end(self) -> None:
        """Tell the thread to end soon."""
        if not self.halt.is_set():
            self.halt.set()
            self._source.close()
