"""What a trial cluster runs ends with it, however that ends; shown with programs that sleep."""

from __future__ import annotations

import subprocess
import sys
import time

import msgspec
import psutil
import pytest

from headrace.app.cluster import brokers, jars, trial
from headrace.app.cluster.keeper import PROGRAMS, Program
from headrace.model.clock import SystemClock
from headrace.model.errors import Invalid, Unavailable

WAIT_S = 30.0
SLEEPS = "import signal, time; {}; time.sleep(300)  # {}"


def wait_until(is_so):
    deadline = time.monotonic() + WAIT_S
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.02)


class Kept:
    """A keeper of two sleepers in a folder."""

    def __init__(self, folder, *arguments):
        self.folder = folder
        programs = [
            Program(name, [sys.executable, "-c", SLEEPS.format("0", folder)], str(folder / name))
            for name in ("one", "two")
        ]
        (folder / PROGRAMS).write_bytes(msgspec.json.encode(programs))
        command = [sys.executable, "-m", "headrace.app.cluster.keeper", str(folder), *arguments]
        self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL)
        wait_until(lambda: trial.pids(folder))
        self.pids = trial.pids(folder)

    def alive(self):
        return [name for name, pid in self.pids.items() if psutil.pid_exists(pid)]


@pytest.fixture
def keep(tmp_path):
    made = []

    def make(*arguments):
        made.append(Kept(tmp_path, *arguments))
        return made[-1]

    yield make
    for each in made:
        each.process.kill()
        each.process.wait()
    trial.stop_orphans(tmp_path)


def test_down_stops_what_runs(keep, tmp_path):
    kept = keep()
    assert sorted(kept.alive()) == ["one", "two"]
    assert trial.down(tmp_path)
    assert kept.alive() == []
    assert trial.pids(tmp_path) == {}
    assert not trial.down(tmp_path)


ENDS = "print('port', 7, 'is taken'); raise SystemExit(1)"


@pytest.fixture
def nodes(monkeypatch, tmp_path):
    """Nodes that never answer, instead of Kafka's: one that sleeps and one that a test chooses."""
    code = {"node-1": SLEEPS.format("0", tmp_path), "node-2": ENDS}

    def prepare(folder, *_):
        return [
            Program(name, [sys.executable, "-c", text], str(folder / f"{name}.out"))
            for name, text in code.items()
        ]

    monkeypatch.setattr(brokers, "prepare", prepare)
    monkeypatch.setattr(brokers, "ANSWER_S_MAX", 0.5)
    yield code
    trial.down(tmp_path)


def test_a_program_that_ends_is_not_waited_for(nodes, tmp_path):
    with pytest.raises(Unavailable, match="node-2 ended") as raised:
        trial.up(tmp_path, SystemClock())
    assert raised.value.hint.startswith(str(tmp_path / "node-2.out"))
    assert raised.value.hint.endswith("port 7 is taken")
    assert trial.running(tmp_path) is None
    assert not trial.stop_orphans(tmp_path)


def test_of_a_cluster_that_runs_only_what_ends_anew_is_told(nodes, monkeypatch, tmp_path):
    def up_without_waiting():
        with monkeypatch.context() as patched:
            patched.setattr(brokers, "wait_until_ready", lambda *_: None)
            trial.up(tmp_path, SystemClock())

    def wait_until_started(_cluster, _clock, check):
        check()
        wait_until(lambda: trial.pids(tmp_path))
        check()

    up_without_waiting()
    wait_until(lambda: trial.pids(tmp_path))
    before = trial.pids(tmp_path)
    wait_until(lambda: not psutil.pid_exists(before["node-2"]))
    nodes["node-2"] = nodes["node-1"]
    with monkeypatch.context() as patched:
        patched.setattr(brokers, "wait_until_ready", wait_until_started)
        trial.up(tmp_path, SystemClock())
    again = trial.pids(tmp_path)
    assert again["node-1"] == before["node-1"]
    psutil.Process(again["node-2"]).kill()
    nodes["node-2"] = ENDS
    with pytest.raises(Unavailable, match="node-2 ended"):
        trial.up(tmp_path, SystemClock())
    assert trial.running(tmp_path) is not None


def test_what_has_ended_is_started_again_when_asked(keep, tmp_path):
    kept = keep()
    psutil.Process(kept.pids["one"]).kill()
    wait_until(lambda: kept.alive() == ["two"])
    kept.process.send_signal(1)
    wait_until(lambda: trial.pids(tmp_path)["one"] != kept.pids["one"])
    assert trial.pids(tmp_path)["two"] == kept.pids["two"]


def test_it_ends_with_the_process_that_wanted_it(keep):
    wanting = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    kept = keep(str(wanting.pid))
    assert sorted(kept.alive()) == ["one", "two"]
    wanting.kill()
    wait_until(lambda: kept.alive() == [])
    wanting.wait()
    assert kept.process.wait(WAIT_S) == 0


def test_what_a_killed_keeper_leaves_is_stopped(keep, tmp_path):
    kept = keep()
    kept.process.kill()
    kept.process.wait()
    assert sorted(kept.alive()) == ["one", "two"]
    assert trial.stop_orphans(tmp_path)
    wait_until(lambda: kept.alive() == [])


def test_another_process_under_an_old_id_is_left_alone(tmp_path):
    other = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    (tmp_path / "pids.json").write_bytes(msgspec.json.encode({"one": other.pid}))
    assert not trial.stop_orphans(tmp_path)
    assert other.poll() is None
    other.kill()
    other.wait()


def test_without_java_or_maven_it_says_so(monkeypatch, tmp_path):
    monkeypatch.setenv("HEADRACE_CACHE", str(tmp_path))
    monkeypatch.setattr(jars.shutil, "which", lambda name: None)
    assert "Java" in jars.missing("kafka")
    with pytest.raises(Invalid, match="Java"):
        jars.jars("kafka")
    monkeypatch.setattr(jars.shutil, "which", lambda name: None if name == "mvn" else "/java")
    monkeypatch.setattr(jars, "_java_version", lambda java: 17)
    assert "Maven" in jars.missing("kafka")
    monkeypatch.setattr(jars, "_java_version", lambda java: 11)
    assert "version 11" in jars.missing("kafka")
