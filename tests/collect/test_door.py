"""The door over real sockets, with the real server and a log in memory."""

from __future__ import annotations

import gzip
import http.client
import json
import resource
import socket
import threading
import time
from contextlib import closing, contextmanager

import psutil
import pytest

from headrace.collect.door import METRICS, HttpDoor, refuse_taken_port
from headrace.collect.limits import Limits
from headrace.model.clock import SystemClock
from headrace.model.errors import Internal, Invalid
from headrace.model.plan import Plan, Route, Topic

PLAN = Plan(
    "game",
    topics=(Topic("events", 1),),
    routes=(Route("/buy/{what}", "events", {"event_type": "buy", "what": "{what}"}, "Bought!\n"),),
)
LIMITS = Limits(
    body_bytes_max=1 << 20,
    body_timeout_s=1.0,
    in_flight_bytes_max=3 << 20,
    headers_timeout_s=1.0,
    stop_timeout_s=5.0,
)
EVENTS = "/v1/topics/events"


@contextmanager
def running(log, port, tmp_path, limits=LIMITS, **options):
    log.create("events", 1)
    door = HttpDoor(PLAN, log, SystemClock(), limits, run_dir=tmp_path, **options)
    opened, stop = threading.Event(), threading.Event()
    ended = []

    def run():
        try:
            door.run("127.0.0.1", port, stop=stop, ready=opened.set)
        except BaseException as error:  # noqa: BLE001 - told to the test
            ended.append(error)
        opened.set()

    thread = threading.Thread(target=run)
    thread.start()
    assert opened.wait(20)
    assert not ended, ended
    try:
        yield stop
    finally:
        stop.set()
        thread.join(20)
        assert not thread.is_alive()


@pytest.fixture
def door(log, port, tmp_path):
    with running(log, port, tmp_path) as stop:
        yield stop


def ask(port, method, path, body=None, headers=None):
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=20)) as connection:
        connection.request(method, path, body, headers or {})
        answer = connection.getresponse()
        return answer.status, dict(answer.getheaders()), answer.read()


def post(port, body, **headers):
    sent = {"Content-Type": "application/json"}
    sent |= {name.replace("_", "-"): value for name, value in headers.items()}
    return ask(port, "POST", EVENTS, body, sent)


def raw(port, *pieces, until_closed=True):
    """Send bytes as they are; return what comes back."""
    with closing(socket.create_connection(("127.0.0.1", port), timeout=10)) as connection:
        received = b""
        try:
            for piece in pieces:
                connection.sendall(piece)
            while chunk := connection.recv(65_536):
                received += chunk
                if not until_closed and b"\r\n\r\n" in received:
                    break
        except (ConnectionResetError, BrokenPipeError):
            pass
        return received


def code(answer):
    return answer[0], json.loads(answer[2])["error"]["code"]


def head(*lines, path=EVENTS, method="POST"):
    told = [f"{method} {path} HTTP/1.1", "Host: h", "Content-Type: application/json", *lines]
    return ("\r\n".join(told) + "\r\n\r\n").encode()


def test_a_client_is_served(door, log, port):
    status, headers, body = ask(port, "GET", "/buy/a%20sword", headers={"User-Agent": "ab"})
    assert (status, body) == (200, b"Bought!\n")
    assert headers["content-type"].startswith("text/plain")
    made = json.loads(log.all("events").values[0])
    assert made["what"] == "a sword"
    assert (made["User-Agent"], made["Host"]) == ("ab", f"127.0.0.1:{port}")
    status, headers, body = post(port, b'[{"a":1},5]')
    assert json.loads(body)["accepted"] == 1
    packed = gzip.compress(b'{"a":2}\n{"a":3}')
    status, _, body = post(
        port, packed, Content_Type="application/x-ndjson", Content_Encoding="gzip"
    )
    assert json.loads(body)["accepted"] == 2
    chunks = iter([b'{"a"', b":4}"])
    assert post(port, chunks)[0] == 200
    assert log.all("events").values[1:] == [b'{"a":1}', b"5", b'{"a":2}', b'{"a":3}', b'{"a":4}']


def test_head_and_options(door, log, port):
    status, headers, body = ask(port, "HEAD", "/buy/x")
    assert (status, body) == (200, b"")
    status, headers, _ = ask(port, "OPTIONS", EVENTS)
    assert (status, headers["allow"]) == (204, "POST, OPTIONS")
    assert log.submits == 0


