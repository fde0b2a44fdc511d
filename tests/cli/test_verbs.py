"""The verbs that need no run: what they print, what they refuse, and with which status."""

from __future__ import annotations

import gzip
import http.server
import json
import socket
import threading

import click
import pytest

from headrace.app.cli.init import TEMPLATES
from headrace.app.cli.main import VERBS, cli
from headrace.app.data_directory import writing_log
from headrace.app.load.sender import Load, Target
from headrace.app.load.traffic import Traffic
from headrace.model.batch import UNMARKED
from headrace.model.clock import ManualClock, SystemClock
from headrace.model.layout import Layout


def every_command(group=cli, path=()):
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        yield (*path, name), command
        if isinstance(command, click.Group):
            yield from every_command(command, (*path, name))


COMMANDS = dict(every_command())


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_every_verb_helps(path, headrace):
    ended = headrace(*path, "--help")
    assert ended.status == 0
    assert ended.err == ""
    assert f"Usage: headrace {' '.join(path)}" in ended.out


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_every_option_of_every_verb_says_what_it_does(path):
    for parameter in COMMANDS[path].params:
        if isinstance(parameter, click.Option):
            assert parameter.help, parameter.name


def test_every_verb_that_is_listed_can_be_loaded():
    assert {path[0] for path in COMMANDS} == set(VERBS)


@pytest.mark.parametrize(
    "arguments",
    [
        ("nonsense",),
        ("tail",),
        ("tail", "events", "--from", "middle"),
        ("run", "missing.py"),
        ("topics", "create", "x", "--partitions", "0"),
        ("dlq", "replay"),
    ],
    ids=" ".join,
)
def test_wrong_use_is_the_users_fault_and_told_without_a_traceback(arguments, headrace):
    ended = headrace(*arguments)
    assert ended.status == 1
    assert ended.out == ""
    assert ended.err.startswith("error: ")
    assert "Traceback" not in ended.err


@pytest.mark.parametrize(
    "arguments",
    [
        ("topics", "list"),
        ("tail", "events"),
        ("produce", "events"),
        ("status",),
        ("tables",),
        ("sql", "SELECT 1"),
        ("dlq", "list"),
        ("outputs", "list"),
        ("backup", "elsewhere"),
    ],
    ids=" ".join,
)
def test_a_missing_data_directory_is_named_with_a_hint(arguments, headrace, tmp_path):
    ended = headrace(*arguments)
    assert ended.status == 1
    assert f"no data directory at {tmp_path / 'data'}" in ended.err
    assert "--data" in ended.err
    assert not (tmp_path / "data").exists()


# --- pipeline files


@pytest.mark.parametrize("template", TEMPLATES)
def test_what_init_writes_passes_the_check(template, headrace, tmp_path):
    assert headrace("init", template).status == 0
    ended = headrace("check", "pipeline.py")
    assert (ended.status, ended.err) == (0, "")
    assert "pipeline.py is fine" in ended.out
    assert headrace("check", "pipeline.py", "--json").json() == []


def test_init_does_not_write_over_a_file(headrace, tmp_path):
    (tmp_path / "pipeline.py").write_text("mine")
    ended = headrace("init")
    assert ended.status == 1
    assert "exists already" in ended.err
    assert (tmp_path / "pipeline.py").read_text() == "mine"


def test_init_does_not_write_over_what_a_template_reads(headrace, tmp_path):
    (tmp_path / "plant").mkdir()
    (tmp_path / "plant" / "workorder.ndjson").write_text("mine")
    ended = headrace("init", "factory")
    assert ended.status == 1
    assert "plant/workorder.ndjson exists already" in ended.err
    assert not (tmp_path / "pipeline.py").exists()


BROKEN = """from headrace import Pipeline, Record
pipeline = Pipeline("broken")
class Event(Record):
    name: str
events = pipeline.topic("events", Event)
pipeline.table("t", "SELECT nope FROM events")
pipeline.view("v", "SELECT name, row_number() OVER () AS n FROM events GROUP BY name")
"""


def test_check_tells_every_fault_with_its_line(headrace, tmp_path):
    (tmp_path / "broken.py").write_text(BROKEN)
    ended = headrace("check", "broken.py")
    assert ended.status == 1
    assert "broken.py:6: " in ended.out
    assert "broken.py:7: " in ended.out
    assert "hint: " in ended.out
    problems = headrace("check", "broken.py", "--json").json()
    assert [p["line"] for p in problems] == [6, 7]
    assert all(p["message"] and p["code"] and p["file"].endswith("broken.py") for p in problems)


def test_a_source_that_cannot_be_opened_is_a_fault_of_the_file(headrace, tmp_path):
    (tmp_path / "p.py").write_text(
        'from headrace import Pipeline\npipeline = Pipeline("p")\n'
        'events = pipeline.topic("events")\n\n'
        'pipeline.table("t", "SELECT event_id FROM events")\n'
        'pipeline.source("old", kind="replay", topic=events, pth="x")\n'
    )
    (problem,) = headrace("check", "p.py", "--json").json()
    assert problem["line"] == 6
    assert "pth is unknown (did you mean path?)" in problem["message"]


