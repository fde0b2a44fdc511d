"""The game as its players and its analysts use it: the old commands, the old questions."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
from collections import Counter
from pathlib import Path

import duckdb
import httpx2
import polars as pl
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable
from run_example import ROOT, Run, headrace, told, until

REPLIES = {
    "/": "This is the default response!\n",
    "/purchase_a_sword": "Sword Purchased!\n",
    "/purchase_a_knife": "Knife Purchased!\n",
    "/buy_a_sword": "Sword Purchased!\n",
    "/join_guild/red": "Guild Joined!\n",
    "/request_group": "Request Submitted!\n",
    "/accept_member": "Member Accepted!\n",
    "/decline_member": "Member Declined!\n",
    "/message": "Message Sent!\n",
}
EVENT_TYPES = {
    "/": "default",
    "/purchase_a_sword": "purchase_sword",
    "/purchase_a_knife": "purchase_knife",
    "/buy_a_sword": "buy_sword",
    "/join_guild/red": "joined_guild:red",
    "/request_group": "request_group",
    "/accept_member": "accept_member",
    "/decline_member": "decline_member",
    "/message": "message",
}
TABLES = {
    "/": "default_event",
    "/purchase_a_sword": "purchase_sword",
    "/purchase_a_knife": "purchase_knife",
    "/buy_a_sword": "buy_sword",
    "/join_guild/red": "joined_guild",
    "/request_group": "request_group",
    "/accept_member": "accept_member",
    "/decline_member": "decline_member",
    "/message": "message",
}
MESSAGES = ("/request_group", "/accept_member", "/decline_member", "/message")
REPEATS = 10
AGENT = "ApacheBench/2.3"

COMCAST, ATT = "user1.comcast.com", "user2.att.com"
LOAD = {
    COMCAST: ("/purchase_a_sword", "/request_group", "/accept_member", "/join_guild/red"),
    ATT: ("/", "/purchase_a_knife", "/buy_a_sword", "/request_group", "/decline_member"),
}
"""Host header → what that player did, `REPEATS` times each."""


def curl(url, path, *more):
    """Return the reply to a request as curl makes it, by curl itself if it is there."""
    if shutil.which("curl"):
        command = ["curl", "-sS", "-f", *more, f"{url}{path}"]
        return subprocess.check_output(command, text=True, timeout=30)
    method = "POST" if "POST" in more else "GET"
    headers = {"user-agent": "curl/8.0", "accept": "*/*"}
    return httpx2.request(method, f"{url}{path}", headers=headers).raise_for_status().text


def ab(port, path, host):
    """Do what `ab -n 10 -H "Host: …"` does, by itself if it is there."""
    if shutil.which("ab"):
        url = f"http://127.0.0.1:{port}{path}"
        command = ["ab", "-q", "-n", str(REPEATS), "-H", f"Host: {host}", url]
        said = subprocess.check_output(command, text=True, timeout=60)
        fields = dict(line.split(":", 1) for line in said.splitlines() if ":" in line)
        assert fields["Complete requests"].strip() == str(REPEATS)
        assert fields["Failed requests"].strip() == "0"
        assert "Non-2xx responses" not in fields
        return
    for _ in range(REPEATS):
        status, reply = request_as_ab(port, path, host)
        assert (status, reply) == ("HTTP/1.1 200 OK", REPLIES[path])


def request_as_ab(port, path, host):
    """Return status line and body of one request, byte for byte as ab sends it."""
    request = f"GET {path} HTTP/1.0\r\nHost: {host}\r\nUser-Agent: {AGENT}\r\nAccept: */*\r\n\r\n"
    with socket.create_connection(("127.0.0.1", port), 10) as link:
        link.sendall(request.encode())
        answer = b"".join(iter(lambda: link.recv(65536), b""))
    head, _, body = answer.decode().partition("\r\n\r\n")
    return head.partition("\r\n")[0].replace("HTTP/1.0", "HTTP/1.1"), body


class Played:
    """A game that was played: what was sent, and where it went."""

    def __init__(self, run):
        self.run = run
        self.data = run.data
        self.sent = Counter()
        for path, reply in REPLIES.items():
            assert curl(run.url, path) == reply, path
            assert curl(run.url, path, "-X", "POST") == reply, path
            self.sent[path, f"127.0.0.1:{run.port}"] += 2
        for host, paths in LOAD.items():
            for path in paths:
                ab(run.port, path, host)
                self.sent[path, host] += REPEATS
        # ab speaks HTTP/1.0: the connection ends with the reply, which says so by its length too.
        status, reply = request_as_ab(run.port, "/message", COMCAST)
        assert (status, reply) == ("HTTP/1.1 200 OK", REPLIES["/message"])
        self.sent["/message", COMCAST] += 1
        self.total = self.sent.total()

    def on(self, path):
        """Return how often a path was asked for."""
        return sum(n for (p, _), n in self.sent.items() if p == path)

    def sql(self, query):
        return told("sql", "--data", self.data, query)

    def get(self, path, **params):
        return httpx2.get(f"{self.run.url}{path}", params=params).raise_for_status().json()["rows"]


@pytest.fixture(scope="module")
def game(tmp_path_factory):
    data = tmp_path_factory.mktemp("game") / "data"
    with Run(ROOT / "examples/game/pipeline.py", data) as run:
        played = Played(run)
        until(
            lambda: told("status", "--data", data),
            lambda said: sum(t["decoded"] for t in said["topics"].values()) == played.total,
        )
        # The views follow the tables by a moment.
        until(
            lambda: played.sql(
                "SELECT (SELECT sum(n) FROM hosts_by_event)::INT"
                " + (SELECT sum(n) FROM hosts_by_message)::INT AS n"
            ),
            lambda rows: rows == [{"n": played.total}],
        )
        yield played
    assert run.ended == 0


def test_every_request_is_a_row_with_its_headers(game):
    rows = game.sql(
        "SELECT event_type, host, user_agent, accept, count(*)::INT AS n FROM ("
        " SELECT event_type, host, user_agent, accept FROM events UNION ALL"
        " SELECT event_type, host, user_agent, accept FROM MessageHistory) GROUP BY ALL"
    )
    found = Counter()
    for row in rows:
        assert row["accept"] == "*/*"
        assert row["user_agent"].startswith(AGENT if row["host"] in LOAD else "curl/")
        found[row["event_type"], row["host"]] += row["n"]
    assert found == {(EVENT_TYPES[path], host): n for (path, host), n in game.sent.items()}


@pytest.mark.parametrize("path", TABLES)
def test_a_table_for_each_type_of_event(game, path):
    rows = game.get(f"/v1/tables/{TABLES[path]}", limit=1_000)
    assert len(rows) == game.on(path)
    for row in rows:
        assert row["event_type"] == EVENT_TYPES[path]
        assert row["Accept"] == "*/*"
        raw = json.loads(row["raw_event"])
        assert (raw["Host"], raw["User-Agent"]) == (row["Host"], row["User-Agent"])
        assert row["timestamp"] == row["received_at"]
    if path == "/join_guild/red":
        assert {row["guild"] for row in rows} == {"red"}
    if path == "/purchase_a_knife":
        assert {json.loads(row["raw_event"])["description"] for row in rows} == {"very sharp knife"}


def test_how_many_asked_how_many_were_accepted_and_from_where(game):
    (row,) = game.get("/v1/views/group_requests")
    assert row == {
        "requested": game.on("/request_group"),
        "accepted": game.on("/accept_member"),
        "declined": game.on("/decline_member"),
        "hosts": len({host for path, host in game.sent if path in MESSAGES}),
    }


@pytest.mark.parametrize("path", REPLIES)
def test_hosts_of_an_event(game, path):
    hosts = {host: n for (p, host), n in game.sent.items() if p == path}
    rows = game.get("/hosts", event_type=EVENT_TYPES[path])
    assert {r["host"]: r["n"] for r in rows} == hosts
    assert [r["n"] for r in rows] == sorted(hosts.values(), reverse=True)


def test_purchases_counted_by_what_is_asked(game):
    items = {"/purchase_a_sword": "sword", "/buy_a_sword": "sword", "/purchase_a_knife": "knife"}
    by_item, by_host = Counter(), Counter()
    for (path, host), n in game.sent.items():
        if path in items:
            by_item[items[path]] += n
            by_host[host] += n
    assert {r["item"]: r["n"] for r in game.get("/count", by="item")} == by_item
    assert {r["host"]: r["n"] for r in game.get("/count", by="host")} == by_host
    refused = httpx2.get(f"{game.run.url}/count", params={"by": "price"})
    assert refused.status_code == 400
    assert "host, item" in refused.json()["error"]["hint"]


def test_guilds_and_minutes(game):
    assert game.get("/v1/views/guilds") == [{"guild": "red", "members": game.on("/join_guild/red")}]
    events = sum(n for (path, _), n in game.sent.items() if path not in MESSAGES)
    assert sum(r["n"] for r in game.get("/v1/views/events_per_minute")) == events


def test_tail_prints_a_topic_from_its_beginning_to_its_end(game):
    for topic, is_message in (("events", False), ("MessageHistory", True)):
        out = headrace("tail", topic, "--data", game.data, "--from", "beginning", "--exit")
        found = Counter()
        for line in out.splitlines():
            event = json.loads(line)
            found[event["event_type"], event["Host"]] += 1
        assert found == {
            (EVENT_TYPES[path], host): n
            for (path, host), n in game.sent.items()
            if (path in MESSAGES) == is_message
        }


def test_a_topic_is_read_back_in_a_batch(game):
    """From the earliest to the latest offset into a data frame, without the tables."""
    rows = []
    for topic in httpx2.get(f"{game.run.url}/v1/topics").json()["topics"]:
        for partition in range(topic["partitions"]):
            offset = 0
            while True:
                answer = httpx2.get(
                    f"{game.run.url}/v1/topics/{topic['name']}/records",
                    params={"partition": partition, "offset": offset},
                ).json()
                rows += [(topic["name"], partition, r["offset"]) for r in answer["records"]]
                if not answer["records"]:
                    break
                offset = rows[-1][2] + 1
    frame = pl.DataFrame(rows, schema=["topic", "partition", "offset"], orient="row")
    assert frame.height == game.total
    assert frame.unique().height == game.total


def files(game, kind, name):
    """Return the data files of a table as its Delta log names them."""
    return DeltaTable(str(Path(game.data) / kind / name)).file_uris()


def test_a_table_as_a_data_frame(game):
    """Each reader by itself, with no code of ours; the log names the files."""
    place = str(Path(game.data) / "tables" / "events")
    expected = Counter()
    for (path, _), n in game.sent.items():
        if path not in MESSAGES:
            expected[EVENT_TYPES[path]] += n
    pandas = DeltaTable(place).to_pandas()
    assert pandas["event_type"].value_counts().to_dict() == expected
    polars = pl.read_delta(place).group_by("event_type").len()
    assert dict(polars.rows()) == expected
    arrow = DeltaTable(place).to_pyarrow_table()
    assert Counter(arrow.column("event_type").to_pylist()) == expected
    query = "SELECT event_type, count(*) FROM read_parquet(?) GROUP BY 1"
    with duckdb.connect() as connection:
        counted = connection.execute(query, [files(game, "tables", "events")]).fetchall()
    assert dict(counted) == expected


VIEW_KEYS = {
    "hosts_by_event": ["event_type", "host"],
    "hosts_by_message": ["event_type", "host"],
    "group_requests": [],
    "purchases_by_host": ["host", "item"],
    "guilds": ["guild"],
    "events_per_minute": ["event_type", "window_start"],
}


@pytest.mark.parametrize("view", VIEW_KEYS)
def test_a_view_has_one_row_a_key_to_every_reader(game, view):
    place = str(Path(game.data) / "views" / view)
    keys = VIEW_KEYS[view] or ["requested"]
    columns = ", ".join(keys)
    named = files(game, "views", view)
    with duckdb.connect() as connection:
        counted = connection.execute(
            f"SELECT count(*), count(DISTINCT ({columns})) FROM read_parquet(?)", [named]
        ).fetchone()
    arrow = pq.ParquetDataset([n.removeprefix("file://") for n in named]).read()
    pandas = DeltaTable(place).to_pandas()
    polars = pl.read_delta(place)
    n = len(game.get(f"/v1/views/{view}"))
    assert counted == (n, n)
    assert arrow.num_rows == arrow.group_by(keys).aggregate([]).num_rows == n
    assert len(pandas) == len(pandas.drop_duplicates(keys)) == n
    assert polars.height == polars.unique(subset=keys).height == n
    if not VIEW_KEYS[view]:
        assert n == 1
