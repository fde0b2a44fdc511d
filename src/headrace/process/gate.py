"""Keeps a backup and the owner's commits apart, across processes.

Two lock files in `run/`. Whoever wants in takes the turnstile, then the room, then lets go of the
turnstile. Owners share the room; a backup has it alone. A backup that waits for the room holds the
turnstile, so no new turn of the owner can begin before it and it cannot starve.
"""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class Gate:
    """The two lock files of a data directory's `run/` folder."""

    def __init__(self, run: Path) -> None:
        self._turnstile = run / "turnstile.lock"
        self._room = run / "commits.lock"

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Be an owner within: commits are allowed, and no backup is being taken."""
        with self._entered(fcntl.LOCK_SH):
            yield

    @contextmanager
    def quiet(self) -> Iterator[None]:
        """Be alone within: no commit happens, trimming included."""
        with self._entered(fcntl.LOCK_EX):
            yield

    @contextmanager
    def _entered(self, kind: int) -> Iterator[None]:
        with self._room.open("w") as room:
            with self._turnstile.open("w") as turnstile:
                fcntl.flock(turnstile, fcntl.LOCK_EX)
                fcntl.flock(room, kind)
            yield
