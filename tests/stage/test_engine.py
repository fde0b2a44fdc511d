from __future__ import annotations

from contextlib import closing

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.model.errors import Internal, Unavailable
from headrace.model.plan import Column
from headrace.stage.engine import SCAN_ROWS, Engine, OutOfMemory, SqlError, bisect

ENGINE = Engine(threads=2, memory_limit="500MB")


def query(rows: pa.Table) -> pa.Table:
    return ENGINE.query("SELECT CAST(x AS INTEGER) AS n FROM batch", {"batch": rows})


@settings(max_examples=50, deadline=None)
@given(st.lists(st.booleans(), max_size=60))
def test_bisection_leaves_out_exactly_the_rows_that_fail(good):
    rows = pa.table({"x": pa.array([str(i) if g else "no" for i, g in enumerate(good)], "string")})
    pieces, failed = bisect(query, rows)
    found = [n for piece in pieces for n in piece.column("n").to_pylist()]
    assert found == [i for i, g in enumerate(good) if g]
    assert [i for i, _ in failed] == [i for i, g in enumerate(good) if not g]
    assert all(error.message.startswith("Conversion Error: Could not") for _, error in failed)


def test_order_is_kept_over_many_batches():
    rows = pa.table({"x": [str(i) for i in range(5 * SCAN_ROWS)]})
    assert query(rows).column("n").to_pylist() == list(range(5 * SCAN_ROWS))


def test_a_statement_that_does_not_fit_is_no_records_fault():
    with pytest.raises(Internal):
        ENGINE.query("SELECT nothing FROM batch", {"batch": pa.table({"x": [1]})})
    with pytest.raises(Internal):
        bisect(lambda r: ENGINE.query("SELEC 1", {"batch": r}), pa.table({"x": [1, 2]}))
    assert query(pa.table({"x": ["1"]})).num_rows == 1


def test_a_failure_leaves_the_engine_usable():
    for _ in range(3):
        with pytest.raises(SqlError):
            query(pa.table({"x": ["no"]}))
        assert query(pa.table({"x": ["7"]})).column("n").to_pylist() == [7]


def test_a_relation_can_be_read_twice_and_have_any_name():
    rows = pa.table({"x": list(range(SCAN_ROWS * 2))})
    sql = 'SELECT count(*) AS n FROM "my ""topic" AS a JOIN "my ""topic" AS b USING (x)'
    assert ENGINE.query(sql, {'my "topic': rows}).column("n").to_pylist() == [SCAN_ROWS * 2]


def test_nothing_outside_is_reached():
    secret = pa.table({"x": [1]})
    with pytest.raises(Internal):
        ENGINE.query("SELECT * FROM secret", {})
    assert secret.num_rows == 1


def test_columns_and_arrow_types_are_two_forms_of_one():
    columns = (
        Column("a b", "VARCHAR"),
        Column("t", "TIMESTAMPTZ"),
        Column("m", "MAP(VARCHAR, BIGINT)"),
        Column("s", 'STRUCT("x y" DECIMAL(5,2), "l" DOUBLE[])'),
    )
    schema = ENGINE.arrow_schema(columns)
    assert schema.field("t").type == pa.timestamp("us", tz="UTC")
    assert ENGINE.columns(schema) == columns


def count_each(engine: Engine, rows: pa.Table) -> pa.Table:
    return engine.query("SELECT x, count(*) AS n FROM batch GROUP BY x", {"batch": rows})


def test_what_needs_too_much_memory_is_done_in_pieces_and_fails_no_row():
    rows = pa.table({"x": list(range(300_000))})
    with closing(Engine(threads=1, memory_limit="3MB")) as small:
        with pytest.raises(OutOfMemory):
            count_each(small, rows)
        pieces, failed = bisect(lambda piece: count_each(small, piece), rows)
        assert len(pieces) > 1
        assert failed == []
        assert sum(piece.num_rows for piece in pieces) == rows.num_rows


@pytest.mark.parametrize("n", [1, 1_000])
def test_too_little_memory_for_any_row_is_no_records_fault(n):
    with closing(Engine(threads=1, memory_limit="1MB")) as tiny, pytest.raises(Unavailable):
        bisect(lambda piece: count_each(tiny, piece), pa.table({"x": list(range(n))}))


def test_a_row_that_alone_needs_too_much_memory_fails_alone():
    sql = "SELECT (SELECT len(list(u)) FROM (SELECT unnest(range(x)) AS u)) AS n FROM batch"
    with closing(Engine(threads=1, memory_limit="20MB")) as small:
        rows = pa.table({"x": [1, 2, 3_000_000, 4]})
        pieces, failed = bisect(lambda piece: small.query(sql, {"batch": piece}), rows)
    assert [n for piece in pieces for n in piece.column("n").to_pylist()] == [1, 2, 4]
    assert [(at, error.message.partition(":")[0]) for at, error in failed] == [
        (2, "Out of Memory Error")
    ]
