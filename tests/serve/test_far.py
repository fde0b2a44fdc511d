"""Answers from tables on a real S3 server: the same as from tables at home."""

from __future__ import annotations

import contextlib

import pytest

from headrace.serve.owner import OwnerSql

pytestmark = pytest.mark.timeout(900)  # the first test may build the server


def test_rows_views_queries_and_health(far):
    world, client = far
    assert client.rows("/v1/tables/sales") == []
    world.epoch([world.sale(i, "ab"[i % 2]) for i in range(5)], [world.letter(1)])
    world.publish([{"host": "a", "sales": 3, "sum": 1.0}], 1)
    answer = client.get("/v1/tables/sales", at_least="events/0:5", timeout="10")
    assert (answer.status_code, len(answer.json()["rows"])) == (200, 5)
    assert client.rows("/v1/views/by_host")[0]["sales"] == 3
    assert len(client.rows("/v1/dead-letters")) == 1
    assert client.get("/healthz").json() == {"healthy": True, "epoch": 1}
    world.epoch([world.sale(9)])
    answer = client.get("/v1/tables/sales", at_least="events/0:6", timeout="10")
    assert (answer.status_code, len(answer.json()["rows"])) == (200, 6)


def test_only_what_is_queried_is_brought(far):
    world, client = far
    world.epoch([world.sale(0)])
    world.publish([{"host": "a", "sales": 1, "sum": 1.0}], 1)
    assert client.get("/v1/tables").status_code == 200
    assert not list(world.layout.near.glob("*/tables/sales/*.parquet"))
    assert len(client.rows("/v1/views/by_host")) == 1
    assert len(list(world.layout.near.glob("*/views/by_host/*.parquet"))) == 1
    assert not list(world.layout.near.glob("*/tables/sales/*.parquet"))


def test_files_that_are_gone_are_looked_for_again(far):
    world, client = far
    world.epoch([world.sale(0)])
    world.publish([{"host": "a", "sales": 1, "sum": 1.0}], 1)
    assert client.rows("/v1/views/by_host")[0]["sales"] == 1
    world.publish([{"host": "a", "sales": 2, "sum": 1.0}], 1)
    world.publish([{"host": "a", "sales": 3, "sum": 1.0}], 1)
    table = world.opened["views/by_host"]
    world.clock.sleep(0.01)
    table.clean(world.clock.now_us(), table.snapshot.version)
    world.clock.sleep(0.2)
    assert client.rows("/v1/views/by_host")[0]["sales"] == 3


def test_the_owners_sql(far):
    world, _ = far
    world.epoch([world.sale(0), world.sale(1)])
    with contextlib.closing(OwnerSql(world.site)) as sql:
        assert sql.names() == ["tables.sales", "ledger"]
        assert sql.query("SELECT count(*) AS n FROM sales").to_pylist() == [{"n": 2}]
        assert sql.query("SELECT max(epoch) AS n FROM ledger").to_pylist() == [{"n": 1}]
    assert len([p for p in world.layout.near.iterdir() if p.is_dir()]) == 1, "the client's own"
