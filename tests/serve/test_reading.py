"""`headrace.open`: tables in Python, as each of four libraries has them."""

import subprocess
import sys

import duckdb
import pytest

import headrace
from headrace import reading
from headrace.model.errors import Invalid


@pytest.fixture
def data(world):
    world.epoch([world.sale(n, host) for n, host in enumerate(["a", "b", "a"])])
    world.publish([{"host": "a", "sales": 2, "sum": 1.0}], 1)
    with headrace.open(world.layout.root) as opened:
        yield opened


def test_a_table_by_every_library(data):
    rows = data.table("sales", ["host", "n"])
    assert rows.columns == ["host", "n"]
    assert len(rows) == 3
    wanted = [("a", 0), ("b", 1), ("a", 2)]
    assert [tuple(r.values()) for r in rows.arrow().to_pylist()] == wanted
    assert list(rows.pandas().itertuples(index=False, name=None)) == wanted
    assert rows.polars().rows() == wanted
    assert rows.duckdb().fetchall() == wanted
    with duckdb.connect() as connection:
        assert rows.duckdb(connection).filter("n > 1").fetchall() == [("a", 2)]
    half_read = duckdb.execute("FROM range(100000)")
    assert "host" in repr(rows), "not in the way of what its user is reading"
    assert half_read.fetchone() == (0,)
    half_read.fetchall()


@pytest.mark.parametrize("name", ["sales", "tables.sales", 'tables."sales"', "Sales"])
def test_a_table_by_its_names(data, name):
    assert len(data.table(name)) == 3


def test_every_kind_of_value_goes_through_every_library(data):
    rows = data.table("tables.sales")
    assert rows.columns[0] == "host"
    assert len(rows.pandas()) == len(rows.polars()) == len(rows.duckdb().fetchall()) == 3


def test_names_views_and_sql(world, data):
    assert data.names() == ["tables.sales", "views.by_host", "ledger"]
    assert data.table("views.by_host", ["sales"]).arrow().to_pylist() == [{"sales": 2}]
    assert len(data.table("ledger")) == 1
    assert data.sql("SELECT sum(n) AS s FROM sales").polars().item() == 3
    world.epoch([world.sale(7)])
    assert data.sql("SELECT sum(n) AS s FROM sales").polars().item() == 10


def test_what_is_wrong_is_said(data, tmp_path):
    with pytest.raises(Invalid) as refused:
        data.table("sale")
    assert "tables.sales" in refused.value.hint
    for query in ("SELECT nosuch FROM sales", "DROP VIEW sales", "SELECT 1; SELECT 2"):
        with pytest.raises(Invalid):
            data.sql(query)
    with pytest.raises(Invalid) as refused:
        headrace.open(tmp_path / "nothing")
    assert refused.value.code == "no_data_directory"


def test_a_library_that_is_not_there_is_named(data, monkeypatch):
    monkeypatch.setitem(sys.modules, "polars", None)
    with pytest.raises(Invalid) as refused:
        data.table("sales").polars()
    assert refused.value.hint == "pip install polars"


def test_a_pipeline_file_that_imports_headrace_loads_no_library():
    code = "import sys, headrace; print('duckdb' in sys.modules, 'pyarrow' in sys.modules)"
    told = subprocess.check_output([sys.executable, "-c", code], text=True)
    assert told == "False False\n"
    assert reading.open is headrace.open
