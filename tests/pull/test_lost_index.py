from __future__ import annotations

import json
from contextlib import closing

import pytest
from scripted import Bench, Scripted, numbered

from headrace.pull.seen import Seen
from headrace.pull.state import state_key


@pytest.fixture
def bench(tmp_path):
    with closing(Bench(tmp_path)) as made:
        yield made


def test_a_lost_index_appends_everything_again_and_still_finds_what_vanished(bench):
    bench.run(Scripted(numbered(7)))
    bench.index.unlink()
    bench.known = [f"k{i:05}".encode() for i in range(7)]
    after = numbered(5)
    report = bench.run(Scripted(numbered(7), after))
    records = bench.records()[7:]
    assert {k.decode(): v["v"] for k, v, gone in records if not gone} == after
    assert [k for k, _, gone in records if gone] == [b"k00005", b"k00006"]
    assert report.deleted == 2


def test_an_index_lost_during_a_sweep_deletes_nothing_that_was_given(bench):
    scripts = (numbered(9), numbered(9), numbered(6))
    source = Scripted(*scripts)
    # The first sweep is 3 pages of 4 effects; the end of a sweep takes 4 more.
    assert bench.run(source, crash_at=12 + 4 + 8) is None
    assert bench.state().sweep.number == 2
    assert not bench.state().sweep.ended
    bench.index.unlink()
    bench.known = [key.encode() for key in numbered(9)]
    bench.run(source)
    held = {}
    for key, value, gone in bench.records():
        if gone:
            del held[key.decode()]
        else:
            held[key.decode()] = value["v"]
    assert held == numbered(6)
    assert [k for k, _, gone in bench.records() if gone] == [b"k00006", b"k00007", b"k00008"]


def test_an_index_lost_during_deletions_is_made_good_by_the_next_full_sweep(bench, monkeypatch):
    monkeypatch.setattr("headrace.pull.puller.DELETIONS_MAX", 2)
    scripts = (numbered(9), numbered(3), numbered(3))
    source = Scripted(*scripts)
    assert bench.run(source, crash_at=12 + 4 + 4 + 4) is None
    assert bench.state().deleting == b"k00004"
    bench.index.unlink()
    bench.known = [key.encode() for key in numbered(9)]
    bench.run(source)
    gone = [key.decode() for key, _, is_gone in bench.records() if is_gone]
    assert set(gone) == set(numbered(9)) - set(numbered(3))


@pytest.mark.parametrize("damage", ["nonsense", "older", "empty"])
def test_an_index_that_does_not_fit_is_made_anew(bench, damage):
    bench.run(Scripted(numbered(7), done=False))
    with closing(Seen(bench.index)) as seen:
        seen._open().wal_checkpoint(mode=3)
    kept = bench.index.read_bytes()
    bench.run(Scripted(numbered(7), numbered(8), done=False))
    bytes_of = {"nonsense": b"x" * 5000, "older": kept, "empty": b""}
    bench.index.write_bytes(bytes_of[damage])
    report = bench.run(Scripted(numbered(7), numbered(8), numbered(8)))
    assert len(bench.records()) == 7 + 1 + 8
    assert report.done


def test_an_index_that_is_damaged_on_the_way_is_made_anew(bench):
    bench.run(Scripted(numbered(300), done=False))
    with closing(Seen(bench.index)) as seen:
        seen._open().wal_checkpoint(mode=3)
    data = bytearray(bench.index.read_bytes())
    data[3 * 4096 : 5 * 4096] = b"\xff" * (2 * 4096)
    bench.index.write_bytes(data)
    report = bench.run(Scripted(numbered(300), numbered(300)))
    assert report.done
    assert len(bench.records()) == 600


def test_another_source_of_the_topic_keeps_its_keys(bench):
    bench.run(Scripted(numbered(2)))
    other = bench.state()
    bench.log.put_if(state_key("other"), 0, json.dumps({"topic": other.topic}).encode())
    bench.index.unlink()
    bench.known = [b"k00000", b"k00001", b"of-the-other"]
    report = bench.run(Scripted(numbered(2), numbered(1)))
    assert [k for k, _, gone in bench.records() if gone] == []
    assert "other" in report.notice
