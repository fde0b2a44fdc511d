"""However a log is cut into epochs, and wherever the owner dies among them, the end is the same.

What is compared: the tables, every view, the dead letters and the known ids of one epoch without a
crash; those of many epochs with crashes, restarts, compaction and expiry among them; the plain SQL
of each view over the whole table; and a model of what becomes of a record, twenty lines of Python.
"""

from __future__ import annotations

import datetime as dt
import json
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import closing, nullcontext
from decimal import Decimal
from pathlib import Path
from typing import NamedTuple

import msgspec
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from owning import START_US, Crashes, Place, TickingClock, checked, comparable

from headrace import Pipeline, Record, field, hopping, tumbling
from headrace.define.pipeline import Windows
from headrace.define.view_sql import plain_sql
from headrace.log.embedded import EmbeddedLog
from headrace.model.batch import Batch, is_client_chosen
from headrace.model.clock import ManualClock
from headrace.model.ids import client_id
from headrace.model.plan import DEAD_LETTERS, KNOWN_IDS, Plan
from headrace.process.commit import run_epoch
from headrace.process.housekeeping import Housekeeper, expire_ids
from headrace.runner.local import LocalRunner
from headrace.stage.engine import Engine

HORIZON_S = 60
SECOND = 1_000_000
SQUARE_MAX = 46_340
"""The largest number whose square is an INTEGER."""


class Event(Record):
    kind: str
    n: int | None = None
    x: float | None = None
    price: Decimal | None = field(digits=(10, 2), default=None)
    text: str | None = None
    seen_at: dt.datetime | None = None


class Other(Record):
    kind: str
    n: int


class Shape(NamedTuple):
    """A view to compare; `is_plain` says whether DuckDB's own aggregates give the same bits."""

    table: str
    sql: str
    window: Windows | None = None
    is_plain: bool = True


VIEWS = {
    "sets": Shape(
        "everything",
        """SELECT kind, n, GROUPING(kind, n) AS g, count(*) AS rows, count(price) AS prices,
           sum(n) AS total, sum(price) AS paid, avg(n) AS mean, min(x) AS least
           FROM everything GROUP BY GROUPING SETS ((kind, n), (kind), ())""",
    ),
    "distinct": Shape(
        "everything",
        """SELECT kind, count(DISTINCT price) AS steps, first(n ORDER BY event_id) AS f,
           last(x ORDER BY event_id) AS l FROM everything GROUP BY kind""",
    ),
    "sketches": Shape(
        "everything",
        """SELECT kind, sum(x) AS s, approx_count_distinct(price) AS about, median(x) AS m,
           quantile_cont(n, [0.1, 0.9]) AS q FROM everything GROUP BY ROLLUP (kind)""",
        is_plain=False,
    ),
    "ends": Shape(
        "everything",
        """SELECT kind, first(n) AS f, last(price) AS l, arg_max(n, seen_at) AS newest,
           stddev(x) AS spread FROM everything GROUP BY kind""",
        is_plain=False,
    ),
    "squares": Shape("casts", "SELECT sum(number * number) AS s, count(*) AS c FROM casts"),
    "arrived": Shape(
        "everything",
        "SELECT kind, count(*) AS c, count(DISTINCT n) AS d FROM everything GROUP BY kind",
        tumbling("1 minute", on="received_at", lateness="10 s"),
    ),
    "seen": Shape(
        "everything",
        "SELECT count(*) AS c, sum(n) AS s FROM everything",
        hopping("2 minutes", every="1 minute", on="seen_at"),
    ),
}


def plan_with(view: str) -> Plan:
    pipe = Pipeline("cuts")
    events = pipe.topic("events", Event, partitions=3, store=False)
    other = pipe.topic("other", Other, store=False)
    empty = "CAST(NULL AS DOUBLE) AS x, CAST(NULL AS DECIMAL(10, 2)) AS price"
    pipe.table(
        "everything",
        {
            events: "SELECT kind, n, x, price, seen_at FROM events",
            other: f"SELECT kind, n, {empty}, CAST(NULL AS TIMESTAMPTZ) AS seen_at FROM other",
        },
    )
    pipe.table(
        "casts",
        "SELECT kind, CAST(text AS INTEGER) AS number FROM events WHERE kind <> 'c'",
    )
    pipe.view(view, VIEWS[view].sql, window=VIEWS[view].window)
    return checked(pipe, horizon_s=HORIZON_S, table_files_max=2, commits_per_checkpoint=3)


ENGINE = Engine(threads=1)

