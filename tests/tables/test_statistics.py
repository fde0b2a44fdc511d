"""Bounds hold for every value of a file, whatever the values."""

from __future__ import annotations

import datetime as dt
import json
import math
from decimal import Decimal

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from headrace.model.clock import ManualClock, SystemClock
from headrace.tables import parquet
from headrace.tables.delta import DeltaTables
from headrace.tables.parquet import made_at_us, new_file_name
from headrace.tables.statistics import TEXT_LENGTH, parse, time_us

UTC = dt.UTC
TIME = pa.timestamp("us", tz="UTC")
STRATEGIES = {
    "integer": (pa.int64(), st.integers(-(2**63), 2**63 - 1)),
    "byte": (pa.int8(), st.integers(-128, 127)),
    "double": (pa.float64(), st.floats()),
    "float": (pa.float32(), st.floats(width=32)),
    "text": (pa.string(), st.text(max_size=2 * TEXT_LENGTH)),
    "alike": (pa.string(), st.text("a\U0010ffff\ud7ff", min_size=30, max_size=40)),
    "date": (pa.date32(), st.dates()),
    "time": (TIME, st.integers(-(2**63), 2**63 - 1)),
    "near": (TIME, st.integers(-(10**16), 10**16)),
    "decimal": (
        pa.decimal128(38, 9),
        st.integers(-(10**38) + 1, 10**38 - 1).map(lambda n: Decimal((n < 0, digits(n), -9))),
    ),
    "small": (pa.decimal128(5, 2), st.decimals(-999, 999, places=2)),
}


def digits(n):
    return tuple(int(d) for d in str(abs(n)))


@pytest.fixture(scope="module")
def tables(tmp_path_factory):
    return DeltaTables(tmp_path_factory.mktemp("statistics"), SystemClock())


def comparable(kind, value):
    """A value as the engines order it: text by code point, times as microseconds."""
    if value is None or not pa.types.is_timestamp(kind):
        return value
    return value if isinstance(value, int) else time_us(value)


@pytest.mark.parametrize("name", STRATEGIES)
@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_bounds_hold(tables, name, data):
    kind, values = STRATEGIES[name]
    column = data.draw(st.lists(st.none() | values, max_size=20))
    rows = pa.table({"x": pa.array(column, kind)})
    exact = Decimal if pa.types.is_decimal(kind) else float
    stats = json.loads(tables.stage("tables/x", rows).stats, parse_float=exact)
    assert stats["numRecords"] == len(column)
    assert stats["nullCount"] == {"x": column.count(None)}
    low, high = stats["minValues"].get("x"), stats["maxValues"].get("x")
    present = [v for v in column if v is not None]
    if not present:
        assert (low, high) == (None, None)
    if any(isinstance(v, float) and math.isnan(v) for v in present):
        assert (low, high) == (None, None)
    for value in present:
        shown = value.isoformat() if isinstance(value, dt.date) else value
        assert low is None or comparable(kind, low) <= comparable(kind, shown)
        assert high is None or comparable(kind, high) >= comparable(kind, shown)


def stats_of(tables, kind, values):
    return parse(tables.stage("tables/x", pa.table({"x": pa.array(values, kind)})).stats)


def test_bounds_are_tight(tables):
    # A test that bounds hold would pass with no bounds at all.
    for kind, values, low, high in (
        (pa.int64(), [3, None, -5], -5, 3),
        (pa.float64(), [0.5, -math.inf], None, 0.5),
        (pa.string(), ["b", "a" * 40], "a" * 32, "b"),
        (pa.string(), ["a" * 40], "a" * 32, "a" * 31 + "b"),
        (pa.string(), ["a" + "\U0010ffff" * 40], "a" + "\U0010ffff" * 31, "b"),
        (pa.string(), ["\U0010ffff" * 40], "\U0010ffff" * 32, None),
        (pa.string(), ["\ud7ff" * 33], "\ud7ff" * 32, "\ud7ff" * 31 + "\ue000"),
        (pa.string(), ["x" * 10_000], None, None),
        (TIME, [-1, 1], "1969-12-31T23:59:59.999Z", "1970-01-01T00:00:00.001Z"),
        (TIME, [2**62], None, None),
        (pa.date32(), [-1, 1], "1969-12-31", "1970-01-02"),
        (pa.bool_(), [True], None, None),
        (pa.binary(), [b"x"], None, None),
    ):
        stats = stats_of(tables, kind, values)
        assert (stats.min_values.get("x"), stats.max_values.get("x")) == (low, high), values
    text = tables.stage(
        "tables/x", pa.table({"x": pa.array([Decimal("-12345678901234567890123456789.001")])})
    ).stats
    assert '"minValues":{"x":-12345678901234567890123456789.001}' in text


def test_bounds_span_row_groups(tables, monkeypatch):
    monkeypatch.setattr(parquet, "_ROW_GROUP_ROWS", 10)
    kept = [*range(95, 50, -1), None, *range(50)]
    file = tables.stage("tables/x", pa.table({"x": pa.array(kept, pa.int64())}))
    path = f"{tables.storage.uri('tables/x')}/{file.path}"
    assert pq.ParquetFile(path).num_row_groups > 5
    stats = parse(file.stats)
    assert (stats.min_values, stats.max_values, stats.null_count) == ({"x": 0}, {"x": 95}, {"x": 1})


def test_nested_columns_have_no_statistics_and_disturb_none(tables):
    rows = pa.table({"l": [[1]], "m": [{"x": 5}], "x": [7]})
    stats = parse(tables.stage("tables/x", rows).stats)
    assert (stats.min_values, stats.null_count) == ({"x": 7}, {"x": 0})


def test_dictionaries_are_tried_only_where_values_repeat(tables):
    n = 5000
    rows = pa.table(
        {
            "told": ["a"] * n,
            "unique": [f"u{i}" for i in range(n)],
            "repeated": [f"r{i % 7}" for i in range(n)],
            "list": [["a", "b"]] * n,
            "struct": [{"a": "x"}] * n,
            "map": pa.array([[("k", 1)]] * n, pa.map_(pa.string(), pa.int64())),
        }
    )
    file = tables.stage("tables/x", rows, unique=["told"])
    group = pq.ParquetFile(f"{tables.storage.uri('tables/x')}/{file.path}").metadata.row_group(0)
    columns = [group.column(i) for i in range(group.num_columns)]
    with_dictionary = {c.path_in_schema for c in columns if c.has_dictionary_page}
    assert with_dictionary == {
        "repeated",
        "list.list.element",
        "struct.a",
        "map.key_value.key",
        "map.key_value.value",
    }


def test_file_names_tell_when_they_were_made():
    clock = ManualClock(now_us=1_767_225_600_123_456)
    name = new_file_name(clock)
    assert made_at_us(name) == 1_767_225_600_123_000
    for other in ("part-.parquet", "x.parquet", name.upper(), name + ".crc", f"x{name}"):
        assert made_at_us(other) is None
