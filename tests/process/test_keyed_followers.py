"""Those who follow a table find out what they missed, whatever became of its log meanwhile."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import msgspec
import pytest
from owning import Crash, Place, append, checked, opened, with_options
from test_keyed import Sent, Thing, assert_holds, plan_of, send

from headrace import Pipeline, Record
from headrace.model import failpoint
from headrace.model.plan import Plan
from headrace.process.housekeeping import Housekeeper

HOUR_S = 3600.0


def upkeep(place: Place, housekeeper: Housekeeper) -> None:
    """Do all of it: compaction, checkpoints, clean-up, and what followers say of themselves."""
    housekeeper.tables()
    place.owner.keyed.maintain(place.owner.opened)
    place.owner.views.maintain()


@contextmanager
def dying_at(name: str) -> Iterator[None]:
    def act(reached: str, _wanted: str) -> None:
        if reached == name:
            raise Crash(name)

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HEADRACE_FAILPOINT", "any")
        patch.setattr(failpoint, "_act", act)
        yield


def changed(place: Place, number: int, **other: object) -> dict[str, object]:
    sent = Sent("ab"[number % 2], number, "red" if number % 3 else "green", number, 1.0, gone=False)
    return send(place, sent._replace(**other), number)


@pytest.mark.parametrize("lost", ["index", "table and views"])
def test_a_commit_that_took_the_place_of_a_damaged_one_is_not_passed_over(
    tmp_path: Path, lost: str
) -> None:
    with opened(tmp_path, plan_of(1)) as place:
        rows = []
        for number in range(4):
            rows.append(changed(place, number))
            place.epoch()
        place.publish()
        changelog = place.owner.table("changes/held")
        version = changelog.snapshot.version + 1
        if lost == "index":
            changelog.commit(txns={"something else": 1})
            place.owner.keyed.maintain(place.owner.opened)
        else:
            # Many commits later what follows names the newest, though it brought no rows.
            for number in range(30):
                changelog.commit(txns={"something else": number})
            version += 29
            place.begin()
            upkeep(place, Housekeeper(place.owner, nullcontext))
            assert place.owner.keyed.table("held").contained.version == version
        rows.append(changed(place, 4, key="a" if lost == "index" else "c"))
        # Chosen and in the ledger, but in no table yet.
        with dying_at("commit.3"), pytest.raises(Crash):
            place.epoch()
        damaged = tmp_path / f"changes/held/_delta_log/{version:020d}.json"
        damaged.write_bytes(damaged.read_bytes()[:-10])
        place.begin()
        assert place.owner.table("changes/held").snapshot.version == version
        for number in range(5, 8):
            rows.append(changed(place, number, kind="blue"))
            place.epoch()
        place.publish()
        assert_holds(place, rows)


def test_what_was_not_followed_for_long_begins_anew_where_the_files_are_gone(
    tmp_path: Path,
) -> None:
    plan = with_options(plan_of(1), keep_commits_s=1e9)
    with opened(tmp_path, plan) as place:
        rows = [changed(place, 0)]
        place.epoch()
        place.publish()
        for number in (1, 2):
            rows.append(changed(place, number))
            place.epoch()
        place.publish()
        shutil.copytree(tmp_path / "run" / "keys", tmp_path / "keys")
        bare = msgspec.structs.replace(plan, views=())
        housekeeper = Housekeeper(place.begin(bare), nullcontext)
        for number in range(3, 20):
            rows.append(changed(place, number))
            place.epoch()
            place.publish()
            place.clock.advance(2 * HOUR_S)
            upkeep(place, housekeeper)
        place.owner.close()
        # Such as that of a machine that was away.
        shutil.rmtree(tmp_path / "run" / "keys")
        shutil.copytree(tmp_path / "keys", tmp_path / "run" / "keys")
        place.begin(plan)
        rows.append(changed(place, 20))
        place.epoch()
        place.publish()
        assert_holds(place, rows)


def things(columns: str, *views: str) -> Plan:
    pipe = Pipeline("things")
    topic = pipe.topic("things", Thing, partitions=1, key="key", store=False)
    sql = f"SELECT {columns} FROM things"
    pipe.table("held", {topic: sql}, key="key", version="version")
    for name in views:
        pipe.view(name, f"SELECT {name}, count(*) AS c FROM held GROUP BY {name}")
    return checked(pipe)


def test_columns_that_are_added_take_nothing_away(tmp_path: Path) -> None:
    with opened(tmp_path, things("key, version, n", "n")) as place:
        for number in range(4):
            changed(place, number)
        place.epoch()
        place.publish()
        before = place.tables.snapshot("tables/held")
        place.begin(things("kind, key, x, version, n", "n", "kind", "x"))
        after = place.tables.snapshot("tables/held")
        # What readers are told of how far it has come.
        assert after.metadata["epoch"] == before.metadata["epoch"] == "1"
        assert after.version > before.version
        changed(place, 4)
        place.epoch()
        place.publish()
        told = sorted((r["key"], r["kind"], r["x"], r["n"]) for r in held_rows(place))
        assert told == [("a", "red", 1.0, 4), ("b", None, None, 3)]
        assert counts(place, "kind") == {"red": 1, None: 1}
        assert counts(place, "x") == {1.0: 1, None: 1}
        assert counts(place, "n") == {3: 1, 4: 1}
        changed(place, 5)
        place.epoch()
        place.publish()
        assert counts(place, "kind") == {"red": 2}
        assert counts(place, "x") == {1.0: 2}


def held_rows(place: Place) -> list[dict[str, object]]:
    return place.rows("tables/held").to_pylist()


def counts(place: Place, view: str) -> dict[object, object]:
    return {row[view]: row["c"] for row in place.rows(f"views/{view}").to_pylist()}


class Item(Record):
    host: str
    n: int


def items(*views: str, w: str = "w") -> Plan:
    pipe = Pipeline("items")
    topic = pipe.topic("things", Item, partitions=1, store=False)
    pipe.table("items", {topic: f"SELECT host, n, n AS {w} FROM things"})
    for view in views:
        pipe.view(view, f"SELECT host, count(*) AS c, sum({w}) AS s FROM items GROUP BY host")
    return checked(pipe, table_files_max=4, commits_per_checkpoint=3, keep_commits_s=1e9)


def test_a_view_of_a_table_without_a_key_that_was_away_for_long_begins_anew(
    tmp_path: Path,
) -> None:
    whole, bare = items("by_host"), items()
    with opened(tmp_path, whole) as place:
        put(place, 1)
        place.publish()
        housekeeper = Housekeeper(place.begin(bare), nullcontext)
        for n in range(2, 20):
            put(place, n)
            place.clock.advance(2 * HOUR_S)
            upkeep(place, housekeeper)
        place.begin(whole)
        place.publish()
        assert place.rows("views/by_host").to_pylist() == [{"host": "a", "c": 19, "s": 190}]


def test_only_a_changelog_has_weights(tmp_path: Path) -> None:
    with opened(tmp_path, items(w="_weight")) as place:
        for n in (-1, 1, 5):
            put(place, n)
        place.begin(items("by_host", w="_weight"))
        place.publish()
        assert place.rows("views/by_host").to_pylist() == [{"host": "a", "c": 3, "s": 5}]


def put(place: Place, n: int) -> None:
    append(place.log, place.clock, "things", b'{"host": "a", "n": %d}' % n)
    place.epoch()
