"""What is not the collector's, passed to another server over a Unix socket."""

from __future__ import annotations

import hashlib
import http.client
import json
import socket
import socketserver
import threading
import time
from contextlib import closing, contextmanager
from http.server import BaseHTTPRequestHandler

import pytest

from headrace.collect.door import HttpDoor
from headrace.collect.limits import Limits
from headrace.model.clock import SystemClock
from headrace.model.plan import Plan, Topic

PLAN = Plan("p", topics=(Topic("events", 1),))
LARGE = bytes(range(256)) * 20_000


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def address_string(self):
        return "unix"

    def log_message(self, *_):
        pass

    def do_GET(self):
        if self.path == "/large":
            self.answer(LARGE)
        elif self.path == "/live":
            self.live()
        elif self.path.startswith("/breaks"):
            self.send_response(200)
            self.send_header("Content-Length", str(2 * len(LARGE)))
            self.end_headers()
            self.wfile.write(LARGE if self.path.endswith("-large") else b"half")
            self.close_connection = True
        elif self.path == "/gone":
            self.answer(b"", 304, [("ETag", '"x"')])
        else:
            self.echo()

    def do_POST(self):
        self.echo()

    do_PUT = do_DELETE = do_HEAD = do_POST  # noqa: N815 - the base class's way to name them

    def echo(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        told = {
            "method": self.command,
            "target": self.path,
            "headers": [[n.lower(), v] for n, v in self.headers.items()],
            "body": body.decode(),
        }
        self.answer(json.dumps(told).encode(), 201, [("X-Two", "1"), ("X-Two", "2")])

    def answer(self, body, status=200, headers=()):
        self.send_response(status)
        for name, value in headers:
            self.send_header(name, value)
        if status != 304:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def live(self):
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        self.close_connection = True
        try:
            for n in range(100_000):
                self.wfile.write(b"data: %d\n\n" % n)
                self.wfile.flush()
                if self.server.closing.wait(0.01):
                    return
        except OSError:
            self.server.left.set()


class Server(socketserver.ThreadingUnixStreamServer):
    daemon_threads = True

    def __init__(self, path):
        super().__init__(str(path), Handler)
        self.left = threading.Event()
        self.closing = threading.Event()


@pytest.fixture
def upstream(tmp_path):
    server = Server(tmp_path / "serve.sock")
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    yield server
    server.closing.set()
    server.shutdown()
    thread.join()
    server.server_close()


@contextmanager
def running(log, port, tmp_path, limits):
    log.create("events", 1)
    door = HttpDoor(
        PLAN, log, SystemClock(), limits, run_dir=tmp_path, upstream=tmp_path / "serve.sock"
    )
    opened, stop = threading.Event(), threading.Event()
    thread = threading.Thread(
        target=lambda: door.run("127.0.0.1", port, stop=stop, ready=opened.set)
    )
    thread.start()
    assert opened.wait(20)
    yield stop
    stop.set()
    thread.join(20)
    assert not thread.is_alive()


@pytest.fixture
def door(log, port, tmp_path):
    with running(log, port, tmp_path, Limits(body_bytes_max=1_000)) as stop:
        yield stop


def ask(port, method, path, body=None, headers=None):
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=20)) as connection:
        connection.request(method, path, body, headers or {})
        answer = connection.getresponse()
        return answer.status, answer.getheaders(), answer.read()


def test_a_request_is_passed_on_as_it_came(upstream, door, port):
    status, headers, body = ask(
        port,
        "POST",
        "/v1/sql/a%20b?x=1&y=%2F",
        b"SELECT 1",
        {
            "X-Own": "1",
            "Authorization": "Bearer t",
            "Connection": "keep-alive, X-Hop",
            "X-Hop": "1",
        },
    )
    told = json.loads(body)
    assert status == 201
    assert [value for name, value in headers if name == "x-two"] == ["1", "2"]
    assert (told["method"], told["body"]) == ("POST", "SELECT 1")
    assert told["target"] == "/v1/sql/a%20b?x=1&y=%2F"
    sent = dict(told["headers"])
    assert (sent["x-own"], sent["authorization"]) == ("1", "Bearer t")
    assert sent["host"] == f"127.0.0.1:{port}"
    assert (sent["x-forwarded-for"], sent["x-forwarded-proto"]) == ("127.0.0.1", "http")
    assert "x-hop" not in sent


def test_a_path_that_begins_with_two_slashes_is_not_another_path(upstream, door, port):
    # Python's own server, which answers here, makes one slash of two.
    assert json.loads(ask(port, "GET", "//x/v1/tables")[2])["target"] == "/x/v1/tables"


def test_a_client_cannot_say_who_it_is_to_the_other_role(upstream, door, port):
    _, _, body = ask(port, "GET", "/x", headers={"X-Forwarded-For": "1.2.3.4"})
    assert [v for n, v in json.loads(body)["headers"] if n == "x-forwarded-for"] == ["127.0.0.1"]


@pytest.mark.parametrize("method", ["PUT", "DELETE"])
def test_other_methods_are_passed_on(upstream, door, port, method):
    assert json.loads(ask(port, method, "/v1/sources/1")[2])["method"] == method


