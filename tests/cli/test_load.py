"""What `headrace load` sends, when, and what it makes of the answers."""

from __future__ import annotations

import http.server
import json
import signal
import socket
import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path

import pytest
from rich.console import Console

from headrace.app.cli.load import PROFILES, shown
from headrace.app.load.sender import Load, Tally, Target, summed
from headrace.app.load.traffic import AB_REQUESTS, REPEAT_WITHIN, Traffic, running_shares, zipf
from headrace.model.clock import ManualClock

HEADRACE = Path(sys.executable).parent / "headrace"
BEGUN_US = 1_795_356_000_000_000


class Door(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1
    seen: list[tuple[str, str, str | None, str, bytes]] = []  # noqa: RUF012 - cleared by each test

    def do_GET(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.seen.append(
            (
                self.path,
                self.headers["Host"],
                self.headers["Idempotency-Key"],
                self.headers.get("Connection", ""),
                body,
            )
        )
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_POST = do_GET  # noqa: N815 - the server's name

    def log_message(self, *_):
        pass


@pytest.fixture
def port():
    Door.seen.clear()
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Door) as serving:
        thread = threading.Thread(target=serving.serve_forever, args=(0.01,))
        thread.start()
        yield serving.server_port
        serving.shutdown()
        thread.join()


def requests(traffic, count):
    return [traffic.request(n, BEGUN_US) for n in range(count)]


def test_the_same_seed_sends_the_same_and_another_does_not():
    def sent(seed):
        traffic = Traffic(
            paths=("/a", "/b"),
            weights=(0.5, 1.0),
            users=zipf(100, 1.1),
            hosts=("{user}.com",),
            body='{"at": "{time}"}',
            late=0.2,
            late_s=60,
            duplicates=0.2,
            rate=10,
            seed=seed,
        )
        return requests(traffic, 200)

    assert sent(7) == sent(7)
    assert sent(7) != sent(8)


def test_however_many_connections_send_the_same(port):
    def sent(connections):
        Door.seen.clear()
        traffic = Traffic(paths=("/a", "/b"), weights=(0.5, 1.0), duplicates=0.3)
        target = Target("127.0.0.1", port)
        load = Load(target, traffic, ManualClock(), count=200, connections=connections, name="run")
        load.begin()
        tally = load.join()
        assert tally.acknowledged == 200
        assert len(tally.events) == len({key for _, _, key, _, _ in Door.seen})
        return sorted(Door.seen)

    assert sent(1) == sent(8)


def test_users_follow_zipfs_law():
    traffic = Traffic(paths=("/{user}",), users=zipf(1000, 1.0))
    counts = Counter(request.path for request in requests(traffic, 20_000))
    first, second, tenth = (counts[f"/user{n}"] for n in (1, 2, 10))
    assert first / second == pytest.approx(2, rel=0.2)
    assert first / tenth == pytest.approx(10, rel=0.25)
    assert zipf(4, 0) == (0.25, 0.5, 0.75, 1.0)


def test_duplicates_repeat_one_of_the_last_in_everything():
    traffic = Traffic(
        users=zipf(50, 0), body='{"who": "{user}", "n": {number}}', duplicates=0.25, rate=10
    )
    sent = requests(traffic, 4_000)
    repeated = [(n, r) for n, r in enumerate(sent) if r.event != n]
    assert len(repeated) == pytest.approx(1_000, rel=0.15)
    for n, request in repeated:
        assert n - 8 * REPEAT_WITHIN <= request.event < n
    bodies = {r.event: r.body for r in sent}
    assert all(bodies[r.event] == r.body for r in sent)


def test_late_events_are_late_in_their_time_by_at_most_so_much():
    traffic = Traffic(body='{"at": "{time}"}', late=0.1, late_s=30, rate=100)
    sent = requests(traffic, 3_000)
    assert sum(r.is_late for r in sent) == pytest.approx(300, rel=0.2)
    on_time = Traffic(body='{"at": "{time}"}', rate=100)
    for n, request in enumerate(sent):
        told, due = (json.loads(r.body)["at"] for r in (request, on_time.request(n, BEGUN_US)))
        assert (told < due) == request.is_late
    assert not any(r.is_late for r in requests(Traffic(late=0.5, late_s=30), 100))


def test_bursts_have_the_rate_on_average_and_come_in_a_second():
    traffic = Traffic(pace="bursts", rate=20)
    due_s = [traffic.due_s(n) for n in range(600)]
    assert due_s == sorted(due_s)
    assert Counter(int(s) for s in due_s) == {0: 200, 10: 200, 20: 200}
    assert Traffic(pace="bursts", rate=0.01).due_s(3) == 30


def test_the_loop_of_ab(headrace, port):
    ended = headrace("load", f"127.0.0.1:{port}", "--profile", "ab", "--count", "60",
                     "--mix", "/buy,/join", "--hosts", "one.com,two.com", "--json")  # fmt: skip
    assert ended.json()["acknowledged"] == 60
    assert {connection for *_, connection, _ in Door.seen} == {"close"}
    runs = [(path, host) for path, host, *_ in Door.seen[::AB_REQUESTS]]
    assert runs == [
        *(("/buy", "one.com"), ("/join", "one.com"), ("/buy", "two.com"), ("/join", "two.com")),
        *(("/buy", "one.com"), ("/join", "one.com")),
    ]
    for first in range(0, 60, AB_REQUESTS):
        assert len({seen[:2] for seen in Door.seen[first : first + AB_REQUESTS]}) == 1


@pytest.mark.parametrize("profile", PROFILES)
def test_every_profile_runs_and_options_change_it(profile, headrace, port):
    ended = headrace("load", f"127.0.0.1:{port}", "--profile", profile, "--count", "30",
                     "--rate", "1000", "--json")  # fmt: skip
    found = ended.json()
    assert ended.status == 0
    assert (found["profile"], found["sent"], found["acknowledged"]) == (profile, 30, 30)
    assert ("events" in found) == (profile == "messy")
    hosts = {host for _, host, *_ in Door.seen}
    assert any(h.startswith("user") for h in hosts) == (profile in {"zipf", "ab"})


def test_bodies_are_posted_with_their_words_in_them(headrace, port):
    ended = headrace("load", f"127.0.0.1:{port}", "--count", "5", "--users", "3", "--connections",
                     "1", "--body", '{"n": {number}, "who": "{user}", "at": "{time}"}')  # fmt: skip
    assert ended.status == 0
    bodies = [json.loads(body) for *_, body in Door.seen]
    assert [body["n"] for body in bodies] == [0, 1, 2, 3, 4]
    assert all(body["who"] in {"user1", "user2", "user3"} for body in bodies)


def test_a_duration_ends_it(port):
    clock = ManualClock()
    load = Load(Target("127.0.0.1", port), Traffic(rate=10), clock, duration_s=2.0)
    load.begin()
    assert load.join().sent == 21
    assert load.is_done


def test_refusals(headrace, tmp_path):
    (tmp_path / "nothing.pem").write_text("no certificate")
    for words in (
        ["--duration", "soon"],
        ["--profile", "storm"],
        ["--late", "1"],
        ["ftp://127.0.0.1"],
        ["https://127.0.0.1", "--ca", "nothing.pem"],
        ["https://example.org"],
    ):
        assert headrace("load", *words).status == 1, words


@pytest.mark.parametrize("after", [1, 5])
def test_an_interrupt_ends_it_with_what_was_done(port, after):
    command = [HEADRACE, "load", f"127.0.0.1:{port}", "--rate", "50", "--duration", "10min"]
    with subprocess.Popen(
        [*command, "--connections", "64", "--json"], stdout=subprocess.PIPE, text=True
    ) as running:
        try:
            # After the first one, it is still opening connections.
            while len(Door.seen) < after:
                threading.Event().wait(0.001)
            running.send_signal(signal.SIGINT)
            told = json.loads(running.communicate(timeout=60)[0])
        finally:
            running.kill()
    assert running.returncode == 130
    assert told["acknowledged"] == told["sent"] >= after


def test_a_second_interrupt_waits_for_no_answer():
    with socket.create_server(("127.0.0.1", 0)) as silent:
        command = [HEADRACE, "load", f"127.0.0.1:{silent.getsockname()[1]}", "--count", "2"]
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as running:
            try:
                connection, _ = silent.accept()
                with connection:
                    assert connection.recv(4096).startswith(b"GET / ")
                    running.send_signal(signal.SIGINT)
                    with pytest.raises(subprocess.TimeoutExpired):
                        running.wait(1)
                    running.send_signal(signal.SIGINT)
                    assert running.wait(20) == 130
            finally:
                running.kill()
            assert "Traceback" not in running.stderr.read()


def test_latencies_are_kept_to_a_percent_in_little_memory():
    tally = Tally()
    for milliseconds in range(1, 10_001):
        tally.answered(milliseconds / 1000)
    assert tally.latency_s(0.5) == pytest.approx(5, rel=0.011)
    assert tally.latency_s(0.99) == pytest.approx(9.9, rel=0.011)
    assert tally.latency_s(1) == tally.latency_s_max == 10
    assert len(tally.steps) < 1_000
    assert Tally().latency_s(0.5) == 0
    assert summed([tally, tally]).latency_s(0.5) == tally.latency_s(0.5)


def test_shares_end_at_exactly_one():
    assert running_shares([0.1] * 10)[-1] == 1.0


def test_what_is_shown_meanwhile():
    tally = Tally(sent=1234, statuses=Counter({"200": 1200, "503": 30, "[red]": 4}))
    tally.answered(0.004)
    screen = Console(width=100)
    with screen.capture() as seen:
        screen.print(shown(tally, 12.3, 456.0))
    words = " ".join(seen.get().split())
    for part in ("1,234", "1,200", "456/s", "12 s", "503 30", "[red] 4", "p99 4.0 ms"):
        assert part in words