def test_elsewhere_without_another_role(door, port):
    assert code(ask(port, "GET", "/v1/tables")) == (404, "not_found")


def test_bodies_that_are_too_large(door, log, port):
    large = b'{"a":"' + b"x" * LIMITS.body_bytes_max + b'"}'
    declared = raw(port, head("Content-Length: 99999999"))
    assert b" 413 " in declared.split(b"\r\n")[0]
    assert b"body_too_large" in declared
    pieces = [b"%x\r\n%s\r\n" % (len(p), p) for p in (large[:600_000], large[600_000:])]
    streamed = raw(port, head("Transfer-Encoding: chunked"), *pieces, b"0\r\n\r\n")
    assert streamed.split(b"\r\n")[0].endswith(b"413 Payload Too Large")
    bomb = gzip.compress(bytes(20 << 20))
    assert code(post(port, bomb, Content_Encoding="gzip")) == (413, "body_too_large")
    assert log.submits == 0
    assert post(port, b"{}")[0] == 200


@pytest.mark.parametrize(
    ("sent", "framing"),
    [(b'{"a":', "Content-Length: 7"), (b'5\r\n{"a":\r\n', "Transfer-Encoding: chunked")],
)
def test_a_slow_body_is_ended(door, log, port, sent, framing):
    answer = raw(port, head(framing), sent)
    assert b" 408 " in answer.split(b"\r\n")[0]
    assert b"body_timeout" in answer
    assert log.submits == 0


def test_a_slow_head_is_ended(door, port):
    began = time.monotonic()
    answer = raw(port, b"POST /v1/topics/events HTTP/1.1\r\nHost: h\r\n")
    assert b" 200 " not in answer
    assert time.monotonic() - began < 9


@pytest.mark.parametrize(
    ("framing", "sent"),
    [
        ("Content-Length: 100", b'{"a":1}'),
        ("Content-Length: 100000", b'{"a":1}' + b" " * 70_000),
        ("Transfer-Encoding: chunked", b'7\r\n{"a":1}\r\n'),
        ("Transfer-Encoding: chunked", b'7\r\n{"a":1}\r\nzz\r\n'),
    ],
)
def test_a_client_that_goes_away_within_a_body_leaves_nothing(door, log, port, framing, sent):
    with closing(socket.create_connection(("127.0.0.1", port), timeout=10)) as connection:
        connection.sendall(head(framing) + sent)
        connection.shutdown(socket.SHUT_WR)
        while connection.recv(65_536):
            pass
    assert post(port, b'{"after":1}')[0] == 200
    assert log.all("events").values == [b'{"after":1}']


@pytest.mark.parametrize(
    "framing",
    [
        ["Content-Length: 7", "Content-Length: 70"],
        ["Content-Length: -7"],
        ["Content-Length: 7x"],
        ["Content-Length: 99999999999999999999999"],
        ["Transfer-Encoding: gzip"],
        ["Transfer-Encoding: chunked, identity"],
    ],
)
def test_bodies_framed_in_two_ways_or_none_are_refused(door, log, port, framing):
    answer = raw(port, head(*framing), b'{"a":1}')
    assert answer.split(b"\r\n")[0].split(b" ")[1] in {b"400", b"413"}
    assert log.submits == 0


def test_length_and_chunks_at_once_cannot_smuggle_a_request(door, log, port):
    smuggled = head("Content-Length: 7") + b'{"a":2}'
    body = b'7\r\n{"a":1}\r\n0\r\n\r\n'
    framing = (f"Content-Length: {len(body) + len(smuggled)}", "Transfer-Encoding: chunked")
    raw(port, head(*framing), body, smuggled)
    # Refused, or chunks alone count and the connection ends: one record or none, never two.
    assert log.all("events").values in ([], [b'{"a":1}'])


def test_heads_that_are_too_large_are_refused(door, log, port):
    assert raw(port, head("X-Large: " + "x" * 200_000)).split(b" ")[1] == b"431"
    assert raw(port, head(*[f"X-{i}: 1" for i in range(200)])).split(b" ")[1] == b"431"
    assert raw(port, b"nonsense\r\n\r\n").split(b" ")[1] == b"400"
    assert log.submits == 0


def test_requests_in_a_row_on_one_connection(door, log, port):
    one = head("Content-Length: 7") + b'{"a":1}'
    last = head("Content-Length: 7", "Connection: close") + b'{"a":2}'
    assert raw(port, one + one + last).count(b'"accepted":1') == 3


