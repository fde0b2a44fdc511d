"""The embedded log: SQLite segments in a folder, one writing process, any number of readers.

Group commit without linger: while one commit is on its way to the disk, appends gather in a queue;
the next commit takes all of them. An idle log commits a lone record at once, a busy one commits
thousands together, and nothing ever waits for company.
"""

from __future__ import annotations

import fcntl
import logging
import os
import queue
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import apsw

from headrace.log.group import Append
from headrace.log.reader import EmbeddedLogReader
from headrace.log.segment import check_sqlite, is_no_room, reading, remove_segment, sync_folder
from headrace.log.writer import Writer
from headrace.model.batch import Batch
from headrace.model.clock import Clock
from headrace.model.errors import Closed, HeadraceError, Internal, Invalid, Unavailable
from headrace.model.failpoint import failpoint
from headrace.model.log import Appended, Done, StateEntry, TopicInfo

__all__ = ["EmbeddedLog", "EmbeddedLogReader", "exit_process"]

EXIT_STATUS = 70
GROUP_BYTES_MAX = 8 << 20
"""A commit takes no more than this, or one append: it bounds how long the next one waits."""

TICK_S = 1.0
"""How often an idle log looks whether its segment is old enough to be sealed."""

_logger = logging.getLogger(__name__)
T = TypeVar("T")


def exit_process(error: BaseException) -> None:
    """End the process at once: what is durable can only be found out from the disk."""
    sys.stderr.write(
        f"headrace: the log must be recovered from disk, so this process ends: {error!r}\n"
    )
    sys.stderr.flush()
    os._exit(EXIT_STATUS)


@dataclass(slots=True)
class _Call:
    """Something that the writer's thread is to do for another one."""

    act: Callable[[], Any]
    result: Future[Any]


class _Stop:
    """The last job of a log that is closed."""


_Job = Append | _Call | _Stop


