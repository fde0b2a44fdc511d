"""Tables that we wrote, read by others with no code of ours, at every stage of a table's life."""

from __future__ import annotations

import datetime as dt
from decimal import Decimal

import duckdb
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable

from headrace.model.clock import SystemClock
from headrace.tables.compact import compact, plan_compaction
from headrace.tables.delta import DeltaTables

NAME = "tables/occurrences"
UTC = dt.UTC
NARROW = pa.schema(
    [
        pa.field("n", pa.int64(), nullable=False),
        ("small", pa.int16()),
        ("name", pa.string()),
        ("share", pa.float64()),
        ("ok", pa.bool_()),
        ("at", pa.timestamp("us", tz="UTC")),
        ("day", pa.date32()),
        ("price", pa.decimal128(12, 3)),
        ("raw", pa.binary()),
    ]
)
WIDER = pa.schema(
    [
        *NARROW,
        ("tags", pa.list_(pa.field("element", pa.string()))),
        ("place", pa.struct([("lat", pa.float64()), ("lon", pa.float64())])),
        ("counts", pa.map_(pa.string(), pa.int64())),
    ]
)


def row(n):
    if n % 5 == 4:
        return {"n": n}
    return {
        "n": n,
        "small": -n,
        "name": f"Größe {n} " + "x" * (n % 50),
        "share": n / 7,
        "ok": n % 2 == 0,
        "at": dt.datetime(1969, 12, 31, 23, 59, 59, 999_999, UTC) + dt.timedelta(hours=n),
        "day": dt.date(2026, 1, 1) + dt.timedelta(days=n),
        "price": Decimal(n * 1001 - 50_000).scaleb(-3),
        "raw": bytes([n % 256, 0]),
        "tags": ["a", f"t{n}"],
        "place": {"lat": n / 2, "lon": -n / 2},
        "counts": [("k", n)],
    }


def rows(start, end, schema):
    wanted = [{k: v for k, v in row(n).items() if k in schema.names} for n in range(start, end)]
    return pa.Table.from_pylist(wanted, schema=schema)


@pytest.fixture(scope="module", params=["log", "checkpoint", "cleaned", "compacted"])
def written(request, tmp_path_factory):
    """A table whose older files lack columns, and what must be read of it."""
    tables = DeltaTables(tmp_path_factory.mktemp(request.param), SystemClock())
    table = tables.create(NAME, NARROW)
    for n in range(0, 30, 3):
        table.commit([tables.stage(NAME, rows(n, n + 3, NARROW))], txns={"e": n})
    table.commit(schema=WIDER)
    for n in range(30, 60, 3):
        table.commit([tables.stage(NAME, rows(n, n + 3, WIDER))], txns={"e": n})
    if request.param != "log":
        table.checkpoint(3600 if request.param == "checkpoint" else 0)
        table.commit([tables.stage(NAME, rows(60, 63, WIDER))], txns={"e": 60})
    if request.param == "compacted":
        for group in plan_compaction(table.snapshot, files_max=16):
            compact(tables, table, group, txn="f")
        table.checkpoint(0)
        table.clean(SystemClock().now_us() + 1, table.snapshot.version)
        assert len(table.snapshot.files) < 5
    expected = tables.read(table.snapshot).sort_by("n")
    older = expected.slice(0, 30).select(NARROW.names)
    assert older.to_pylist() == rows(0, 30, NARROW).to_pylist()
    assert expected.slice(30).to_pylist() == rows(30, expected.num_rows, WIDER).to_pylist()
    return table.snapshot, expected


def plain(table):
    return table.sort_by("n").to_pylist()


def test_deltalake(written):
    snapshot, expected = written
    dt_table = DeltaTable(snapshot.root)
    assert dt_table.version() == snapshot.version
    assert dt_table.transaction_version("e") == snapshot.txns["e"]
    assert (dt_table.protocol().min_reader_version, dt_table.protocol().min_writer_version) == (
        1,
        2,
    )
    assert plain(dt_table.to_pyarrow_table()) == plain(expected)


def test_statistics_mislead_no_reader(written):
    snapshot, expected = written
    dataset = DeltaTable(snapshot.root).to_pyarrow_dataset()
    field = pa.dataset.field
    for condition, wanted in (
        (field("n") >= 31, lambda r: r["n"] >= 31),
        (field("name") > "Größe 5 x", lambda r: r["name"] and r["name"] > "Größe 5 x"),
        (field("price") < Decimal("-20.000"), lambda r: r["price"] and r["price"] < -20),
        (field("day") == dt.date(2026, 1, 8), lambda r: r["day"] == dt.date(2026, 1, 8)),
        (
            field("at") < pa.scalar(dt.datetime(1970, 1, 1, tzinfo=UTC)),
            lambda r: r["at"] and r["at"].year < 1970,
        ),
    ):
        found = dataset.to_table(filter=condition)
        assert plain(found) == [r for r in plain(expected) if wanted(r)]
        assert found.num_rows


def test_duckdb(written):
    snapshot, expected = written
    files = DeltaTable(snapshot.root).file_uris()
    with duckdb.connect() as con:
        con.execute("SET TimeZone = 'UTC'")
        query = "SELECT * FROM read_parquet($1, union_by_name = true)"
        found = con.sql(query, params=[files]).to_arrow_table()
    assert plain(found.cast(snapshot.schema)) == plain(expected)


def test_duckdb_delta_scan(written):
    snapshot, expected = written
    with duckdb.connect() as con:
        try:
            con.execute("SET autoinstall_known_extensions = false")
            con.execute("LOAD delta")
        except duckdb.Error as e:
            pytest.skip(f"DuckDB's delta extension is not installed: {str(e).splitlines()[0]}")
        found = con.execute("SELECT count(*), sum(n) FROM delta_scan($1)", [snapshot.root])
        assert found.fetchone() == (expected.num_rows, sum(expected.column("n").to_pylist()))


def test_pandas(written):
    snapshot, expected = written
    found = DeltaTable(snapshot.root).to_pandas().sort_values("n", ignore_index=True)
    wanted = expected.to_pandas()
    pd.testing.assert_frame_equal(found[wanted.columns], wanted, check_dtype=False)


def test_polars(written):
    snapshot, expected = written
    found = pl.read_delta(snapshot.root).sort("n")
    wanted = pl.from_arrow(expected)
    flat = [c for c in NARROW.names if c != "raw"] + ["tags", "place"]
    assert found.select(flat).equals(wanted.select(flat))
    lazy = pl.scan_delta(snapshot.root).filter(pl.col("n") >= 31).select(pl.len()).collect()
    assert lazy.item() == expected.num_rows - 31


def test_pyarrow(written):
    snapshot, expected = written
    pieces = [pq.read_table(f"{snapshot.root}/{f.path}") for f in snapshot.files]
    found = pa.concat_tables(pieces, promote_options="permissive")
    assert plain(found.cast(snapshot.schema)) == plain(expected)
