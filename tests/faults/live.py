"""A run with its real processes, a client that numbers its events, and what must hold afterwards.

The client sends batches of numbers, each under an Idempotency-Key of its own, again and again until
it is acknowledged; then the numbers go to a list on disk. Every `BAD_EVERY`th event is bad.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Self

import httpx2
import psutil
from deltalake import DeltaTable

from headrace.app.cluster.ports import free_port
from headrace.log.embedded import EmbeddedLogReader
from headrace.model.clock import SystemClock
from headrace.model.log import LogReader
from headrace.process.ledger import LedgerRow, last_row
from headrace.tables.delta import DeltaTables
from headrace.testing.checker import Acknowledged, Checker

HEADRACE = Path(sys.executable).parent / "headrace"
BAD_EVERY = 10
BATCH = 20
DEADLINE_S = 60.0
"""How long anything may take that has to happen at all."""
SMALL = """every="20 ms", segment_bytes_max=100_000, table_files_max=8, commits_per_checkpoint=5,
    keep_commits="0 s", tidy_every="100 ms\""""
"""Small bounds everywhere, so that a short run does all kinds of work."""
PIPELINE = """from headrace import Pipeline, Record, tumbling

pipeline = Pipeline("numbered", OPTIONS)


class Event(Record):
    number: int
    kind: str
    amount: int = 0


events = pipeline.topic("events", Event, partitions=3)
pipeline.table("numbers", "SELECT number, kind, amount, number % 7 AS bucket FROM events")
pipeline.view(
    "by_kind",
    "SELECT kind, count(*) AS n, sum(amount) AS total FROM numbers GROUP BY kind",
)
"""
VIEWS = {"by_kind": "SELECT kind, count(*), sum(amount) FROM rows GROUP BY kind"}


def pipeline_text(options: str = SMALL) -> str:
    return PIPELINE.replace("OPTIONS", options)


def until(is_so: Callable[[], object], what: str, within_s: float = DEADLINE_S) -> None:
    """Return once something is so; fail if it never is."""
    deadline = time.monotonic() + within_s
    while not is_so():
        assert time.monotonic() < deadline, f"never: {what}"
        time.sleep(0.05)


