"""Whether this process owns the pipeline, where several could: the others stand by.

On a log that machines share, each of them may run a process role. A lease in the log's keyed state
(`control/leases.py`) says whose turn it is. The owner renews it on a thread of its own; a standby
takes it once it has not moved for its length by the standby's own clock, or at once if it was given
back.

The lease decides who *works*; what keeps tables right is the commit. An owner that was stopped and
goes on after another has taken over finds its next commit `Fenced`, whatever its lease says. What
no commit guards, the records that views append to their topics, expects the revision of a second
key, which is written at the beginning of each turn and not by renewals: see `expect`.

An owner that has lost its turn drops what it holds in memory and stands by again.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from headrace.control.leases import Lease, LeaseLog
from headrace.model.clock import Clock
from headrace.model.errors import Fenced, HeadraceError, Unavailable

LENGTH_S = 5.0
"""How long an owner that is gone is waited for; the rest of ten seconds is for beginning."""
LOOK_S = 0.5
"""How often a standby looks, and an owner whether a renewal is due."""

_PREFIX = "owner/"


class Standing:
    """One process's place among those that may own a pipeline."""

    def __init__(
        self, log: LeaseLog, clock: Clock, pipeline: str, owner: str, *, length_s: float = LENGTH_S
    ) -> None:
        """`owner` is an id that no other process has at the same time: see `control/leases.py`."""
        self.waiting_for = ""
        """Why it is not our turn."""
        self._log = log
        self._clock = clock
        self._owner = owner
        self._turn_key = f"{_PREFIX}{pipeline}/turn"
        self._turn_revision = 0
        self._lease = Lease(log, f"{_PREFIX}{pipeline}/lease", owner, clock, length_s)
        self._failure: HeadraceError | None = None

    @property
    def is_owner(self) -> bool:
        """Whether it is our turn, as far as our own clock can tell."""
        return self._lease.is_held

    def wait_for_turn(
        self, stop: threading.Event, is_over: Callable[[], bool] = lambda: False
    ) -> bool:
        """Stand by until it is our turn, and return True; False once `stop` is set or it `is_over`.

        `is_over` is asked at each look that finds another owner. A log that does not answer is
        asked again. To be followed by `turn`.
        """
        while not stop.is_set():
            try:
                if self._take():
                    return True
                self.waiting_for = f"{self._lease.holder} owns the pipeline"
                if is_over():
                    return False
            except Unavailable as error:
                self.waiting_for = error.message
            self._clock.wait(stop, LOOK_S)
        return False

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Keep the turn up within, and give it back at the end, so that a standby need not wait."""
        ended = threading.Event()

        def keep() -> None:
            try:
                while not self._clock.wait(ended, LOOK_S):
                    self._lease.renew()
            except HeadraceError as error:
                self._failure = error

        self._failure = None
        keeper = threading.Thread(target=keep, name="standing", daemon=True)
        keeper.start()
        try:
            yield
        finally:
            ended.set()
            keeper.join()
            self._lease.give_back()

    def check(self) -> None:
        """Return if it is our turn, else raise `Fenced`, or what made renewals impossible.

        A lease that was renewed too late, on a machine that is overloaded or was asleep, is renewed
        here if nobody has taken it: then nobody has worked in between either.
        """
        if self._failure is not None:
            raise self._failure
        if not self.is_owner:
            self._lease.renew()
        if not self.is_owner:
            raise Fenced(
                "The turn of this process is over: its lease was not renewed in time",
                hint="Another process may own the pipeline now; this one stands by.",
                code="turn_over",
            )

    def expect(self) -> dict[str, int]:
        """Return what an append has to expect that must not come from an owner whose turn is over.

        That is the revision of a key that each turn begins with writing.
        """
        return {self._turn_key: self._turn_revision}

    def _take(self) -> bool:
        # Looked at before the lease is taken: whoever has a turn in between fences us.
        before = self._log.get(self._turn_key)
        if not self._lease.take():
            return False
        try:
            entry = self._log.put_if(
                self._turn_key, before.revision if before else 0, self._owner.encode()
            )
        except Fenced:
            self._lease.give_back()
            return False
        self._turn_revision = entry.revision if entry else 0
        return True
