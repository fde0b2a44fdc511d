"""A server of HTTP for one test, at a port of its own."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Quiet(BaseHTTPRequestHandler):
    """Answers by HTTP/1.1, and prints nothing."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        """Say nothing."""


@contextmanager
def serving_by(handler, let_go):
    """Answer by a handler; yield the address.

    `let_go` is set at the end: who waits for it goes on.
    """
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    server.handle_error = lambda *_: None
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        let_go.set()
        server.shutdown()
        server.server_close()
        thread.join()
