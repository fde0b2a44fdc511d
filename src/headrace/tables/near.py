"""Tables far away, for those who query them: files come into a local folder when they are wanted.

A data file never changes and its name never comes twice, so a copy is good for as long as a
snapshot names it. What is queried again is read from the local disk, by an SQL engine that needs no
way to the storage. The folder holds about as much as the tables that are queried. Each process has
its own and removes those of processes that are gone, so nothing in it needs to be durable.
"""

from __future__ import annotations

import fcntl
import shutil
import threading
import uuid
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import msgspec
import pyarrow as pa

from headrace.model.clock import Clock
from headrace.model.errors import Corrupt, Unavailable
from headrace.model.tables import DataFile, Snapshot
from headrace.tables.delta import DeltaTables
from headrace.tables.storage import LocalStorage

ASK_AGAIN_S = 0.1
"""How long the newest version is taken for the newest: each look asks the storage twice."""
KEPT_S = 300.0
"""How long a file is kept that newer snapshots do not name: a query may have begun on an older."""
_LEASE = "lease"
_AT_ONCE = 8
_CHUNK_BYTES = 4 << 20


@dataclass
class _Held:
    """What is known of one table."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    asked_s: float = 0.0
    far: Snapshot | None = None
    near: Snapshot | None = None
    """The same, at home in the local folder."""
    wanted_s: dict[str, float] = field(default_factory=dict)
    """Name of each file that is in the folder → when it was last wanted."""


class NearTables:
    """The reading part of `model.tables.Tables`; the snapshots' `root` is a local folder.

    A snapshot is only a list: `fetch` brings its files, or some of them. Safe to use from many
    threads.
    """

    def __init__(self, far: DeltaTables, place: Path, clock: Clock) -> None:
        """Keep copies in a folder of one's own in `place`, until `close`."""
        folder, self._lease = _own_folder(place, clock)
        self._folder = folder
        self._far = far
        self._clock = clock
        self._storage = LocalStorage(folder, clock, fsync=lambda _: None)
        self._near = DeltaTables(folder, clock, storage=self._storage)
        self._lock = threading.Lock()
        self._held: dict[str, _Held] = {}

    def close(self) -> None:
        """Remove the copies."""
        shutil.rmtree(self._folder, ignore_errors=True)
        self._lease.close()

    def names(self) -> list[str]:
        """See `Tables`."""
        return self._far.names()

    def snapshot(self, name: str, version: int | None = None) -> Snapshot | None:
        """See `Tables`; the newest is at most `ASK_AGAIN_S` old."""
        if version is not None:
            return self._at_home(self._far.snapshot(name, version))
        held = self._of(name)
        with held.lock:
            now_s = self._clock.monotonic_s()
            if held.far is None or now_s - held.asked_s >= ASK_AGAIN_S:
                far = self._far.snapshot(name)
                if far is not held.far:
                    held.far, held.near = far, self._at_home(far)
                held.asked_s = now_s
            return held.near

    def fetch(self, snapshot: Snapshot, files: Sequence[DataFile] | None = None) -> None:
        """Bring a snapshot's files, or some of them, under its `root`.

        `Unavailable` with the code `file_gone` if one has been cleaned away: take a new snapshot.
        """
        held = self._of(snapshot.name)
        wanted = snapshot.files if files is None else files
        with held.lock:
            now_s = self._clock.monotonic_s()
            missing = [f for f in wanted if f.path not in held.wanted_s]
            if missing:
                with ThreadPoolExecutor(_AT_ONCE, "fetch") as pool:
                    brought = [pool.submit(self._bring, snapshot.name, f) for f in missing]
                for file, outcome in zip(missing, brought, strict=True):
                    if outcome.exception() is None:
                        held.wanted_s[file.path] = now_s
                    else:
                        held.far = None
                for outcome in brought:
                    outcome.result()
            held.wanted_s.update(dict.fromkeys((f.path for f in wanted), now_s))
            self._forget(snapshot, held, now_s)

    def read(self, snapshot: Snapshot, files: Sequence[DataFile] | None = None) -> pa.Table:
        """See `Tables`."""
        self.fetch(snapshot, files)
        return self._near.read(snapshot, files)

    def _bring(self, name: str, file: DataFile) -> None:
        path = f"{name}/{file.path}"
        self._storage.delete(path)
        try:
            with self._far.storage.open(path) as source, self._storage.create(path) as copy:
                while chunk := source.read(_CHUNK_BYTES):
                    copy.write(chunk)
        except FileNotFoundError:
            raise Unavailable(
                f"{path} has been cleaned away",
                hint="Take a new snapshot",
                code="file_gone",
                retry_after_s=0.0,
            ) from None
        found = self._storage.size(path)
        if found != file.size_bytes:
            self._storage.delete(path)
            raise Corrupt(
                f"{path} has {found} bytes; the table says {file.size_bytes}",
                hint="Restore the table, or read it at an earlier version",
            )

    def _forget(self, snapshot: Snapshot, held: _Held, now_s: float) -> None:
        named = {f.path for f in snapshot.files}
        for path, wanted_s in list(held.wanted_s.items()):
            if path not in named and now_s - wanted_s > KEPT_S:
                self._storage.delete(f"{snapshot.name}/{path}")
                del held.wanted_s[path]

    def _at_home(self, far: Snapshot | None) -> Snapshot | None:
        if far is None:
            return None
        return msgspec.structs.replace(far, root=self._storage.uri(far.name))

    def _of(self, name: str) -> _Held:
        with self._lock:
            return self._held.setdefault(name, _Held())


def _own_folder(place: Path, clock: Clock) -> tuple[Path, IO[bytes]]:
    """Make a folder that is ours while the file returned is open; remove those that nobody has."""
    place.mkdir(parents=True, exist_ok=True)
    with (place / _LEASE).open("wb") as entry:
        fcntl.flock(entry, fcntl.LOCK_EX)
        for other in place.glob(f"*/{_LEASE}"):
            with other.open("rb") as theirs, suppress(BlockingIOError):
                fcntl.flock(theirs, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(other.parent)
        folder = place / str(uuid.UUID(bytes=clock.new_id()))
        folder.mkdir()
        lease = (folder / _LEASE).open("wb")
        fcntl.flock(lease, fcntl.LOCK_EX)
    return folder, lease
