"""Whatever the cut into epochs and the order of merges, a view is what its SQL gives over all."""

from __future__ import annotations

import datetime as dt
import math
from decimal import Decimal

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from headrace.define.types import arrow_schema
from headrace.define.view_sql import compile_view, plain_sql
from headrace.model.plan import Column, Window
from headrace.stage.engine import Engine
from headrace.stage.fold import ViewState, partials_of

COLUMNS = (
    Column("event_id", "VARCHAR"),
    Column("received_at", "TIMESTAMPTZ"),
    Column("host", "VARCHAR"),
    Column("kind", "VARCHAR"),
    Column("n", "BIGINT"),
    Column("small", "INTEGER"),
    Column("price", "DECIMAL(10,2)"),
    Column("x", "DOUBLE"),
    Column("ok", "BOOLEAN"),
    Column("seen_at", "TIMESTAMPTZ"),
    Column("day", "DATE"),
)
SCHEMA = arrow_schema(COLUMNS)
ENGINE = Engine(threads=1)

MINUTE = 60_000_000
TUMBLING = Window("seen_at", 2 * MINUTE, 2 * MINUTE)
HOPPING = Window("received_at", 5 * MINUTE, 2 * MINUTE)
APART = Window("seen_at", MINUTE, 3 * MINUTE)

EXACT = {
    "plain": (
        """SELECT host, count(*) AS c, count(n) AS cn, sum(n) AS s, sum(price) AS sp, min(x) AS lo,
           max(seen_at) AS hi, bool_and(ok) AS every, bool_or(ok) AS some, min(host) AS h,
           count(*) FILTER (WHERE n > 0) AS positive, sum(n) FILTER (WHERE ok) AS s_ok,
           max(day) FILTER (WHERE n < 0) AS d, count_if(n > 1) AS many
           FROM events GROUP BY host""",
        None,
    ),
    "no_group_by": (
        """SELECT count(*) AS c, sum(n) AS s, avg(small) AS a, max(kind) AS k,
           count(DISTINCT kind) AS kinds FROM events WHERE n IS NOT NULL""",
        None,
    ),
    "distinct": (
        """SELECT host, count(DISTINCT n) AS dn, count(DISTINCT x) AS dx,
           count(DISTINCT kind) FILTER (WHERE ok) AS dk, count(DISTINCT seen_at) AS dt
           FROM events GROUP BY host""",
        None,
    ),
    "expressions": (
        """SELECT lower(kind) AS k, n > 1 AS big, round(avg(small), 2) AS a, sum(n) / count(*) AS r,
           count(*) AS c, c * 2 AS twice, coalesce(max(small), 0) - min(small) AS span
           FROM events WHERE host <> 'b' OR host IS NULL GROUP BY k, 2 HAVING c > 1""",
        None,
    ),
    "grouping_sets": (
        """SELECT host, kind, GROUPING(host, kind) AS g, count(*) AS c, sum(n) AS s,
           count(DISTINCT small) AS ds, GROUPING_ID(kind) AS gk
           FROM events GROUP BY GROUPING SETS ((host, kind), (kind), ()) HAVING count(*) > 0""",
        None,
    ),
    "rollup": (
        """SELECT host, day, small, GROUPING(host, day, small) AS g, count(*) AS c, max(x) AS hi
           FROM events GROUP BY ROLLUP (host, day), small""",
        None,
    ),
    "cube": (
        """SELECT host, ok, GROUPING(ok, host) AS g, count(DISTINCT kind) AS c
           FROM events GROUP BY CUBE (host, ok)""",
        None,
    ),
    "group_by_all": (
        """SELECT 'all' AS source, kind, date_trunc('minute', seen_at) AS m, x, count(*) AS c
        FROM events GROUP BY ALL""",
        None,
    ),
    "ordered": (
        """SELECT host, first(n ORDER BY event_id) AS f, last(n ORDER BY event_id) AS l,
           first(kind ORDER BY event_id DESC) AS fd, last(x ORDER BY event_id DESC) AS ld,
           arg_max(n, event_id) AS am, min_by(price, event_id) FILTER (WHERE ok) AS mb
           FROM events GROUP BY host""",
        None,
    ),
    "tumbling": ("SELECT host, count(*) AS c, sum(n) AS s FROM events GROUP BY host", TUMBLING),
    "hopping": ("SELECT count(*) AS c, count(DISTINCT host) AS h FROM events", HOPPING),
    "apart": (
        """SELECT kind, GROUPING(kind) AS g, count(*) AS c, max(seen_at) AS hi FROM events
        GROUP BY ROLLUP (kind)""",
        APART,
    ),
}
FOLDED = {
    "doubles": (
        """SELECT host, sum(x) AS s, avg(x) AS a, sum(x) FILTER (WHERE ok) AS s_ok,
           stddev(x) AS sd, sum(x * 0.1) AS tenth FROM events GROUP BY host""",
        None,
    ),
    "spread": (
        """SELECT kind, stddev(n) AS a, var_pop(n) AS b, variance(price) AS c,
           stddev_pop(small) AS d, avg(price) AS e, avg(n) AS f FROM events GROUP BY kind""",
        None,
    ),
    "sketches": (
        """SELECT host, approx_count_distinct(n) AS u, approx_count_distinct(x) AS ux,
           median(x) AS m, quantile_cont(n, [0.1, 0.9]) AS q, quantile_disc(small, 0.5) AS qd,
           approx_quantile(price, 0.25) AS aq FROM events GROUP BY ROLLUP (host)""",
        None,
    ),
    "first_last": (
        """SELECT host, first(n) AS f, last(n) AS l, arg_max(kind, seen_at) AS am,
           arg_min(x, n) AS mn, last(kind ORDER BY seen_at) AS lk FROM events GROUP BY host""",
        None,
    ),
    "windowed": (
        "SELECT sum(x) AS s, approx_count_distinct(kind) AS u, first(n) AS f FROM events",
        HOPPING,
    ),
}
VIEWS = {
    name: compile_view(name=name, sql=sql, tables={"events": COLUMNS}, window=window)
    for name, (sql, window) in (EXACT | FOLDED).items()
}

