"""Views whose rows may be taken out again: whatever came and went, they equal their SQL over it."""

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
from headrace.model.errors import Invalid
from headrace.model.plan import Column, Window
from headrace.stage.engine import Engine
from headrace.stage.fold import ViewState, partials_of

COLUMNS = (
    Column("id", "INTEGER"),
    Column("host", "VARCHAR"),
    Column("kind", "VARCHAR"),
    Column("n", "BIGINT"),
    Column("small", "INTEGER"),
    Column("price", "DECIMAL(10,2)"),
    Column("x", "DOUBLE"),
    Column("ok", "BOOLEAN"),
    Column("seen_at", "TIMESTAMPTZ"),
    Column("tags", "VARCHAR[]"),
)
SCHEMA = arrow_schema(COLUMNS)
ENGINE = Engine(threads=1)
MINUTE = 60_000_000

AGGREGATES = [
    "count(*)",
    "count(n)",
    "count(*) FILTER (WHERE ok)",
    "count_if(n > 0)",
    "count_if(ok) FILTER (WHERE n > 0)",
    "sum(n)",
    "sum(ok)",
    "sum(price)",
    "sum(n) FILTER (WHERE ok)",
    "sum(small)",
    "avg(n)",
    "avg(price)",
    "min(n)",
    "max(price)",
    "min(x)",
    "max(x)",
    "min(kind)",
    "max(seen_at) FILTER (WHERE n < 2)",
    "min(ok)",
    "bool_and(ok)",
    "bool_or(ok)",
    "bool_or(n > 0) FILTER (WHERE ok)",
    "count(DISTINCT n)",
    "count(DISTINCT x)",
    "count(DISTINCT kind) FILTER (WHERE ok)",
    "count(DISTINCT seen_at)",
    "quantile_disc(small, 0.5)",
    "quantile_disc(small, [0, 0.25, 1])",
]
"""Each equals DuckDB's own to the last bit."""
ROUNDED = [
    "sum(x)",
    "avg(x)",
    "sum(x) FILTER (WHERE ok)",
    "stddev(n)",
    "var_pop(small)",
    "variance(price)",
    "stddev_pop(x)",
    "median(small)",
    "quantile_cont(CAST(price AS DOUBLE), [0.1, 0.9])",
    "quantile_cont(x, 0.25)",
    "approx_quantile(small, 0.75)",
]
"""Each is rounded elsewhere than in DuckDB: it equals itself, over rows that were never others."""

SHAPES = {
    "by host": ("{a} FROM t GROUP BY host", "host", None),
    "one row": ("{a} FROM t", "", None),
    "filtered": ("{a} FROM t WHERE small IS NOT NULL", "", None),
    "expressions": ("{a} FROM t WHERE host <> 'b' GROUP BY 1, 2", "lower(kind), n > 1", None),
    "a number": ("{a} FROM t GROUP BY x", "x", None),
    "sets": (
        "{a} FROM t GROUP BY GROUPING SETS ((host, kind), (kind), ())",
        "host, kind, GROUPING(host, kind)",
        None,
    ),
    "rollup": ("{a} FROM t GROUP BY ROLLUP (host)", "host, GROUPING(host)", None),
    "tumbling": (
        "{a} FROM t GROUP BY host",
        "host",
        Window("seen_at", 2 * MINUTE, 2 * MINUTE),
    ),
    "hopping": ("{a} FROM t", "", Window("seen_at", 5 * MINUTE, 2 * MINUTE)),
}


def sql_of(shape, aggregates):
    body, keys, window = SHAPES[shape]
    columns = [f"{key} AS k{i}" for i, key in enumerate(_split(keys))]
    columns += [f"{aggregate} AS a{i}" for i, aggregate in enumerate(aggregates)]
    return body.format(a=f"SELECT {', '.join(columns)}"), window


def _split(keys):
    return keys.replace("host, kind)", "host; kind)").split(", ") if keys else []


def compiled(shape, aggregates):
    sql, window = sql_of(shape, aggregates)
    sql = sql.replace(";", ",")
    return compile_view(name="v", sql=sql, tables={"t": COLUMNS}, window=window, keyed={"t"})


