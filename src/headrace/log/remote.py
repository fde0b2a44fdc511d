"""The log as every process but its owner sees it: read from the files, written through the door."""

from __future__ import annotations

import itertools
import socket
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec

from headrace.log.reader import EmbeddedLogReader
from headrace.log.wire import (
    AppendRequest,
    CreateRequest,
    DeleteRequest,
    PutIfRequest,
    Reply,
    Request,
    TrimRequest,
    receive_frame,
    send_frame,
)
from headrace.model.batch import Batch
from headrace.model.errors import Closed, HeadraceError, Unavailable
from headrace.model.log import Appended, Done, StateEntry, TopicInfo

_REPLIES = msgspec.msgpack.Decoder(Reply)

Answered = Callable[[Reply | HeadraceError], None]


class RemoteLog(EmbeddedLogReader):
    """The log in `directory`, written through the socket `door`; see `model.log.Log`.

    The owner may come and go: without it every write is `Unavailable`, and the next one tries to
    reach it again. If it goes between a write and its answer, or takes longer than `timeout_s`, the
    write raises `Unavailable` with code `outcome_unknown`: it may have been done. `expect` and
    `put_if` make it safe to try such a write again; a bare append may then stand twice.
    """

    def __init__(self, directory: Path, door: Path, *, timeout_s: float = 60) -> None:
        super().__init__(directory)
        self._door = door
        self._timeout_s = timeout_s
        self._lock = threading.Lock()
        self._link: _Link | None = None
        self._is_closed = False
        self._ids = itertools.count()

    def create(self, topic: str, partitions: int) -> TopicInfo:
        """See `Log`."""
        return self._call(CreateRequest(next(self._ids), topic, partitions), TopicInfo)

    def delete(self, topic: str) -> None:
        """See `Log`."""
        self._call(DeleteRequest(next(self._ids), topic), None)

    def put_if(self, key: str, expected_revision: int, value: bytes | None) -> StateEntry | None:
        """See `Log`."""
        request = PutIfRequest(next(self._ids), key, expected_revision, value)
        return self._call(request, StateEntry | None)

    def trim(self, topic: str, before: Sequence[int]) -> None:
        """See `Log`."""
        self._call(TrimRequest(next(self._ids), topic, list(before)), None)

    def append(
        self,
        topic: str,
        records: Batch,
        state: Mapping[str, bytes] | None = None,
        expect: Mapping[str, int] | None = None,
    ) -> list[Appended]:
        """See `Log`."""
        return self._call(self._append_request(topic, records, state, expect), list[Appended])

    def submit(
        self,
        topic: str,
        records: Batch,
        done: Done,
        state: Mapping[str, bytes] | None = None,
        expect: Mapping[str, int] | None = None,
    ) -> None:
        """See `Log`."""

        def answered(reply: Reply | HeadraceError) -> None:
            done(_result(reply, list[Appended]))

        self._send(self._append_request(topic, records, state, expect), answered)

    def close(self) -> None:
        """See `LogReader`; what was not answered yet is told that its outcome is unknown."""
        with self._lock:
            self._is_closed = True
            link, self._link = self._link, None
        if link:
            link.close()
        super().close()

    def _append_request(
        self,
        topic: str,
        records: Batch,
        state: Mapping[str, bytes] | None,
        expect: Mapping[str, int] | None,
    ) -> AppendRequest:
        return AppendRequest(
            next(self._ids),
            topic,
            records.values,
            records.keys,
            records.headers,
            records.received_at,
            records.ids,
            records.marks,
            dict(state) if state else None,
            dict(expect) if expect else None,
        )

    def _call(self, request: Request, kind: Any) -> Any:  # noqa: ANN401 - the result is of `kind`
        waiting: Future[Reply | HeadraceError] = Future()
        self._send(request, waiting.set_result)
        try:
            result = _result(waiting.result(self._timeout_s), kind)
        except TimeoutError:
            raise outcome_unknown("did not answer in time") from None
        if isinstance(result, HeadraceError):
            raise result
        return result

    def _send(self, request: Request, answered: Answered) -> None:
        with self._lock:
            if self._is_closed:
                raise Closed("The log is closed")
            if self._link is None or self._link.is_down:
                self._link = _Link(self._door)
            link = self._link
        link.send(request, answered)


class _Link:
    """A connection to the door, with who waits for which reply."""

    def __init__(self, door: Path) -> None:
        self.is_down = False
        self._waiting: dict[int, Answered] = {}
        self._lock = threading.Lock()
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._socket.connect(str(door))
        except OSError as error:
            self._socket.close()
            raise Unavailable(
                f"The collector, which writes the log, cannot be reached at {door}",
                hint="start it with `headrace run`",
                code="log_owner_absent",
            ) from error
        self._thread = threading.Thread(target=self._receive, name="headrace-log", daemon=True)
        self._thread.start()

    def send(self, request: Request, answered: Answered) -> None:
        """Send a request; `answered` is called once, on the link's thread.

        Raises, without calling it, if nothing was sent.
        """
        with self._lock:
            if self.is_down:
                raise outcome_unknown("hung up")
            self._waiting[request.id] = answered
            try:
                send_frame(self._socket, request)
            except HeadraceError:
                del self._waiting[request.id]
                raise
            except OSError:
                # The receiving thread sees the same and tells everybody, this one included.
                self._shut()

    def close(self) -> None:
        """Hang up; whoever still waits is told."""
        self._shut()
        self._thread.join()

    def _shut(self) -> None:
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def _receive(self) -> None:
        while (frame := receive_frame(self._socket)) is not None:
            reply = _REPLIES.decode(frame)
            answered = self._waiting.pop(reply.id, None)
            if answered:
                answered(reply)
        with self._lock:
            self.is_down = True
            rest, self._waiting = self._waiting, {}
        self._socket.close()
        for answered in rest.values():
            answered(outcome_unknown("hung up"))


def _result(reply: Reply | HeadraceError, kind: Any) -> Any:  # noqa: ANN401 - of `kind`, or an error
    if isinstance(reply, HeadraceError):
        return reply
    if reply.failure:
        return reply.failure.error()
    return msgspec.msgpack.decode(reply.result, type=kind)


def outcome_unknown(what: str) -> Unavailable:
    """Return the error of a write that was sent and not answered."""
    return Unavailable(
        f"The collector, which writes the log, {what}: whether it wrote is unknown",
        hint="look before writing again: at the keyed state, or at the log's end",
        code="outcome_unknown",
    )
