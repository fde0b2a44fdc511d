"""The verbs on a run that is alive, and after it."""

from __future__ import annotations

import contextlib
import io
import json
import signal
import subprocess
import sys
import time
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import httpx2
import psutil
import pytest

from headrace.app.cli.main import call
from headrace.app.cluster.ports import free_port

HEADRACE = Path(sys.executable).parent / "headrace"
DEADLINE_S = 60

PIPELINE = """
from headrace import Pipeline, Record

pipeline = Pipeline("readings")


class Reading(Record):
    station: str
    celsius: float


readings = pipeline.topic("readings", Reading, partitions=2)
pipeline.route("/ping/{station}", readings, {"station": "{station}"})
pipeline.table("warm", "SELECT station, CAST(celsius AS TINYINT) AS degrees FROM readings")
pipeline.view("by_station", "SELECT station, count(*) AS n FROM readings GROUP BY station")
"""
SOURCE = """
pipeline.source("archive", kind="replay", topic=readings, path="recordings", records="item")
"""


STARTER = """
import subprocess, sys

run = subprocess.Popen(sys.argv[1:], stdin=subprocess.PIPE)
print(run.pid, flush=True)
input()
"""


def headrace(folder, *words, stdin="", status=0):
    """Run a verb to its end; return what it printed. Short ones in this process, to be quick."""
    act = in_a_process if words[0] in ("run", "demo") else in_this_process
    ended, out, err = act(folder, [str(w) for w in words], stdin)
    assert ended == status, (words, out, err)
    return out if status == 0 else err


def in_a_process(folder, words, stdin):
    ended = subprocess.run(
        [HEADRACE, *words],
        cwd=folder,
        input=stdin,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    return ended.returncode, ended.stdout, ended.stderr


def in_this_process(folder, words, stdin):
    out, err = (io.TextIOWrapper(io.BytesIO(), write_through=True) for _ in range(2))
    before, sys.stdin = sys.stdin, io.TextIOWrapper(io.BytesIO(stdin.encode()))
    try:
        with contextlib.chdir(folder), redirect_stdout(out), redirect_stderr(err):
            status = call(words)
    finally:
        sys.stdin = before
    return status, out.buffer.getvalue().decode(), err.buffer.getvalue().decode()


def told(folder, *words, **how):
    return json.loads(headrace(folder, *words, "--json", **how))


class Run:
    """`headrace run` in the background, stopped at the end."""

    def __init__(self, folder, *words):
        self.folder = folder
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        command = [HEADRACE, "run", "pipeline.py", "--port", str(self.port), *words]
        self.process = subprocess.Popen(command, cwd=folder, stderr=subprocess.PIPE, text=True)

    def __enter__(self):
        for line in self.process.stderr:
            if self.url in line:
                return self
        raise AssertionError(self.process.wait())

    def __exit__(self, *_):
        self.process.send_signal(signal.SIGTERM)
        self.ended = self.process.wait(30)
        self.process.stderr.close()

    def until(self, *words, is_so):
        """Ask again until the answer is as expected; fail after a while."""
        deadline_s = time.monotonic() + DEADLINE_S
        while True:
            answer = told(self.folder, *words)
            if is_so(answer):
                return answer
            assert time.monotonic() < deadline_s, answer
            time.sleep(0.2)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "pipeline.py").write_text(PIPELINE)
    return tmp_path


def test_a_run_ends_with_the_program_that_started_it(folder):
    url = f"127.0.0.1:{(port := free_port())}"
    run = [HEADRACE, "run", "pipeline.py", "--port", str(port), "--until-eof"]
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    command = [sys.executable, "-c", STARTER, *run]
    with subprocess.Popen(command, cwd=folder, text=True, **pipes) as starter:
        running = psutil.Process(int(starter.stdout.readline()))
        assert any(url in line for line in starter.stderr)
        processes = [running, *running.children()]
        assert len(processes) == 4
        starter.kill()
        _, left = psutil.wait_procs(processes, 30)
        for process in left:
            process.kill()
        assert left == []


