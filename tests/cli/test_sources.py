"""Sources added to a run that is alive, over HTTP and by the command line, from a stand-in."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx2
import pytest

from headrace.app.cli.main import call
from headrace.app.cli.printing import console
from headrace.app.cli.sources import duration, shown
from headrace.app.cluster.ports import free_port
from headrace.control.progress import Listed
from headrace.testing.services.server import services

HEADRACE = Path(sys.executable).parent / "headrace"
DEADLINE_S = 60
RECORDS = 300
PIPELINE = """
from headrace import Pipeline, Record

pipeline = Pipeline("p", add_sources=True, private_addresses=True, every="100 ms")


class Occurrence(Record):
    id: str
    scientificName: str | None = None


obis = pipeline.topic("obis", Occurrence)
pipeline.source("archive", kind="replay", topic=obis, path="archive.ndjson")
"""


class Run:
    """`headrace run` in the background."""

    def __init__(self, folder):
        self.url = f"http://127.0.0.1:{free_port()}"
        port = self.url.rpartition(":")[2]
        command = [HEADRACE, "run", "pipeline.py", "--port", port]
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

    def sources(self):
        answer = httpx2.get(f"{self.url}/v1/sources", timeout=30)
        return {s["name"]: s for s in answer.json()["sources"]}

    def ask(self, method, path, **more):
        return httpx2.request(method, f"{self.url}/v1/sources{path}", timeout=30, **more)

    def rows(self):
        answer = httpx2.get(f"{self.url}/v1/tables/obis", params={"limit": 1}, timeout=30)
        if answer.status_code != 200:
            return 0
        (table,) = httpx2.get(f"{self.url}/v1/tables", timeout=30).json()["tables"]
        return table["rows"]


def until(is_so):
    deadline_s = time.monotonic() + DEADLINE_S
    while not (found := is_so()):
        assert time.monotonic() < deadline_s
        time.sleep(0.05)
    return found


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HEADRACE_DATA", raising=False)
    (tmp_path / "pipeline.py").write_text(PIPELINE)
    (tmp_path / "archive.ndjson").write_text('{"id": "old"}\n')
    return tmp_path


def told(capsys, *words):
    capsys.readouterr()
    status = call([*words, "--json"])
    out, err = capsys.readouterr()
    assert status == 0, err
    return json.loads(out)


def refused(capsys, *words):
    capsys.readouterr()
    assert call(list(words)) == 1
    return capsys.readouterr().err


def test_added_over_http_paused_kept_over_a_restart_and_removed(folder, capsys):
    with services(records={"obis": RECORDS}) as stand_in:
        options = {"url": stand_in.obis, "page_size": 20, "requests_per_s": 5, "follow": False}
        options |= {"absences": "include", "dropped": "include"}
        wanted = {"name": "sea", "kind": "obis", "topic": "obis", "options": options}
        with Run(folder) as run:
            answer = run.ask("POST", "", json=wanted)
            assert answer.status_code == 201, answer.text
            until(lambda: run.rows() > 20)
            assert run.sources()["sea"]["state"] == "running"
            assert run.sources()["sea"]["records"] > 0
            assert run.ask("POST", "", json=wanted).status_code == 409

            assert run.ask("POST", "/sea/pause").json()["state"] == "paused"
            until(lambda: "sea" in run.sources() and is_quiet(run, stand_in))
            pulled = run.sources()["sea"]["records"]
            assert 0 < pulled < RECORDS
            (sea,) = [s for s in told(capsys, "sources", "list") if s["name"] == "sea"]
            assert (sea["state"], sea["records"]) == ("paused", pulled)
        assert run.ended == 0
        (archive, sea) = told(capsys, "sources", "list")
        assert (archive["state"], sea["state"]) == ("done", "paused")

        with Run(folder) as run:
            assert run.sources()["sea"]["state"] == "paused"
            assert run.sources()["sea"]["records"] == pulled
            assert run.ask("POST", "/sea/resume").status_code == 200
            until(lambda: run.sources()["sea"]["state"] == "done")
            until(lambda: run.rows() == RECORDS + 1)
            assert run.sources()["archive"]["state"] == "done"

            assert told(capsys, "sources", "remove", "sea") == {"removed": "sea"}
            assert "sea" not in run.sources()
            until(lambda: not (folder / "data" / "sources" / "sea.db").exists())
            assert run.rows() == RECORDS + 1
            text = httpx2.get(f"{run.url}/metrics", timeout=30).text
            assert 'headrace_source_records_total{source="archive"} 1.0' in text


def is_quiet(run, stand_in):
    """Return whether nothing has been asked of the service for a while."""
    before = len(stand_in.requests())
    time.sleep(1)
    return len(stand_in.requests()) == before and run.sources()["sea"]["state"] == "paused"


def test_by_the_command_line_while_it_runs_and_while_it_does_not(folder, capsys):
    with services(records={"obis": 40}) as stand_in:
        words = [f"url={stand_in.obis}", "page_size=20", "requests_per_s=50", "follow=false"]
        words += ["absences=include", "dropped=include"]
        adding = ["sources", "add", "sea", "--kind", "obis", "--topic", "obis", *words]
        assert "data directory" in refused(capsys, *adding)
        with Run(folder) as run:
            assert "reads files" in refused(
                capsys, "sources", "add", "x", "--kind", "replay", "--topic", "obis", "path=/etc"
            )
            assert "did you mean" in refused(
                capsys, "sources", "add", "x", "--kind", "obs", "--topic", "obis"
            )
            bad = [*adding[:2], "x", *adding[3:], "page_size=many"]
            assert "page_size must be int" in refused(capsys, *bad)
            assert "metadata" in refused(capsys, *bad[:-1], "url=http://169.254.169.254/")
            assert told(capsys, *adding)["options"]["page_size"] == 20
            assert "already is a source" in refused(capsys, *adding)
            assert "pipeline file" in refused(capsys, "sources", "remove", "archive")
            until(lambda: run.rows() == 41)
            found = {s["name"]: s["state"] for s in told(capsys, "sources", "list")}
            assert found == {"archive": "done", "sea": "done"}
            assert told(capsys, "sources", "pause", "sea") == {"paused": "sea"}

        found = {s["name"]: s for s in told(capsys, "sources", "list")}
        assert (found["sea"]["state"], found["sea"]["records"]) == ("paused", 40)
        assert told(capsys, "sources", "resume", "sea") == {"resumed": "sea"}
        call(["sources", "list"])
        shown = capsys.readouterr().out
        assert [line.split()[:2] for line in shown.splitlines()[1:]] == [
            ["archive", "done"],
            ["sea", "done"],
        ]
        assert told(capsys, "sources", "remove", "sea") == {"removed": "sea"}
        assert [s["name"] for s in told(capsys, "sources", "list")] == ["archive"]


def test_what_is_added_is_asked_for_soon_and_what_is_wrong_is_told(folder):
    with services(records={"obis": 20}) as stand_in, Run(folder) as run:
        url = stand_in.obis.replace("/obis/", "/nothing/")
        bad = {"name": "bad", "kind": "obis", "topic": "obis", "options": {"url": url}}
        assert run.ask("POST", "", json=bad).status_code == 201
        until(lambda: run.sources()["bad"]["state"] in ("failed", "waiting"))
        options = {"url": stand_in.obis, "absences": "include", "dropped": "include"}
        good = bad | {"name": "good", "options": options}
        assert run.ask("POST", "", json=good).status_code == 201
        until(lambda: run.sources()["good"]["records"])
        until(lambda: run.rows() == 21)
        assert run.sources()["bad"]["error"] or run.sources()["bad"]["waiting_for"]


def test_durations_are_told_in_two_units():
    assert [duration(s) for s in (0.4, 59, 61, 3_700, 90_000)] == [
        "0 s",
        "59 s",
        "1 min 1 s",
        "1 h 1 min",
        "1 d 1 h",
    ]


def test_what_waits_or_rests_says_when_it_goes_on(capsys):
    said = {"kind": "obis", "topic": "t", "counts": None, "options": {}, "added_at": None}
    found = [
        Listed("a", "waiting", goes_on_at_us=95_000_000, waiting_for="it answered 429", **said),
        Listed("b", "resting", goes_on_at_us=7_205_000_000, **said),
        Listed("c", "running", goes_on_at_us=95_000_000, **said),
    ]
    console().print(shown(found, 5_000_000))
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].rstrip().endswith("in 1 min 30 s")
    assert lines[2].rstrip().endswith("in 2 h 0 min")
    assert lines[3].rstrip().endswith("0")
    assert lines[4].strip() == "a: it answered 429"
