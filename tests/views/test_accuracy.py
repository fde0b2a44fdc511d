"""How exact the approximate aggregates and the sums of doubles are."""

from __future__ import annotations

import datetime as dt
import math
import statistics
from decimal import Decimal

import numpy as np
import pyarrow as pa
import pytest

from headrace.define.view_sql import compile_view
from headrace.model.plan import Column, Window
from headrace.stage.engine import Engine
from headrace.stage.fold import ViewState, partials_of

ENGINE = Engine(threads=1)
COLUMNS = (Column("t", "TIMESTAMPTZ"), Column("n", "BIGINT"), Column("x", "DOUBLE"))


def result(sql, *, window=None, pieces=3, **columns):
    """Fold a table, given as columns, in pieces; return the one row, or all of a windowed view."""
    table = pa.table(columns)
    declared = tuple(c for c in (*COLUMNS, Column("d", "DECIMAL(18,4)")) if c.name in columns)
    view = compile_view(name="v", sql=sql, tables={"t": declared}, window=window)
    state = ViewState(view, ENGINE)
    size = -(-table.num_rows // pieces)
    for i in range(pieces):
        state.add(partials_of(view, table.slice(i * size, size), ENGINE))
    rows = state.final().to_pylist()
    return rows if window else rows[0]


def test_a_sum_of_doubles_is_that_of_exact_arithmetic():
    rng = np.random.default_rng(1)
    x = rng.normal(0, 1, 5000) * 10.0 ** rng.integers(-30, 30, 5000)
    got = result("SELECT sum(x) AS s FROM t", x=x)["s"]
    assert got == pytest.approx(math.fsum(x), rel=1e-15)


@pytest.mark.parametrize(
    ("x", "wanted"),
    [
        ([1e16, 1.0, -1e16], 1.0),
        ([1e300, 1.0, -1e300], 1.0),
        ([5e-324] * 3, 1.5e-323),
        ([1.7976931348623157e308, 1.7976931348623157e308], math.inf),
        ([1.7976931348623157e308, 1.0, -1.7976931348623157e308], 1.0),
        ([0.1] * 10, 1.0),
        ([math.inf, 1.0], math.inf),
        ([-math.inf, 1.0], -math.inf),
        ([0.0, -0.0], 0.0),
    ],
)
def test_sums_at_the_edges(x, wanted):
    assert result("SELECT sum(x) AS s FROM t", x=x)["s"] == wanted


def test_infinities_that_cancel_and_nan_give_nan():
    assert math.isnan(result("SELECT sum(x) AS s FROM t", x=[math.inf, -math.inf])["s"])
    assert math.isnan(result("SELECT avg(x) AS s FROM t", x=[math.nan, 1.0])["s"])


def test_sums_of_integers_pass_64_bits():
    got = result("SELECT sum(n) AS s, avg(n) AS a FROM t", n=[2**63 - 1] * 4)
    assert got == {"s": Decimal(4 * (2**63 - 1)), "a": float(2**63)}


@pytest.mark.parametrize(
    "n",
    [
        [1, 2, 3, 4],
        [2**63 - 1, -(2**63), 2**63 - 1, 5],
        [1_767_225_600_000_000 + i for i in range(100)],
        [2**62 + i * 3 for i in range(50)],
        [-(2**62) - i * 3 for i in range(50)],
        [7, 7, 7],
    ],
)
def test_variance_of_integers_loses_nothing(n):
    got = result("SELECT var_pop(n) AS p, stddev(n) AS s FROM t", n=n)
    mean = sum(map(Decimal, n)) / len(n)
    wanted = sum((Decimal(v) - mean) ** 2 for v in n) / len(n)
    assert got["p"] == pytest.approx(float(wanted), rel=1e-14)
    assert got["s"] == pytest.approx(float((wanted * len(n) / (len(n) - 1)).sqrt()), rel=1e-14)


def test_variance_of_decimals_and_doubles():
    d = [
        Decimal(v).scaleb(-4) for v in (10_000_000_000_001, 10_000_000_000_003, 10_000_000_000_009)
    ]
    got = result("SELECT var_samp(d) AS v FROM t", d=pa.array(d, pa.decimal128(18, 4)))
    assert got["v"] == pytest.approx(float(statistics.variance(d)), rel=1e-14)
    x = list(np.random.default_rng(2).normal(20, 0.1, 1000))
    got = result("SELECT stddev(x) AS s FROM t", x=x)
    assert got["s"] == pytest.approx(statistics.stdev(x), rel=1e-9)


def test_quantiles_are_within_one_percent():
    x = np.random.default_rng(3).lognormal(3, 2, 20_001)
    got = result("SELECT quantile_cont(x, [0, 0.01, 0.5, 0.9, 0.999, 1]) AS q FROM t", x=x)["q"]
    wanted = np.quantile(x, [0, 0.01, 0.5, 0.9, 0.999, 1])
    assert got == pytest.approx(list(wanted), rel=0.0101)
    assert got[0] == wanted[0]
    assert got[-1] == wanted[-1]


def test_small_integers_have_exact_discrete_quantiles():
    n = list(range(-20, 31))
    assert result("SELECT quantile_disc(n, 0.5) AS q FROM t", n=n)["q"] == 5


@pytest.mark.parametrize("distinct", [10, 4000])
def test_distinct_counts_are_exact_below_4096(distinct):
    n = list(range(distinct)) * 2
    assert result("SELECT approx_count_distinct(n) AS u FROM t", n=n)["u"] == distinct


def test_distinct_counts_are_within_five_percent_beyond():
    n = np.arange(100_000)
    got = result("SELECT approx_count_distinct(n) AS u FROM t", n=n)["u"]
    # The standard error is 1.6 %; the hash is fixed, so this does not change from run to run.
    assert got == pytest.approx(100_000, rel=0.05)


def test_many_keys_share_a_sketch_part():
    n = np.arange(30_000)
    sql = "SELECT n % 3 AS k, approx_count_distinct(n // 2) AS u FROM t GROUP BY k"
    state_view = compile_view(name="v", sql=sql, tables={"t": COLUMNS[1:2]}, window=None)
    state = ViewState(state_view, ENGINE)
    state.add(partials_of(state_view, pa.table({"n": n}), ENGINE))
    assert state.fold()["hashes1"].num_rows == 3 * 4096
    assert all(r["u"] == pytest.approx(10_000, rel=0.05) for r in state.final().to_pylist())


def test_hopping_windows_hold_each_row_as_often_as_they_overlap():
    second = 1_000_000
    window = Window("t", 5 * second, 2 * second)
    micros = [-1, 0, 1, 1_999_999, 2_000_000, 4_999_999, 5_000_000, 12_345_678]
    rows = result(
        "SELECT count(*) AS c FROM t",
        window=window,
        t=pa.array([*micros, None], pa.timestamp("us", tz="UTC")),
    )
    wanted = {}
    for us in micros:
        start = us // (2 * second) * 2 * second
        while start + 5 * second > us:
            wanted[start] = wanted.get(start, 0) + 1
            start -= 2 * second
    epoch = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
    got = {(r["window_start"] - epoch) // dt.timedelta(microseconds=1): r["c"] for r in rows}
    assert got == wanted
    assert all(r["window_end"] - r["window_start"] == dt.timedelta(seconds=5) for r in rows)
