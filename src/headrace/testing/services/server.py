"""The stand-ins over HTTP: one port of the loopback interface, a thread a connection.

`/gbif/v1`, `/obis/v3` and `/idigbio/v2` are the services, `/control` is how they are steered and
asked what they saw. The server writes to the socket itself, because half of what it is for is to
answer wrongly: to end a body early, to trickle, to hang, to reset.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import sys
import threading
import zlib
from collections.abc import Callable, Iterator, Mapping
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from headrace.model.clock import Clock, SystemClock
from headrace.testing.services import gbif
from headrace.testing.services.control import Control
from headrace.testing.services.exchange import JSON, Reply, Request, json_reply
from headrace.testing.services.faults import Fault, instead
from headrace.testing.services.report import Entry, Recorder
from headrace.testing.services.stand_in import PREFIXES, RECORDS, StandIn

HOST = "127.0.0.1"
GZIP = 16 + zlib.MAX_WBITS
"""What makes zlib write the gzip format."""
SLICE_S = 0.02
"""How often a slow answer sends a piece, and one that hangs looks whether anybody still waits."""
GZIP_BYTES_MIN = 2048
"""Smaller bodies are not worth compressing: iDigBio's threshold."""
BODY_BYTES_MAX = 64 << 20


class Services(StandIn):
    """Running stand-ins: the state, and where they are reached."""

    url: str
    """Where all of it is, without a slash at the end."""

    @property
    def gbif(self) -> str:
        """Base URL of the stand-in of GBIF: `…/gbif/v1`."""
        return self.url + PREFIXES["gbif"]

    @property
    def obis(self) -> str:
        """Base URL of the stand-in of OBIS: `…/obis/v3`."""
        return self.url + PREFIXES["obis"]

    @property
    def idigbio(self) -> str:
        """Base URL of the stand-in of iDigBio: `…/idigbio/v2`."""
        return self.url + PREFIXES["idigbio"]


@contextlib.contextmanager
def services(
    *,
    data: Path | None = None,
    records: int | Mapping[str, int] = RECORDS,
    seed: int = 0,
    wall: int = gbif.WALL,
    port: int = 0,
    gzip: bool = False,
    clock: Clock | None = None,
) -> Iterator[Services]:
    """Run the stand-ins in this process while the context lasts; they are reached at `.url`.

    `data` is a folder of recordings; without it `records` of each service are generated from
    `seed`. `port` 0 takes a free one. `gzip`: compress answers where that is accepted, as the real
    services do. Raises what `StandIn` does, `OSError` if the port is taken.
    """
    running = Services(clock or SystemClock(), data=data, records=records, seed=seed, wall=wall)
    server = _Server((HOST, port), running, compresses=gzip)
    running.url = f"http://{HOST}:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), name="stand-ins")
    thread.start()
    try:
        yield running
    finally:
        server.stop()
        thread.join()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def __init__(self, address: tuple[str, int], stand_in: StandIn, *, compresses: bool) -> None:
        super().__init__(address, _Handler)
        self.compresses = compresses
        self.stand_in = stand_in
        self.control = Control(stand_in)
        self.stopping = threading.Event()
        # What clients wait for passes in real time, whatever clock the stand-ins go by.
        self.pace = SystemClock()
        self._open: set[socket.socket] = set()
        self._lock = threading.Lock()

    def stop(self) -> None:
        """Take no more requests, and end the connections that clients keep open."""
        self.stopping.set()
        self.shutdown()
        self.server_close()
        with self._lock:
            kept = list(self._open)
        for connection in kept:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def process_request(self, request: Any, client_address: Any) -> None:  # noqa: ANN401 - socketserver's
        with self._lock:
            self._open.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:  # noqa: ANN401 - socketserver's
        with self._lock:
            self._open.discard(request)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ANN401 - socketserver's
        """Say nothing of clients that went away: that is theirs to do."""
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)


class _Ended:
    """Says once that a request has ended."""

    def __init__(self, recorder: Recorder, entry: Entry, fault: str | None) -> None:
        self._recorder, self._entry, self._fault = recorder, entry, fault
        self._said = False

    def end(self, status: int | None) -> None:
        if not self._said:
            self._said = True
            self._recorder.end(self._entry, status, self._fault)


