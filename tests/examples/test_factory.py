"""The factory: both streams followed while their server is killed and started again."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import urllib.error
import urllib.request
from collections import Counter

import pytest
from run_example import ROOT, Run, free_port, headrace, told, until

FACTORY = ROOT / "examples" / "factory"
MINUTES = 30
DELAY_S = 0.004
RECORDS_MAX = 50
"""Lower than the example's, so that it is reached."""


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("plant")
    command = [sys.executable, FACTORY / "data.py", folder, "--minutes", str(MINUTES)]
    subprocess.run(command, check=True)
    return folder


@pytest.fixture(scope="module")
def sent(files):
    """Every object by its stream, in the order of its time."""
    found = {
        "metrics": json.loads((files / "metrics.json").read_text()),
        "workorder": list(map(json.loads, (files / "workorder.json").read_text().splitlines())),
    }
    return {name: sorted(rows, key=lambda r: r["time"]) for name, rows in found.items()}


class Plant:
    """The stream server, as a process."""

    def __init__(self, files, port):
        self._command = [sys.executable, FACTORY / "stream_server.py", files, "--port", str(port)]
        self._command += ["--delay", str(DELAY_S)]
        self._process = None

    def start(self):
        self._process = subprocess.Popen(self._command, stdout=subprocess.PIPE, text=True)
        assert "stream_data_metrics" in self._process.stdout.readline()

    def kill(self):
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None


@pytest.fixture
def plant(files):
    port = free_port()
    made = Plant(files, port)
    made.port = port
    yield made
    made.kill()


def pulled(run):
    """Return how many records each source has brought into the log."""
    listed = told("sources", "list", "--data", run.data)
    return {s["name"]: s["records"] for s in listed}


def test_the_server_sends_objects_in_the_order_of_their_time(plant, sent):
    plant.start()
    begin = sent["workorder"][-5]["time"]
    url = f"http://127.0.0.1:{plant.port}/stream_data_workorder?from={begin}"
    with urllib.request.urlopen(url) as answer:
        found = [json.loads(line) for line in answer]
    assert found == [r for r in sent["workorder"] if r["time"] >= begin]
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(f"http://127.0.0.1:{plant.port}/stream_data_none")
    assert "/stream_data_metrics" in refused.value.read().decode()


def rows_of(data, query):
    return json.loads(headrace("sql", "--data", data, "--json", query))


def test_rows_are_the_objects_sent_through_two_kills(plant, sent, tmp_path, monkeypatch):
    monkeypatch.setenv("HEADRACE_RECORDS_MAX", str(RECORDS_MAX))
    monkeypatch.setenv("HEADRACE_PLANT", f"http://127.0.0.1:{plant.port}")
    monkeypatch.setenv("HEADRACE_EVERY", "100 ms")
    plant.start()
    data = tmp_path / "data"
    total = {name: len(objects) for name, objects in sent.items()}
    with Run(FACTORY / "pipeline.py", data) as run:
        for share in (0.2, 0.6):
            until(lambda: pulled(run), lambda n, s=share: n["metrics"] > s * total["metrics"])
            plant.kill()
            plant.start()
        until(lambda: pulled(run), lambda n: n == total)
        query = "SELECT count(*) AS n FROM happenings"
        until(lambda: rows_of(data, query), lambda found: found[0]["n"] == sum(total.values()))
    check_rows(data, sent)
    check_epochs(data, sum(total.values()))


def check_rows(data, sent):
    for name, objects in sent.items():
        columns = ", ".join(f'"{c}"' for c in objects[0])
        query = f"SELECT {columns}, _partition FROM {name} ORDER BY _partition, _offset"
        rows = rows_of(data, query)
        found = [{k: v for k, v in row.items() if k != "_partition"} for row in rows]
        as_sent = Counter(json.dumps(o, sort_keys=True) for o in objects)
        assert Counter(json.dumps(o, sort_keys=True) for o in found) == as_sent
        for machine in {o["machine"] for o in objects}:
            mine = [o for o in found if o["machine"] == machine]
            assert mine == sorted(mine, key=lambda o: o["time"])
            assert len({r["_partition"] for r in rows if r["machine"] == machine}) == 1
    query = "SELECT sum(good) AS good FROM pieces_by_machine"
    (row,) = rows_of(data, query)
    assert row["good"] == sum(o["pieces"] for o in sent["workorder"] if o["step"] == "finished")


def check_epochs(data, records):
    """Check that no epoch took more than it may, and together they took all."""
    rows = rows_of(data, "SELECT body FROM ledger")
    taken = [sum(t["read"] for t in json.loads(r["body"])["topics"].values()) for r in rows]
    assert sum(taken) == records
    # Each partition's share is rounded down.
    assert 0.8 * RECORDS_MAX < max(taken) <= RECORDS_MAX


LONG = pytest.param(
    60,
    "10 s",
    marks=pytest.mark.skipif(
        not os.environ.get("HEADRACE_TEST_LONG"), reason="two minutes: HEADRACE_TEST_LONG=1 runs it"
    ),
    id="a minute",
)


@pytest.mark.parametrize(("seconds", "every"), [pytest.param(4, "500 ms", id="seconds"), LONG])
def test_the_demonstration_follows_both_streams_through_two_kills(seconds, every, tmp_path):
    command = [sys.executable, FACTORY / "demo.py", "--exit", "--data", tmp_path / "data"]
    ended = subprocess.run(
        [*map(str, command), "--seconds", str(seconds), "--kills", "2"],
        env={**os.environ, "HEADRACE_EVERY": every},
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert ended.returncode == 0, (ended.stdout, ended.stderr)
    *printed, last = ended.stdout.splitlines()
    told = json.loads(last)
    assert told["rows"] == told["sent"]
    assert (told["same"], told["in_order"]) == (True, True)
    assert told["most"] <= told["may_take"]
    versions = [line for line in printed if line.startswith("happenings, version ")]
    # Several epochs may come between two looks.
    assert 0 < len(versions) <= told["epochs"]
    assert sum(int(line.split(": ")[1].split()[0]) for line in versions) == sum(
        told["sent"].values()
    )
    rows = rows_of(tmp_path / "data", "SELECT count(*) AS n FROM happenings")
    assert rows == [{"n": sum(told["sent"].values())}]
