"""What a pipeline goes through: restarts, trimming, changed views, retention, little memory."""

from __future__ import annotations

import json
from contextlib import nullcontext
from pathlib import Path

import pyarrow as pa
import pytest
from owning import Place, append, checked, comparable, opened

from headrace import Pipeline, Record, tumbling
from headrace.define.view_sql import plain_sql
from headrace.model.errors import Unavailable
from headrace.model.ids import client_id
from headrace.model.plan import KNOWN_IDS, Plan
from headrace.process.housekeeping import Housekeeper, expire_ids, retain
from headrace.stage.engine import Engine

HORIZON_S = 60
ENGINE = Engine(threads=1)
BY_KIND = "SELECT kind, count(*) AS n, sum(amount) AS total FROM events GROUP BY kind"
DISTINCT = "SELECT count(DISTINCT amount) AS amounts, max(amount) AS hi FROM events"
PER_MINUTE = "SELECT kind, count(*) AS n FROM events GROUP BY kind"
WINDOWS = {"per_minute": tumbling("1 minute", on="received_at")}


class Event(Record):
    kind: str
    amount: int


def plan(retention: str | None = None, **views: str) -> Plan:
    pipe = Pipeline("life")
    events = pipe.topic("raw", Event, store=False)
    pipe.table("events", {events: "SELECT kind, amount FROM raw"}, retention=retention)
    for name, sql in views.items():
        pipe.view(name, sql, window=WINDOWS.get(name))
    short = {"log_retention_s": 0, "keep_commits_s": 0, "tidy_every_s": 0}
    return checked(pipe, horizon_s=HORIZON_S, **short)


def send(place: Place, *amounts: int, chosen: str | None = None) -> None:
    for amount in amounts:
        value = json.dumps({"kind": f"k{amount % 2}", "amount": amount}).encode()
        name = client_id("test", "raw", chosen) if chosen else None
        append(place.log, place.clock, "raw", value, chosen=name)


def trim(place: Place) -> list[int]:
    """Let the log forget what is committed and past the horizon; return where it starts."""
    housekeeper = Housekeeper(place.owner, nullcontext)
    housekeeper.trim()
    place.clock.advance(HORIZON_S + 1)
    place.log.seal()
    housekeeper.trim()
    return list(place.log.starts("raw"))


def views_of(place: Place) -> dict[str, list[str]]:
    return {v.name: comparable(place.rows(f"views/{v.name}")) for v in place.plan.views}


def assert_true(place: Place) -> None:
    rows = place.rows("tables/events")
    for view in place.plan.views:
        plain = ENGINE.query(plain_sql(view), {"events": rows})
        assert as_numbers(place.rows(f"views/{view.name}")) == as_numbers(plain), view.name


def as_numbers(rows: pa.Table) -> list[list[str]]:
    """Return rows as sorted texts, whatever the types of their numbers."""
    kept = [n for n in rows.column_names if n != "watermark_passed"]
    return sorted([str(v) for v in row.values()] for row in rows.select(kept).to_pylist())


ALL = {"by_kind": BY_KIND, "distinct": DISTINCT, "per_minute": PER_MINUTE}


def test_a_restart_after_the_log_was_trimmed_gives_the_same_views(tmp_path: Path) -> None:
    with opened(tmp_path, plan(**ALL)) as place:
        send(place, *range(20))
        place.epoch()
        place.publish()
        assert sum(trim(place)) == 20
        place.publish()
        before = views_of(place)
        place.begin()
        place.publish()
        assert views_of(place) == before
        send(place, 1, 99)
        place.epoch()
        place.publish()
        assert_true(place)
        assert place.rows("tables/events").num_rows == 22


def test_a_view_made_anew_from_its_table_is_the_maintained_one(tmp_path: Path) -> None:
    with opened(tmp_path, plan(**ALL)) as place:
        for at in range(0, 20, 5):
            send(place, *range(at, at + 5))
            place.epoch(records_max=3)
        place.epoch()
        place.publish()
        trim(place)
        place.publish()
        maintained = views_of(place)
        for view in ALL:
            place.tables.drop(f"state/{view}-" + fingerprint(place, view))
            place.tables.drop(f"views/{view}")
        place.begin()
        place.publish()
        assert views_of(place) == maintained


def fingerprint(place: Place, view: str) -> str:
    return next(v.fingerprint for v in place.plan.views if v.name == view)


