"""A keyed table holds the latest row of each key, and its views count just those, however cut.

What is compared with a model of ten lines: the table after any cut of the records into epochs, with
crashes at any step, a lost index, a lost table, compaction of the changelog among them; and each
view with its plain SQL over the table.
"""

from __future__ import annotations

import json
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import closing, nullcontext
from pathlib import Path
from typing import NamedTuple

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from owning import Crashes, Place, checked, comparable, opened

from headrace import Pipeline, Record, tumbling
from headrace.define.view_sql import plain_sql
from headrace.model.batch import Batch
from headrace.model.plan import Plan
from headrace.process import housekeeping, keyed_table
from headrace.process.housekeeping import Housekeeper
from headrace.stage.engine import Engine

SECOND = 1_000_000


class Thing(Record):
    key: str
    version: int | None = None
    kind: str | None = None
    n: int | None = None
    x: float | None = None
    gone: bool = False


VIEWS = {
    "by_kind": "SELECT kind, count(*) AS c, sum(n) AS s, min(n) AS lo, max(x) AS hi FROM held "
    "GROUP BY kind",
    "kinds": "SELECT count(DISTINCT kind) AS kinds, avg(n) AS mean, count(*) FILTER (WHERE n > 1) "
    "AS many, bool_or(n > 2) AS some FROM held",
    "sets": "SELECT kind, n, GROUPING(kind, n) AS g, count(*) AS c FROM held "
    "GROUP BY GROUPING SETS ((kind, n), (kind), ())",
}
WINDOWED = "SELECT kind, count(*) AS c, count(DISTINCT n) AS d FROM held GROUP BY kind"


def plan_of(partitions: int, *, version: bool = True) -> Plan:
    pipe = Pipeline("things")
    things = pipe.topic("things", Thing, partitions=partitions, key="key", store=False)
    pipe.table(
        "held",
        {things: "SELECT key, version, kind, n, x, gone FROM things"},
        key="key",
        version="version" if version else None,
        deleted="gone",
    )
    for name, sql in VIEWS.items():
        pipe.view(name, sql)
    pipe.view("arrived", WINDOWED, window=tumbling("1 minute", on="received_at"))
    return checked(pipe, table_files_max=4, commits_per_checkpoint=3, keep_commits_s=0)


class Sent(NamedTuple):
    key: str
    version: int | None
    kind: str | None
    n: int | None
    x: float | None
    gone: bool


SENT = st.builds(
    Sent,
    key=st.sampled_from("abcdef"),
    version=st.none() | st.integers(0, 6),
    kind=st.none() | st.sampled_from(["red", "green"]),
    n=st.none() | st.integers(-3, 5),
    x=st.none() | st.sampled_from([0.0, 1.5, float(2**60), -0.1]),
    gone=st.sampled_from([False, False, False, True]),
)


def send(place: Place, sent: Sent, number: int) -> dict[str, object]:
    """Append a record; return the row that it would be."""
    batch = Batch()
    identifier = uuid.UUID(int=(7 << 76) | (2 << 62) | number)
    value = json.dumps(sent._asdict()).encode()
    received_at = place.clock.now_us()
    batch.add(value, received_at=received_at, id=identifier.bytes, key=sent.key.encode())
    place.log.append("things", batch)
    return {**sent._asdict(), "event_id": str(identifier)}


def model(rows: list[dict[str, object]], *, version: bool = True) -> list[tuple[object, ...]]:
    """Return what a keyed table of these rows holds."""
    latest: dict[object, dict[str, object]] = {}
    for row in rows:
        held = latest.get(row["key"])
        if not version or held is None or rank(row) > rank(held):
            latest[row["key"]] = row
    held = [r for r in latest.values() if not r["gone"]]
    return sorted((r["key"], r["event_id"], r["kind"], r["n"], r["x"]) for r in held)


def rank(row: dict[str, object]) -> tuple[int, str]:
    version = row["version"]
    return (-1 if version is None else int(version), str(row["event_id"]))


