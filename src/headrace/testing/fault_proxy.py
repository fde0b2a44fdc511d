"""A proxy on loopback that loses, refuses or holds up chosen HTTP requests between two programs."""

from __future__ import annotations

import http.client
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Literal
from urllib.parse import urlsplit

Fate = Literal["pass", "lose answer", "lose request"] | int
"""What becomes of a request; a number is a status answered in the server's place."""
Judge = Callable[[str, str, dict[str, str]], Fate]
"""Gives a request's fate by its method, its path, and its headers in lower case."""
_TIMEOUT_S = 60
_OF_CONNECTION = {"connection", "keep-alive", "transfer-encoding", "content-length"}


@dataclass
class FaultProxy:
    """A proxy that runs. `judge` may be replaced at any time."""

    endpoint: str
    judge: Judge = lambda _method, _path, _headers: "pass"
    requests: list[tuple[str, str, Fate]] = field(default_factory=list)
    """What was asked, in the order of arrival: method, path, fate."""
    lock: threading.Lock = field(default_factory=threading.Lock)


@contextmanager
def fault_proxy(upstream: str) -> Iterator[FaultProxy]:
    """Run a proxy before the HTTP server at `upstream`, `http://127.0.0.1:PORT`."""
    server = _Server(urlsplit(upstream).netloc)
    thread = threading.Thread(target=server.serve_forever, name="fault proxy", daemon=True)
    thread.start()
    try:
        yield server.proxy
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, upstream: str) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.upstream = upstream
        self.proxy = FaultProxy(f"http://127.0.0.1:{self.server_address[1]}")

    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing: connections break here on purpose."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def _forward(self) -> None:
        proxy = self.server.proxy
        body = self.rfile.read(int(self.headers.get("content-length") or 0))
        headers = {k.lower(): v for k, v in self.headers.items()}
        with proxy.lock:
            fate = proxy.judge(self.command, self.path, headers)
            proxy.requests.append((self.command, self.path, fate))
        if fate == "lose request":
            self._break()
            return
        if isinstance(fate, int):
            self._answer(fate, {"ETag": '"made up"'}, b"")
            return
        connection = http.client.HTTPConnection(self.server.upstream, timeout=_TIMEOUT_S)
        try:
            # The host is signed, so it stays the one that the client named.
            connection.request(self.command, self.path, body, dict(self.headers.items()))
            answer = connection.getresponse()
            data = answer.read()
        finally:
            connection.close()
        if fate == "lose answer":
            self._break()
            return
        self._answer(answer.status, dict(answer.getheaders()), data)

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _forward  # noqa: N815 - the library's names

    def _answer(self, status: int, headers: dict[str, str], data: bytes) -> None:
        kept = {k: v for k, v in headers.items() if k.lower() not in _OF_CONNECTION}
        self.send_response_only(status)
        for name, value in kept.items():
            self.send_header(name, value)
        if self.command != "HEAD":
            self.send_header("Content-Length", str(len(data)))
        elif "Content-Length" in headers:
            self.send_header("Content-Length", headers["Content-Length"])
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def _break(self) -> None:
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the library's name
        """Say nothing."""