def test_other_verbs_refuse_a_broken_file_with_all_its_faults(headrace, tmp_path):
    (tmp_path / "broken.py").write_text(BROKEN)
    ended = headrace("plan", "broken.py")
    assert ended.status == 1
    assert "broken.py has 2 faults" in ended.err


def test_plan_says_what_is_kept_and_where_it_begins(headrace):
    headrace("init", "game")
    ended = headrace("plan", "pipeline.py")
    assert ended.status == 0
    assert "/join_guild/{guild}" in ended.out
    assert "per_minute" in ended.out
    assert "new, from the beginning" in ended.out
    told = headrace("plan", "pipeline.py", "--json").json()
    assert told["plan"]["name"] == "game"
    assert told["begins"]["views/per_minute"] == "new, from the beginning"


# --- topics, produce, tail


def test_topics_are_created_described_and_deleted(headrace):
    assert headrace("topics", "create", "a", "--partitions", "2").status == 0
    assert headrace("topics", "create", "a", "--partitions", "2").status == 0
    assert headrace("topics", "create", "a", "--partitions", "3").status == 1
    assert headrace("topics", "list", "--json").json() == [
        {"topic": "a", "partitions": 2, "kept": 0, "appended": 0}
    ]
    told = headrace("topics", "describe", "a", "--json").json()
    assert told["partitions"] == [{"partition": p, "start": 0, "end": 0} for p in (0, 1)]
    assert headrace("topics", "delete", "a", "--yes").status == 0
    assert headrace("topics", "list", "--json").json() == []
    assert headrace("topics", "describe", "a").status == 1


def test_deleting_a_topic_asks_first(headrace):
    headrace("topics", "create", "a")
    assert headrace("topics", "delete", "a", stdin=b"n\n").status != 0
    assert len(headrace("topics", "list", "--json").json()) == 1


def test_what_is_produced_can_be_read_back_in_order(headrace):
    headrace("topics", "create", "a", "--partitions", "3")
    sent = [b'{"n": %d}' % n for n in range(2_500)]
    ended = headrace("produce", "a", "--json", stdin=b"\n".join(sent))
    assert ended.json() == {"topic": "a", "appended": 2_500, "invalid": 0}
    assert headrace("produce", "a", stdin=b'{"n": "last"}').status == 0
    ended = headrace("tail", "a", "--from", "beginning", "--exit")
    assert ended.status == 0
    assert ended.out.encode().splitlines() == [*sent, b'{"n": "last"}']
    first = headrace("tail", "a", "--from", "beginning", "--count", "2").out
    assert first.splitlines() == ['{"n": 0}', '{"n": 1}']


def test_tail_begins_at_the_end_unless_told_otherwise(headrace):
    headrace("topics", "create", "a")
    headrace("produce", "a", stdin=b"{}")
    assert headrace("tail", "a", "--exit").out == ""


def test_every_line_of_tail_is_json(headrace):
    headrace("topics", "create", "a", "--partitions", "1")
    layout = Layout.at("data")
    values = [b'{"a":\n  1}', b"nonsense", b"\xff", b'"x"', b"[" * 10_000, b""]
    with writing_log(layout, SystemClock()) as log:
        from headrace.model.batch import Batch  # noqa: PLC0415 - used here alone

        batch = Batch()
        for value in values:
            batch.add(value, received_at=0, id=ManualClock().new_id())
        log.append("a", batch)
    lines = headrace("tail", "a", "--from", "beginning", "--exit").out.splitlines()
    assert [json.loads(line) for line in lines] == [
        {"a": 1}, "nonsense", "\\xff", "x", "[" * 10_000, "",
    ]  # fmt: skip
    told = headrace("tail", "a", "--from", "beginning", "--exit", "--meta").out.splitlines()
    assert [json.loads(line)["offset"] for line in told] == [0, 1, 2, 3, 4, 5]
    assert json.loads(told[0])["value"] == {"a": 1}


def test_tail_follows(headrace, tmp_path):
    headrace("topics", "create", "a")
    headrace("produce", "a", stdin=b'{"n":1}')

    def produce_later():
        with writing_log(Layout.at(tmp_path / "data"), SystemClock()) as log:
            from headrace.model.batch import Batch  # noqa: PLC0415 - used here alone

            batch = Batch()
            batch.add(b'{"n":2}', received_at=SystemClock().now_us(), id=SystemClock().new_id())
            log.append("a", batch)

    timer = threading.Timer(0.3, produce_later)
    timer.start()
    ended = headrace("tail", "a", "--from", "beginning", "--count", "2")
    timer.join()
    assert ended.out.splitlines() == ['{"n":1}', '{"n":2}']


def test_produce_takes_files_ids_and_keys(headrace, tmp_path):
    (tmp_path / "r.json.gz").write_bytes(gzip.compress(b'[{"i": 1, "k": "x"}, {"i": 2}]'))
    headrace("topics", "create", "a")
    assert headrace("produce", "a", "r.json.gz", "--id", "i", "--key", "k").status == 0
    told = headrace("tail", "a", "--from", "beginning", "--exit", "--meta").out.splitlines()
    records = {json.loads(line)["value"]["i"]: json.loads(line) for line in told}
    assert records[1]["client_chosen"]
    assert (records[1]["key"], records[2]["key"]) == ("x", None)