def test_a_new_view_over_an_old_table_and_a_changed_one_beside_the_old(tmp_path: Path) -> None:
    with opened(tmp_path, plan(by_kind=BY_KIND)) as place:
        send(place, *range(10))
        place.epoch()
        place.publish()
        trim(place)
        old = fingerprint(place, "by_kind")
        changed = BY_KIND.replace("sum(amount)", "max(amount)")
        place.begin(plan(by_kind=changed, distinct=DISTINCT, per_minute=PER_MINUTE))
        send(place, 100)
        place.epoch()
        place.publish()
        assert_true(place)
        assert max(r["total"] for r in place.rows("views/by_kind").to_pylist()) == 100
        assert f"state/by_kind-{old}" not in place.tables.names()


def test_a_window_that_passes_after_a_restart_is_told(tmp_path: Path) -> None:
    with opened(tmp_path, plan(per_minute=PER_MINUTE)) as place:
        send(place, 1)
        place.epoch()
        place.publish()
        assert passed(place) == [False]
        place.begin()
        place.publish()
        assert passed(place) == [False]
        assert place.owner.views.next_timer() is not None
        place.clock.advance(120)
        place.publish()
        assert passed(place) == [True]
        version = place.tables.snapshot("views/per_minute").version
        place.begin()
        place.publish()
        assert place.tables.snapshot("views/per_minute").version == version


def passed(place: Place) -> list[bool]:
    return place.rows("views/per_minute").column("watermark_passed").to_pylist()


def test_retention_takes_rows_and_corrects_views_in_one_epoch(tmp_path: Path) -> None:
    with opened(tmp_path, plan(retention="1 hour", **ALL)) as place:
        send(place, 1, 2, 3)
        place.epoch()
        place.publish()
        place.clock.advance(3000)
        send(place, 4, 5)
        place.epoch()
        assert retain(place.owner) is None
        place.clock.advance(900)
        row = retain(place.owner)
        assert (row.kind, row.epoch) == ("retention", 3)
        assert sorted(place.rows("tables/events").column("amount").to_pylist()) == [4, 5]
        assert_true(place)
        place.begin()
        place.publish()
        assert_true(place)
        assert retain(place.owner) is None
        # A replay of the log from the start would bring them back; the offsets stay.
        assert place.epoch() is None
        send(place, 6)
        assert place.epoch().epoch == 4
        assert place.rows("tables/events").num_rows == 3


def test_the_ledger_forgets_rows_and_keeps_the_plan(tmp_path: Path) -> None:
    with opened(tmp_path, plan(**ALL)) as place:
        for amount in range(5):
            send(place, amount)
            place.clock.advance(1)
            place.epoch()
        place.clock.advance(1)
        last = place.owner.ledger.last
        text = place.owner.ledger.rows_after(0)[0].plan_text
        assert Housekeeper(place.owner, nullcontext).expire_ledger() == 4
        (kept,) = place.owner.ledger.rows_after(0)
        assert kept.plan_text == text
        place.begin()
        after = place.owner.ledger.last
        assert (after.epoch, after.offsets, after.topic_totals) == (
            5,
            last.offsets,
            last.topic_totals,
        )
        send(place, 7)
        assert place.epoch().epoch == 6


def test_forgetting_ids_past_the_horizon_changes_nothing_that_counts(tmp_path: Path) -> None:
    with opened(tmp_path, plan(**ALL)) as place:
        send(place, 1, chosen="old")
        place.epoch()
        place.clock.advance(HORIZON_S)
        send(place, 2, chosen="young")
        send(place, 1, chosen="old")
        place.epoch()
        assert place.rows("tables/events").num_rows == 2
        place.clock.advance(HORIZON_S + 1)
        send(place, 3, chosen="young")
        place.epoch()
        assert expire_ids(place.owner) == 2
        assert place.rows(KNOWN_IDS).num_rows == 1
        send(place, 3, chosen="young")
        place.epoch()
        place.begin()
        send(place, 3, chosen="young")
        place.epoch()
        assert place.rows("tables/events").column("amount").to_pylist().count(3) == 1
        assert place.rows("tables/events").num_rows == 3
        place.assert_accounted()


def test_too_little_memory_makes_no_dead_letters(tmp_path: Path) -> None:
    with opened(tmp_path, plan(**ALL), memory_limit="1MB") as place:
        send(place, *range(50))
        with pytest.raises(Unavailable):
            place.epoch()
        assert place.letters() == []
        assert place.owner.ledger.epoch == 0
