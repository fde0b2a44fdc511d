"""Up to where an answer is true, and waiting until it is."""

import asyncio
import json

import msgspec
import pyarrow as pa
import pytest

from headrace.model.plan import LEDGER
from headrace.serve.freshness import Ledger, Row
from headrace.serve.relations import Snapshots


def offsets(answer):
    return json.loads(answer.headers["x-headrace-offsets"])


def test_before_anything_happened(client, world):
    answer = client.get("/v1/tables/sales")
    assert offsets(answer) == {"sales": {"events/0": 0, "events/1": 0}}
    assert json.loads(answer.headers["x-headrace-version"]) == {"sales": -1}
    assert "x-headrace-committed-at" not in answer.headers


def test_a_table_is_true_up_to_the_ledger(client, world):
    world.epoch([world.sale(0)], offsets={"events/0": 10})
    answer = client.get("/v1/tables/sales")
    assert offsets(answer) == {"sales": {"events/0": 10, "events/1": 0}}
    assert json.loads(answer.headers["x-headrace-version"]) == {"sales": 1}
    assert answer.headers["x-headrace-committed-at"].endswith("Z")


def test_an_epoch_without_rows_for_a_table_counts_for_it(client, world):
    world.epoch([world.sale(0)], offsets={"events/0": 10})
    world.epoch(offsets={"events/0": 20, "events/1": 5})
    assert offsets(client.get("/v1/tables/sales")) == {"sales": {"events/0": 20, "events/1": 5}}


def test_an_epoch_that_is_not_visible_yet_does_not_count(client, world):
    world.epoch([world.sale(0)], offsets={"events/0": 10})
    world.epoch(offsets={"events/0": 15})
    row = world.epoch([world.sale(1)], offsets={"events/0": 20, "events/1": 7}, visible=False)
    answer = client.get("/v1/tables/sales")
    assert offsets(answer) == {"sales": {"events/0": 15, "events/1": 0}}
    assert len(answer.json()["rows"]) == 1
    world.show(row)
    answer = client.get("/v1/tables/sales")
    assert offsets(answer) == {"sales": {"events/0": 20, "events/1": 7}}
    assert len(answer.json()["rows"]) == 2


def test_a_view_is_true_up_to_what_it_contains(client, world):
    rows = [{"host": "a", "sales": 1, "sum": 1.0}]
    world.epoch([world.sale(0)], offsets={"events/0": 10})
    world.publish(rows, 1)
    assert offsets(client.get("/v1/views/by_host"))["by_host"]["events/0"] == 10
    # Nothing of these epochs concerns its table: it is as fresh as the ledger.
    world.epoch(offsets={"events/0": 12})
    assert offsets(client.get("/v1/views/by_host"))["by_host"]["events/0"] == 12
    # Its table got rows that it does not contain: one epoch behind, then two.
    world.epoch([world.sale(1)], offsets={"events/0": 20})
    assert offsets(client.get("/v1/views/by_host"))["by_host"]["events/0"] == 12
    world.epoch([world.sale(2)], offsets={"events/0": 30})
    assert offsets(client.get("/v1/views/by_host"))["by_host"]["events/0"] == 10
    world.publish(rows, 4)
    assert offsets(client.get("/v1/views/by_host"))["by_host"]["events/0"] == 30


def test_a_query_names_everything_that_it_read(client, world):
    world.epoch([world.sale(0)], offsets={"events/0": 10})
    assert offsets(client.get("/count", by="host")) == {"sales": {"events/0": 10, "events/1": 0}}


@pytest.mark.parametrize("at_least", ["events/0:10", "events/0:3,events/1:0", "events/0=10", ""])
def test_what_is_reached_is_answered_at_once(client, world, at_least):
    world.epoch([world.sale(0)], offsets={"events/0": 10})
    answer = client.get("/v1/tables/sales", at_least=at_least, timeout="0")
    assert answer.status_code == 200


@pytest.mark.parametrize("path", ["/v1/tables/sales", "/v1/tables", "/count?by=host"])
def test_what_is_not_reached_in_time_is_told(client, world, path):
    world.epoch([world.sale(0)], offsets={"events/0": 10})
    sign = "&" if "?" in path else "?"
    at_least = "" if path == "/v1/tables" else "events/0:11"
    answer = client.ask(f"{path}{sign}at_least={at_least}&timeout=0.1")
    if path == "/v1/tables":
        assert answer.status_code == 200
        return
    assert answer.status_code == 504
    error = answer.json()["error"]
    assert error["code"] == "not_yet"
    assert "events/0 up to 10, not 11" in error["message"]
    assert error["hint"]


def test_a_request_waits_until_the_view_contains_its_write(client, world):
    rows = [{"host": "a", "sales": 1, "sum": 1.0}]
    world.epoch([world.sale(0)], offsets={"events/0": 1})
    world.publish(rows, 1)

    async def write_while_waiting():
        path = "/v1/views/by_host?at_least=events/0:2&timeout=20"
        waiting = asyncio.create_task(client.http.get(path))
        await asyncio.sleep(0.1)
        assert not waiting.done()
        world.epoch([world.sale(1)], offsets={"events/0": 2})
        await asyncio.sleep(0.1)
        # The table contains it, the view does not yet.
        assert not waiting.done()
        world.publish([{"host": "a", "sales": 2, "sum": 2.0}], 2)
        return await waiting

    answer = client.runner.run(write_while_waiting())
    assert answer.json()["rows"] == [{"host": "a", "sales": 2, "sum": 2.0}]
    assert offsets(answer)["by_host"]["events/0"] == 2


