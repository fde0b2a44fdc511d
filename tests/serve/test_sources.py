"""Sources over HTTP, without anything that pulls."""

from __future__ import annotations

import dataclasses
import json

import msgspec
import pytest

from headrace.control.progress import PROGRESS_FILE, SourceProgress
from headrace.model.errors import Invalid
from headrace.model.options import option
from headrace.model.pipeline_options import Options
from headrace.model.plan import Plan, Source, Topic
from headrace.serve.sources import SourceParts

SOURCES = "/v1/sources"
PLAN = Plan(
    "p",
    topics=(Topic("t", 1),),
    sources=(Source("own", "service", "t", {}),),
    options=Options(add_sources=True),
)


@dataclasses.dataclass(frozen=True)
class ServiceOptions:
    """Options of a made-up service."""

    url: str = option("https://example.org", doc="Where it is.", example="https://example.org")
    page: int = option(10, doc="Records a page.", example=5, at_least=1)


def options_of(kind):
    if kind != "service":
        raise Invalid(f"There is no source of kind {kind}", code="unknown_source_kind")
    return ServiceOptions


@pytest.fixture
def client(world, make_client):
    return make_client(PLAN, sources=SourceParts(options_of, world.log))


def add(client, body, **headers):
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    headers = {"content-type": "application/json"} | headers
    return client.ask(SOURCES, "POST", content=content, headers=headers)


def wanted(name="s", **more):
    return {"name": name, "kind": "service", "topic": "t", **more}


def states(client):
    return {s["name"]: s["state"] for s in client.get(SOURCES).json()["sources"]}


def test_from_added_to_removed(client):
    answer = add(client, wanted(options={"page": 5}))
    assert answer.status_code == 201, answer.text
    told = answer.json()
    assert (told["name"], told["kind"], told["options"]) == ("s", "service", {"page": 5})
    assert told["added_at"].endswith("Z")
    assert states(client) == {"own": "stopped", "s": "stopped"}
    assert client.ask(f"{SOURCES}/s/pause", "POST").json()["state"] == "paused"
    assert client.ask(f"{SOURCES}/own/pause", "POST").json()["state"] == "paused"
    assert states(client) == {"own": "paused", "s": "paused"}
    assert client.ask(f"{SOURCES}/s/resume", "POST").json()["state"] == "stopped"
    assert client.ask(f"{SOURCES}/s", "DELETE").json() == {"removed": "s"}
    assert states(client) == {"own": "paused"}


def test_progress_is_listed(client, world):
    told = SourceProgress(
        "own", "running", sweep=2, records_in_all=90, remaining=30, records_per_s=1.5
    )
    told.eta_s, told.waiting_for = 20.0, "the <service>"
    (world.layout.run / PROGRESS_FILE).write_bytes(msgspec.json.encode([told]))
    world.log.put_if("source/own/cursor", 0, b'{"records": 60, "pages": 2}')
    (own,) = client.get(SOURCES).json()["sources"]
    assert own["state"] == "running"
    assert (own["records"], own["pages"], own["sweep"]) == (60, 2, 2)
    assert (own["remaining"], own["records_per_s"], own["eta_s"]) == (30, 1.5, 20.0)
    assert client.get(f"{SOURCES}/own").json() == own
    page = client.get("/_/sources").text
    assert "the &lt;service&gt;" in page
    missing = client.get(f"{SOURCES}/other")
    assert (missing.status_code, missing.json()["error"]["code"]) == (404, "unknown_source")


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (b"", 400, "invalid_body"),
        (b"\xff", 400, "invalid_body"),
        ({"name": "s"}, 400, "invalid_body"),
        (wanted(more=1), 400, "invalid_body"),
        (wanted(options={"page": [1]}), 400, "invalid_body"),
        (wanted(options={"page": "x"}), 400, "invalid_options"),
        (wanted(options={"url": "http://169.254.169.254/"}), 400, "metadata_address"),
        (wanted(kind="replay"), 400, "unknown_source_kind"),
        (wanted(topic="x"), 400, "unknown_topic"),
        (wanted("../s"), 400, "bad_name"),
        (wanted("OWN"), 409, "source_exists"),
    ],
)
def test_what_cannot_be_added_says_why(client, body, status, code):
    answer = add(client, body)
    error = answer.json()["error"]
    assert (answer.status_code, error["code"]) == (status, code)
    assert error["message"]
    assert states(client) == {"own": "stopped"}


def test_what_is_not_there_cannot_be_changed(client):
    for path, method, status, code in (
        (f"{SOURCES}/x/pause", "POST", 404, "unknown_source"),
        (f"{SOURCES}/x/resume", "POST", 404, "unknown_source"),
        (f"{SOURCES}/x", "DELETE", 404, "unknown_source"),
        (f"{SOURCES}/own", "DELETE", 409, "source_of_pipeline"),
        (f"{SOURCES}/own", "PUT", 405, "method_not_allowed"),
    ):
        answer = client.ask(path, method)
        assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)


def test_pages_of_other_sites_change_nothing(client):
    add(client, wanted())
    theirs = {"origin": "https://evil.example"}
    for told in (
        theirs,
        {"origin": "null"},
        {"origin": "http://["},
        {"sec-fetch-site": "same-site"},
    ):
        for path, method in ((f"{SOURCES}/s/pause", "POST"), (f"{SOURCES}/s", "DELETE")):
            answer = client.ask(path, method, headers=told)
            assert (answer.status_code, answer.json()["error"]["code"]) == (403, "forbidden")
    form = {"content-type": "text/plain"} | theirs
    assert add(client, wanted("other"), **form).status_code == 415
    assert states(client) == {"own": "stopped", "s": "stopped"}
    ours = {"origin": "http://localhost"}
    assert client.ask(f"{SOURCES}/s/pause", "POST", headers=ours).status_code == 200


def test_a_pipeline_that_takes_no_sources_says_so(world, make_client):
    plan = Plan("p", topics=PLAN.topics)
    made = make_client(plan, sources=SourceParts(options_of, world.log))
    answer = add(made, wanted())
    assert (answer.status_code, answer.json()["error"]["code"]) == (403, "sources_closed")
    assert made.get(SOURCES).json() == {"sources": []}


def test_the_paths_are_described(client):
    described = client.get("/openapi.json").json()["paths"]
    assert set(described[SOURCES]) == {"get", "post"}
    served = {p for p in (getattr(r, "path", "") for r in client.app.routes) if SOURCES in p}
    assert served == {p for p in described if p.startswith(SOURCES)}
