"""Samples the roles of this node every two seconds, on a thread of the supervisor's.

Nothing waits for it: neither a role nor the supervisor notices when a sample cannot be kept. They
are gathered and made durable together, so that a table far away is asked a few times a minute.
"""

from __future__ import annotations

import functools
import os
import socket
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import msgspec
import psutil
import pyarrow as pa

from headrace.model.clock import Clock
from headrace.model.samples import SAMPLE_SCHEMA
from headrace.model.tables import DataFile

COMMIT_EVERY_S = 10.0
"""How often samples are committed; as often it is looked which processes the roles have."""
ROWS_WAITING_MAX = 10_000
"""Samples kept in memory while they cannot be committed; beyond, the oldest go."""
END_S_MAX = 2.0
"""How long an end waits for the last commit."""
STALE_S = 5.0
"""What the process role said longer ago is not true of now: it says it each second."""
STATUS_FILE = "process.json"
SUPERVISOR = "supervisor"

Pids = Callable[[], Mapping[str, int]]
"""Role → process id, of the roles that run at the moment."""


class Kept(Protocol):
    """Where samples are kept: `app/samples.py: SamplesTable`."""

    def stage(self, rows: pa.Table) -> DataFile:
        """Make rows durable; nobody sees them yet."""

    def commit(self, staged: DataFile) -> None:
        """Have them seen."""

    def is_too_old(self, staged: DataFile) -> bool:
        """Return whether a staged file may be gone before it is committed."""


class _Status(msgspec.Struct):
    """What the process role says of itself, as far as it matters here."""

    at_us: int = 0
    state: str = ""
    epoch: int = 0
    epoch_s: float = 0.0
    freshness_s: float | None = None
    behind: int = 0
    topics: dict[str, dict[str, int]] = {}


@dataclass
class _Watched:
    """A process, and how much of the processor it had used at a time of the monotonic clock."""

    process: psutil.Process
    cpu_s: float
    at_s: float