def test_a_client_may_ask_before_it_sends_a_body(door, port):
    asked = head("Content-Length: 7", "Expect: 100-continue", "Connection: close")
    answer = raw(port, asked, b'{"a":1}')
    assert answer.startswith(b"HTTP/1.1 100 ")
    assert b'"accepted":1' in answer


def test_all_bodies_together_have_a_budget(door, log, port):
    log.hold.clear()
    waiting = []

    def send():
        waiting.append(post(port, b'{"a":"' + b"x" * 900_000 + b'"}'))

    threads = [threading.Thread(target=send) for _ in range(3)]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + 10
    while log.submits < 1 and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.5)
    refused = post(port, b'{"a":"' + b"x" * 900_000 + b'"}')
    assert code(refused) == (503, "too_busy")
    assert int(refused[1]["retry-after"]) >= 1
    log.hold.set()
    for thread in threads:
        thread.join(20)
    assert [answer[0] for answer in waiting] == [200] * 3
    assert post(port, b"{}")[0] == 200


def test_a_full_log_answers_503_and_goes_on_by_itself(door, log, port, full):
    log.refuse = full
    status, headers, _ = post(port, b"{}")
    assert (status, headers["retry-after"]) == (503, "2")
    assert ask(port, "GET", "/buy/x")[0] == 503
    log.refuse = None
    assert post(port, b"{}")[0] == 200


def test_idle_connections_cost_little(log, port, tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 3_000
    if hard < 2 * wanted + 200:
        pytest.skip(f"only {hard} open files are allowed here")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 2 * wanted + 200), hard))
    with running(log, port, tmp_path, Limits(headers_timeout_s=60)):
        before = psutil.Process().memory_info().rss
        idle = [socket.create_connection(("127.0.0.1", port), timeout=10) for _ in range(wanted)]
        for connection in idle[::2]:
            connection.sendall(b"POST /v1")
        assert post(port, b"{}")[0] == 200
        grown = psutil.Process().memory_info().rss - before
        for connection in idle:
            connection.close()
    assert grown / wanted < 20_000
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_figures_are_written_for_another_role(door, port, tmp_path):
    post(port, b"{}")
    post(port, b"5")
    path = tmp_path / METRICS
    wanted = [
        'headrace_records_total{outcome="accepted",topic="events"} 1.0',
        'headrace_records_total{outcome="dead",topic="events"} 1.0',
        'headrace_requests_total{status="200"} 2.0',
        "headrace_request_seconds_count 2.0",
    ]
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        if path.exists() and all(line in path.read_text() for line in wanted):
            return
        time.sleep(0.05)
    pytest.fail(path.read_text() if path.exists() else "no figures")


def test_a_port_that_is_taken_is_refused(door, port):
    with pytest.raises(Invalid) as refused:
        refuse_taken_port("127.0.0.1", port)
    assert refused.value.code == "port_taken"


def test_a_stop_answers_what_is_durable_and_ends_what_is_not_there(log, port, tmp_path):
    answers = {}

    def send(name, act):
        answers[name] = act()

    with running(log, port, tmp_path, Limits(stop_timeout_s=5)) as stop:
        log.hold.clear()
        acts = {
            "waits for the log": lambda: post(port, b'{"a":1}'),
            "still sends": lambda: raw(port, head("Content-Length: 7"), b'{"a"'),
            "idle": lambda: raw(port),
        }
        threads = [threading.Thread(target=send, args=item) for item in acts.items()]
        for thread in threads:
            thread.start()
        deadline = time.monotonic() + 10
        while not log.submits and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.2)
        stop.set()
        time.sleep(0.5)
        log.hold.set()
        for thread in threads:
            thread.join(15)
    assert answers["waits for the log"][0] == 200
    assert b" 503 " in answers["still sends"].split(b"\r\n")[0]
    assert answers["idle"] == b""
    assert log.all("events").values == [b'{"a":1}']


def test_a_damaged_log_ends_the_door(log, port, tmp_path):
    log.create("events", 1)
    door = HttpDoor(PLAN, log, SystemClock(), LIMITS, run_dir=tmp_path)
    opened = threading.Event()
    ended = []

    def run():
        try:
            door.run("127.0.0.1", port, stop=threading.Event(), ready=opened.set)
        except Internal as error:
            ended.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    assert opened.wait(20)
    log.fail = Internal("unknown durability")
    assert post(port, b"{}")[0] == 500
    thread.join(20)
    assert not thread.is_alive()
    assert ended == [log.fail]
