"""The game as its users run it, on either log and either runner: the same requests, one answer."""

from __future__ import annotations

import contextlib
import json
import shutil
import signal
import subprocess
import time
from collections import Counter

import httpx2
import pytest
from run_example import HEADRACE, ROOT, free_port

pytest.importorskip("pyspark", reason="pyspark is not installed: pip install 'headrace[spark]'")
if shutil.which("java") is None:
    pytest.skip("Spark and Kafka need Java", allow_module_level=True)

from kafka_place import KafkaPlace

pytestmark = pytest.mark.timeout(600)  # Spark begins within seconds, on a machine of its own

GAME = ROOT / "examples" / "game" / "pipeline.py"
WAIT_S_MAX = 240
ASKED = {
    ("/purchase_a_sword", "a.example"): ("purchase_sword", 3),
    ("/purchase_a_knife", "b.example"): ("purchase_knife", 2),
    ("/join_guild/red", "a.example"): ("joined_guild:red", 4),
    ("/request_group", "c.example"): ("request_group", 5),
    ("/accept_member", "a.example"): ("accept_member", 1),
}
"""Path and host → the type of the event, and how often it is asked for."""
EVENTS = ("purchase_sword", "purchase_knife", "joined_guild:red")
"""The types whose topic is `events`."""
VIEWS = ("hosts_by_event", "hosts_by_message", "group_requests", "purchases_by_host", "guilds")
TABLES = ("events", "MessageHistory", "purchase_sword", "joined_guild", "purchases")
OF_ITS_ARRIVAL = {"event_id", "received_at", "timestamp", "_partition", "_offset"}


@contextlib.contextmanager
def running(folder, deployment):
    """Run the game, give its address, and stop it as a user does."""
    config = folder / "headrace.toml"
    config.write_text(deployment, encoding="utf-8")
    port = free_port()
    command = [HEADRACE, "run", GAME, "--data", folder / "data", "--port", port]
    with (folder / "said").open("wb") as said:
        process = subprocess.Popen(
            [*map(str, command), "--config", str(config)], stderr=said, cwd=folder
        )
    try:
        until(lambda: is_ready(process, f"http://127.0.0.1:{port}", folder / "said"))
        yield f"http://127.0.0.1:{port}"
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(WAIT_S_MAX / 4)
        finally:
            process.kill()
            process.wait()
    assert process.returncode == 0, (folder / "said").read_text()


def is_ready(process, url, said):
    assert process.poll() is None, said.read_text()
    return f"runs at {url}" in said.read_text()


def until(is_so):
    deadline_s = time.monotonic() + WAIT_S_MAX
    while not is_so():
        assert time.monotonic() < deadline_s
        time.sleep(0.2)


def answers(url):
    """Return what tables and views answer with, what tells of an arrival left out."""
    found = {}
    for path in [f"tables/{t}" for t in TABLES] + [f"views/{v}" for v in VIEWS]:
        answer = httpx2.get(f"{url}/v1/{path}", params={"limit": 1_000}, timeout=60)
        rows = answer.raise_for_status().json()["rows"]
        kept = [{k: v for k, v in row.items() if k not in OF_ITS_ARRIVAL} for row in rows]
        found[path] = Counter(json.dumps(row, sort_keys=True) for row in kept)
    return found


def play(url):
    for (path, host), (_, times) in ASKED.items():
        headers = {"host": host, "user-agent": "player", "accept": "*/*"}
        for _ in range(times):
            httpx2.get(f"{url}{path}", headers=headers, timeout=60).raise_for_status()


def counted(url):
    """Return how many events the views count."""
    rows = [
        row
        for view in ("hosts_by_event", "hosts_by_message")
        for row in httpx2.get(f"{url}/v1/views/{view}", timeout=60).json().get("rows", ())
    ]
    return Counter({(row["event_type"], row["host"]): row["n"] for row in rows})


SENT = Counter({(kind, host): times for (_, host), (kind, times) in ASKED.items()})


def outcome(folder, deployment):
    with running(folder, deployment) as url:
        play(url)
        until(lambda: counted(url) == SENT)
        return answers(url)


@pytest.fixture(scope="module")
def on_one_machine(tmp_path_factory):
    return outcome(tmp_path_factory.mktemp("first"), "")


def test_the_game_answers_on_one_machine(on_one_machine):
    assert on_one_machine["tables/events"].total() == sum(SENT[k] for k in SENT if k[0] in EVENTS)
    assert on_one_machine["views/guilds"] == Counter([json.dumps({"guild": "red", "members": 4})])


@pytest.mark.parametrize(
    ("log", "runner"), [("embedded", "spark"), ("kafka", "local"), ("kafka", "spark")]
)
def test_the_game_answers_the_same(log, runner, request, on_one_machine, tmp_path):
    deployment = ""
    if log == "kafka":
        kafka = KafkaPlace(request.getfixturevalue("kafka")).kafka
        deployment += f'[kafka]\nbootstrap = "{kafka.bootstrap}"\nprefix = "{kafka.prefix}"\n'
    if runner == "spark":
        deployment += '[spark]\nmaster = "local[2]"\n'
    assert outcome(tmp_path, deployment) == on_one_machine