GOOD = st.fixed_dictionaries(
    {"kind": st.sampled_from(["a", "b", "c"]), "n": st.sampled_from([0, 1, -3, 2**63 - 1])},
    optional={
        "x": st.sampled_from([0.1, -0.0, 1e16, 1e300, 2.5, None]),
        "price": st.sampled_from(["0.10", "-5.55", "99999999.99"]),
        "text": st.sampled_from(["7", "-2", "none", "50000"]),
        "seen_at": st.sampled_from([0, 30, 61, 200, -400]).map(
            lambda s: (dt.datetime(2026, 1, 1, tzinfo=dt.UTC) + dt.timedelta(seconds=s)).isoformat()
        ),
    },
)
BAD = [b"{", b'{"kind":5,"n":1}', b'{"kind":"a","n":1.5}', b'{"kind":"a","kind":"b"}', b"\xff"]
VALUES = GOOD.map(lambda fields: json.dumps(fields).encode()) | st.sampled_from(BAD)


class Sent(NamedTuple):
    """A record as it is drawn; `gap_s` is how long after the one before it was received."""

    topic: str
    gap_s: int
    name: str | None
    value: bytes


RECORDS = st.lists(
    st.builds(
        Sent,
        st.sampled_from(["events", "events", "events", "other"]),
        st.sampled_from([0, 0, 1, 25, 61, -20, -200]),
        st.sampled_from([None, None, "i", "j", "k"]),
        VALUES,
    ),
    min_size=1,
    max_size=16,
)
STEPS = st.lists(
    st.sampled_from(["epoch", "epoch", "epoch", "restart", "tidy", "expire", "publish", "wait"]),
    min_size=2,
    max_size=5,
)
CRASHES = st.lists(st.integers(0, 60), max_size=3)
LATE_S = 100_000
"""When the views are compared: by then every window that follows the wall clock has passed."""
MEMORY = Path("/dev/shm")


class Bench(NamedTuple):
    """A plan, a runner that has it compiled, and a data directory where every table is made."""

    plan: Plan
    runner: LocalRunner
    template: Path

    def place(self, root: Path, log: EmbeddedLog, clock: ManualClock) -> Place:
        if self.template.exists():
            shutil.copytree(self.template, root)
        return Place(root, self.plan, log, ENGINE, self.runner, clock)


@pytest.fixture(scope="module")
def benches(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Bench]]:
    clock = ManualClock()
    made = {
        name: Bench(
            plan_with(name),
            LocalRunner(None, None, clock, threads=1),
            tmp_path_factory.mktemp("templates") / name,
        )
        for name in VIEWS
    }
    with closing(EmbeddedLog(tmp_path_factory.mktemp("log"), clock)) as log:
        for bench in made.values():
            bench.place(bench.template, log, clock)
    yield made
    for bench in made.values():
        bench.runner.close()


@pytest.fixture(scope="module")
def crashes() -> Iterator[Crashes]:
    with pytest.MonkeyPatch.context() as patch:
        yield Crashes(patch)


