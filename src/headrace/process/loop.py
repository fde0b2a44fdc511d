"""The loop of the process role: epochs while there is something to read, housekeeping between.

The order in one turn: read the log's ends; if something is there and the last epoch began long
enough ago, run an epoch; publish views whose time has come; do what housekeeping is due. An owner
that meets `Unavailable` begins again from storage, after a pause: recovery is the ordinary path.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

from headrace.model.clock import Clock
from headrace.model.errors import Closed, Unavailable
from headrace.model.log import TopicInfo
from headrace.model.runner import Range
from headrace.process.alarm import DeadLetterAlarm
from headrace.process.commit import run_epoch
from headrace.process.housekeeping import Housekeeper
from headrace.process.owner import Owner
from headrace.process.ranges import choose, records_in, waiting

POLL_S = 0.02
"""How long an idle loop waits before it looks at the log again."""
RESTART_S_MIN, RESTART_S_MAX = 0.1, 5.0
"""Bounds of the pause before an owner begins again."""
DESCRIBE_EVERY_S = 1.0
"""How often an idle loop asks which topics there are."""


@dataclass
class EpochProgress:
    """What the loop has done, for status and metrics; plain numbers, read by another thread."""

    epochs: int = 0
    epoch_s: float = 0.0
    """How long the last epoch took."""
    behind: int = 0
    """Records that wait in the log."""
    caught_up: bool = False
    """Whether everything that the log had at the last look is in tables and views."""
    alarm: str = ""
    restarts: int = 0
    waiting_for: str = ""
    """Why the owner last had to begin again."""
    at_risk: str = ""
    """What the log is about to delete, or has, before tables contain it."""
    epoch_seconds_sum: float = 0.0
    beat_us: int = 0
    files: dict[str, int] = field(default_factory=dict)


class Loop:
    """Runs one owner until told to stop."""

    def __init__(
        self,
        owner: Owner,
        stop: threading.Event,
        progress: EpochProgress,
        *,
        drain: Callable[[], bool] = lambda: False,
        gate: Callable[[], AbstractContextManager[None]] = nullcontext,
        threads: int = 2,
    ) -> None:
        """`drain` says whether to end as soon as everything is committed and published.

        `gate` is entered around each turn; see `process/gate.py`.
        """
        self._owner = owner
        self._stop = stop
        self._drain = drain
        self._progress = progress
        self._bytes_max = owner.plan.options.epoch_bytes_max * threads
        self._gate = gate
        self._housekeeper = Housekeeper(owner, gate)
        self._alarm = DeadLetterAlarm(owner.clock)
        self._topics: dict[str, TopicInfo] = {}
        self._described_s = -DESCRIBE_EVERY_S
        self._started_s = owner.clock.monotonic_s() - owner.plan.options.every_s
        self._read_up_to: object = None
        """The log's stamp at the last look, if that found nothing to read."""

    def run(self) -> None:
        """Run until stopped or drained; publish every view at the end."""
        owner, clock = self._owner, self._owner.clock
        self._housekeeper.begin()
        try:
            while not self._stop.is_set():
                self._progress.beat_us = clock.now_us()
                draining = self._drain()
                worked = self.turn()
                if not worked and draining and self.caught_up():
                    break
                if not worked:
                    clock.wait(self._stop, POLL_S)
        finally:
            self._housekeeper.end()
        with self._gate(), owner.lock:
            owner.views.publish(clock.now_us(), force=True)

    def turn(self) -> bool:
        """Do one turn; return whether an epoch ran."""
        with self._gate():
            return self._turn()

    def _turn(self) -> bool:
        owner, clock = self._owner, self._owner.clock
        now_s = clock.monotonic_s()
        if now_s - self._described_s >= DESCRIBE_EVERY_S:
            self._describe()
            self._described_s = now_s
        worked = False
        wait_s = self._started_s + owner.plan.options.every_s - now_s
        if wait_s <= 0 and (ranges := self._choose()):
            self._started_s = now_s
            self.epoch(ranges)
            worked = True
        if not worked:
            with owner.lock:
                owner.views.publish(clock.now_us())
        self._housekeeper.between_epochs()
        return worked

    def _describe(self) -> None:
        # Records of a topic that was not known may lie before the stamp.
        self._topics = self._owner.log.describe()
        self._read_up_to = None

    def _choose(self) -> tuple[Range, ...]:
        """Return what the next epoch reads; an idle log is asked for nothing but its stamp."""
        owner = self._owner
        stamp = owner.log.stamp()
        if stamp == self._read_up_to:
            return ()
        self._topics = owner.log.describe()
        there = waiting(owner.log, owner.plan, self._topics, owner.ledger.last)
        records_max = owner.plan.options.epoch_records_max
        ranges = choose(owner.log, there, bytes_max=self._bytes_max, records_max=records_max)
        self._progress.behind = records_in(there) - records_in(ranges)
        self._read_up_to = None if there else stamp
        return ranges

    def epoch(self, ranges: tuple[Range, ...]) -> None:
        """Run one epoch and keep the figures."""
        owner = self._owner
        row = run_epoch(owner, ranges)
        took_s = owner.clock.monotonic_s() - self._started_s
        self._progress.epochs += 1
        self._progress.epoch_s = took_s
        self._progress.epoch_seconds_sum += took_s
        self._progress.alarm = self._alarm.see(row.topics)
        self._progress.files = {
            name: len(table.snapshot.files) for name, table in owner.opened.items()
        }
        if self._progress.alarm and owner.plan.options.stop_on_dead:
            raise Closed(self._progress.alarm, hint="See `headrace dlq list`; then start again.")

    def caught_up(self) -> bool:
        """Return whether tables and views contain everything that the log has."""
        owner = self._owner
        self._describe()
        there = waiting(owner.log, owner.plan, self._topics, owner.ledger.last)
        self._progress.behind = records_in(there)
        return not there


def run_owner(
    begin: Callable[[], Owner],
    clock: Clock,
    stop: threading.Event,
    progress: EpochProgress,
    drain: Callable[[], bool],
    gate: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> None:
    """Begin an owner and run it; begin again after `Unavailable`, with a growing pause."""
    pause_s = RESTART_S_MIN
    while not stop.is_set():
        epochs = progress.epochs
        try:
            # To begin repairs, rolls forward and publishes, so a backup keeps it out too.
            with gate():
                owner = begin()
            Loop(owner, stop, progress, drain=drain, gate=gate).run()
        except Unavailable as e:
            progress.restarts += 1
            progress.waiting_for = e.message
            pause_s = RESTART_S_MIN if progress.epochs > epochs else min(pause_s * 2, RESTART_S_MAX)
            clock.wait(stop, pause_s)
        else:
            return
