"""Following tables and views: each new row once, in order, whatever happens to the files."""

import pyarrow as pa
import pytest

from headrace.serve.new_rows import Follower


@pytest.fixture
def follow(world):
    opened = []

    def make(storage, tables=None, *, from_beginning=True):
        opened.append(Follower(tables or world.tables, storage, from_beginning=from_beginning))
        return opened[-1]

    yield make
    for follower in opened:
        follower.close()


def new(follower, *columns):
    found = follower.look()
    return None if found is None else found.rows.read_all().select(columns).to_pylist()


def compact(world):
    """Put the rows of a table's files into one, as housekeeping does."""
    table = world.opened["tables/sales"]
    before = table.snapshot
    file = world.tables.stage("tables/sales", world.tables.read(before))
    table.commit([file], before.files, data_change=False)


def test_rows_of_a_table_come_once_and_in_their_order(world, follow):
    follower = follow("tables/sales")
    assert follower.look() is None
    world.epoch([world.sale(0)])
    world.epoch([world.sale(2), world.sale(1)])
    assert new(follower, "n", "tags", "extra") == [
        {"n": n, "tags": ["x", None], "extra": [("k", n)]} for n in range(3)
    ]
    assert follower.look() is None
    world.epoch([world.sale(3)])
    found = follower.look()
    assert (found.version, found.rows.read_all()["n"].to_pylist()) == (3, [3])


def test_from_the_end_only_what_comes_later(world, follow):
    world.epoch([world.sale(0)])
    follower = follow("tables/sales", from_beginning=False)
    assert follower.look() is None
    world.epoch([world.sale(1)])
    assert new(follower, "n") == [{"n": 1}]


def test_compaction_brings_nothing_again_and_hides_nothing(world, follow):
    world.epoch([world.sale(0)])
    world.epoch([world.sale(1), world.sale(1)])
    follower = follow("tables/sales")
    assert len(new(follower, "n")) == 3
    compact(world)
    assert new(follower, "n") == []
    # The same row again, and a compaction before anybody looks.
    world.epoch([world.sale(1)])
    compact(world)
    assert new(follower, "n") == [{"n": 1}]


def test_of_a_view_the_rows_that_are_new_or_changed(world, follow):
    follower = follow("views/by_host")
    a, b = ({"host": host, "sales": 1, "sum": 1.0} for host in "ab")
    world.publish([b, a], 1)
    assert new(follower, "host", "sales") == [{"host": h, "sales": 1} for h in "ab"]
    world.publish([a, {**b, "sales": 2}, {"host": None, "sales": 1, "sum": None}], 2)
    assert new(follower, "host", "sales") == [
        {"host": "b", "sales": 2},
        {"host": None, "sales": 1},
    ]
    world.publish([a], 3)
    assert new(follower, "host") == []


def test_a_column_that_came_later_is_null_before(world, follow):
    follower = follow("tables/sales")
    world.epoch([world.sale(0)])
    wider = world.sales_schema.append(pa.field("more", pa.int64()))
    world.epoch([{**world.sale(1), "more": 5}], schema=wider)
    assert new(follower, "n", "more") == [{"n": 0, "more": None}, {"n": 1, "more": 5}]


def test_a_table_that_is_made_again_begins_again(world, follow):
    follower = follow("views/by_host")
    row = {"host": "a", "sales": 1, "sum": 1.0}
    world.publish([row], 1)
    assert len(new(follower, "host")) == 1
    world.tables.drop("views/by_host")
    del world.opened["views/by_host"]
    assert follower.look() is None
    world.publish([row], 1)
    assert len(new(follower, "host")) == 1