def test_a_run_from_records_to_dead_letters(folder):
    lines = "".join(f'{{"station": "s{n % 3}", "celsius": {n}}}\n' for n in range(30))
    with Run(folder) as run:
        assert "already" in headrace(folder, "run", "pipeline.py", "--port", free_port(), status=1)
        assert told(folder, "produce", "readings", stdin=lines)["appended"] == 30
        answer = httpx2.post(
            f"{run.url}/v1/topics/readings",
            json=[{"station": "s0", "celsius": 1000}, {"station": 1, "celsius": 1}],
        )
        assert answer.json()["dead"] == 1
        found = run.until("status", is_so=lambda s: s["topics"]["readings"]["decoded"] == 31)
        assert found["running"]
        assert found["accounts_close"]
        assert found["topics"]["readings"]["dead"] == 1
        assert found["tables"]["warm"] == {"decoded": 31, "rows": 30, "filtered": 0, "failed": 1}

        sampled = "SELECT DISTINCT role FROM samples ORDER BY role"
        roles = [{"role": r} for r in ("collect", "process", "serve", "supervisor")]
        run.until("sql", sampled, is_so=lambda rows: rows == roles)

        letters = run.until("dlq", "list", is_so=lambda rows: len(rows) == 2)
        by_output = {letter["output"]: letter for letter in letters}
        assert by_output[None]["code"] == "invalid_record"
        warm = by_output["warm"]["letter_id"]
        shown = told(folder, "dlq", "show", warm)
        assert json.loads(shown["value"]) == {"station": "s0", "celsius": 1000}

        assert told(folder, "dlq", "replay", warm) == {"replayed": [warm]}
        assert "before" in headrace(folder, "dlq", "replay", warm, status=1)
        run.until("dlq", "list", "--output", "warm", is_so=lambda rows: len(rows) == 1)
        assert len(told(folder, "dlq", "discard", "--all", "--why", "a probe")["discarded"]) == 2
        assert told(folder, "dlq", "list") == []
        assert len(told(folder, "dlq", "list", "--status", "all")) == 3

        rows = run.until(
            "sql", "SELECT sum(n)::INT AS n FROM by_station", is_so=lambda r: r[0]["n"] == 31
        )
        assert rows == [{"n": 31}]
        tailed = headrace(folder, "tail", "readings", "--from", "beginning", "--exit")
        assert len(tailed.splitlines()) == 33
        headrace(folder, "backup", "copy")
    assert run.ended == 0

    stopped = told(folder, "status")
    assert not stopped["running"]
    assert stopped["accounts_close"]
    headrace(folder, "restore", "copy", "--data", "again")
    query = "SELECT station, n FROM by_station ORDER BY station"
    assert told(folder, "sql", query, "--data", "again") == told(folder, "sql", query)
    assert {t["name"]: t["rows"] for t in told(folder, "tables")} == {
        "tables/readings": 31,
        "tables/warm": 30,
        "views/by_station": 3,
    }


def test_sources_are_read_once_and_outputs_are_dropped(folder):
    (folder / "recordings").mkdir()
    documents = [{"item": {"station": f"s{n % 4}", "celsius": 1.5}} for n in range(1_000)]
    (folder / "recordings" / "a.json").write_text(json.dumps(documents))
    (folder / "pipeline.py").write_text(PIPELINE + SOURCE)
    query = "SELECT station, n FROM by_station ORDER BY station"
    expected = [{"station": f"s{n}", "n": 250} for n in range(4)]
    for _ in range(2):
        headrace(folder, "run", "pipeline.py", "--until-idle", "--port", free_port())
        assert told(folder, "sql", query) == expected
        found = told(folder, "status")
        assert found["sources"]["archive"]["records"] == 1_000
        assert found["sources"]["archive"]["done"]
        assert found["topics"]["readings"]["appended"] == 1_000
        assert found["accounts_close"]
    (folder / "other.py").write_text(PIPELINE.replace('Pipeline("readings")', 'Pipeline("other")'))
    refused = headrace(folder, "run", "other.py", "--port", free_port(), status=1)
    assert "belongs to the pipeline readings, not to other" in refused
    assert told(folder, "sql", query) == expected

    without = PIPELINE.replace('pipeline.table("warm"', '# ("warm"')
    (folder / "pipeline.py").write_text(without)
    assert "makes warm" in headrace(folder, "outputs", "drop", "warm", "--yes", status=1)
    headrace(folder, "run", "pipeline.py", "--until-idle", "--port", free_port())
    left = [o["output"] for o in told(folder, "outputs", "list") if not o["made"]]
    assert left == ["tables/warm"]
    headrace(folder, "outputs", "drop", "warm", "--yes")
    assert all(o["made"] for o in told(folder, "outputs", "list"))


def test_a_source_that_cannot_be_read_ends_the_run_with_the_reason(folder):
    (folder / "pipeline.py").write_text(PIPELINE + SOURCE)
    said = headrace(folder, "run", "pipeline.py", "--until-idle", "--port", free_port(), status=1)
    assert "nothing to replay at recordings" in said


def test_load_is_acknowledged_and_counted(folder):
    headrace(folder, "init", "--to", "game.py")
    (folder / "pipeline.py").write_text((folder / "game.py").read_text())
    with Run(folder) as run:
        sent = told(folder, "load", run.url, "--count", "200", "--mix", "/purchase_a_sword=1,/=1")
        assert sent["acknowledged"] == 200
        run.until(
            "sql",
            "SELECT coalesce(sum(n), 0)::INT AS n FROM events_by_type",
            is_so=lambda rows: rows == [{"n": 200}],
        )


def test_the_demo_counts_what_it_sent(tmp_path):
    shown = headrace(tmp_path, "demo", "--exit", "--port", free_port())
    counts = [line.split() for line in shown.splitlines()]
    assert ["all", "600", "600"] in counts
