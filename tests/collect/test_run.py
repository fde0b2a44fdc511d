"""The collector as a process over the real log."""

from __future__ import annotations

import http.client
import json
import signal
import subprocess
import sys
import threading
import time
from contextlib import closing, contextmanager

import msgspec
import pytest

from headrace.log.embedded import EmbeddedLogReader
from headrace.log.remote import RemoteLog
from headrace.model.batch import Batch
from headrace.model.clock import SystemClock
from headrace.model.layout import Layout
from headrace.model.plan import Plan, Route, Topic
from headrace.model.schema import Field, Schema, Type

EVENTS = Schema("Event", (Field("n", "n", Type("integer")),))
PLAN = Plan(
    "p",
    topics=(Topic("events", 2, EVENTS),),
    routes=(Route("/hit", "events", {"event_type": "hit"}, "ok"),),
)
ROLE = """
import signal, sys, threading
import msgspec
from headrace.app.site import open_site
from headrace.collect.run import run_role
from headrace.model.clock import SystemClock
from headrace.model.layout import Layout
from headrace.model.plan import Plan
from headrace.model.role import Role

plan = msgspec.json.decode(sys.argv[1], type=Plan)
stop = threading.Event()
signal.signal(signal.SIGTERM, lambda *_: stop.set())
layout, clock = Layout.at(sys.argv[2]), SystemClock()
run_role(Role("collect", plan, layout, open_site(layout, clock), "127.0.0.1", int(sys.argv[3]),
              ("collect",), clock, stop, threading.Event(), lambda: print("ready", flush=True)))
"""


def start(data, port):
    plan = msgspec.json.encode(PLAN).decode()
    command = [sys.executable, "-c", ROLE, plan, str(data), str(port)]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, bufsize=1
    )


@contextmanager
def running(data, port):
    process = start(data, port)
    try:
        assert process.stdout.readline() == "ready\n", process.stderr.read()
        yield process
    finally:
        process.kill()
        process.communicate()


def post(connection, body, path="/v1/topics/events", **headers):
    connection.request("POST", path, body, {"Content-Type": "application/json", **headers})
    answer = connection.getresponse()
    return answer.status, answer.headers, answer.read()


def records(data):
    """Return every record of the log as (partition, offset, value)."""
    with closing(EmbeddedLogReader(Layout.at(data).log)) as log:
        return [
            (partition, row["offset"], row["value"])
            for partition, end in enumerate(log.ends("events"))
            for batch in log.read("events", partition, 0, end)
            for row in batch.to_pylist()
        ]


class Producer(threading.Thread):
    """Sends numbered events one after the other and notes which were acknowledged."""

    def __init__(self, port, first):
        super().__init__()
        self.port, self.next, self.acknowledged = port, first, []

    def run(self):
        with closing(http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)) as connection:
            while True:
                try:
                    status, _, _ = post(connection, b'{"n":%d}' % self.next)
                except (OSError, http.client.HTTPException):
                    return
                if status == 200:
                    self.acknowledged.append(self.next)
                elif status != 503:
                    raise AssertionError(status)
                self.next += 1


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_what_was_acknowledged_is_in_the_log_when_the_process_ends_under_load(tmp_path, port, how):
    with running(tmp_path, port) as process:
        producers = [Producer(port, i * 1_000_000) for i in range(8)]
        for producer in producers:
            producer.start()
        deadline = time.monotonic() + 30
        while sum(len(p.acknowledged) for p in producers) < 300 and time.monotonic() < deadline:
            time.sleep(0.01)
        process.send_signal(how)
        status = process.wait(10)
        assert status == (0 if how == signal.SIGTERM else -signal.SIGKILL)
        for producer in producers:
            producer.join(20)
        said = process.stderr.read()
    acknowledged = [n for p in producers for n in p.acknowledged]
    assert len(acknowledged) >= 300
    kept = [json.loads(value)["n"] for _, _, value in records(tmp_path)]
    assert set(acknowledged) <= set(kept)
    assert len(kept) == len(set(kept))
    assert said == ""


def test_offsets_that_are_told_are_those_of_the_log(tmp_path, port):
    with (
        running(tmp_path, port),
        closing(http.client.HTTPConnection("127.0.0.1", port, timeout=20)) as connection,
    ):
        told = []
        for n in range(20):
            key = f"key-{n}"
            _, headers, _ = post(connection, b'{"n":%d}' % n, **{"Headrace-Key": key})
            told.append(headers["x-headrace-offsets"])
        kept = {json.loads(v)["n"]: (p, offset) for p, offset, v in records(tmp_path)}
        assert told == [f"events/{kept[n][0]}={kept[n][1] + 1}" for n in range(20)]
        assert {p for p, _ in kept.values()} == {0, 1}
        connection.request("GET", "/v1/topics/events/records?partition=1&offset=0&limit=5")
        page = json.loads(connection.getresponse().read())
        assert [r["offset"] for r in page["records"]] == list(range(5))


def test_other_roles_append_through_the_socket(tmp_path, port):
    layout = Layout.at(tmp_path)
    with running(tmp_path, port):
        with closing(RemoteLog(layout.log, layout.door)) as log:
            batch = Batch()
            batch.add(b'{"n":1}', received_at=1, id=SystemClock().new_id())
            log.append("events", batch)
        assert [value for _, _, value in records(tmp_path)] == [b'{"n":1}']


def test_a_restart_goes_on_and_a_second_collector_is_refused(tmp_path, port):
    with running(tmp_path, port) as process:
        with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=20)) as connection:
            assert post(connection, b'{"n":1}')[0] == 200
        second = start(tmp_path, port)
        _, said = second.communicate(timeout=20)
        assert second.returncode != 0
        assert "Another process writes the log" in said
        process.terminate()
        assert process.wait(10) == 0
    with (
        running(tmp_path, port),
        closing(http.client.HTTPConnection("127.0.0.1", port, timeout=20)) as connection,
    ):
        assert post(connection, b'{"n":2}')[0] == 200
        connection.request("GET", "/hit")
        assert connection.getresponse().status == 200
    assert {b'{"n":1}', b'{"n":2}'} < {value for _, _, value in records(tmp_path)}