def held(place: Place) -> list[tuple[object, ...]]:
    rows = place.rows("tables/held").to_pylist()
    return sorted((r["key"], r["event_id"], r["kind"], r["n"], r["x"]) for r in rows)


def assert_holds(place: Place, rows: list[dict[str, object]], *, version: bool = True) -> None:
    assert held(place) == model(rows, version=version)
    table = place.rows("tables/held")
    with closing(Engine(threads=1)) as engine:
        for view in place.plan.views:
            public = place.rows(f"views/{view.name}")
            plain = engine.query(plain_sql(view, "held"), {"held": table})
            if view.window:
                public = public.drop_columns(["watermark_passed"])
            assert comparable(public.select(plain.column_names)) == comparable(plain), view.name


@pytest.fixture(params=[1, 3])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    with opened(tmp_path, plan_of(request.param)) as made:
        yield made


def test_a_record_that_changes_moves_and_one_that_is_removed_is_counted_no_more(
    place: Place,
) -> None:
    rows = [send(place, Sent("a", 1, "red", 1, 0.5, gone=False), 1)]
    place.epoch()
    rows.append(send(place, Sent("b", 1, "red", 2, None, gone=False), 2))
    rows.append(send(place, Sent("a", 2, "green", 1, 0.5, gone=False), 3))
    place.epoch()
    place.publish()
    assert_holds(place, rows)
    counts = {r["kind"]: r["c"] for r in place.rows("views/by_kind").to_pylist()}
    assert counts == {"red": 1, "green": 1}
    rows.append(send(place, Sent("a", 3, None, None, None, gone=True), 4))
    place.epoch()
    place.publish()
    assert_holds(place, rows)
    assert [r["kind"] for r in place.rows("views/by_kind").to_pylist()] == ["red"]


def test_an_older_row_that_comes_later_does_not_bring_a_key_back(place: Place) -> None:
    rows = [send(place, Sent("a", 5, None, None, None, gone=True), 1)]
    place.epoch()
    rows.append(send(place, Sent("a", 4, "red", 1, None, gone=False), 2))
    place.epoch()
    place.begin()
    rows.append(send(place, Sent("a", 3, "red", 1, None, gone=False), 3))
    place.epoch()
    place.publish()
    assert held(place) == []
    assert_holds(place, rows)


def test_rows_of_one_epoch_leave_their_net_change_in_the_changelog(place: Place) -> None:
    send(place, Sent("a", 1, "red", 1, None, gone=False), 1)
    place.epoch()
    for number in (2, 3, 4):
        send(place, Sent("a", number, "red", number, None, gone=False), number)
    place.epoch()
    changes = place.rows("changes/held").to_pylist()
    assert sorted((c["_epoch"], c["_weight"], c["n"]) for c in changes) == [
        (1, 1, 1),
        (2, -1, 1),
        (2, 1, 4),
    ]


def test_without_a_version_the_later_record_holds(tmp_path: Path) -> None:
    with opened(tmp_path, plan_of(3, version=False)) as place:
        rows = []
        for number, version in enumerate([5, 3, 4, 1]):
            rows.append(send(place, Sent("a", version, "red", number, None, gone=False), number))
            if number % 2:
                place.epoch()
        place.publish()
        assert held(place)[0][3] == 3
        assert_holds(place, rows, version=False)


def test_a_record_without_a_key_is_a_dead_letter(tmp_path: Path) -> None:
    pipe = Pipeline("things")
    things = pipe.topic("things", Thing, partitions=1, store=False)
    sql = "SELECT kind AS key, version FROM things"
    pipe.table("by_kind", {things: sql}, key="key", version="version")
    with opened(tmp_path, checked(pipe)) as place:
        send(place, Sent("a", 1, None, 1, None, gone=False), 1)
        send(place, Sent("b", 1, "red", 1, None, gone=False), 2)
        place.epoch()
        place.publish()
        assert place.rows("tables/by_kind").column("key").to_pylist() == ["red"]
        (letter,) = place.letters()
        assert "NULL" in letter["message"]


