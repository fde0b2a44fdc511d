"""The log's door: how other processes append through the one that owns the log.

A Unix socket that only this user may open. Both directions carry frames: four bytes of length,
big-endian, then msgpack. A client may send many requests before the first reply; appends of one
connection are made in the order in which they came, and every reply names its request. A request
that fails is answered with the error's kind, code, message and hint.
"""

from __future__ import annotations

import logging
import queue
import socket
import socketserver
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec

from headrace.model.batch import Batch
from headrace.model.errors import (
    Closed,
    Corrupt,
    Fenced,
    HeadraceError,
    Internal,
    Invalid,
    Unavailable,
)
from headrace.model.log import Appended, Log

FRAME_BYTES_MAX = 96 << 20
REQUESTS_MAX = 1024
"""A connection may have so many requests unanswered; more wait in the socket."""

_LENGTH_BYTES = 4
_KINDS: tuple[type[HeadraceError], ...] = (
    Invalid,
    Unavailable,
    Fenced,
    Corrupt,
    Closed,
    Internal,
)
_logger = logging.getLogger(__name__)


class AppendRequest(msgspec.Struct, tag="append", array_like=True):
    """`Log.append`, the batch by columns."""

    id: int
    topic: str
    values: list[bytes]
    keys: list[bytes | None]
    headers: list[bytes]
    received_at: list[int]
    ids: list[bytes]
    marks: list[int]
    state: dict[str, bytes] | None = None
    expect: dict[str, int] | None = None


class CreateRequest(msgspec.Struct, tag="create", array_like=True):
    """`Log.create`."""

    id: int
    topic: str
    partitions: int


class DeleteRequest(msgspec.Struct, tag="delete", array_like=True):
    """`Log.delete`."""

    id: int
    topic: str


class PutIfRequest(msgspec.Struct, tag="put_if", array_like=True):
    """`Log.put_if`."""

    id: int
    key: str
    expected_revision: int
    value: bytes | None


class TrimRequest(msgspec.Struct, tag="trim", array_like=True):
    """`Log.trim`."""

    id: int
    topic: str
    before: list[int]


Request = AppendRequest | CreateRequest | DeleteRequest | PutIfRequest | TrimRequest


class Failure(msgspec.Struct, array_like=True):
    """An error on its way to the other process."""

    kind: str
    message: str
    hint: str
    code: str
    retry_after_s: float

    @classmethod
    def of(cls, error: HeadraceError) -> Failure:
        """Return the form of an error that travels."""
        wait_s = error.retry_after_s if isinstance(error, Unavailable) else 0.0
        return cls(error.kind_code, error.message, error.hint, error.code, wait_s)

    def error(self) -> HeadraceError:
        """Return the error again, of the same kind."""
        if self.kind == Unavailable.kind_code:
            return Unavailable(
                self.message, hint=self.hint, code=self.code, retry_after_s=self.retry_after_s
            )
        kind = next((k for k in _KINDS if k.kind_code == self.kind), Internal)
        return kind(self.message, hint=self.hint, code=self.code)


class Reply(msgspec.Struct, array_like=True):
    """The answer to the request with this id: a failure, or what the call returned."""

    id: int
    failure: Failure | None
    result: msgspec.Raw


_ENCODER = msgspec.msgpack.Encoder()
_REQUESTS = msgspec.msgpack.Decoder(Request)


def send_frame(connection: socket.socket, message: msgspec.Struct) -> None:
    """Send one message."""
    body = _ENCODER.encode(message)
    if len(body) > FRAME_BYTES_MAX:
        raise Invalid(
            f"{len(body)} bytes cannot be sent at once; the most is {FRAME_BYTES_MAX}",
            hint="append fewer or smaller records at a time",
            code="batch_too_large",
        )
    connection.sendall(len(body).to_bytes(_LENGTH_BYTES, "big") + body)


def receive_frame(connection: socket.socket) -> bytearray | None:
    """Return the next message's bytes; None when the other side has gone."""
    head = _receive(connection, _LENGTH_BYTES)
    if head is None:
        return None
    size_bytes = int.from_bytes(head, "big")
    return _receive(connection, size_bytes) if size_bytes <= FRAME_BYTES_MAX else None


def _receive(connection: socket.socket, size_bytes: int) -> bytearray | None:
    data = bytearray(size_bytes)
    view = memoryview(data)
    while view:
        try:
            got = connection.recv_into(view)
        except OSError:
            return None
        if not got:
            return None
        view = view[got:]
    return data


