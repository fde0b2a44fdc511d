"""Failing records are found, exactly, in few statements."""

from __future__ import annotations

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.model.plan import Column
from headrace.stage.engine import Engine
from headrace.stage.failing import SPELT_OUT, RowSql

COLUMNS = (Column("n", "TINYINT"), Column("l", "DOUBLE"))
PLAIN = "SELECT CAST(t.x AS INTEGER) AS n, CAST(y AS UTINYINT) AS l FROM t WHERE (z ~~ 'b%')"
NESTED = f"SELECT n, l FROM ({PLAIN})"


class Counting(Engine):
    statements = 0

    def query(self, sql, relations):
        self.statements += 1
        return super().query(sql, relations)


ENGINE = Counting(threads=1)


def row_sql(sql: str) -> RowSql:
    wrapped = f"SELECT CAST(n AS TINYINT) AS n, CAST(l AS DOUBLE) AS l FROM ({sql})"
    return RowSql(ENGINE, "t", sql, wrapped, COLUMNS)


def table(rows) -> pa.Table:
    columns = zip(*rows, strict=True) if rows else ([], [], [])
    types = (pa.string(), pa.float64(), pa.string())
    return pa.table([pa.array(c, t) for c, t in zip(columns, types, strict=True)], list("xyz"))


ROWS = st.lists(
    st.tuples(
        st.sampled_from(["1", "2", "abc", "1000", None]),
        st.sampled_from([1.0, -1.0, None]),
        st.sampled_from(["b", "c", None]),
    ),
    max_size=30,
)


@settings(max_examples=100, deadline=None)
@given(ROWS, st.sampled_from([PLAIN, NESTED]))
def test_exactly_the_failing_records_are_left_out(rows, sql):
    pieces, failed = row_sql(sql).run(table(rows))
    passes = [z == "b" for *_, z in rows]
    fails = [
        p and (x in {"abc", "1000"} or y == -1.0) for p, (x, y, _) in zip(passes, rows, strict=True)
    ]
    assert [at for at, _ in failed] == [i for i, f in enumerate(fails) if f]
    good = [x for p, f, (x, *_) in zip(passes, fails, rows, strict=True) if p and not f]
    found = [n for piece in pieces for n in piece.column("n").to_pylist()]
    assert found == [x and int(x) for x in good]


@pytest.mark.parametrize("good", [0, 3])
def test_many_failures_cost_few_statements(good):
    rows = [("abc", 1.0, "b")] * 20_000 + [("7", 1.0, "b")] * good
    before = ENGINE.statements
    pieces, failed = row_sql(PLAIN).run(table(rows))
    assert ENGINE.statements - before < SPELT_OUT + 20
    assert len(failed) == 20_000
    assert all("'abc'" in message for _, message in failed)
    assert sum(p.num_rows for p in pieces) == good