HOSTS = st.sampled_from([None, "a", "b"])
KINDS = st.sampled_from([None, "x", "X", "y"])
NUMBERS = st.none() | st.integers(-3, 3) | st.sampled_from([2**63 - 1, -(2**63)])
DOUBLES = (
    st.none()
    | st.sampled_from([0.0, -0.0, 0.1, -0.1, 1e16, -1e16, 1e300, 5e-324, math.inf, -math.inf])
    | st.just(math.nan)
    | st.integers(-4, 4).map(float)
)
BASE = dt.datetime(1969, 12, 31, 23, 57, tzinfo=dt.UTC)
TIMES = st.none() | st.integers(0, 600).map(lambda s: BASE + dt.timedelta(seconds=s))
VALUES = st.tuples(
    HOSTS,
    KINDS,
    NUMBERS,
    st.none() | st.integers(-2, 2),
    st.none() | st.integers(-500, 500).map(lambda c: Decimal(c).scaleb(-2)),
    DOUBLES,
    st.none() | st.booleans(),
    TIMES,
    st.none(),
)
CHANGES = st.lists(st.tuples(st.integers(0, 5), st.none() | VALUES), max_size=14)
"""What becomes of keys, one after another: another row, or none."""

CUTS = settings(
    max_examples=40,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


def as_table(rows):
    columns = list(zip(*rows, strict=True)) or [()] * len(SCHEMA)
    arrays = [pa.array(c, f.type) for c, f in zip(columns, SCHEMA, strict=True)]
    return pa.Table.from_arrays(arrays, schema=SCHEMA)


def retracted(view, partials):
    return {
        part.name: ENGINE.query(part.retract_sql, {"parts": partials[part.name]})
        for part in view.parts
    }


def history(changes, draw):
    """Return the net changes of some epochs, (added, removed) rows each, and the rows that stay."""
    held, epochs = {}, []
    at = 0
    while at < len(changes):
        size = draw(st.integers(1, 5))
        before = dict(held)
        for key, values in changes[at : at + size]:
            held.pop(key, None)
            if values is not None:
                held[key] = (key, *values)
        changed = {key for key, _ in changes[at : at + size]}
        added = [held[key] for key in changed if key in held]
        removed = [before[key] for key in changed if key in before]
        epochs.append((added, removed))
        at += size
    return epochs, list(held.values())


def folded(view, epochs, draw):
    """Fold what was added and what was taken out in any order, some into states of their own."""
    pieces = []
    for added, removed in epochs:
        pieces.append(partials_of(view, as_table(added), ENGINE))
        pieces.append(retracted(view, partials_of(view, as_table(removed), ENGINE)))
    state = ViewState(view, ENGINE)
    for partials in draw(st.permutations(pieces)):
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
    return state


def comparable(table):
    """Return rows as sorted texts: NaN equals itself, -0.0 equals 0.0, no order."""

    def plain(value):
        if isinstance(value, float):
            return "nan" if math.isnan(value) else repr(value + 0.0)
        if isinstance(value, Decimal):
            return str(value.normalize()) if value else "0"
        return str([plain(v) for v in value]) if isinstance(value, list) else repr(value)

    kept = [n for n in table.column_names if n != "watermark_passed"]
    return sorted([plain(v) for v in row.values()] for row in table.select(kept).to_pylist())


def query(view, rows):
    names = [c for c in view.columns if c.name != "watermark_passed"]
    stored = ", ".join(f'CAST("{c.name}" AS {c.type}) AS "{c.name}"' for c in names)
    return ENGINE.query(f"SELECT {stored} FROM ({plain_sql(view)})", {"t": as_table(rows)})


SHAPE = st.sampled_from(sorted(SHAPES))
CHOSEN = st.lists(st.sampled_from(AGGREGATES), min_size=1, max_size=4, unique=True)
MORE = st.lists(st.sampled_from(AGGREGATES + ROUNDED), min_size=1, max_size=4, unique=True)


@CUTS
@given(data=st.data(), changes=CHANGES, shape=SHAPE, aggregates=CHOSEN)
def test_what_came_and_went_leaves_the_query_over_what_stayed(data, changes, shape, aggregates):
    view = compiled(shape, aggregates)
    epochs, rows = history(changes, data.draw)
    state = folded(view, epochs, data.draw)
    assert comparable(state.final()) == comparable(query(view, rows))


@CUTS
@given(data=st.data(), changes=CHANGES, shape=SHAPE, aggregates=MORE)
def test_what_came_and_went_leaves_the_state_of_what_stayed(data, changes, shape, aggregates):
    view = compiled(shape, aggregates)
    epochs, rows = history(changes, data.draw)
    state = folded(view, epochs, data.draw)
    once = ViewState(view, ENGINE)
    once.add(partials_of(view, as_table(rows), ENGINE))
    for name, part in once.fold().items():
        assert comparable(state.fold()[name]) == comparable(part), name
    assert comparable(state.final()) == comparable(once.final())


@pytest.mark.parametrize("aggregate", AGGREGATES + ROUNDED)
def test_each_aggregate_after_some_rows_are_gone(aggregate):
    view = compiled("by host", [aggregate])
    state = ViewState(view, ENGINE)
    state.add(partials_of(view, as_table(SOME), ENGINE))
    gone = SOME[:2] + SOME[4:]
    state.add(retracted(view, partials_of(view, as_table(gone), ENGINE)))
    got, wanted = state.final(), query(view, SOME[2:4])
    if aggregate in ROUNDED:
        assert numbers(got) == pytest.approx(numbers(wanted), rel=1e-9)
    else:
        assert comparable(got) == comparable(wanted)


@pytest.mark.parametrize("shape", ["by host", "one row", "sets", "tumbling"])
def test_nothing_is_left_of_what_went(shape):
    view = compiled(shape, AGGREGATES + ROUNDED)
    state = ViewState(view, ENGINE)
    state.add(partials_of(view, as_table(SOME[::2]), ENGINE))
    state.add(partials_of(view, as_table(SOME[1::2]), ENGINE))
    assert all(rows.num_rows for rows in state.fold().values())
    state.add(retracted(view, partials_of(view, as_table(SOME), ENGINE)))
    left = {name: rows.num_rows for name, rows in state.fold().items() if rows.num_rows}
    stands = shape in {"one row", "sets"}
    assert left == ({"groups": 1} if stands else {})
    assert comparable(state.final()) == comparable(query(view, []))


AT = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
SOME = [
    (i, host, kind, n, small, Decimal(price).scaleb(-2), x, ok, AT + dt.timedelta(minutes=i), None)
    for i, (host, kind, n, small, price, x, ok) in enumerate(
        [
            ("a", "x", 3, 1, 150, 0.1, True),
            ("a", "y", 2**63 - 1, 2, -25, 1e16, False),
            ("a", None, 1, -1, 75, -2.5, True),
            ("a", "X", 2, 0, 10, 0.3, False),
            ("b", "x", -(2**63), 2, 0, math.inf, None),
            (None, "x", 5, 1, 5, math.nan, True),
        ]
    )
]


def numbers(table):
    """Return the values of a view's one row, lists laid out flat."""
    (row,) = table.to_pylist()
    value = row["a0"]
    return [float(v) for v in (value if isinstance(value, list) else [value])]


def test_a_group_is_there_as_long_as_it_has_rows_whatever_is_counted():
    view = compiled("by host", ["count(n)"])
    state = ViewState(view, ENGINE)
    nothing = [(1, "a", None, None, None, None, None, None, None, None)]
    state.add(partials_of(view, as_table(nothing), ENGINE))
    assert state.final().to_pylist() == [{"k0": "a", "a0": 0}]
    state.add(retracted(view, partials_of(view, as_table(nothing), ENGINE)))
    assert state.final().num_rows == 0


def test_a_row_may_go_before_it_comes():
    view = compiled("by host", ["count(*)", "min(n)", "count(DISTINCT kind)"])
    state = ViewState(view, ENGINE)
    state.add(retracted(view, partials_of(view, as_table(SOME[:1]), ENGINE)))
    assert state.final().num_rows == 0
    state.add(partials_of(view, as_table(SOME[:2]), ENGINE))
    assert state.final().to_pylist() == [{"k0": "a", "a0": 1, "a1": 2**63 - 1, "a2": 1}]


def test_windows_pass_by_the_latest_window_that_has_rows():
    view = compiled("tumbling", ["count(*)"])
    state = ViewState(view, ENGINE)
    state.add(partials_of(view, as_table(SOME), ENGINE))
    latest = state.latest_us()
    assert latest == round((AT + dt.timedelta(minutes=4)).timestamp() * 1_000_000)
    passed = {
        row["window_start"]: row["watermark_passed"] for row in state.final(latest).to_pylist()
    }
    assert [passed[start] for start in sorted(passed)] == [True, True, False]
    state.add(retracted(view, partials_of(view, as_table(SOME[2:]), ENGINE)))
    assert state.latest_us() == round(AT.timestamp() * 1_000_000)


def test_extremes_of_lists_are_refused_where_rows_may_go():
    with pytest.raises(Invalid) as raised:
        compiled("by host", ["min(tags)"])
    assert "CAST" in raised.value.hint


def test_without_a_key_nothing_is_taken_out():
    view = compile_view(
        name="v", sql="SELECT min(n) AS lo FROM t", tables={"t": COLUMNS}, window=None
    )
    assert [p.retract_sql for p in view.parts] == [None]