def test_a_view_that_is_new_begins_with_the_table(place: Place) -> None:
    rows = []
    for number in range(6):
        sent = Sent("abc"[number % 3], number, "red", number, 1.0, gone=False)
        rows.append(send(place, sent, number))
        place.epoch()
    bare = msgspec.structs.replace(place.plan, views=())
    whole = place.plan
    place.begin(bare)
    rows.append(send(place, Sent("a", 9, "green", 7, 2.0, gone=False), 9))
    place.epoch()
    place.begin(whole)
    rows.append(send(place, Sent("b", 9, None, None, None, gone=True), 10))
    place.epoch()
    place.publish()
    assert_holds(place, rows)


def test_a_changelog_is_bounded_by_what_its_table_holds(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(housekeeping, "CHANGELOG_BYTES", 1)
    monkeypatch.setattr(housekeeping, "CHANGELOG_ROWS_MIN", 5)
    rows, most = [], 0
    keeper = Housekeeper(place.owner, nullcontext)
    for number in range(40):
        sent = Sent("abc"[number % 3], number, "red", number, None, gone=number % 5 == 0)
        rows.append(send(place, sent, number))
        place.epoch()
        place.publish()
        keeper.tables()
        files = place.owner.table("changes/held").snapshot.files
        most = max(most, sum(file.rows for file in files))
    assert most < 2 * 3 + 5 + 6
    assert_holds(place, rows)
    place.owner.close()
    shutil.rmtree(place._root / "run" / "keys")
    place.begin()
    rows.append(send(place, Sent("a", 99, "green", 1, None, gone=False), 99))
    place.epoch()
    place.publish()
    assert_holds(place, rows)


class Act(NamedTuple):
    what: str
    count: int


ACTS = st.lists(
    st.builds(
        Act,
        what=st.sampled_from(
            ["epoch", "epoch", "epoch", "begin", "publish", "index", "table", "compact"]
        ),
        count=st.integers(1, 5),
    ),
    max_size=12,
)


def act_on(place: Place, root: Path, act: Act) -> None:
    match act.what:
        case "epoch":
            place.epoch(act.count)
        case "begin":
            place.begin()
        case "publish":
            place.publish()
        case "index":
            place.owner.close()
            shutil.rmtree(root / "run" / "keys", ignore_errors=True)
            place.begin()
        case "table":
            place.owner.close()
            shutil.rmtree(root / "tables" / "held", ignore_errors=True)
            place.begin()
        case "compact":
            Housekeeper(place.owner, nullcontext).tables()


@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(
    sent=st.lists(SENT, min_size=1, max_size=25),
    acts=ACTS,
    crashes=st.lists(st.integers(0, 40), max_size=3),
    partitions=st.sampled_from([1, 3]),
)
def test_any_cut_any_crash(
    monkeypatch: pytest.MonkeyPatch,
    sent: list[Sent],
    acts: list[Act],
    crashes: list[int],
    partitions: int,
) -> None:
    monkeypatch.setattr(keyed_table, "FILE_ROWS_FIRST", 2)
    monkeypatch.setattr(keyed_table, "FILE_ROWS_MIN", 2)
    monkeypatch.setattr(keyed_table, "FILE_BYTES", 1)
    root = Path(tempfile.mkdtemp())
    crash = Crashes(monkeypatch)
    try:
        with opened(root, PLANS[partitions]) as place:
            rows = [send(place, one, number) for number, one in enumerate(sent)]
            with crash.at(crashes):
                for act in acts:
                    place.outlive(lambda act=act: act_on(place, root, act))
            while place.there():
                place.epoch(7)
            place.publish()
            assert_holds(place, rows)
            place.begin()
            assert_holds(place, rows)
    finally:
        shutil.rmtree(root)


PLANS = {n: plan_of(n) for n in (1, 3)}