def test_produce_counts_what_is_not_valid(headrace):
    headrace("topics", "create", "a")
    ended = headrace("produce", "a", stdin=b'{}\nnot json\n{"x": 1, "x": 2}\n')
    assert "3 records appended to a; 2 not valid, to be dead letters" in ended.out
    assert UNMARKED == 0


# --- sql


def test_sql_prints_rows_for_people_and_for_scripts(headrace, tmp_path):
    headrace("topics", "create", "a")
    query = "SELECT 1 AS n, 'é' AS t, NULL AS nothing, TIMESTAMPTZ '2026-01-01 00:00:00+00' AS at"
    assert headrace("sql", "--json", query).json() == [
        {"n": 1, "t": "é", "nothing": None, "at": "2026-01-01T00:00:00.000000Z"}
    ]
    assert headrace("sql", query).out.split() == [
        "n",
        "t",
        "nothing",
        "at",
        "1",
        "é",
        "2026-01-01T00:00:00.000000Z",
    ]
    assert headrace("sql", "--json", stdin=b"SELECT 2 AS n;").json() == [{"n": 2}]


@pytest.mark.parametrize(
    "query", ["SELECT", "SELECT * FROM nope", "DELETE FROM x", "SELECT 1; SELECT 2"]
)
def test_sql_that_cannot_run_is_the_users_fault(query, headrace):
    headrace("topics", "create", "a")
    ended = headrace("sql", query)
    assert ended.status == 1
    assert ended.err.startswith("error: ")


# --- doctor


def test_doctor_tells_what_to_mend(headrace, tmp_path):
    headrace("topics", "create", "a")
    (tmp_path / "data").chmod(0o755)
    ended = headrace("doctor", "--json")
    findings = {f["what"]: f for f in ended.json()}
    assert {"Python", "SQLite", "disk", "sync", "file system", "memory"} <= set(findings)
    assert not findings["data directory"]["fine"]
    assert "chmod 700" in findings["data directory"]["hint"]
    assert ended.status == 2
    assert "mend data directory" in headrace("doctor").out


# --- load


class Recorder(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # head and body in one packet: the second one would wait for an acknowledgement
    seen: list[tuple[str, str]] = []  # noqa: RUF012 - cleared by each test
    status = 200

    def do_GET(self):
        self.seen.append((self.path, self.headers["Host"]))
        self.send_response(self.status)
        self.send_header("Content-Length", "3")
        self.end_headers()
        self.wfile.write(b"ok\n")

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    Recorder.seen.clear()
    Recorder.status = 200
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Recorder) as serving:
        thread = threading.Thread(target=serving.serve_forever)
        thread.start()
        yield serving.server_port
        serving.shutdown()
        thread.join()


def test_load_sends_the_mix_and_counts_what_was_acknowledged(server, headrace):
    url = f"http://127.0.0.1:{server}"
    ended = headrace("load", url, "--count", "400", "--connections", "4", "--mix", "/a=3,b=1",
                     "--hosts", "one.com,two.com", "--json")  # fmt: skip
    told = ended.json()
    assert ended.status == 0
    assert (told["sent"], told["acknowledged"], told["statuses"]) == (400, 400, {"200": 400})
    assert 0 < told["latency_ms_p50"] <= told["latency_ms_p99"] <= told["latency_ms_max"]
    paths = [path for path, _ in Recorder.seen]
    assert 200 < paths.count("/a") < 380
    assert paths.count("/a") + paths.count("/b") == 400
    hosts = [host for _, host in Recorder.seen]
    assert hosts.count("one.com") == hosts.count("two.com") == 200


def test_load_fails_if_something_was_not_acknowledged(server, headrace):
    Recorder.status = 503
    ended = headrace("load", f"127.0.0.1:{server}", "--count", "3", "--json")
    assert ended.status == 2
    assert ended.json()["acknowledged"] == 0


def test_load_keeps_its_rate(server):
    clock = ManualClock()
    load = Load(Target("127.0.0.1", server), Traffic(rate=10.0), clock, count=50)
    load.begin()
    load.join()
    assert clock.monotonic_s() == pytest.approx(4.9)


def test_load_stays_on_this_machine(headrace):
    for url in ("http://192.0.2.1", "http://example.org:80/"):
        ended = headrace("load", url)
        assert ended.status == 1
        assert "--allow-remote" in ended.err


def test_load_says_if_nothing_answers(headrace):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
        ended = headrace("load", f"http://127.0.0.1:{port}", "--count", "2")
    assert ended.status == 2
    assert "Nothing answered" in ended.err


@pytest.mark.parametrize("mix", ["", "/a=x", "/a=0"])
def test_load_refuses_a_mix_that_says_nothing(mix, headrace):
    assert headrace("load", "--mix", mix).status == 1
