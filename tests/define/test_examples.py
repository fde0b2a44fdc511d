"""The examples compile, with the routes, replies and tables that the old systems had."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from pathlib import Path

import msgspec
import pytest

from headrace.define.check import check, load
from headrace.model.plan import Plan

ROOT = Path(__file__).resolve().parents[2]
RECORDINGS = ROOT.parent / "shared" / "data" / "large"


def plan_of(name: str) -> Plan:
    made = check(load(ROOT / "examples" / name / "pipeline.py"))
    assert isinstance(made, Plan), "\n".join(map(str, made))
    return made


def test_the_game_has_every_route_and_reply():
    routes = {r.path: (r.topic, r.fixed["event_type"], r.reply) for r in plan_of("game").routes}
    assert routes == {
        "/": ("events", "default", "This is the default response!\n"),
        "/purchase_a_sword": ("events", "purchase_sword", "Sword Purchased!\n"),
        "/purchase_a_knife": ("events", "purchase_knife", "Knife Purchased!\n"),
        "/buy_a_sword": ("events", "buy_sword", "Sword Purchased!\n"),
        "/join_guild/{guildname}": ("events", "joined_guild:{guildname}", "Guild Joined!\n"),
        "/request_group": ("MessageHistory", "request_group", "Request Submitted!\n"),
        "/accept_member": ("MessageHistory", "accept_member", "Member Accepted!\n"),
        "/decline_member": ("MessageHistory", "decline_member", "Member Declined!\n"),
        "/message": ("MessageHistory", "message", "Message Sent!\n"),
    }


@pytest.mark.parametrize(
    "name",
    ["default_event", "purchase_sword", "purchase_knife", "buy_sword", "joined_guild",
     "request_group", "accept_member", "decline_member", "message"],
)  # fmt: skip
def test_the_game_has_a_table_for_each_type_of_event(name):
    table = next(t for t in plan_of("game").tables if t.name == name)
    assert {"raw_event", "timestamp", "Accept", "Host", "User-Agent", "event_type"} <= {
        c.name for c in table.columns
    }


def test_occurrences_are_one_table_of_three_topics():
    plan = plan_of("occurrences")
    (table,) = plan.tables
    assert [i.topic for i in table.inputs] == ["gbif", "obis", "idigbio"]
    assert [s.kind for s in plan.sources] == ["replay"] * 3
    assert {"source", "kingdom", "species"} <= {c.name for c in table.columns}


def test_occurrences_look_where_the_environment_says(monkeypatch, tmp_path):
    monkeypatch.setenv("HEADRACE_OCCURRENCES", str(tmp_path))
    paths = [Path(str(s.options["path"])) for s in plan_of("occurrences").sources]
    assert {p.parent for p in paths} == {tmp_path}


@pytest.mark.skipif(not RECORDINGS.is_dir(), reason="no recorded data beside the repository")
@pytest.mark.parametrize("source", ["gbif", "obis", "idigbio"])
def test_recorded_records_fit_their_declared_record(source):
    declared = load(ROOT / "examples" / "occurrences" / "pipeline.py")
    record = {t.name: t.record for t in declared.topics}[source]
    options = {s.name: s.options for s in declared.sources}[source]
    decoder = msgspec.json.Decoder(record)
    seen = Counter()
    with gzip.open(options["path"], "rt", encoding="utf-8") as lines:
        for line in lines:
            document = json.loads(line)
            value = document[options["records"]] if "records" in options else document
            decoder.decode(json.dumps(value))
            seen[source] += 1
    assert seen[source] > 0