def headrace(folder: Path, *words: object, status: int = 0) -> str:
    """Run a verb to its end; return what it wrote."""
    ended = subprocess.run(
        [HEADRACE, *map(str, words)],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert ended.returncode == status, (words, ended.returncode, ended.stdout, ended.stderr)
    return ended.stdout + ended.stderr


class Run:
    """`headrace run pipeline.py` of a folder, as a process in the background."""

    def __init__(
        self, folder: Path, data: str = "data", port: int | None = None, only: str | None = None
    ) -> None:
        self.data = folder / data
        self.port = port or free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._said = folder / f"said-{time.monotonic_ns()}"
        words = ["run", "pipeline.py", "--data", data, "--port", str(self.port)]
        words += [] if only is None else ["--only", only]
        with self._said.open("wb") as said:
            self.process = subprocess.Popen([HEADRACE, *words], cwd=folder, stderr=said)

    def __enter__(self) -> Self:
        try:
            until(lambda: self.url in self.said() or self.process.poll() is not None, "it runs")
            assert self.process.poll() is None, self.said()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(30)
            except subprocess.TimeoutExpired:
                self.kill()

    def said(self) -> str:
        return self._said.read_text()

    def children(self) -> dict[str, psutil.Process]:
        """Return the roles that run now."""
        found = {}
        for child in psutil.Process(self.process.pid).children():
            with contextlib.suppress(psutil.Error, IndexError):
                found[child.cmdline()[3]] = child
        return found

    def kill(self) -> None:
        """Kill the supervisor; return once its children have ended by themselves."""
        children = self.children().values()
        self.process.kill()
        self.process.wait()
        _, left = psutil.wait_procs(children, 30)
        for child in left:
            child.kill()
        assert not left, "children outlived their supervisor"

    def kill_all(self) -> None:
        """Kill the supervisor and every role, at one moment as far as that goes."""
        children = list(self.children().values())
        for process in [self.process, *children]:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        self.process.wait()
        psutil.wait_procs(children, 30)


class Client(threading.Thread):
    """Sends numbers from `first` on until it is stopped, and again what was not acknowledged."""

    def __init__(
        self,
        url: str,
        listed: Path,
        first: int = 0,
        *,
        fields: str = "",
        batch: int = BATCH,
        timeout_s: float = 20.0,
    ) -> None:
        super().__init__(daemon=True)
        self.first = first
        self.acknowledged = Acknowledged(listed)
        self.sent = first
        """All numbers below may have reached the server."""
        self.refused: list[httpx2.Response] = []
        """Every answer but an acknowledgement."""
        self._url = f"{url}/v1/topics/events"
        self._fields = fields
        self._batch = batch
        self._timeout_s = timeout_s
        self._finish = threading.Event()
        self._give_up = threading.Event()

    def run(self) -> None:
        with httpx2.Client(timeout=self._timeout_s) as http:
            while not self._finish.is_set() and not self._give_up.is_set():
                first, self.sent = self.sent, self.sent + self._batch
                numbers = range(first, self.sent)
                while not self._give_up.is_set():
                    if self.send(http, numbers):
                        self.acknowledged.add(numbers)
                        break
                    self._give_up.wait(0.05)

    def send(self, http: httpx2.Client, numbers: range) -> bool:
        """Send a batch; return whether it was acknowledged."""
        name = {"Idempotency-Key": f"from-{numbers.start}", "Content-Type": "application/json"}
        try:
            answer = http.post(self._url, content=self._body(numbers), headers=name)
        except httpx2.TransportError:
            return False
        if answer.status_code == httpx2.codes.OK:
            return True
        self.refused.append(answer)
        return False

    def finish(self) -> None:
        """End once everything sent is acknowledged."""
        self._finish.set()
        self.join(DEADLINE_S)
        assert not self.is_alive(), self.refused[-1:]

    def give_up(self) -> None:
        """End now; the last batch may be there or not."""
        self._give_up.set()
        self.join(DEADLINE_S)
        assert not self.is_alive()

    def _body(self, numbers: range) -> bytes:
        return b"[" + b",".join(event(n, self._fields).encode() for n in numbers) + b"]"


def event(number: int, fields: str = "") -> str:
    amount = number if number % BAD_EVERY else '"bad"'
    return f'{{"number":{number},"kind":"k{number % 5}","amount":{amount}{fields}}}'


@contextlib.contextmanager
def sending(run: Run, first: int = 0, **how: Any) -> Iterator[Client]:
    """Send events to a run; what is still under way at the end is given up."""
    client = Client(run.url, run.data.parent / "acknowledged", first, **how)
    client.start()
    try:
        yield client
    finally:
        client.give_up()


def drain(folder: Path, data: str = "data", status: int = 0) -> str:
    """Run until everything in the log is in tables and views."""
    words = ["run", "pipeline.py", "--data", data, "--port", free_port(), "--until-idle"]
    return headrace(folder, *words, status=status)


def breaches(
    data: Path,
    sent: int | Iterable[int],
    views: dict[str, str] | None = None,
    log: LogReader | None = None,
) -> list[str]:
    """Return every breach of I1 to I6, and of the ledger's accounts, in a run that was drained.

    `sent` are the numbers that were, or how many from 0 on; `log` is closed, without one it is the
    data directory's.
    """
    checker = Checker(data, "numbers", "number", VIEWS if views is None else views)
    acknowledged = Acknowledged(data.parent / "acknowledged").read()
    assert acknowledged, "nothing was acknowledged"
    found = checker.check(acknowledged, range(sent) if isinstance(sent, int) else sent)
    row = last_ledger_row(data)
    assert row is not None
    log = log or EmbeddedLogReader(data / "log")
    starts = {f"events/{p}": s for p, s in enumerate(log.starts("events"))}
    ends = {f"events/{p}": e for p, e in enumerate(log.ends("events"))}
    log.close()
    found += checker.check_log(starts, row.offsets)
    if ends != {key: row.offsets.get(key, 0) for key in ends}:
        found.append(f"the log ends at {ends}, the tables at {row.offsets}")
    totals = row.topic_totals["events"]
    if totals.read != totals.decoded + totals.dead + totals.duplicates:
        found.append(f"the accounts do not close: {totals}")
    return found


def last_ledger_row(data: Path) -> LedgerRow | None:
    tables = DeltaTables(data, SystemClock())
    snapshot = tables.snapshot("system/ledger")
    return last_row(tables, snapshot) if snapshot else None


def processed(data: Path) -> int:
    """Return how many events are rows or dead letters, by the ledger's accounts."""
    row = last_ledger_row(data)
    if row is None:
        return 0
    totals = row.topic_totals["events"]
    return totals.decoded + totals.dead


def numbers_in(data: Path, table: str = "numbers") -> list[int]:
    """Return the numbers of a table's rows, sorted."""
    rows = DeltaTable(data / "tables" / table).to_pyarrow_table(columns=["number"])
    return sorted(rows.column("number").to_pylist())


def good(numbers: range | list[int]) -> list[int]:
    """Return the numbers whose events are valid."""
    return [n for n in numbers if n % BAD_EVERY]


def contents(folder: Path) -> dict[str, str]:
    """Return every file of a folder with a digest of its bytes, but for what a run keeps of itself.

    `run/` holds nothing that a restart needs; SQLite's shared memory (`-shm`) is for those who have
    a file open, and whoever reads leaves an empty write-ahead log (`-wal`).
    """
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
        and path.relative_to(folder).parts[0] != "run"
        and not path.name.endswith("-shm")
        and (path.stat().st_size or not path.name.endswith("-wal"))
    }


def stop_by(process: subprocess.Popen[bytes], number: signal.Signals, timeout_s: float) -> int:
    """Send a signal and return the exit status; `TimeoutExpired` if it does not end in time."""
    os.kill(process.pid, number)
    return process.wait(timeout_s)