class EmbeddedLog(EmbeddedLogReader):
    """The log in `directory`, which is made if need be; see `model.log.Log`.

    Raises `Invalid` if another process has the log open for writing, `Corrupt` if it was damaged.
    A segment is sealed at `segment_bytes_max` or `segment_age_s_max`. At most `queue_bytes_max`
    wait to be written, and no append may be larger. `fatal` is called, on the log's thread and
    after every waiter was failed, with an error that leaves durability unknown; it should not
    return.
    """

    def __init__(
        self,
        directory: Path,
        clock: Clock,
        *,
        segment_bytes_max: int = 256 << 20,
        segment_age_s_max: float = 3600,
        queue_bytes_max: int = 64 << 20,
        fatal: Callable[[BaseException], None] = exit_process,
    ) -> None:
        super().__init__(directory)
        check_sqlite(apsw.sqlite_lib_version())
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._directory = directory
        self._queue_bytes_max = queue_bytes_max
        self._fatal = fatal
        self._queue: queue.SimpleQueue[_Job] = queue.SimpleQueue()
        self._queued_bytes = 0
        self._lock = threading.Lock()
        self._is_closed = False
        self._jobs: Sequence[_Job] = ()
        self._answered = 0
        self._folder_lock = _lock_folder(directory)
        try:
            with reading(directory):
                self._writer = Writer(
                    directory,
                    clock,
                    segment_bytes_max=segment_bytes_max,
                    segment_age_s_max=segment_age_s_max,
                    append_bytes_max=queue_bytes_max,
                )
        except BaseException as error:
            os.close(self._folder_lock)
            if is_no_room(error):
                raise Unavailable(f"The log has no room: {error}", code="no_room") from error
            raise
        self._thread = threading.Thread(target=self._run, name="headrace-log", daemon=True)
        self._thread.start()

    def submit(
        self,
        topic: str,
        records: Batch,
        done: Done,
        state: Mapping[str, bytes] | None = None,
        expect: Mapping[str, int] | None = None,
    ) -> None:
        """See `Log`."""
        size_bytes = records.size_bytes
        job = Append(topic, records, size_bytes, done, state, expect)
        with self._lock:
            if self._is_closed:
                raise Closed("The log is closed")
            waiting_bytes = self._queued_bytes + size_bytes
            if self._queued_bytes and waiting_bytes > self._queue_bytes_max:
                raise Unavailable(
                    "Too many bytes wait to be written to the log",
                    hint="send again later, or write to a faster disk",
                    code="log_queue_full",
                )
            self._queued_bytes = waiting_bytes
            self._queue.put(job)

    def append(
        self,
        topic: str,
        records: Batch,
        state: Mapping[str, bytes] | None = None,
        expect: Mapping[str, int] | None = None,
    ) -> list[Appended]:
        """See `Log`."""
        result: Future[list[Appended]] = Future()

        def done(answer: list[Appended] | HeadraceError) -> None:
            if isinstance(answer, HeadraceError):
                result.set_exception(answer)
            else:
                result.set_result(answer)

        self.submit(topic, records, done, state, expect)
        return result.result()

    def create(self, topic: str, partitions: int) -> TopicInfo:
        """See `Log`."""
        return self._call(lambda: self._writer.create(topic, partitions))

    def delete(self, topic: str) -> None:
        """See `Log`; the files of its records go when the segments do."""
        self._call(lambda: self._writer.delete(topic))

    def put_if(self, key: str, expected_revision: int, value: bytes | None) -> StateEntry | None:
        """See `Log`."""
        return self._call(lambda: self._writer.put_if(key, expected_revision, value))

    def trim(self, topic: str, before: Sequence[int]) -> None:
        """See `Log`. A sealed segment goes when no topic needs a record of it any more.

        What was given up is remembered until the log is closed; after that, trim again.
        """
        for path in self._call(lambda: self._writer.release(topic, before)):
            failpoint("trim.1")
            remove_segment(path)
            failpoint("trim.2")
            # Each on its own: a power cut must not take a younger segment before an older one.
            sync_folder(self._directory)

    def seal(self) -> bool:
        """End the newest segment now; return whether there was room to begin another."""
        return self._call(self._writer.seal)

    def close(self) -> None:
        """Write what was submitted, answer it, and let go of the folder."""
        with self._lock:
            if not self._is_closed:
                self._is_closed = True
                self._queue.put(_Stop())
        self._thread.join()
        super().close()

    def _call(self, act: Callable[[], T]) -> T:
        call = _Call(act, Future())
        with self._lock:
            if self._is_closed:
                raise Closed("The log is closed")
            self._queue.put(call)
        return call.result.result()

    # On the log's own thread.

    def _run(self) -> None:
        try:
            while not self._do(self._take()):
                self._writer.tend()
            self._writer.close()
        except BaseException as error:  # noqa: BLE001 - whatever it is, nothing may be acknowledged
            self._fail(error)
        finally:
            os.close(self._folder_lock)

    def _take(self) -> Sequence[_Job]:
        """Wait for a job and return it with all others that wait."""
        try:
            first = self._queue.get(timeout=TICK_S)
        except queue.Empty:
            return ()
        return [first, *(self._queue.get() for _ in range(self._queue.qsize()))]

    def _do(self, jobs: Sequence[_Job]) -> bool:
        """Do jobs in order, appends in groups; return whether the log is to stop."""
        self._jobs, self._answered = jobs, 0
        group: list[Append] = []
        group_bytes = 0
        for job in jobs:
            if isinstance(job, Append):
                if group and group_bytes + job.size_bytes > GROUP_BYTES_MAX:
                    self._append(group)
                    group, group_bytes = [], 0
                group.append(job)
                group_bytes += job.size_bytes
                continue
            self._append(group)
            group, group_bytes = [], 0
            if isinstance(job, _Stop):
                return True
            self._do_call(job)
        self._append(group)
        return False

    def _append(self, group: Sequence[Append]) -> None:
        if not group:
            return
        answers = self._writer.append(group)
        size_bytes = sum([append.size_bytes for append in group])
        with self._lock:
            self._queued_bytes -= size_bytes
        for append, answer in zip(group, answers, strict=True):
            _tell(append.done, answer)
        self._answered += len(group)

    def _do_call(self, call: _Call) -> None:
        try:
            call.result.set_result(call.act())
        except HeadraceError as error:
            call.result.set_exception(error)
        self._answered += 1

    def _fail(self, error: BaseException) -> None:
        """Fail everybody who waits, then have the process end; nothing is acknowledged again."""
        with self._lock:
            self._is_closed = True
        rest = [*self._jobs[self._answered :]]
        rest += [self._queue.get() for _ in range(self._queue.qsize())]
        unknown = Internal(
            f"Whether it was written is unknown: {error}",
            hint="the log's process ends, and its next start finds out from the disk",
            code="durability_unknown",
        )
        for job in rest:
            if isinstance(job, Append):
                _tell(job.done, unknown)
            elif isinstance(job, _Call):
                job.result.set_exception(unknown)
        self._fatal(error)


def _tell(told: Callable[..., None], *answer: object) -> None:
    """Call somebody back; what they raise is theirs, and may not keep others from being told."""
    try:
        told(*answer)
    except Exception:
        _logger.exception("What waited for the log raised an error when it was told")


def _lock_folder(directory: Path) -> int:
    """Take the folder for this process, until the handle returned is closed."""
    handle = os.open(directory / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(handle)
        raise Invalid(
            f"Another process writes the log in {directory}",
            hint="one process owns a log: append through its door, or stop it first",
            code="log_in_use",
        ) from error
    return handle
