"""What happens between epochs, beside them and around restarts, in the orders that are rare."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager, nullcontext
from pathlib import Path

import pytest
from owning import Place, append, checked
from rows import row

from headrace import Pipeline, Record
from headrace.log.embedded import EmbeddedLog
from headrace.model.clock import ManualClock
from headrace.model.errors import Closed, Corrupt, Unavailable
from headrace.model.plan import DEAD_LETTERS, LEDGER, Plan
from headrace.process import housekeeping
from headrace.process.commit import run_epoch
from headrace.process.housekeeping import ORPHAN_AGE_US, Housekeeper, retain
from headrace.process.ledger import Ledger, expire
from headrace.process.loop import EpochProgress, run_owner
from headrace.process.ranges import choose, positions, waiting
from headrace.runner.local import LocalRunner
from headrace.stage.engine import Engine
from headrace.tables.delta import DeltaTables

HOUR_S = 3600


class Event(Record):
    n: int


def plan_of(*tables: str, retention: str | None = None, **options: object) -> Plan:
    pipe = Pipeline("p")
    pipe.topic("events", Event, store=False, partitions=1)
    for name in tables:
        pipe.table(name, "SELECT n FROM events", retention=retention)
        pipe.view(f"of_{name}", f"SELECT count(*) AS c, sum(n) AS s FROM {name}")
    return checked(pipe, **options)


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def log(tmp_path: Path, clock: ManualClock) -> Iterator[EmbeddedLog]:
    with closing(EmbeddedLog(tmp_path / "data" / "log", clock)) as opened:
        opened.create("events", 1)
        yield opened


@pytest.fixture
def begin(tmp_path: Path, log: EmbeddedLog, clock: ManualClock):
    engine = Engine(threads=1)
    with closing(engine), closing(LocalRunner(log, None, clock, threads=1)) as runner:
        yield lambda plan: Place(tmp_path / "data", plan, log, engine, runner, clock)


def send(place: Place, *numbers: int) -> None:
    append(place.log, place.clock, "events", *(b'{"n":%d}' % n for n in numbers))


def numbers_in(place: Place, table: str) -> list[int]:
    return sorted(place.rows(f"tables/{table}").column("n").to_pylist())


def test_files_that_retention_rewrites_are_not_compacted_from_under_it(begin, monkeypatch) -> None:
    place = begin(plan_of("kept", retention="1 hour", table_files_max=2))
    for n in range(2):
        send(place, n)
        place.epoch()
    place.clock.advance(2 * HOUR_S)
    send(place, 2)
    place.epoch()
    keeper = Housekeeper(place.owner, nullcontext)
    name = "tables/kept"
    beside = threading.Thread(target=keeper.compact, args=(name, place.owner.table(name)))
    found = housekeeping.expire_rows

    def expire_beside(*given: object) -> object:
        """Find what is old, and be overtaken by the thread that compacts."""
        what = found(*given)
        beside.start()
        beside.join(0.3)
        return what

    monkeypatch.setattr(housekeeping, "expire_rows", expire_beside)
    try:
        retain(place.owner)
    finally:
        beside.join()
    place.begin()
    place.publish()
    assert numbers_in(place, "kept") == [2]
    assert place.rows("views/of_kept").to_pylist() == [{"c": 1, "s": 2}]


def test_clocks_set_back_cost_the_ledger_no_row_that_is_younger(tmp_path: Path) -> None:
    ledger = Ledger(DeltaTables(tmp_path, ManualClock()), "p", ManualClock())
    # The second row is of a clock that was hours ahead, and was set right after it.
    times_s = (1, 9_000, 2, 3)
    for epoch, time_s in enumerate(times_s, 1):
        text = "plan" if epoch == 3 else None
        ledger.append(row(epoch, committed_at_us=time_s * 1_000_000, plan_text=text))
    assert expire(ledger, 5_000_000, "files") == 1
    kept = Ledger(DeltaTables(tmp_path, ManualClock()), "p", ManualClock()).rows_after(0)
    assert [(r.epoch, r.plan_text) for r in kept] == [(2, None), (3, "plan"), (4, None)]


def anew(place: Place) -> None:
    place.log.delete("events")
    place.log.create("events", 1)


def test_ranges_of_a_topic_are_not_read_from_its_next_incarnation(begin) -> None:
    place = begin(plan_of("kept"))
    send(place, 1, 2)
    place.epoch()
    send(place, 3)
    stale = choose(place.log, place.there(), bytes_max=1 << 30, records_max=None)
    anew(place)
    send(place, 4, 5, 6)
    with pytest.raises(Unavailable):
        run_epoch(place.owner, stale)
    place.begin()
    place.epoch()
    assert numbers_in(place, "kept") == [1, 2, 4, 5, 6]


def test_a_topic_made_anew_since_it_was_described_is_no_lost_log(begin) -> None:
    place = begin(plan_of("kept"))
    send(place, 1, 2)
    place.epoch()
    described = place.log.describe()
    anew(place)
    with pytest.raises(Unavailable):
        positions(place.log, described["events"], place.owner.ledger.last)
    place.log.delete("events")
    with pytest.raises(Unavailable):
        waiting(place.log, place.plan, described, place.owner.ledger.last)


def test_a_topic_deleted_while_an_epoch_runs_ends_that_epoch_alone(begin, monkeypatch) -> None:
    place = begin(plan_of("kept"))
    send(place, 1)
    run = place.owner.runner.run

    def run_beside(*given: object) -> object:
        place.log.delete("events")
        return run(*given)

    monkeypatch.setattr(place.owner.runner, "run", run_beside)
    with pytest.raises(Unavailable):
        place.epoch()
    assert place.owner.ledger.last is None


def test_offsets_of_an_earlier_incarnation_trim_nothing(begin, clock) -> None:
    place = begin(plan_of("kept", horizon_s=1, log_retention_s=1))
    keeper = Housekeeper(place.owner, nullcontext)
    send(place, *range(10))
    place.epoch()
    keeper.trim()
    anew(place)
    send(place, 10)
    place.epoch()
    send(place, 11)
    place.log.seal()
    clock.advance(2)
    keeper.trim()
    assert place.log.starts("events") == [0]
    place.epoch()
    assert numbers_in(place, "kept") == list(range(12))


def test_records_of_a_topic_that_a_plan_leaves_out_wait_for_one_that_reads_it(begin, clock) -> None:
    plan = plan_of("kept", horizon_s=1, log_retention_s=1)
    place = begin(plan)
    send(place, 1)
    place.epoch()
    send(place, 2)
    place.log.create("unheard", 1)
    append(place.log, clock, "unheard", b"{}")
    place.log.seal()
    keeper = Housekeeper(place.begin(Plan("p", options=plan.options)), nullcontext)
    keeper.trim()
    clock.advance(2)
    keeper.trim()
    place.begin(plan)
    place.epoch()
    assert numbers_in(place, "kept") == [1, 2]


def test_a_table_that_was_dropped_and_comes_back_begins_anew_whatever_restarts(begin) -> None:
    place = begin(plan_of("kept", "again"))
    send(place, 1)
    place.epoch()
    place.begin(plan_of("kept"))
    place.tables.drop("tables/again")
    place.begin(plan_of("kept", "again"))
    place.begin()
    send(place, 2)
    place.epoch()
    place.begin()
    place.publish()
    assert numbers_in(place, "kept") == [1, 2]
    assert numbers_in(place, "again") == [2]
    assert place.rows("views/of_again").to_pylist() == [{"c": 1, "s": 2}]


@pytest.mark.parametrize("lost", [LEDGER, DEAD_LETTERS])
def test_the_pipelines_own_tables_do_not_begin_anew_under_the_others(begin, lost: str) -> None:
    place = begin(plan_of("kept"))
    send(place, 1)
    append(place.log, place.clock, "events", b"bad")
    place.epoch()
    place.tables.drop(lost)
    with pytest.raises(Corrupt):
        place.begin()


def test_a_start_waits_for_a_backup_to_end() -> None:
    order: list[str] = []

    @contextmanager
    def gate() -> Iterator[None]:
        order.append("in")
        yield
        order.append("out")

    def begin() -> object:
        order.append("begin")
        raise Closed("Enough")

    with pytest.raises(Closed):
        run_owner(begin, ManualClock(), threading.Event(), EpochProgress(), lambda: False, gate)
    assert order == ["in", "begin"]


def test_a_leap_of_the_clock_makes_no_orphan_of_what_an_epoch_has_staged(
    begin, clock, monkeypatch
) -> None:
    place = begin(plan_of("kept", commits_per_checkpoint=2))
    for n in range(3):
        send(place, n)
        place.epoch()
    run = place.owner.runner.run

    def run_beside(*given: object) -> object:
        outcome = run(*given)
        clock.advance(3 * ORPHAN_AGE_US // 1_000_000)
        keeper = Housekeeper(place.owner, nullcontext)
        keeper._checkpointed["tables/kept"] = 0
        keeper.checkpoint("tables/kept", place.owner.table("tables/kept"))
        return outcome

    monkeypatch.setattr(place.owner.runner, "run", run_beside)
    send(place, 3)
    place.epoch()
    assert numbers_in(place, "kept") == [0, 1, 2, 3]


def test_a_view_says_how_far_it_has_come_though_nothing_new_arrives(begin) -> None:
    place = begin(plan_of("kept"))
    for n in range(2):
        send(place, n)
        place.epoch()

    def epochs() -> set[str]:
        return {
            place.tables.snapshot(f"views/{v.name}").metadata["epoch"] for v in place.plan.views
        }

    place.tables.drop("views/of_kept")
    place.tables.drop(next(n for n in place.tables.names() if n.startswith("state/")))
    place.begin()
    place.publish()
    assert epochs() == {"2"}
    # An epoch that is in the table, and that the view was not told of before the owner ended.
    send(place, 2)
    place.owner.views.add = lambda *_: None
    place.owner.views.publish = lambda *_, **__: 0
    place.epoch()
    place.begin()
    place.publish()
    assert epochs() == {"3"}
    assert place.rows("views/of_kept").to_pylist() == [{"c": 3, "s": 3}]
