"""Tokens as their owner makes them, and a run that asks for them."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
import zlib
from pathlib import Path

import httpx2
import pytest

from headrace.app.cluster.ports import free_port

HEADRACE = Path(sys.executable).parent / "headrace"
DEADLINE_S = 60

PIPELINE = """
from headrace import Pipeline, Record

pipeline = Pipeline("readings"%s)


class Reading(Record):
    station: str
    celsius: float | None = None


readings = pipeline.topic("readings", Reading, partitions=2)
pipeline.route("/ping/{station}", readings, {"station": "{station}"})
pipeline.view("by_station", "SELECT station, count(*) AS n FROM readings GROUP BY station")
pipeline.query("/stations", "SELECT station, n FROM by_station ORDER BY station")
"""
ASKING = ", tokens=True, add_sources=True"
SHOP = "https://shop.example"


# --- the verb


def test_tokens_are_made_before_the_first_run_and_listed_without_their_secrets(headrace):
    made = headrace("tokens", "create", "--scope", "admin", "--name", "owner")
    text = made.out.strip()
    assert made.status == 0
    assert re.fullmatch(r"hr_api_[0-9a-f]{16}_[0-9a-f]{64}_[0-9a-f]{8}", text)
    assert text not in made.err
    told = headrace(
        "tokens", "create", "--scope", "append:events", "--scope", "append:more", "--expires",
        "7 days", "--origin", SHOP, "--json",
    ).json()  # fmt: skip
    assert told["token"].startswith("hr_browser_")
    assert (told["scopes"], told["origins"]) == (["append:events", "append:more"], [SHOP])
    assert told["expires_at"] > told["created_at"]
    listed = headrace("tokens", "list", "--json")
    assert [t["name"] for t in listed.json()] == ["", "owner"]
    shown = headrace("tokens", "list")
    for secret in (text, told["token"], text.split("_")[3], told["token"].split("_")[3]):
        assert secret not in listed.out + shown.out + str(told["id"])
    assert text.split("_")[2] in shown.out


def test_tokens_are_revoked_by_id_or_by_the_token_that_leaked(headrace):
    ids = [headrace("tokens", "create", "--scope", "read", "--json").json() for _ in range(2)]
    assert headrace("tokens", "revoke", ids[0]["id"], "--json").json()["state"] == "revoked"
    said = headrace("tokens", "revoke", ids[1]["token"])
    assert ids[1]["token"] not in said.out + said.err
    assert {t["state"] for t in headrace("tokens", "list", "--json").json()} == {"revoked"}


@pytest.mark.parametrize(
    "words",
    [
        ("create",),
        ("create", "--scope", "everything"),
        ("create", "--scope", "read", "--expires", "soon"),
        ("create", "--scope", "read", "--expires", "0 days"),
        ("create", "--scope", "read", "--origin", SHOP),
        ("create", "--scope", "append:a", "--origin", "shop"),
        ("revoke", "ab"),
        ("list",),
    ],
    ids=" ".join,
)
def test_what_makes_no_sense_is_the_users_fault_and_makes_nothing(words, headrace, tmp_path):
    ended = headrace("tokens", *words)
    assert ended.status == 1
    assert ended.err
    assert not (tmp_path / "data").exists()


# --- a run


class Run:
    """`headrace run` in the background, all that it prints kept in a file."""

    def __init__(self, folder, *words):
        self.folder = folder
        self.url = f"http://127.0.0.1:{(port := free_port())}"
        self.printed = folder / "printed"
        with self.printed.open("ab") as file:
            self.process = subprocess.Popen(
                [HEADRACE, "run", "pipeline.py", "--port", str(port), *words],
                cwd=folder,
                stdout=file,
                stderr=file,
            )

    def __enter__(self):
        wait(lambda: self.url in self.printed.read_text())
        self.http = httpx2.Client(base_url=self.url, timeout=30)
        wait(lambda: self("GET", "/healthz").status_code == 200)
        return self

    def __exit__(self, *_):
        self.http.close()
        self.process.send_signal(signal.SIGTERM)
        self.ended = self.process.wait(30)

    def __call__(self, method, path, token=None, **more):
        headers = more.pop("headers", {})
        if token is not None:
            headers = {**headers, "authorization": f"Bearer {token}"}
        return self.http.request(method, path, headers=headers, **more)


def wait(is_so):
    """Wait until something holds; fail after a while."""
    deadline_s = time.monotonic() + DEADLINE_S
    while not is_so():
        assert time.monotonic() < deadline_s
        time.sleep(0.05)


@pytest.fixture
def verb(headrace, tmp_path):
    """Return a function that runs a verb and keeps what it printed, but for tokens just made."""

    def verb(*words):
        ended = headrace(*words)
        assert ended.status == 0, ended
        made = words[:2] == ("tokens", "create")
        with (tmp_path / "printed").open("a") as file:
            file.write(ended.err if made else ended.err + ended.out)
        return ended.out.strip()

    return verb


def test_a_first_start_says_how_to_make_a_token(tmp_path):
    (tmp_path / "pipeline.py").write_text(PIPELINE % "")
    with Run(tmp_path, "--tokens") as run:
        assert run("GET", "/v1/tables").status_code == 401
        said = run.printed.read_text()
    assert "headrace tokens create --scope admin" in said
    assert run.ended == 0


def test_a_run_that_asks_for_tokens(tmp_path, verb):
    (tmp_path / "pipeline.py").write_text(PIPELINE % ASKING)
    admin = verb("tokens", "create", "--scope", "admin")
    with Run(tmp_path) as run:
        assert "there is none" not in run.printed.read_text()
        append = verb("tokens", "create", "--scope", "append:readings")
        read = verb("tokens", "create", "--scope", "read", "--name", "reader")
        key = verb("tokens", "create", "--scope", "append:readings", "--origin", SHOP)
        secrets = [admin, append, read, key]

        refuses_whoever_shows_no_token(run, admin)
        works_for_those_who_show_one(run, append, read, key)
        loaded = ("load", run.url, "--count", "5", "--mix", "/ping/c", "--json")
        assert json.loads(verb(*loaded, "--token", append))["acknowledged"] == 5
        guest = run("POST", "/v1/tokens", admin, json={"scopes": ["read"]}).json()["token"]
        secrets.append(guest)
        assert run("GET", "/stations", guest).status_code == 200
        verb("tokens", "revoke", guest.split("_")[2])
        wait(lambda: run("GET", "/stations", guest).status_code == 401)
        wait(lambda: run("GET", "/v1/topics", guest).status_code == 401)
        verb("tokens", "revoke", append.split("_")[2])
        wait(lambda: run("GET", "/ping/a", append).status_code == 401)

        for wrong in (f"{read[:-1]}", read.replace("_", "-"), guess(read)):
            assert run("GET", "/v1/tables", wrong).status_code == 401
        statuses = {run("GET", "/v1/tables", guess(read)).status_code for _ in range(30)}
        assert statuses == {401, 429}
        assert run("GET", "/v1/tables", read).status_code == 200
        assert json.loads(verb("status", "--json"))["running"]
    assert run.ended == 0
    verb("tokens", "list")
    holds_no_token(tmp_path, secrets)


def guess(text):
    """Return a token as it might be, with a sum that is right and a secret that is not."""
    kind, id_, secret = text.split("_")[1:4]
    body = f"hr_{kind}_{id_}_{secret[::-1]}"
    return f"{body}_{zlib.crc32(body.encode()):08x}"


def refuses_whoever_shows_no_token(run, admin):
    described = run("GET", "/openapi.json", admin).json()["paths"]
    assert {"/ping/{station}", "/v1/topics/readings", "/stations", "/v1/tokens"} <= set(described)
    for template, operations in described.items():
        path = re.sub(r"\{\w+\}", "some", template)
        for method in {*(m.upper() for m in operations), "GET", "POST", "DELETE", "OPTIONS"}:
            answer = run(method, path)
            if (method, template) == ("GET", "/healthz"):
                assert answer.status_code == 200
                continue
            assert answer.status_code == 401, (method, path)
            assert answer.json()["error"]["code"] == "unauthorized"
            in_query = run(method, f"{path}?token={admin}&access_token={admin}")
            assert in_query.status_code == 401, (method, path)
    assert run("GET", "/nothing").status_code == 401


def works_for_those_who_show_one(run, append, read, key):
    assert run("GET", "/ping/a", append).status_code == 200
    posted = {"station": "b", "celsius": 1.5}
    assert run("POST", "/v1/topics/readings", append, json=posted).status_code == 200
    origin = {"origin": SHOP}
    answer = run("POST", "/v1/topics/readings", key, json=posted, headers=origin)
    assert answer.status_code == 200
    assert answer.headers["access-control-allow-origin"] == SHOP
    asked = {**origin, "access-control-request-method": "POST"}
    assert run("OPTIONS", "/v1/topics/readings", headers=asked).status_code == 204
    assert run("GET", "/stations", append).status_code == 403
    assert run("GET", "/stations", key, headers=origin).status_code == 403
    assert run("GET", "/ping/a", read).status_code == 403
    assert run("POST", "/v1/tokens", read, json={"scopes": ["read"]}).status_code == 403
    acts = {"ids": ["some"]}
    assert run("POST", "/v1/dead-letters/discard", read, json=acts).status_code == 403
    stations = [{"station": "a", "n": 1}, {"station": "b", "n": 2}]
    wait(lambda: run("GET", "/stations", read).json()["rows"] == stations)
    for path in ("/", "/docs", "/ready", "/metrics", "/v1/topics", "/v1/topics/readings/records"):
        assert run("GET", path, read).status_code == 200, path


def holds_no_token(folder, texts):
    """Assert that no secret is in any file: the log, the tables, what was printed, …"""
    files = [p for p in folder.rglob("*") if p.is_file()]
    assert any("log" in p.parts for p in files)
    assert any(p.suffix == ".parquet" for p in files)
    for path in files:
        content = path.read_bytes()
        for text in texts:
            secret = text.split("_")[3]
            assert text.encode() not in content, path
            assert secret.encode() not in content, path
            assert bytes.fromhex(secret) not in content, path