@settings(
    max_examples=200,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(
    data=st.data(),
    view=st.sampled_from(sorted(VIEWS)),
    sent=RECORDS,
    steps=STEPS,
    dies_at=CRASHES,
)
def test_any_cut_gives_what_one_epoch_gives(data, view, sent, steps, dies_at, benches, crashes):
    bench = benches[view]
    folder = Path(tempfile.mkdtemp(dir=MEMORY if MEMORY.is_dir() else None))
    clock = ManualClock()
    try:
        with closing(EmbeddedLog(folder / "log", clock)) as log:
            fill(log, clock, bench.plan, sent)
            once = bench.place(folder / "once", log, ManualClock(seed=1))
            once.epoch()
            cut = bench.place(folder / "cut", log, TickingClock(seed=2))
            with crashes.at(dies_at):
                for step in [*steps, "rest"]:
                    cut.outlive(lambda step=step: act(cut, step, data))
            for place in (once, cut):
                place.clock.set_now_us(START_US + LATE_S * SECOND)
                place.publish()
            assert_same(once, cut)
            assert_true(cut)
    finally:
        shutil.rmtree(folder)


def fill(log: EmbeddedLog, clock: ManualClock, plan: Plan, sent: list[Sent]) -> None:
    for topic in plan.topics:
        log.create(topic.name, topic.partitions)
    received_at = START_US
    for one in sent:
        received_at += one.gap_s * SECOND
        chosen = one.name and client_id("test", one.topic, one.name)
        batch = Batch()
        batch.add(one.value, received_at=received_at, id=chosen or clock.new_id())
        log.append(one.topic, batch)


def act(place: Place, step: str, data: st.DataObject) -> None:
    owner = place.owner
    match step:
        case "epoch":
            ends = [(r, data.draw(st.integers(r.start, r.end))) for r in place.there()]
            ranges = [msgspec.structs.replace(r, end=end) for r, end in ends if end > r.start]
            if ranges:
                run_epoch(owner, tuple(ranges))
        case "rest":
            place.epoch()
        case "restart":
            place.begin()
        case "tidy":
            Housekeeper(owner, nullcontext).tables()
        case "expire":
            expire_ids(owner)
            Housekeeper(owner, nullcontext).expire_ledger()
        case "publish":
            place.publish()
        case "wait":
            place.clock.advance(30)


def assert_same(once: Place, cut: Place) -> None:
    plan = cut.plan
    for name in [f"tables/{t.name}" for t in plan.tables] + [f"views/{v.name}" for v in plan.views]:
        assert comparable(once.rows(name)) == comparable(cut.rows(name)), name
    # When an epoch began is all that its letters take from the cut.
    letters = [comparable(p.rows(DEAD_LETTERS), without=("failed_at",)) for p in (once, cut)]
    assert letters[0] == letters[1]
    ids = [{tuple(r.values()) for r in p.rows(KNOWN_IDS).to_pylist()} for p in (once, cut)]
    assert ids[1] <= ids[0]
    once_row, cut_row = once.owner.ledger.last, cut.owner.ledger.last
    for what in ("offsets", "clocks", "topic_totals", "table_totals", "incarnations"):
        assert getattr(once_row, what) == getattr(cut_row, what), what


def assert_true(place: Place) -> None:
    """Compare tables and dead letters with the model, views with their SQL."""
    place.assert_accounted()
    (view,) = place.plan.views
    fates = [fate for topic in place.plan.topics for fate in fates_of(place.log, topic.name)]
    everything, casts = place.rows("tables/everything"), place.rows("tables/casts")
    read = [f for f in fates if f.record and f.topic == "events" and f.record["kind"] != "c"]
    is_squared = view.name == "squares"
    fits = [(f.event_id, is_number(f.record.get("text"), is_squared=is_squared)) for f in read]
    assert ids_of(everything) == sorted(f.event_id for f in fates if f.record)
    assert ids_of(casts) == sorted(event_id for event_id, fit in fits if fit)
    dead = [(f.event_id, "decode") for f in fates if f.is_dead]
    dead += [(event_id, "row") for event_id, fit in fits if not fit]
    assert sorted((r["event_id"], r["stage"]) for r in place.letters()) == sorted(dead)
    if VIEWS[view.name].is_plain:
        rows = {"everything": everything, "casts": casts}[view.table]
        columns = [c for c in view.columns if c.name != "watermark_passed"]
        typed = ", ".join(f'CAST("{c.name}" AS {c.type}) AS "{c.name}"' for c in columns)
        plain = ENGINE.query(f"SELECT {typed} FROM ({plain_sql(view)})", {view.table: rows})
        stored = place.rows(f"views/{view.name}")
        assert comparable(stored, without=("watermark_passed",)) == comparable(plain)


class Fate(NamedTuple):
    """What should become of a record: a decoded one, a dead letter, or neither: a duplicate."""

    topic: str
    event_id: str
    record: dict | None
    is_dead: bool


def fates_of(log: EmbeddedLog, topic: str) -> Iterator[Fate]:
    """Tell duplicates and dead letters of a topic with a dictionary and a running maximum."""
    for partition, end in enumerate(log.ends(topic)):
        clock_us: int | None = None
        kept: dict[tuple[bytes, bool], int] = {}
        for batch in log.read(topic, partition, 0, end):
            for row in batch.to_pylist():
                received_us = round(row["received_at"].timestamp() * SECOND)
                if clock_us is not None and received_us < clock_us - HORIZON_S * SECOND:
                    kept, clock_us = {}, received_us
                clock_us = max(clock_us or received_us, received_us)
                record = parsed(row["value"])
                name = (row["id"], record is not None)
                is_known = kept.get(name, -1) >= clock_us - HORIZON_S * SECOND
                if is_known and is_client_chosen(row["id"]):
                    record, is_dead = None, False
                else:
                    kept[name], is_dead = clock_us, record is None
                yield Fate(topic, str(uuid.UUID(bytes=row["id"])), record, is_dead)


def parsed(value: bytes) -> dict | None:
    """Return a drawn value if it is valid; what is not was drawn from a few."""
    return None if value in BAD else json.loads(value)


def is_number(text: str | None, *, is_squared: bool) -> bool:
    if text is None:
        return True
    return text.lstrip("-").isdigit() and not (is_squared and int(text) > SQUARE_MAX)


def ids_of(rows: pa.Table) -> list[str]:
    return sorted(rows.column("event_id").to_pylist())
