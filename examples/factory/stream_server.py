"""Streams JSON files as HTTP endpoints `/stream_data_{file}`, object by object, by their time.

    python examples/factory/stream_server.py FOLDER [--port 8091] [--delay 0.1] [--speed 0]

Each who connects gets all of a file, one object a line, in the order of the objects' `time`, then
the end. `--delay` is the pause between two objects; with `--speed` the pauses are those of their
times, so many times faster. `?from=TIME` begins at that time.
"""

import argparse
import json
import signal
import threading
from datetime import datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from headrace.model.clock import SystemClock
from headrace.sources.documents import documents

PREFIX = "/stream_data_"


def read(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """Return every file's objects in the order of their times, by the file's name."""
    return {
        path.stem: sorted(map(json.loads, documents(path)), key=lambda found: found["time"])
        for path in sorted(folder.glob("*.json"))
    }


class Server(ThreadingHTTPServer):
    """Serves the streams; each connection has a thread."""

    daemon_threads = True

    def __init__(self, port: int, folder: Path, delay_s: float, speed: float) -> None:
        """Listen on a port of this machine alone."""
        self.streams = read(folder)
        self.clock = SystemClock()
        self.delay_s = delay_s
        self.speed = speed
        super().__init__(("127.0.0.1", port), Handler)

    def pause_s(self, before: dict[str, Any] | None, following: dict[str, Any]) -> float:
        """Return how long to wait between two objects."""
        if before is None:
            return 0.0
        if not self.speed:
            return self.delay_s
        times = (datetime.fromisoformat(found["time"]) for found in (before, following))
        first, second = times
        return (second - first).total_seconds() / self.speed


class Handler(BaseHTTPRequestHandler):
    """Answers one connection."""

    protocol_version = "HTTP/1.1"
    server: Server

    def do_GET(self) -> None:
        """Stream a file, or say which there are."""
        asked = urlsplit(self.path)
        name = asked.path.removeprefix(PREFIX)
        if not asked.path.startswith(PREFIX) or name not in self.server.streams:
            there = [f"{PREFIX}{name}" for name in self.server.streams]
            self._answer(404, json.dumps({"streams": there}).encode())
            return
        begin = parse_qs(asked.query).get("from", [""])[0]
        self.send_response(200)
        self.send_header("content-type", "application/x-ndjson")
        self.send_header("transfer-encoding", "chunked")
        self.end_headers()
        before = None
        for found in self.server.streams[name]:
            if found["time"] < begin:
                continue
            self.server.clock.sleep(self.server.pause_s(before, found))
            line = json.dumps(found).encode() + b"\n"
            self.wfile.write(b"%x\r\n%s\r\n" % (len(line), line))
            self.wfile.flush()
            before = found
        self.wfile.write(b"0\r\n\r\n")

    def _answer(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def handle(self) -> None:
        """Let a client go whenever it wants to."""
        try:
            super().handle()
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True

    def log_message(self, *args: object) -> None:
        """Say nothing of each request."""


def main() -> None:
    """Serve until told to stop."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--port", type=int, default=8091)
    parser.add_argument("--delay", type=float, default=0.1, help="seconds between two objects")
    parser.add_argument("--speed", type=float, default=0.0, help="times faster than their times")
    options = parser.parse_args()
    server = Server(options.port, options.folder, options.delay, options.speed)
    signal.signal(signal.SIGTERM, lambda *_: threading.Thread(target=server.shutdown).start())
    listed = ", ".join(f"http://127.0.0.1:{server.server_port}{PREFIX}{n}" for n in server.streams)
    print(f"streams: {listed}", flush=True)
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        pass
    finally:
        server.server_close()


if __name__ == "__main__":
    main()