class Door:
    """A door that is open until `close`; its threads are its own."""

    def __init__(self, log: Log, path: Path) -> None:
        path.unlink(missing_ok=True)
        try:
            self._server = _Server(log, path)
        except OSError as error:
            raise Invalid(
                f"The log's socket cannot be made at {path}: {error}",
                hint="a socket's path may have about 100 characters: use a shorter data directory",
                code="door_path",
            ) from error
        self._path = path
        self._thread = threading.Thread(
            target=self._server.serve_forever, name="headrace-log-door", daemon=True
        )
        self._thread.start()

    def close(self) -> None:
        """Let nobody in any more, hang up on everybody, and remove the socket."""
        self._path.unlink(missing_ok=True)
        self._server.shutdown()
        self._thread.join()
        self._server.hang_up()
        self._server.server_close()


def serve_door(log: Log, path: Path) -> Door:
    """Open the door of `log` at `path`, replacing a socket that a dead process left there.

    The log's own lock says that there is one owner, so whatever is at `path` is nobody's.
    """
    return Door(log, path)


class _Server(socketserver.ThreadingUnixStreamServer):
    daemon_threads = True

    def __init__(self, log: Log, path: Path) -> None:
        self.log = log
        self._connections: set[socket.socket] = set()
        self._lock = threading.Lock()
        super().__init__(str(path), _Handler)

    def server_bind(self) -> None:
        """Close the socket to others before anybody can connect: nobody listens yet."""
        super().server_bind()
        Path(str(self.server_address)).chmod(0o600)

    def remember(self, connection: socket.socket) -> None:
        with self._lock:
            self._connections.add(connection)

    def forget(self, connection: socket.socket) -> None:
        with self._lock:
            self._connections.discard(connection)

    def hang_up(self) -> None:
        with self._lock:
            for connection in self._connections:
                with suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)


class _Handler(socketserver.BaseRequestHandler):
    """A connection: this thread takes requests, another one sends replies."""

    server: _Server
    request: socket.socket

    def handle(self) -> None:
        self._replies: queue.SimpleQueue[Reply | None] = queue.SimpleQueue()
        self._room = threading.BoundedSemaphore(REQUESTS_MAX)
        self.server.remember(self.request)
        sender = threading.Thread(target=self._send, name="headrace-log-door-reply", daemon=True)
        sender.start()
        try:
            while (frame := receive_frame(self.request)) is not None:
                self._room.acquire()
                self._take(_REQUESTS.decode(frame))
        except msgspec.DecodeError:
            _logger.warning("A client of the log's door sent what is no request; it was hung up on")
        finally:
            self._replies.put(None)
            sender.join()
            self.server.forget(self.request)

    def _send(self) -> None:
        while (reply := self._replies.get()) is not None:
            with suppress(OSError):  # The client has gone; the thread that receives finds out.
                send_frame(self.request, reply)
            self._room.release()

    def _take(self, request: Request) -> None:
        try:
            if isinstance(request, AppendRequest):
                self._submit(request)
            else:
                self._reply(request.id, _call(self.server.log, request))
        except HeadraceError as error:
            self._reply(request.id, error)

    def _submit(self, request: AppendRequest) -> None:
        records = Batch(
            request.values,
            request.keys,
            request.headers,
            request.received_at,
            request.ids,
            request.marks,
        )

        def done(answer: list[Appended] | HeadraceError) -> None:
            if not isinstance(answer, HeadraceError):
                answer = [msgspec.structs.replace(a, positions=list(a.positions)) for a in answer]
            self._reply(request.id, answer)

        self.server.log.submit(request.topic, records, done, request.state, request.expect)

    def _reply(self, id_: int, answer: Any) -> None:  # noqa: ANN401 - what any call returns
        if isinstance(answer, HeadraceError):
            self._replies.put(Reply(id_, Failure.of(answer), msgspec.Raw(b"\xc0")))
        else:
            self._replies.put(Reply(id_, None, msgspec.Raw(_ENCODER.encode(answer))))


def _call(
    log: Log, request: CreateRequest | DeleteRequest | PutIfRequest | TrimRequest
) -> msgspec.Struct | None:
    match request:
        case CreateRequest():
            return log.create(request.topic, request.partitions)
        case DeleteRequest():
            log.delete(request.topic)
        case PutIfRequest():
            return log.put_if(request.key, request.expected_revision, request.value)
        case TrimRequest():
            log.trim(request.topic, request.before)
    return None
