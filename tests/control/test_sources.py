"""Sources at run time, on a real log."""

from __future__ import annotations

import dataclasses
import threading

import msgspec
import pytest

from headrace.control import sources
from headrace.control.progress import (
    PROGRESS_FILE,
    SourceProgress,
    Told,
    list_sources,
    read_progress,
)
from headrace.control.sources import Request, declared_key, lease_key, paused_key, wanted_sources
from headrace.log.embedded import EmbeddedLog
from headrace.model.batch import Batch
from headrace.model.clock import ManualClock, SystemClock
from headrace.model.errors import Fenced, Invalid
from headrace.model.options import option
from headrace.model.pipeline_options import Options
from headrace.model.plan import Plan, Source, Topic, View


@dataclasses.dataclass(frozen=True)
class ServiceOptions:
    """Options of a made-up service."""

    url: str = option("https://example.org", doc="Where it is.", example="https://example.org")
    page: int = option(10, doc="Records a page.", example=5, at_least=1)
    seen_url: str = option("", doc="Where it was.", example="https://example.org")
    folder: str = option("", doc="A folder.", example="/var", owner=True)
    note: str | None = option(None, doc="Anything.", example="a note")


def options_of(kind):
    if kind != "service":
        raise Invalid(f"There is no source of kind {kind}", code="unknown_source_kind")
    return ServiceOptions


CHANGES = View("v", "t", "", (), (), (), (), "", topic="t_query")
PLAN = Plan(
    "p",
    topics=(Topic("t", 1), Topic("n", 1), Topic("t_query", 1)),
    views=(CHANGES,),
    sources=(Source("Own", "service", "t", {}),),
    options=Options(add_sources=True),
)
PRIVATE = msgspec.structs.replace(PLAN, options=Options(add_sources=True, private_addresses=True))


@pytest.fixture
def log(tmp_path):
    made = EmbeddedLog(tmp_path, ManualClock())
    made.create("t", 1)
    yield made
    made.close()


def add(log, name="s", plan=PLAN, **said):
    wanted = Request(name, **{"kind": "service", "topic": "t", **said})
    return sources.add(plan, log, options_of, wanted, ManualClock())


def names(log, plan=PLAN):
    return [w.source.name for w in wanted_sources(plan, log)]


def test_what_is_added_is_listed_after_what_is_declared(log):
    add(log, "b", options={"page": 7, "note": "http://[::1]/"}, counts="n")
    add(log, "a")
    assert names(log) == ["Own", "a", "b"]
    own, _, b = list_sources(PLAN, log, Told(is_alive=False))
    assert (b.kind, b.topic, b.options, b.counts) == (
        "service",
        "t",
        {"page": 7, "note": "http://[::1]/"},
        "n",
    )
    assert (b.added_at, own.added_at) == ("2026-01-01T00:00:00.000000Z", None)
    assert {own.state, b.state} == {"stopped"}
    first = wanted_sources(PLAN, log)[1]
    assert first.source == Source("a", "service", "t", {})
    assert first.expect == {declared_key("a"): log.get(declared_key("a")).revision}


@pytest.mark.parametrize(
    ("said", "code"),
    [
        ({"name": "bad/name"}, "bad_name"),
        ({"name": "../x"}, "bad_name"),
        ({"name": ""}, "bad_name"),
        ({"name": "own"}, "source_exists"),
        ({"name": "there"}, "source_exists"),
        ({"name": "THERE"}, "source_exists"),
        ({"kind": "replay"}, "unknown_source_kind"),
        ({"topic": "x"}, "unknown_topic"),
        ({"topic": "t_query"}, "unknown_topic"),
        ({"counts": "x"}, "unknown_topic"),
        ({"options": {"pgae": 1}}, "invalid_options"),
        ({"options": {"page": 0}}, "invalid_options"),
        ({"options": {"note": "x" * 10_001}}, "invalid_options"),
        ({"options": {"url": "file:///etc/passwd"}}, "url_scheme"),
        ({"options": {"url": "http://127.0.0.1:9000"}}, "loopback_address"),
        ({"options": {"url": "http://169.254.169.254/latest"}}, "metadata_address"),
        ({"options": {"seen_url": "http://[::1]/"}}, "loopback_address"),
        ({"options": {"folder": "/etc"}}, "invalid_options"),
        ({"plan": Plan("p", topics=PLAN.topics)}, "sources_closed"),
    ],
)
def test_what_cannot_be_added_is_told_and_leaves_nothing(log, said, code):
    add(log, "there")
    before = log.scan("")
    with pytest.raises(Invalid) as refused:
        add(log, **said)
    assert refused.value.code == code
    assert log.scan("") == before


def test_private_addresses_are_for_whoever_owns_the_pipeline_to_allow(log):
    add(log, plan=PRIVATE, options={"url": "http://127.0.0.1:9000"})
    with pytest.raises(Invalid) as refused:
        add(log, "other", plan=PRIVATE, options={"url": "http://169.254.169.254/"})
    assert refused.value.code == "metadata_address"


def test_there_are_only_so_many(log, monkeypatch):
    monkeypatch.setattr(sources, "ADDED_MAX", 2)
    add(log, "a")
    add(log, "b")
    with pytest.raises(Invalid) as refused:
        add(log, "c")
    assert refused.value.code == "too_many_sources"


