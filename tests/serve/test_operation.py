"""Health, readiness, metrics, and errors on every path."""

import json
import re
import socket

import duckdb
import pytest
from prometheus_client.parser import text_string_to_metric_families

from headrace.model.errors import Corrupt, Internal, Invalid, Unavailable
from headrace.serve import formats
from headrace.serve.answers import Answer, Answers
from headrace.serve.metrics import METRICS, merged
from headrace.serve.query import failure


def beat(world, state="running", age_s=0.0):
    status = {"at_us": world.clock.now_us() - int(age_s * 1e6), "state": state, "epoch": 1}
    (world.layout.run / "process.json").write_text(json.dumps(status))


def test_healthz_queries(client, world):
    assert client.get("/healthz").json() == {"healthy": True, "epoch": 0}
    world.epoch([world.sale(0)])
    assert client.get("/healthz").json() == {"healthy": True, "epoch": 1}


def test_healthz_says_what_is_broken(client, world):
    world.epoch([world.sale(0)])
    for file in (world.layout.root / "system/ledger").glob("*.parquet"):
        file.write_bytes(b"PAR1 no more")
    answer = client.get("/healthz")
    assert answer.status_code >= 500
    assert answer.json()["error"]["message"]


def test_alone_only_the_data_counts(client):
    assert client.get("/ready").json() == {"ready": True, "checks": {"data": "ok"}}


def test_ready_wants_the_collector_and_a_process_that_reports(make_client, world):
    client = make_client(alone=False)
    answer = client.get("/ready")
    assert answer.status_code == 503
    assert answer.headers["retry-after"] == "1"
    body = answer.json()
    assert body["error"]["code"] == "not_ready"
    assert body["ready"] is False
    assert set(body["checks"]) == {"data", "collect", "process"}
    with socket.socket(socket.AF_UNIX) as door:
        door.bind(str(world.layout.door))
        door.listen()
        beat(world)
        assert client.get("/ready").json()["checks"] == {
            "data": "ok",
            "collect": "ok",
            "process": "ok",
        }
        beat(world, age_s=60)
        assert "not reported for 60 s" in client.get("/ready").json()["checks"]["process"]
        beat(world, "stopped")
        assert "stopped" in client.get("/ready").json()["checks"]["process"]
        (world.layout.run / "process.json").write_text("{")
        assert client.get("/ready").status_code == 503


def families(text):
    return {f.name: f for f in text_string_to_metric_families(text)}


def test_metrics_of_every_role_are_one_text(client, world):
    for role, value in (("collect", 3), ("process", 4)):
        (world.layout.run / f"metrics-{role}.prom").write_text(
            "# HELP headrace_things_total Things\n# TYPE headrace_things_total counter\n"
            f'headrace_things_total{{role="{role}"}} {value}\n'
        )
    client.get("/v1/tables")
    client.get("/nowhere")
    client.get("/v1/tables/no-such-table")
    answer = client.get("/metrics")
    assert answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    assert len(re.findall("# TYPE headrace_things_total", answer.text)) == 1
    found = families(answer.text)
    assert {s.value for s in found["headrace_things"].samples} == {3, 4}
    requests = found["headrace_serve_requests"].samples
    seen = {(s.labels["path"], s.labels["status"]) for s in requests if s.name.endswith("_total")}
    # Paths that clients make up would make the metrics grow without bound.
    assert seen == {("/v1/tables", "200"), ("/v1/tables/{table}", "404")}
    ages = found["headrace_role_report_age_seconds"].samples
    assert {s.labels["role"] for s in ages} == {"collect", "process"}


def test_every_metric_has_its_meaning_and_no_other_is_told(client, world):
    client.get("/healthz")
    (world.layout.run / "metrics-x.prom").write_text("")
    found = families(client.get("/metrics").text)
    told = {f"{name}_total" if f.type == "counter" else name for name, f in found.items()}
    assert told == set(METRICS)
    for name, family in found.items():
        meaning = METRICS.get(name) or METRICS[f"{name}_total"]
        assert family.documentation == meaning


def test_metrics_that_make_no_sense_do_not_spoil_the_others(client, world):
    (world.layout.run / "metrics-bad.prom").write_bytes(b"\xff\xfe")
    assert client.get("/metrics").status_code == 200
    assert merged([]) == ""
    assert merged(["a 1\n", "a 2\n"]) == "a 1\na 2\n"


@pytest.mark.parametrize(
    "path",
    [
        "/nope",
        "/v1",
        "/v1/",
        "/v1/tables/",
        "/v1/sqll",
        "/_/nope",
        "/_/../run.py",
        "/favicon.ico",
    ],
)
def test_unknown_paths_have_the_one_shape_of_errors(shop, path):
    answer = shop.ask(path)
    assert answer.status_code == 404
    assert set(answer.json()) == {"error"}
    assert set(answer.json()["error"]) == {"code", "message", "hint"}


@pytest.mark.parametrize("path", ["/", "/v1/tables", "/v1/tables/sales", "/metrics", "/docs"])
def test_other_methods_have_too(shop, path):
    answer = shop.ask(path, "POST", content=b"x")
    assert answer.status_code == 405
    assert answer.json()["error"]["hint"].startswith("Use ")
    assert "GET" in answer.headers["allow"]