def test_answers_without_a_body(upstream, door, port):
    status, headers, body = ask(port, "HEAD", "/v1/tables")
    assert (status, body) == (201, b"")
    assert int(dict(headers)["content-length"]) > 0
    status, headers, body = ask(port, "GET", "/gone")
    assert (status, body, dict(headers)["etag"]) == (304, b"", '"x"')


def test_a_large_answer_arrives_whole(upstream, door, port):
    status, headers, body = ask(port, "GET", "/large")
    assert (status, len(body)) == (200, len(LARGE))
    assert hashlib.sha256(body).digest() == hashlib.sha256(LARGE).digest()
    assert dict(headers)["content-length"] == str(len(LARGE))


def test_a_large_answer_that_breaks_off_is_told_and_leaves_no_file(upstream, door, port, tmp_path):
    assert ask(port, "GET", "/breaks-large")[0] == 503
    assert list((tmp_path / "spool").iterdir()) == []


def test_an_event_stream_is_passed_on_as_it_comes_until_the_client_leaves(upstream, door, port):
    with closing(socket.create_connection(("127.0.0.1", port), timeout=20)) as connection:
        connection.sendall(b"GET /live HTTP/1.1\r\nHost: h\r\n\r\n")
        received = b""
        while b"data: 3\n\n" not in received:
            received += connection.recv(1_000)
        assert not upstream.left.is_set()
    assert upstream.left.wait(20)


def test_an_event_stream_ends_after_its_bound(upstream, log, port, tmp_path):
    with running(log, port, tmp_path, Limits(bridge_stream_bytes_max=50)):
        status, _, body = ask(port, "GET", "/live")
        assert status == 200
        assert 50 < len(body) < 1_000


@contextmanager
def listener(port):
    """Listen to the stream; yield when its first event is there."""
    with closing(socket.create_connection(("127.0.0.1", port), timeout=20)) as connection:
        connection.sendall(b"GET /live HTTP/1.1\r\nHost: h\r\n\r\n")
        received = b""
        while b"data: 1\n\n" not in received:
            received += connection.recv(1_000)
        yield


def listens(port):
    with closing(socket.create_connection(("127.0.0.1", port), timeout=20)) as connection:
        connection.sendall(b"GET /live HTTP/1.1\r\nHost: h\r\n\r\n")
        return b" 200 " in connection.recv(1_000)


def refusal(port, path):
    status, headers, body = ask(port, "GET", path)
    assert (status, dict(headers)["retry-after"]) == (503, "1")
    return json.loads(body)["error"]["code"]


def test_one_listener_too_many_is_told_and_others_are_served(upstream, log, port, tmp_path):
    sent = {"Content-Type": "application/json"}
    limits = Limits(bridge_streams_max=2, bridge_connections_max=3)
    with running(log, port, tmp_path, limits), listener(port):
        with listener(port):
            assert refusal(port, "/live") == "too_many_listeners"
            assert ask(port, "GET", "/v1/tables")[0] == 201
            assert ask(port, "POST", "/v1/topics/events", b"{}", sent)[0] == 200
        # The place of the one that left is free as soon as that is noticed.
        deadline_s = time.monotonic() + 20
        while not listens(port):
            assert time.monotonic() < deadline_s


def test_reads_beyond_the_bound_are_told_and_records_are_still_taken(upstream, log, port, tmp_path):
    sent = {"Content-Type": "application/json"}
    limits = Limits(bridge_streams_max=2, bridge_connections_max=2)
    with running(log, port, tmp_path, limits), listener(port), listener(port):
        assert refusal(port, "/v1/tables") == "too_busy"
        assert ask(port, "POST", "/v1/topics/events", b"{}", sent)[0] == 200


def test_streams_end_when_the_collector_stops(upstream, log, port, tmp_path):
    with running(log, port, tmp_path, Limits()) as stop:
        with closing(socket.create_connection(("127.0.0.1", port), timeout=20)) as connection:
            connection.sendall(b"GET /live HTTP/1.1\r\nHost: h\r\n\r\n")
            assert b" 200 " in connection.recv(1_000)
            began = time.monotonic()
            stop.set()
            while connection.recv(65_536):
                pass
        assert time.monotonic() - began < 8


def test_a_role_that_is_not_there_is_told_and_records_are_still_taken(door, log, port):
    status, headers, body = ask(port, "GET", "/v1/tables")
    error = json.loads(body)["error"]
    assert (status, error["code"]) == (503, "serve_unavailable")
    assert "headrace" in error["hint"]
    assert dict(headers)["retry-after"] == "1"
    sent = {"Content-Type": "application/json"}
    assert ask(port, "POST", "/v1/topics/events", b"{}", sent)[0] == 200


def test_an_answer_that_breaks_off_is_told(upstream, door, port):
    status, _, body = ask(port, "GET", "/breaks")
    assert (status, json.loads(body)["error"]["code"]) == (503, "serve_unavailable")


def test_bodies_are_bounded_here_too(upstream, door, port):
    assert ask(port, "POST", "/v1/sql", b"x" * 1_001)[0] == 413


def test_leftover_files_of_an_earlier_process_are_removed(log, port, tmp_path):
    (tmp_path / "spool").mkdir()
    (tmp_path / "spool" / "left").write_bytes(b"x")
    with running(log, port, tmp_path, Limits()):
        assert list((tmp_path / "spool").iterdir()) == []
