from __future__ import annotations

from contextlib import closing
from pathlib import Path

import pytest
from rows import row

from headrace.log.embedded import EmbeddedLog
from headrace.model.batch import Batch
from headrace.model.clock import ManualClock
from headrace.model.errors import Corrupt
from headrace.model.plan import Plan, Topic
from headrace.process.ranges import check_log, choose, positions, waiting

PLAN = Plan("p", topics=(Topic("events", 2), Topic("missing", 1)))


def fill(log: EmbeddedLog, n: int, key: bytes) -> None:
    batch = Batch()
    clock = ManualClock(seed=n)
    for _ in range(n):
        batch.add(b"x" * 100, received_at=1, id=clock.new_id(), key=key)
    log.append("events", batch)


@pytest.fixture
def log(tmp_path: Path):
    with closing(EmbeddedLog(tmp_path / "log", ManualClock())) as opened:
        opened.create("events", 2)
        yield opened


def pick(log: EmbeddedLog, last=None, bytes_max=1 << 20, records_max=None):
    there = waiting(log, PLAN, log.describe(), last)
    return choose(log, there, bytes_max=bytes_max, records_max=records_max)


def test_nothing_to_read(log: EmbeddedLog) -> None:
    assert pick(log) == ()


def test_all_that_is_there_from_where_the_ledger_stands(log: EmbeddedLog) -> None:
    fill(log, 50, b"a")
    ends = log.ends("events")
    ranges = pick(log)
    assert sum(r.end - r.start for r in ranges) == 50
    info = log.describe()["events"]
    offsets = {f"events/{p}": e for p, e in enumerate(ends)}
    last = row(1, incarnations={"events": info.incarnation}, offsets=offsets)
    assert pick(log, last) == ()
    fill(log, 7, b"a")
    assert sum(r.end - r.start for r in pick(log, last)) == 7


def test_bounds_share_out_what_is_taken(log: EmbeddedLog) -> None:
    for n in range(40):
        fill(log, 25, f"key-{n}".encode())
    assert all(log.ends("events"))
    assert sum(r.end - r.start for r in pick(log, records_max=100)) <= 100
    bounded = pick(log, bytes_max=20_000)
    assert {r.partition for r in bounded} == {0, 1}
    assert 0 < sum(r.end - r.start for r in bounded) < 400
    assert sum(r.end - r.start for r in pick(log, records_max=1)) == 1


def test_a_log_that_ends_before_what_was_committed_is_corrupt(log: EmbeddedLog) -> None:
    fill(log, 5, b"a")
    info = log.describe()["events"]
    last = row(
        1, incarnations={"events": info.incarnation}, offsets={"events/0": 99, "events/1": 99}
    )
    with pytest.raises(Corrupt):
        positions(log, info, last)


def test_a_log_wiped_behind_the_tables_is_corrupt(log: EmbeddedLog) -> None:
    last = row(1, incarnations={"events": "of another log"})
    with pytest.raises(Corrupt):
        check_log(log, last)


def test_a_topic_deleted_and_made_again_is_read_from_its_start(log: EmbeddedLog) -> None:
    fill(log, 5, b"a")
    old = log.describe()["events"]
    last = row(1, incarnations={"events": old.incarnation}, offsets={"events/0": 99})
    log.delete("events")
    check_log(log, last)
    new = log.create("events", 2)
    fill(log, 3, b"a")
    assert sum(end - at for at, end in positions(log, new, last)) == 3