class Sampler:
    """Takes the samples of one run; `begin`, then `end`."""

    def __init__(
        self,
        run: Path,
        open_kept: Callable[[], Kept],
        clock: Clock,
        every_s: float,
        say: Callable[[str], None],
    ) -> None:
        """`open_kept` is called on the thread, and again if it fails. `run` is the run folder."""
        self._run = run
        self._open_kept = open_kept
        self._clock = clock
        self._every_s = every_s
        self._say = say
        self._node = socket.gethostname()
        self._kept: Kept | None = None
        self._waiting: list[dict[str, Any]] = []
        self._staged: DataFile | None = None
        self._watched: dict[int, _Watched] = {}
        self._of_role: dict[int, list[int]] = {}
        self._epoch = -1
        self._failures = 0
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    def begin(self, pids: Pids) -> None:
        """Sample from now on, every so many seconds; never if that is 0."""
        if self._every_s > 0:
            self._thread = threading.Thread(
                target=self._work, args=(pids,), name="samples", daemon=True
            )
            self._thread.start()

    def end(self) -> None:
        """Commit what is gathered, if that can be done soon, and sample no more."""
        self._ended.set()
        if self._thread is not None:
            self._thread.join(END_S_MAX)

    def _work(self, pids: Pids) -> None:
        psutil.cpu_percent()  # the first call only begins to count
        next_commit_s = self._clock.monotonic_s()
        while not self._clock.wait(self._ended, self._every_s):
            now_s = self._clock.monotonic_s()
            is_due = now_s >= next_commit_s
            self._guarded(functools.partial(self._take_all, pids, look_around=is_due))
            if is_due:
                next_commit_s = now_s + COMMIT_EVERY_S
                self._guarded(self.keep)
        self._guarded(self.keep)

    def _guarded(self, act: Callable[[], None]) -> None:
        try:
            act()
        except Exception as error:  # noqa: BLE001 - no role stops for the sake of samples
            self._failures += 1
            if self._failures == 1:
                self._say(f"samples are not kept at the moment, all else goes on: {error}")

    def _take_all(self, pids: Pids, *, look_around: bool) -> None:
        self.take(pids(), look_around=look_around)

    def take(self, pids: Mapping[str, int], *, look_around: bool = True) -> None:
        """Take a sample of each role; look which processes it has started, if told to."""
        if look_around:
            self._of_role = _descendants(set(pids.values()))
        host = {
            "sampled_at": self._clock.now_us(),
            "node": self._node,
            "host_cpu_percent": psutil.cpu_percent(),
        }
        memory = psutil.virtual_memory()
        host |= {
            "host_memory_used_bytes": memory.total - memory.available,
            "host_memory_bytes": memory.total,
        }
        before, self._watched = self._watched, {}
        for role, pid in [*pids.items(), (SUPERVISOR, os.getpid())]:
            used = self._used(pid, before)
            if used is not None:
                facts = self._facts() if role == "process" else {}
                self._waiting.append(host | {"role": role, "pid": pid} | used | facts)
        del self._waiting[:-ROWS_WAITING_MAX]

    def keep(self) -> None:
        """Commit what has been gathered."""
        if self._kept is None:
            self._kept = self._open_kept()
        if self._staged is not None and self._kept.is_too_old(self._staged):
            self._staged = None
        if self._staged is None and self._waiting:
            rows = pa.Table.from_pylist(self._waiting, schema=SAMPLE_SCHEMA)
            self._staged = self._kept.stage(rows)
            self._waiting = []
        if self._staged is not None:
            self._kept.commit(self._staged)
            self._staged = None

    def _used(self, pid: int, before: Mapping[int, _Watched]) -> dict[str, Any] | None:
        """Return what a process and those it started use; None if it has ended."""
        sums: dict[str, float] = defaultdict(float)
        for each in (pid, *self._of_role.get(pid, ())):
            with suppress(psutil.Error):
                for name, value in self._of_process(each, before.get(each)).items():
                    sums[name] += value
            if each == pid and not sums:
                return None
        whole = {name: int(sums[name]) for name in ("processes", "threads", "memory_bytes")}
        return whole | {"cpu_percent": round(sums["cpu_percent"], 2)}

    def _of_process(self, pid: int, before: _Watched | None) -> dict[str, float]:
        process = before.process if before else psutil.Process(pid)
        with process.oneshot():
            times, memory = process.cpu_times(), process.memory_info()
            threads, made_s = process.num_threads(), process.create_time()
        cpu_s, now_s = times.user + times.system, self._clock.monotonic_s()
        if before is None:
            # Met for the first time: it began with nothing used.
            age_s = self._clock.now_us() / 1e6 - made_s
            before = _Watched(process, 0.0, now_s - max(age_s, self._every_s))
        self._watched[pid] = _Watched(process, cpu_s, now_s)
        percent = 100 * (cpu_s - before.cpu_s) / max(now_s - before.at_s, 1e-3)
        return {
            "processes": 1,
            "threads": threads,
            "memory_bytes": memory.rss,
            "cpu_percent": max(0.0, percent),
        }

    def _facts(self) -> dict[str, Any]:
        try:
            content = (self._run / STATUS_FILE).read_bytes()
            said = msgspec.json.decode(content, type=_Status)
        except (OSError, msgspec.DecodeError):
            return {}
        if said.state != "running" or self._clock.now_us() - said.at_us > STALE_S * 1_000_000:
            return {}
        # A role that has just started tells the epoch that it found, which took it no time.
        is_new = said.epoch != self._epoch and said.epoch_s > 0
        self._epoch = said.epoch
        return {
            "epoch": said.epoch,
            "epoch_s": said.epoch_s if is_new else None,
            "freshness_s": said.freshness_s if is_new else None,
            "records": sum(counts.get("read", 0) for counts in said.topics.values()),
            "behind": said.behind,
        }


def _descendants(roots: set[int]) -> dict[int, list[int]]:
    """Return for each of some children of ours the ids of what it has started, and they in turn."""
    parents: dict[int, int] = {}
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):
            parents[process.pid] = process.ppid()
    found: dict[int, list[int]] = defaultdict(list)
    for pid in parents:
        above = list(_above(pid, parents))
        for root in roots.intersection(above):
            found[root].append(pid)
    return found


def _above(pid: int, parents: Mapping[int, int]) -> Iterator[int]:
    while pid in parents:
        pid = parents[pid]
        yield pid