def test_of_many_who_add_one_name_one_wins(log):
    told, together = [], threading.Barrier(8)

    def one(number):
        together.wait()
        try:
            told.append(add(log, options={"page": number}).options["page"])
        except Invalid as e:
            told.append(e.code)

    # A log's writing end is for many threads, its reading end for one at a time.
    threads = [threading.Thread(target=one, args=(n + 1,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (winner,) = [t for t in told if isinstance(t, int)]
    assert told.count("source_exists") == 7
    assert wanted_sources(PLAN, log)[1].source.options == {"page": winner}


def test_pause_and_resume_move_what_is_wanted(log):
    add(log)
    for name in ("s", "Own"):
        attempts = []
        for act, paused in (
            (sources.pause, True),
            (sources.resume, False),
            (sources.resume, False),
        ):
            act(PLAN, log, name, ManualClock())
            wanted = next(w for w in wanted_sources(PLAN, log) if w.source.name == name)
            assert wanted.paused is paused
            attempts.append(wanted.attempt)
        assert len(set(attempts)) == 3
    with pytest.raises(Invalid) as refused:
        sources.pause(PLAN, log, "x", ManualClock())
    assert refused.value.code == "unknown_source"


def test_removing_forgets_all_but_what_was_collected(log):
    add(log)
    sources.pause(PLAN, log, "s", ManualClock())
    log.put_if("source/s/cursor", 0, b'{"records": 5, "cursor": {"page": 1}}')
    log.put_if(lease_key("s"), 0, b'{"owner": "o", "length_s": 10.0}')
    add(log, "s.2")
    assert wanted_sources(PLAN, log)[1].kept.records == 5
    sources.remove(PLAN, log, "s")
    assert names(log) == ["Own", "s.2"]
    assert [e.key for e in log.scan("")] == [declared_key("s.2")]
    with pytest.raises(Invalid) as refused:
        sources.remove(PLAN, log, "s")
    assert refused.value.code == "unknown_source"


def test_one_of_the_pipeline_file_cannot_be_removed(log):
    with pytest.raises(Invalid) as refused:
        sources.remove(PLAN, log, "Own")
    assert refused.value.code == "source_of_pipeline"
    assert refused.value.hint


def test_what_a_removal_left_does_not_become_the_next_ones(log):
    log.put_if("source/s/cursor", 0, b'{"records": 5}')
    log.put_if(paused_key("s"), 0, b'{"paused": true, "at_us": 1}')
    add(log)
    (_, wanted) = wanted_sources(PLAN, log)
    assert (wanted.paused, wanted.kept.records) == (False, 0)


def test_a_removal_fences_the_pages_that_were_under_way(log):
    add(log)
    expect = wanted_sources(PLAN, log)[1].expect
    log.append("t", records(), {"source/s/cursor": b"{}"}, {"source/s/cursor": 0, **expect})
    sources.remove(PLAN, log, "s")
    add(log)
    with pytest.raises(Fenced):
        log.append("t", records(), {"source/s/cursor": b"{}"}, {"source/s/cursor": 0, **expect})
    assert log.ends("t") == [1]


def records():
    batch = Batch()
    batch.add(b"{}", received_at=1, id=bytes(16))
    return batch


def test_under_another_plan_what_was_added_says_why_it_stands(log):
    add(log, counts="n")
    closed = msgspec.structs.replace(PLAN, options=Options())
    without = msgspec.structs.replace(PLAN, topics=PLAN.topics[:1])
    for plan, code in ((closed, "sources_closed"), (without, "unknown_topic")):
        assert wanted_sources(plan, log)[1].fault.code == code
        listed = list_sources(plan, log, Told(is_alive=True))[1]
        assert (listed.state, bool(listed.error)) == ("failed", True)
    named_so = msgspec.structs.replace(PLAN, sources=(Source("s", "service", "t", {}),))
    (taken,) = wanted_sources(named_so, log)
    assert (taken.fault.code, taken.added_at_us) == ("source_exists", None)
    sources.remove(named_so, log, "s")
    assert wanted_sources(named_so, log)[0].fault is None


def test_progress_is_told_for_as_long_as_it_is_new(log, tmp_path):
    add(log)
    log.put_if("source/s/cursor", 0, b'{"records": 5, "pages": 2}')
    clock = SystemClock()
    assert read_progress(tmp_path, clock) == Told(is_alive=False)
    running = [
        SourceProgress("s", "running", records=3, records_per_s=1.5),
        SourceProgress("Own", "failed", error="x"),
    ]
    (tmp_path / PROGRESS_FILE).write_bytes(msgspec.json.encode(running))
    own, s = list_sources(PLAN, log, read_progress(tmp_path, clock))
    assert (s.state, s.records, s.pages, s.records_per_s) == ("running", 5, 2, 1.5)
    assert (own.state, own.error) == ("failed", "x")
    later = ManualClock(clock.now_us())
    later.advance(60)
    own, s = list_sources(PLAN, log, read_progress(tmp_path, later))
    assert (s.state, s.records, s.records_per_s) == ("stopped", 5, None)
    assert (own.state, own.error) == ("failed", "x")
    sources.pause(PLAN, log, "Own", clock)
    assert list_sources(PLAN, log, read_progress(tmp_path, clock))[0].state == "paused"


def test_what_is_resumed_is_not_told_to_be_paused(log):
    add(log)
    told = Told(is_alive=True, sources=[SourceProgress("s", "paused")])
    sources.pause(PLAN, log, "s", ManualClock())
    assert list_sources(PLAN, log, told)[1].state == "paused"
    sources.resume(PLAN, log, "s", ManualClock())
    assert list_sources(PLAN, log, told)[1].state == "starting"