@pytest.mark.parametrize("path", ["/", "/v1/tables/sales", "/openapi.json", "/healthz", "/count"])
def test_head_is_get_without_a_body(shop, path):
    head, get = shop.ask(path, "HEAD"), shop.ask(path)
    assert head.content == b""
    assert head.status_code == get.status_code
    assert head.headers["content-type"] == get.headers["content-type"]


def test_a_bug_is_answered_in_the_shape_of_errors_and_tells_nothing(client, world, caplog):
    def broken(*_):
        raise RuntimeError("secret /path of ours")

    world.tables.snapshot = broken
    world.epoch([world.sale(0)])
    answer = client.get("/v1/tables/sales")
    assert answer.status_code == 500
    assert answer.json()["error"]["code"] == "internal"
    assert "secret" not in answer.text
    assert "secret" in caplog.text


def test_damage_is_told_not_served(client, world):
    world.epoch([world.sale(i) for i in range(100)])
    for file in (world.layout.root / "tables/sales").glob("*.parquet"):
        content = bytearray(file.read_bytes())
        content[40:60] = bytes(20)
        file.write_bytes(bytes(content[:-30]))
    answer = client.get("/v1/tables/sales")
    assert answer.status_code >= 500
    assert "Traceback" not in answer.text
    assert "rows" not in answer.json()


def test_too_many_waiting_requests_are_told_to_come_back(client, monkeypatch):
    monkeypatch.setattr("headrace.serve.query.WAITING_MAX", 0)
    answer = client.get("/v1/tables")
    assert answer.status_code == 503
    assert answer.json()["error"]["code"] == "busy"
    assert int(answer.headers["retry-after"]) >= 1


def test_a_page_asked_again_is_the_same_bytes_until_the_version_changes(client, world, monkeypatch):
    world.epoch([world.sale(0)])
    encoded = []
    encode = formats.encode
    monkeypatch.setattr(formats, "encode", lambda *a, **k: encoded.append(1) or encode(*a, **k))
    first = client.get("/v1/tables/sales")
    assert client.get("/v1/tables/sales").content == first.content
    assert client.get("/v1/tables/sales", format="csv").content != first.content
    assert client.get("/v1/tables/sales", n="5").json()["rows"] == []
    world.epoch([world.sale(1)])
    assert len(client.rows("/v1/tables/sales")) == 2
    assert len(encoded) == 4


def test_answers_are_held_up_to_a_number_of_bytes(monkeypatch):
    monkeypatch.setattr("headrace.serve.answers.BYTES_MAX", 10)
    monkeypatch.setattr("headrace.serve.answers.ANSWER_BYTES_MAX", 6)
    answers = Answers()
    made = []

    def ask(key, size):
        def make():
            made.append(key)
            return Answer(b"x" * size, None)

        return answers.get(key, make)

    for key, size in (("a", 5), ("b", 5), ("a", 5), ("c", 5), ("a", 5), ("b", 5), ("d", 7)):
        assert len(ask(key, size).body) == size
    # b was used least recently when c came; d is too large to be held at all.
    assert made == ["a", "b", "c", "b", "d"]
    ask("d", 7)
    assert made[-1] == "d"


@pytest.mark.parametrize(
    ("error", "kind", "code"),
    [
        (duckdb.IOException("IO Error: No files found that match"), Unavailable, "file_gone"),
        (
            duckdb.IOException("IO Error: Cannot open file x: No such file"),
            Unavailable,
            "file_gone",
        ),
        (duckdb.IOException("IO Error: Read error"), Corrupt, "corrupt"),
        (duckdb.InvalidInputException("No magic bytes found"), Corrupt, "corrupt"),
        (duckdb.InvalidInputException("Could not parse string"), Invalid, "invalid_value"),
        (duckdb.OutOfRangeException("Overflow"), Invalid, "invalid_value"),
        (duckdb.OutOfMemoryException("no"), Unavailable, "query_memory"),
        (duckdb.InterruptException("Interrupted"), Unavailable, "query_timeout"),
        (duckdb.BinderException("no column"), Internal, "query_failed"),
    ],
)
def test_what_the_engine_says_becomes_what_to_do(error, kind, code):
    told = failure(error)
    assert isinstance(told, kind)
    assert told.code == code


def test_an_engine_that_is_beyond_help_says_so(client):
    engine = client.app.state.engine
    told = []
    engine.on_broken = lambda: told.append(1)

    def die(_):
        cause = duckdb.FatalException("FATAL Error")
        raise failure(cause) from cause

    with pytest.raises(Internal):
        client.runner.run(engine.run(die, 1.0))
    assert told == [1]


def test_a_relation_is_held_in_memory_only_if_it_is_small(client, world, monkeypatch):
    world.epoch([world.sale(i) for i in range(3)])

    def kinds(session):
        relation = client.app.state.readings.catalog.table("sales")
        seen = []
        for _ in range(3):
            session.prepare([relation])
            seen.append(session._known["sales"][1])
            assert session.select("SELECT count(*) AS n FROM sales")["n"][0].as_py() == 3
        return seen

    engine = client.app.state.engine
    monkeypatch.setattr("headrace.serve.query.HELD_ROWS_MAX", 2)
    assert client.runner.run(engine.run(kinds, 9.0, urgent=True)) == ["VIEW", "VIEW", "VIEW"]
    monkeypatch.setattr("headrace.serve.query.HELD_ROWS_MAX", 3)
    world.epoch([], offsets={"events/0": 9})
    assert client.runner.run(engine.run(kinds, 9.0, urgent=True)) == ["TABLE", "TABLE", "TABLE"]
