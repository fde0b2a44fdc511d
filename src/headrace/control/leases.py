"""One owner at a time: a lease in the log's keyed state, taken and kept up by `put_if`.

No wall clocks are compared. The holder renews its lease every few seconds, which moves the key's
revision. Whoever wants the lease watches the revision and takes it once that has not moved for the
lease's length by the watcher's own monotonic clock. The holder counts the same length from *before*
it sent its last renewal, so it knows that it has lost the lease before another one may have it, as
long as the two clocks run at about the same speed.

What is not promised. A process that was stopped for longer may do one more thing before it looks at
its clock. A lease therefore keeps two owners from asking the same service at the same time; what
keeps records right are the appends, each of which expects the revision of the cursor that its owner
saw last: after the new owner's first page, the old one is `Fenced`.

An owner's id belongs to one process at a time (`owner_id`). One that comes back under its own id,
as after a crash, need not wait: its former self is gone.
"""

from __future__ import annotations

import socket
import threading
from contextlib import suppress
from typing import IO, Protocol

import msgspec

from headrace.model.clock import Clock
from headrace.model.errors import Fenced, Unavailable
from headrace.model.log import StateEntry

LEASE_S = 10.0
"""How long a lease holds without being renewed: as long another waits for an owner that is gone."""
RENEWALS = 4
"""So many times a lease's length is it renewed, so that some of them may fail."""


class LeaseLog(Protocol):
    """What of `Log` is needed here; `get` may be called from any thread."""

    def get(self, key: str) -> StateEntry | None:
        """See `LogReader`."""

    def put_if(self, key: str, expected_revision: int, value: bytes | None) -> StateEntry | None:
        """See `Log`."""


class Held(msgspec.Struct, frozen=True):
    """What the log keeps under a lease's key, as JSON."""

    owner: str
    length_s: float
    """What the holder promises to renew within, which those who wait go by."""


def owner_id(kept: IO[str], clock: Clock) -> str:
    """Return the owner's id that a file keeps, made now if it keeps none of this machine.

    Whoever calls holds the file locked for as long as it goes by that id. A copy of the file on
    another machine, as an image of a disk has it, does not name the same owner there.
    """
    machine = socket.gethostname()
    kept.seek(0)
    owner = kept.read()
    if owner.rpartition("/")[0] != machine:
        owner = f"{machine}/{clock.new_id().hex()}"
        kept.seek(0)
        kept.truncate()
        kept.write(owner)
        kept.flush()
    return owner


class Lease:
    """A lease as one who holds or wants it sees it; safe to use from many threads."""

    def __init__(
        self, log: LeaseLog, key: str, owner: str, clock: Clock, length_s: float = LEASE_S
    ) -> None:
        self._log = log
        self._key = key
        self._clock = clock
        self._held = Held(owner, length_s)
        self._lock = threading.Lock()
        self._revision = 0
        """Of the key when we put it last; 0: the lease is not ours."""
        self._renewed_s = 0.0
        self._watched = (0, 0.0)
        """The revision of another's lease, and since when we see it."""
        self.holder = ""
        """Whose the lease was when it was last looked at and was another's."""

    @property
    def is_held(self) -> bool:
        """Whether the lease is ours, as far as our own clock can tell."""
        return bool(self._revision) and self._age_s() < self._held.length_s

    def take(self) -> bool:
        """Take the lease if nobody has it; return whether it is ours now.

        To be called again and again until it is. Raises `Unavailable` if the log cannot be asked.
        """
        with self._lock:
            if self.is_held:
                return True
            entry = self._log.get(self._key)
            if entry is not None and not self._is_free(entry):
                return False
            try:
                self._put(entry.revision if entry else 0)
            except Fenced:
                return False
            return True

    def renew(self) -> None:
        """Renew the lease if it is time to, also late if nobody took it; nothing if it is not ours.

        A lease that somebody else has is lost at once; one that cannot be renewed because the log
        does not answer is lost when its length is over.
        """
        with self._lock:
            if not self._revision or self._age_s() < self._held.length_s / RENEWALS:
                return
            try:
                self._put(self._revision)
            except Unavailable:
                return
            except Fenced:
                self._revision = 0
                # The answer to a renewal may have been lost on the way: then it is ours as before.
                with suppress(Unavailable):
                    entry = self._log.get(self._key)
                    if entry is not None and self._is_ours(entry):
                        self._revision = entry.revision

    def give_back(self) -> None:
        """Let the lease go, so that another need not wait; nothing if it is not ours."""
        with self._lock:
            revision, self._revision = self._revision, 0
            if revision:
                with suppress(Fenced, Unavailable):
                    self._log.put_if(self._key, revision, None)

    def _age_s(self) -> float:
        return self._clock.monotonic_s() - self._renewed_s

    def _put(self, expected_revision: int) -> None:
        asked_s = self._clock.monotonic_s()
        entry = self._log.put_if(self._key, expected_revision, msgspec.json.encode(self._held))
        self._revision = entry.revision if entry else 0
        self._renewed_s = asked_s

    def _is_ours(self, entry: StateEntry) -> bool:
        return msgspec.json.decode(entry.value, type=Held).owner == self._held.owner

    def _is_free(self, entry: StateEntry) -> bool:
        if self._is_ours(entry):
            return True
        now_s, held = self._clock.monotonic_s(), msgspec.json.decode(entry.value, type=Held)
        self.holder = held.owner
        revision, since_s = self._watched
        if entry.revision != revision:
            self._watched = entry.revision, now_s
            return False
        return now_s - since_s >= held.length_s