BASE = dt.datetime(1969, 12, 31, 23, 57, tzinfo=dt.UTC)
TIMES = st.none() | st.integers(0, 20 * 60 * 4).map(lambda q: BASE + dt.timedelta(seconds=q / 4))
DOUBLES = (
    st.none() | st.sampled_from([0.0, -0.0, 0.1, 1e16, -1e16, 1e300, 5e-324, 2.5]) | st.floats()
)
ROWS = st.lists(
    st.tuples(
        st.integers(0, 20 * 60).map(lambda s: BASE + dt.timedelta(seconds=s)),
        st.sampled_from([None, "a", "b", ""]),
        st.sampled_from([None, "x", "X", "y"]),
        st.none() | st.integers(-3, 3) | st.sampled_from([2**63 - 1, -(2**63)]),
        st.none() | st.integers(-2, 2),
        st.none() | st.integers(-500, 500).map(lambda c: Decimal(c).scaleb(-2)),
        DOUBLES,
        st.none() | st.booleans(),
        TIMES,
        st.none() | st.sampled_from([dt.date(2024, 2, 29), dt.date(1970, 1, 1)]),
    ),
    max_size=12,
)


def as_table(rows):
    columns = list(zip(*[(f"{i:04}", *row) for i, row in enumerate(rows)], strict=True))
    if not columns:
        return SCHEMA.empty_table()
    return pa.Table.from_arrays(
        [pa.array(c, f.type) for c, f in zip(columns, SCHEMA, strict=True)], schema=SCHEMA
    )


def folded(view, pieces, draw):
    """Fold pieces in a drawn order, some of them into states of their own first."""
    state = ViewState(view, ENGINE)
    for piece in draw(st.permutations(pieces)):
        partials = partials_of(view, piece, ENGINE)
        match draw(st.integers(0, 3)):
            case 0:
                other = ViewState(view, ENGINE)
                other.add(partials)
                state.add(other.fold())
            case 1:
                state.add(partials)
                state = ViewState(view, ENGINE, state.fold())
            case _:
                state.add(partials)
    return state.final()


def comparable(table):
    """Return rows as sorted texts: NaN equals itself, -0.0 equals 0.0, no order."""

    def plain(value):
        if isinstance(value, float):
            return "nan" if math.isnan(value) else repr(value + 0.0)
        if isinstance(value, Decimal):
            return str(value.normalize()) if value else "0"
        return str([plain(v) for v in value]) if isinstance(value, list) else repr(value)

    return sorted([plain(v) for v in row.values()] for row in table.to_pylist())


def without_watermark(table):
    kept = [n for n in table.column_names if n != "watermark_passed"]
    return table.select(kept)


CUTS = settings(
    max_examples=200,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
FOLDS = settings(CUTS, max_examples=40)


@CUTS
@given(data=st.data(), rows=ROWS, name=st.sampled_from(sorted(EXACT)))
def test_any_cut_equals_the_query(data, rows, name):
    view = VIEWS[name]
    whole = as_table(rows)
    pieces = _cut(whole, data.draw)
    got = folded(view, pieces, data.draw)
    stored = ", ".join(
        f'CAST("{c.name}" AS {c.type}) AS "{c.name}"'
        for c in view.columns[: len(got.column_names) - bool(view.window)]
    )
    sql = EXACT[name][0] if view.window is None else plain_sql(view)
    wanted = ENGINE.query(f"SELECT {stored} FROM ({sql})", {"events": whole})
    assert comparable(without_watermark(got)) == comparable(wanted)


@FOLDS
@given(data=st.data(), rows=ROWS, name=st.sampled_from(sorted(FOLDED)))
def test_any_cut_equals_one_fold(data, rows, name):
    view = VIEWS[name]
    whole = as_table(rows)
    once = ViewState(view, ENGINE)
    once.add(partials_of(view, whole, ENGINE))
    got = folded(view, _cut(whole, data.draw), data.draw)
    assert comparable(got) == comparable(once.final())


def _cut(whole, draw):
    epoch_of = [draw(st.integers(0, 3)) for _ in range(whole.num_rows)]
    numbers = pa.array(epoch_of, pa.int64())
    return [whole.filter(pa.compute.equal(numbers, e)) for e in range(4)]


@pytest.mark.parametrize("name", sorted(VIEWS))
def test_over_an_empty_table_too(name):
    view = VIEWS[name]
    got = ViewState(view, ENGINE).final()
    wanted = ENGINE.query(plain_sql(view), {"events": SCHEMA.empty_table()})
    assert comparable(without_watermark(got)) == comparable(wanted)
