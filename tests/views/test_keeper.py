"""The keeper of views over real tables: publish, restart, rebuild, switch, fence, pace."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import msgspec
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from headrace.define.types import arrow_schema
from headrace.define.view_sql import compile_view, plain_sql
from headrace.model import failpoint
from headrace.model.clock import ManualClock
from headrace.model.errors import Fenced, Invalid
from headrace.model.plan import Column, Plan, Table, TableInput, Topic, Window
from headrace.process import view_store, views
from headrace.process.keyed import KeyedTables
from headrace.process.views import IDLE_US, ViewKeeper
from headrace.stage.engine import Engine
from headrace.stage.fold import partials_of
from headrace.tables.delta import DeltaTables

COLUMNS = (
    Column("event_id", "VARCHAR"),
    Column("received_at", "TIMESTAMPTZ"),
    Column("host", "VARCHAR"),
    Column("n", "BIGINT"),
    Column("x", "DOUBLE"),
)
SCHEMA = arrow_schema(COLUMNS)
ENGINE = Engine(threads=1)
BY_HOST = (
    "SELECT host, count(*) AS c, sum(x) AS s, count(DISTINCT n) AS d, approx_count_distinct(n) AS u"
    " FROM events GROUP BY host"
)
TOTAL = "SELECT count(*) AS c, max(n) AS hi FROM events"
MINUTE = 60_000_000
START_US = 1_767_225_600_000_000


def plan(*views, window=None):
    compiled = tuple(
        compile_view(name=name, sql=sql, tables={"events": COLUMNS}, window=window)
        for name, sql in views
    )
    table = Table("events", (TableInput("events", "", ()),), COLUMNS)
    return Plan("demo", topics=(Topic("events", 1),), tables=(table,), views=compiled)


def rows(*values, at=START_US):
    columns = list(zip(*[(f"{v[1]}-{i}", at, *v) for i, v in enumerate(values)], strict=True))
    return pa.Table.from_arrays(
        [pa.array(c, f.type) for c, f in zip(columns, SCHEMA, strict=True)], schema=SCHEMA
    )


@dataclasses.dataclass
class Owner:
    """As much of an owner as views see."""

    root: object
    plan: Plan
    clock: ManualClock = dataclasses.field(default_factory=ManualClock)
    changes: object = None

    def __post_init__(self):
        self.tables = DeltaTables(self.root, self.clock)
        self.events = self.tables.open("tables/events") or self.tables.create(
            "tables/events", SCHEMA
        )
        self.number = 0
        self.begin()

    def begin(self):
        keyed = KeyedTables(self.plan, self.tables, self.clock, ENGINE, Path(self.root) / "keys")
        self.keeper = ViewKeeper(self.plan, self.tables, self.clock, ENGINE, keyed, self.changes)
        self.keeper.recover()
        self.keeper.publish(self.clock.now_us())

    def commit(self, batch):
        self.number += 1
        staged = self.tables.stage("tables/events", batch)
        self.events.commit([staged], txns={"demo/tables/events#epoch": self.number})

    def epoch(self, batch, *, publish=True):
        self.commit(batch)
        partials = {v.name: partials_of(v, batch, ENGINE) for v in self.plan.views}
        versions = {"events": self.events.snapshot.version}
        self.keeper.add(partials, versions, self.number)
        if publish:
            self.keeper.publish(self.clock.now_us())

    def public(self, name):
        return self.tables.read(self.tables.snapshot(f"views/{name}"))

    def is_true(self):
        everything = self.tables.read(self.tables.snapshot("tables/events"))
        for view in self.plan.views:
            got = self.public(view.name)
            if view.window:
                got = got.drop_columns(["watermark_passed"])
            wanted = ENGINE.query(plain_sql(view), {"events": everything})
            assert as_set(got) == as_set(wanted)
        return True


def as_set(table):
    return sorted(
        repr([float(v) if isinstance(v, float) else str(v) for v in row.values()])
        for row in table.to_pylist()
    )


@pytest.fixture
def owner(tmp_path):
    return Owner(tmp_path, plan(("by_host", BY_HOST), ("total", TOTAL)))


def test_publishes_what_the_query_says(owner):
    assert owner.public("total").to_pylist() == [{"c": 0, "hi": None}]
    owner.epoch(rows(("a", 1, 0.5), ("b", 2, 1.5)))
    owner.epoch(rows(("a", 2, 0.25), (None, None, None)))
    assert owner.is_true()
    assert owner.public("by_host").num_rows == 3


def test_a_restart_goes_on_from_the_state(owner):
    owner.epoch(rows(("a", 1, 0.5)))
    owner.commit(rows(("a", 3, 2.5), ("c", 1, 1.0)))
    before = owner.tables.snapshot("state/by_host-" + owner.plan.views[0].fingerprint)
    owner.begin()
    assert owner.is_true()
    after = owner.tables.snapshot(before.name)
    assert after.version == before.version + 1
    assert after.table_id == before.table_id


def test_a_restart_with_nothing_new_publishes_nothing(owner):
    owner.epoch(rows(("a", 1, 0.5)))
    before = owner.tables.snapshot("views/by_host").version
    owner.begin()
    assert owner.tables.snapshot("views/by_host").version == before


def test_a_public_table_behind_its_state_is_published_at_start(owner, monkeypatch):
    owner.epoch(rows(("a", 1, 0.5)))
    # One after another, so that it is the first view that fails.
    monkeypatch.setattr(views, "_at_once", lambda writes: [write() for write in writes])
    monkeypatch.setenv("HEADRACE_FAILPOINT", "publish.2=error")
    with pytest.raises(OSError, match="failpoint"):
        owner.epoch(rows(("b", 1, 0.5)))
    monkeypatch.delenv("HEADRACE_FAILPOINT")
    assert owner.public("by_host").num_rows == 1
    state = owner.tables.snapshot("state/by_host-" + owner.plan.views[0].fingerprint).version
    owner.begin()
    assert owner.is_true()
    assert (
        owner.tables.snapshot("state/by_host-" + owner.plan.views[0].fingerprint).version == state
    )


def test_removed_rows_rebuild_the_view(owner):
    owner.epoch(rows(("a", 1, 0.5)))
    owner.epoch(rows(("b", 1, 0.5)))
    first = owner.events.snapshot.files[:1]
    owner.events.commit([], first, txns={"demo/tables/events#epoch": 3})
    owner.begin()
    assert owner.is_true()
    assert owner.public("by_host").num_rows == 1


def test_rebuild_after_retention(owner):
    owner.epoch(rows(("a", 1, 0.5)))
    owner.epoch(rows(("b", 1, 0.5)))
    owner.events.commit([], owner.events.snapshot.files[:1])
    for name in ("by_host", "total"):
        owner.keeper.rebuild(name)
    owner.keeper.publish(owner.clock.now_us(), force=True)
    assert owner.is_true()
    owner.epoch(rows(("c", 1, 0.5)))
    assert owner.is_true()


def test_compaction_is_no_new_row(owner):
    owner.epoch(rows(("a", 1, 0.5)))
    owner.epoch(rows(("b", 1, 0.5)))
    files = owner.events.snapshot.files
    merged = owner.tables.stage("tables/events", owner.tables.read(owner.events.snapshot))
    owner.events.commit([merged], files, data_change=False)
    owner.begin()
    assert owner.is_true()


def test_a_state_ahead_of_its_table_is_rebuilt(owner, tmp_path):
    owner.epoch(rows(("a", 1, 0.5)))
    state = owner.tables.open("state/by_host-" + owner.plan.views[0].fingerprint)
    (txn,) = (t for t in state.snapshot.txns if t.endswith("#version"))
    state.commit(txns={txn: 99})
    owner.begin()
    assert owner.is_true()
    owner.epoch(rows(("b", 1, 0.5)))
    assert owner.is_true()


def test_a_table_made_again_rebuilds_the_view(owner):
    owner.epoch(rows(("a", 1, 0.5)))
    owner.tables.drop("tables/events")
    owner.events = owner.tables.create("tables/events", SCHEMA)
    owner.commit(rows(("z", 1, 0.5), ("y", 1, 0.5)))
    owner.begin()
    assert owner.is_true()


def test_missing_commits_rebuild_the_view(owner):
    owner.epoch(rows(("a", 1, 0.5)))
    owner.commit(rows(("b", 1, 0.5)))
    owner.commit(rows(("c", 1, 0.5)))
    owner.clock.advance(7200)
    owner.events.checkpoint(0.0)
    owner.begin()
    assert owner.is_true()


def test_a_changed_view_takes_the_old_ones_place(owner, tmp_path):
    owner.epoch(rows(("a", 1, 0.5), ("b", 2, 0.5)))
    old = owner.tables.snapshot("views/by_host")
    changed = plan(("by_host", "SELECT host, sum(n) AS total FROM events GROUP BY host"))
    second = Owner(tmp_path, changed)
    assert second.is_true()
    assert second.public("by_host").column_names == ["host", "total"]
    assert second.tables.snapshot("views/by_host").table_id != old.table_id
    states = [n for n in second.tables.names() if n.startswith("state/by_host-")]
    assert states == [f"state/by_host-{changed.views[0].fingerprint}"]


def test_a_changed_view_with_the_same_columns_keeps_its_table(owner, tmp_path):
    owner.epoch(rows(("a", 1, 0.5), ("b", 2, 0.5)))
    old = owner.tables.snapshot("views/total").table_id
    second = Owner(tmp_path, plan(("total", TOTAL + " WHERE n > 1")))
    assert second.is_true()
    assert second.tables.snapshot("views/total").table_id == old


def test_a_new_view_fills_itself_from_an_old_table(owner, tmp_path):
    for i in range(5):
        owner.epoch(rows(("a", i, 0.5)))
    second = Owner(tmp_path, plan(("fresh", "SELECT n, count(*) AS c FROM events GROUP BY n")))
    assert second.is_true()
    assert second.public("fresh").num_rows == 5


def test_two_owners_the_second_is_fenced(owner, tmp_path):
    owner.epoch(rows(("a", 1, 0.5)))
    other = Owner(tmp_path, owner.plan, ManualClock(seed=1))
    other.number = owner.number
    other.epoch(rows(("b", 1, 0.5)))
    partials = {v.name: partials_of(v, rows(("c", 1, 1.0)), ENGINE) for v in owner.plan.views}
    owner.keeper.add(partials, {"events": 9}, 9)
    with pytest.raises(Fenced):
        owner.keeper.publish(owner.clock.now_us())
    assert other.is_true()


def test_rows_that_the_view_fails_on_are_named(owner, tmp_path):
    owner.epoch(rows(("not a number", 1, 0.5)))
    with pytest.raises(Invalid, match="fails on rows") as raised:
        Owner(tmp_path, plan(("cast", "SELECT sum(CAST(host AS INTEGER)) AS s FROM events")))
    assert raised.value.code == "view_failed"
    assert "TRY_CAST" in raised.value.hint


def test_publishing_takes_a_fifth_of_the_time(tmp_path):
    base = plan(("by_host", BY_HOST))
    views = tuple(msgspec.structs.replace(v, topic="by_host_query") for v in base.views)
    clock = ManualClock()
    owner = Owner(
        tmp_path,
        msgspec.structs.replace(base, views=views),
        clock,
        lambda *_: clock.advance(0.5),
    )
    published = 0
    owner.epoch(rows(("a", 0, 0.5)))
    began_s = clock.monotonic_s()
    for i in range(60):
        clock.advance(0.25)
        owner.epoch(rows(("a", i % 3, 0.5)), publish=False)
        published += owner.keeper.publish(clock.now_us())
    share = published * 0.5 / (clock.monotonic_s() - began_s)
    assert 0.15 < share <= 0.21
    owner.keeper.publish(clock.now_us(), force=True)
    assert owner.is_true()


def test_changes_are_the_rows_that_differ(tmp_path):
    base = plan(("by_host", "SELECT host, count(*) AS c FROM events GROUP BY host"))
    views = tuple(msgspec.structs.replace(v, topic="by_host_query") for v in base.views)
    seen = []
    changed = msgspec.structs.replace(base, views=views)
    owner = Owner(tmp_path, changed, changes=lambda view, rows, *_: seen.append(rows.to_pylist()))
    owner.epoch(rows(("a", 1, 0.5), ("b", 1, 0.5)))
    owner.begin()
    owner.epoch(rows(("b", 2, 0.5)))
    assert sorted(map(str, seen[0])) == ["{'host': 'a', 'c': 1}", "{'host': 'b', 'c': 1}"]
    assert seen[1:] == [[{"host": "b", "c": 2}]]


def test_windows_pass_with_the_wall_clock_when_idle(tmp_path):
    window = Window("received_at", MINUTE, MINUTE, lateness_us=5_000_000)
    owner = Owner(tmp_path, plan(("per_minute", TOTAL), window=window))
    at = owner.clock.now_us()
    owner.epoch(rows(("a", 1, 0.5), at=at))
    owner.keeper.set_clocks({"events/0": at})
    owner.keeper.publish(owner.clock.now_us())
    assert owner.is_true()
    assert owner.public("per_minute").column("watermark_passed").to_pylist() == [False]
    due_us = at - at % MINUTE + MINUTE + 5_000_000
    assert owner.keeper.next_timer() == due_us + IDLE_US
    owner.clock.set_now_us(due_us + IDLE_US - 1)
    assert owner.keeper.publish(owner.clock.now_us()) == 0
    owner.clock.set_now_us(due_us + IDLE_US)
    assert owner.keeper.publish(owner.clock.now_us()) == 1
    assert owner.public("per_minute").column("watermark_passed").to_pylist() == [True]
    assert owner.keeper.next_timer() is None


def test_windows_pass_with_what_was_seen_otherwise(tmp_path):
    columns = (*COLUMNS[:-1], Column("x", "DOUBLE"), Column("seen_at", "TIMESTAMPTZ"))
    view = compile_view(
        name="v",
        sql="SELECT count(*) AS c FROM events",
        tables={"events": columns},
        window=Window("seen_at", MINUTE, MINUTE),
    )
    schema = arrow_schema(columns)
    tables = DeltaTables(tmp_path, ManualClock())
    events = tables.create("tables/events", schema)
    pieces = [("1", None, "a", 1, 1.0, 10), ("2", None, "a", 1, 1.0, MINUTE + 10)]
    arrays = [pa.array(c, f.type) for c, f in zip(zip(*pieces, strict=True), schema, strict=True)]
    events.commit([tables.stage("tables/events", pa.Table.from_arrays(arrays, schema=schema))])
    table = Table("events", (TableInput("events", "", ()),), columns)
    whole = Plan("demo", topics=(Topic("events", 1),), tables=(table,), views=(view,))
    keyed = KeyedTables(whole, tables, ManualClock(), ENGINE, tmp_path / "keys")
    keeper = ViewKeeper(whole, tables, ManualClock(), ENGINE, keyed)
    keeper.recover()
    keeper.publish(0)
    public = tables.read(tables.snapshot("views/v")).sort_by("window_start")
    assert public.column("watermark_passed").to_pylist() == [True, False]


def test_the_slowest_view_says_what_is_still_needed(owner):
    assert owner.keeper.slowest_version("other") is None
    owner.epoch(rows(("a", 1, 0.5)))
    published = owner.events.snapshot.version
    owner.epoch(rows(("b", 1, 0.5)), publish=False)
    assert owner.keeper.slowest_version("events") == published
    owner.keeper.publish(owner.clock.now_us())
    assert owner.keeper.slowest_version("events") == owner.events.snapshot.version


def test_commits_without_rows_do_not_hold_a_view_back(owner):
    owner.epoch(rows(("a", 1, 0.5)))
    for _ in range(25):
        owner.events.commit(metadata={"nothing": "new"})
        owner.keeper.add({}, {"events": owner.events.snapshot.version}, owner.number)
        owner.keeper.maintain()
    assert owner.keeper.slowest_version("events") > owner.events.snapshot.version - 20
    owner.begin()
    assert owner.is_true()


def test_maintenance_keeps_few_files_and_loses_nothing(owner, monkeypatch):
    monkeypatch.setattr(view_store, "COMMITS_PER_CHECKPOINT", 10)
    for i in range(22):
        owner.epoch(rows(("a", i % 3, 0.5)))
        owner.clock.advance(60)
        owner.keeper.maintain()
    state = owner.tables.snapshot("state/by_host-" + owner.plan.views[0].fingerprint)
    folder = owner.root / state.name
    written = 22 * len(owner.plan.views[0].parts)
    assert len(list(folder.glob("*.parquet"))) < written / 2
    owner.begin()
    assert owner.is_true()


@settings(
    max_examples=12,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
@given(
    steps=st.lists(
        st.tuples(
            st.sampled_from(
                ["epoch", "epoch", "unpublished", "restart", "publish.1", "publish.2", "publish.3"]
            ),
            st.lists(
                st.tuples(
                    st.sampled_from([None, "a", "b"]),
                    st.none() | st.integers(-3, 3),
                    st.sampled_from([None, 0.5, 4.0, -64.0]),
                ),
                min_size=1,
                max_size=4,
            ),
        ),
        max_size=6,
    )
)
def test_crashes_among_the_epochs_change_nothing(steps, tmp_path_factory, monkeypatch):
    owner = Owner(tmp_path_factory.mktemp("views"), plan(("by_host", BY_HOST), ("total", TOTAL)))
    for action, values in steps:
        batch = rows(*values)
        if action.startswith("publish."):
            monkeypatch.setenv("HEADRACE_FAILPOINT", f"{action}=error")
            with pytest.raises(OSError, match="failpoint"):
                _fresh_failpoint(owner, batch)
            monkeypatch.delenv("HEADRACE_FAILPOINT")
            owner.begin()
        elif action == "restart":
            owner.commit(batch)
            owner.begin()
        else:
            owner.epoch(batch, publish=action == "epoch")
    owner.keeper.publish(owner.clock.now_us(), force=True)
    assert owner.is_true()


def _fresh_failpoint(owner, batch):
    failpoint._seen.clear()
    owner.epoch(batch)