def _nothing() -> None:
    """Do nothing."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    # Answers go out in several writes, and none may wait for the client's acknowledgement.
    disable_nagle_algorithm = True
    server: _Server

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002, ANN401 - http.server's
        """Keep quiet: the report has every request."""

    def handle_one_request(self) -> None:
        self.raw_requestline = self.rfile.readline(65_537)
        if not self.raw_requestline or not self.parse_request():
            self.close_connection = True
            return
        length = int(self.headers.get("Content-Length") or 0)
        if length > BODY_BYTES_MAX:
            self._send(Reply(413))
            self.close_connection = True
            return
        body = self.rfile.read(length) if length else b""
        parts = urlsplit(self.path)
        request = Request(
            self.command,
            parts.path,
            parse_qs(parts.query, keep_blank_values=True),
            {name.lower(): value for name, value in self.headers.items()},
            body,
        )
        if parts.path.startswith("/control/"):
            self._send_all(self.server.control.answer(request))
            return
        for name, prefix in PREFIXES.items():
            if parts.path.startswith(prefix + "/"):
                self._serve(name, request, parts.path.removeprefix(prefix))
                return
        self._send(json_reply({"error": "Not Found"}, 404))

    def _serve(self, name: str, request: Request, path: str) -> None:
        stand_in = self.server.stand_in
        entry = stand_in.recorder.begin(name, request, self.path)
        fault = stand_in.faults.strike(name, self.path)
        ended = _Ended(stand_in.recorder, entry, None if fault is None else fault.kind)
        try:
            within = Request(request.method, path, request.query, request.headers, request.body)
            reply = None if fault is None else instead(fault, stand_in.clock.now_us())
            if fault is not None and fault.kind in {"hang", "reset"}:
                self._break(fault)
                return
            if reply is None:
                # A record that goes away meanwhile is in all of an answer or in nothing of it.
                with stand_in.services[name].collection.lock:
                    reply = stand_in.services[name].answer(within)
            stand_in.recorder.waits(entry, reply)
            self._send(reply, fault, lambda: ended.end(reply.status))
        finally:
            ended.end(None)

    def _send_all(self, replies: Iterator[bytes] | Reply) -> None:
        if isinstance(replies, Reply):
            self._send(replies)
            return
        self.send_response(HTTPStatus.OK)
        self.send_header("Content-Type", "application/x-ndjson")
        self.send_header("Connection", "close")
        self.end_headers()
        self.close_connection = True
        for line in replies:
            self.wfile.write(line)

    def _send(
        self, reply: Reply, fault: Fault | None = None, before_last: Callable[[], None] = _nothing
    ) -> None:
        """Send a reply, wrongly if there is a fault; call `before_last` before its last byte.

        Who has the last byte may ask again at once, and the request must not count as under way.
        """
        kind = fault.kind if fault else None
        body = reply.body[: len(reply.body) // 2] if kind == "cut" else reply.body
        packed = self.server.compresses and self._may_pack(reply, body)
        body = zlib.compress(body, 1, GZIP) if packed else body
        self.send_response(reply.status)
        self.send_header("Content-Type", reply.content_type)
        if packed:
            self.send_header("Content-Encoding", "gzip")
        if reply.status not in {204, 304}:
            self.send_header("Content-Length", str(len(body)))
        for name, value in reply.headers.items():
            self.send_header(name, value)
        if self.command == "HEAD" or reply.status in {204, 304}:
            body = b""
        if not body:
            before_last()
        self.end_headers()
        if kind == "truncated":
            body = body[: len(body) // 2]
            self.close_connection = True
        if fault is not None and kind == "slow":
            self._trickle(body[:-1], fault.bytes_per_s)
        else:
            self.wfile.write(body[:-1])
        before_last()
        self.wfile.write(body[-1:])

    def _may_pack(self, reply: Reply, body: bytes) -> bool:
        accepted = "gzip" in self.headers.get("Accept-Encoding", "")
        return accepted and len(body) >= GZIP_BYTES_MIN and reply.content_type == JSON

    def _trickle(self, body: bytes, bytes_per_s: int) -> None:
        size = max(1, round(bytes_per_s * SLICE_S))
        for begin in range(0, len(body), size):
            if self.server.pace.wait(self.server.stopping, SLICE_S):
                raise ConnectionAbortedError
            self.wfile.write(body[begin : begin + size])

    def _is_given_up(self) -> bool:
        """Return whether the client has gone: it is free to ask again, on another connection."""
        try:
            return not self.connection.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        except BlockingIOError:
            return False

    def _break(self, fault: Fault) -> None:
        self.close_connection = True
        if fault.kind == "hang":
            until_s = self.server.pace.monotonic_s() + fault.hold_s
            while self.server.pace.monotonic_s() < until_s and not self._is_given_up():
                if self.server.pace.wait(self.server.stopping, SLICE_S):
                    return
            return
        # Closing a socket that lingers for no time sends a reset instead of an end.
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()