class CountingReader:
    """The tables, counting how often a snapshot is read."""

    def __init__(self, tables):
        self._tables = tables
        self.snapshots = 0

    def snapshot(self, name, version=None):
        self.snapshots += 1
        return self._tables.snapshot(name, version)

    def read(self, snapshot, files=None):
        return self._tables.read(snapshot, files)


def test_a_snapshot_is_read_once_a_version(world):
    reader = CountingReader(world.tables)
    snapshots = Snapshots(world.layout.root, reader)
    assert snapshots.newest("tables/sales") is None
    world.epoch([world.sale(0)])
    for _ in range(100):
        assert snapshots.newest("tables/sales").version == 1
    assert reader.snapshots == 1
    for i in range(1, 20):
        world.epoch([world.sale(i)])
        assert snapshots.newest("tables/sales").version == i + 1


def test_a_version_is_seen_even_if_the_folder_looks_untouched(world):
    reader = CountingReader(world.tables)
    snapshots = Snapshots(world.layout.root, reader)
    world.epoch([world.sale(0)])
    first = snapshots.newest("tables/sales")
    log = world.layout.root / "tables/sales/_delta_log"
    world.epoch([world.sale(1)])
    # As on a file system whose clock did not tick between the two commits.
    held = snapshots._held["tables/sales"]
    snapshots._held["tables/sales"] = ((log.stat().st_ino, log.stat().st_mtime_ns), held[1])
    assert snapshots.newest("tables/sales").version == first.version + 1


def test_a_reader_that_slept_past_log_clean_up_sees_the_newest(world):
    snapshots = Snapshots(world.layout.root, world.tables)
    for i in range(5):
        world.epoch([world.sale(i)])
    assert snapshots.newest("tables/sales").version == 5
    for i in range(5, 12):
        world.epoch([world.sale(i)])
    table = world.opened["tables/sales"]
    table.checkpoint(0.0)
    world.clock.sleep(0.01)
    world.epoch([world.sale(12)])
    table.checkpoint(0.0)
    assert snapshots.newest("tables/sales").version == 13


def test_a_table_that_is_dropped_and_made_again_is_another(world, client):
    world.epoch([world.sale(0), world.sale(1)])
    assert len(client.rows("/v1/tables/sales")) == 2
    world.tables.drop("tables/sales")
    assert client.rows("/v1/tables/sales") == []
    del world.opened["tables/sales"]
    world.epoch([world.sale(5)])
    for _ in range(10):
        assert [r["n"] for r in client.rows("/v1/tables/sales")] == [5]


def test_files_that_are_gone_are_looked_for_again(world, client):
    rows = [{"host": "a", "sales": 1, "sum": 1.0}]
    world.epoch([world.sale(0)])
    world.publish(rows, 1)
    assert len(client.rows("/v1/views/by_host")) == 1
    readings = client.app.state.readings
    stale = readings.catalog.snapshots.newest("views/by_host")
    world.publish([*rows, {"host": "b", "sales": 2, "sum": 1.0}], 1)
    table = world.opened["views/by_host"]
    assert table.clean(world.clock.now_us() + 10**9, table.snapshot.version) >= 1
    log = world.layout.root / "views/by_host/_delta_log"
    mark = (log.stat().st_ino, log.stat().st_mtime_ns)
    newest = readings.catalog.snapshots.newest("views/by_host")
    # A request that had taken its snapshot just before: it finds the files gone, and looks again.
    fake = msgspec.structs.replace(stale, version=newest.version)
    readings.catalog.snapshots._held["views/by_host"] = (mark, fake)
    assert len(client.rows("/v1/views/by_host")) == 2


def test_the_ledger_is_found_in_compacted_files_too(world):
    for i in range(6):
        world.epoch([world.sale(i)], offsets={"events/0": 10 * (i + 1)})
    table = world.ledger.table
    files = table.snapshot.files
    staged = world.tables.stage(LEDGER, world.tables.read(table.snapshot, files[:4]))
    table.commit([staged], files[:4], data_change=False)
    ledger = Ledger(Snapshots(world.layout.root, world.tables))
    assert ledger.row(2).offsets == {"events/0": 20}
    assert ledger.last().epoch == 6
    assert ledger.row(5).offsets == {"events/0": 50}
    assert ledger.row(7) is None
    assert ledger.row(0).offsets == {}


def test_a_ledger_of_a_later_format_is_not_guessed_at(world, client):
    row = msgspec.to_builtins(Row(epoch=1, committed_at_us=1, offsets={})) | {"format": 2}
    body = json.dumps(row)
    rows = pa.Table.from_pylist(
        [{"epoch": 1, "committed_at": None, "kind": "epoch", "plan": "", "body": body}],
        world.ledger.table.snapshot.schema,
    )
    world.ledger.table.commit([world.tables.stage(LEDGER, rows)])
    answer = client.get("/v1/tables/sales")
    assert answer.status_code == 500
    assert answer.json()["error"]["hint"] == "Upgrade Headrace."


def test_offsets_of_a_topic_that_was_made_anew_since_are_not_claimed(client, world):
    rows = [{"host": "a", "sales": 1, "sum": 1.0}]
    world.epoch([world.sale(0)], offsets={"events/0": 1_000}, incarnation="first")
    world.publish(rows, 1)
    world.epoch([world.sale(1)], offsets={"events/0": 5}, incarnation="second")
    world.epoch([world.sale(2)], offsets={"events/0": 6}, incarnation="second")
    # The view has a thousand records of the topic before it, and none of this one.
    assert offsets(client.get("/v1/views/by_host"))["by_host"]["events/0"] == 0
    answer = client.get("/v1/views/by_host", at_least="events/0:5", timeout="0")
    assert answer.json()["error"]["code"] == "not_yet"
