"""What rows change of a keyed table: which hold, which no longer do, and what is kept of them."""

from __future__ import annotations

import itertools
from decimal import Context, Decimal

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.define.types import quoted
from headrace.model.plan import Column, Keyed, StatePart, Table, View
from headrace.stage.apply import ENTRIES, Apply, still_said
from headrace.stage.engine import Engine

ENGINE = Engine(threads=1)
NO_ENTRIES = ENTRIES.empty_table()

DECIMALS = {
    "DECIMAL(5,2)": (10**5, 2),
    "DECIMAL(18,3)": (10**18, 3),
    "DECIMAL(38,10)": (10**38, 10),
}
INTEGERS = {"TINYINT": 7, "SMALLINT": 15, "INTEGER": 31, "BIGINT": 63}
TIMES_US = (-(2**63) + 2**44, 2**63 - 2)
DAYS = (-(2**31) + 2, 2**31 - 2)


def decimals(limit: int, scale: int) -> st.SearchStrategy[object]:
    return st.integers(-limit + 1, limit - 1).map(
        lambda n: Decimal(n).scaleb(-scale, Context(prec=38))
    )


TEXTS = st.text(max_size=6) | st.text(st.sampled_from("'\"\\[]{}(),:= \n\0nuNUL"), max_size=8)
VALUES: dict[str, st.SearchStrategy[object]] = {
    "BOOLEAN": st.booleans(),
    **{name: st.integers(-(2**n), 2**n - 1) for name, n in INTEGERS.items()},
    **{name: decimals(*bounds) for name, bounds in DECIMALS.items()},
    "FLOAT": st.floats(width=32),
    "DOUBLE": st.floats(),
    "VARCHAR": TEXTS,
    "BLOB": st.binary(max_size=6),
    # As their numbers, for Python has no time before its year 1; the last ones are infinite.
    "DATE": st.integers(*DAYS) | st.sampled_from([2**31 - 1, -(2**31) + 1]),
    "TIMESTAMPTZ": st.integers(*TIMES_US) | st.sampled_from([2**63 - 1, -(2**63) + 1]),
}
"""Type → values, of each type without others inside that a table stores."""
KEYS = [name for name in VALUES if name not in {"FLOAT", "DOUBLE"}]

Kind = tuple[str, st.SearchStrategy[object]]


def listed(kind: Kind) -> Kind:
    return f"{kind[0]}[]", st.lists(nullable(kind[1]), max_size=3)


def structured(kinds: list[tuple[str, Kind]]) -> Kind:
    fields = ", ".join(f"{quoted(name)} {kind[0]}" for name, kind in kinds)
    return f"STRUCT({fields})", st.fixed_dictionaries({n: nullable(k[1]) for n, k in kinds})


def mapped(kinds: tuple[str, Kind]) -> Kind:
    key, value = kinds
    pairs = st.lists(st.tuples(VALUES[key], nullable(value[1])), max_size=3, unique_by=repr_of_key)
    return f"MAP({key}, {value[0]})", pairs


def repr_of_key(pair: tuple[object, object]) -> str:
    return repr(pair[0])


def nullable(values: st.SearchStrategy[object]) -> st.SearchStrategy[object]:
    return st.none() | values


NAMES = st.text(st.sampled_from("ab '\"\\,:{}é"), min_size=1, max_size=4).map(lambda n: f"x{n}x")
KINDS: st.SearchStrategy[Kind] = st.recursive(
    st.sampled_from(sorted(VALUES)).map(lambda name: (name, VALUES[name])),
    lambda inner: (
        inner.map(listed)
        | st.lists(
            st.tuples(NAMES, inner), min_size=1, max_size=3, unique_by=lambda f: f[0].lower()
        ).map(structured)
        | st.tuples(st.sampled_from(KEYS), inner).map(mapped)
    ),
    max_leaves=4,
)
"""Any type that a table stores, and its values."""


def apply_of(*columns: Column, reads: tuple[str, ...], **keyed: object) -> Apply:
    made = (*columns, Column("event_id", "VARCHAR"), Column("_offset", "BIGINT"))
    table = Table("t", (), made, keyed=Keyed(**keyed))
    return Apply(table, [view_of(reads)], ENGINE)


def view_of(reads: tuple[str, ...]) -> View:
    part = StatePart("groups", "groups", (), "", "")
    return View("v", "t", "", (), (), reads, (part,), "")


@settings(max_examples=200, deadline=None)
@given(data=st.data(), kind=KINDS)
def test_every_type_comes_back_from_the_index_as_it_was(data: st.DataObject, kind: Kind) -> None:
    name, values = kind
    apply = apply_of(
        Column("id", "BIGINT"), Column("c", name), reads=("c",), key=("id",), version="id"
    )
    given_values = data.draw(st.lists(nullable(values), min_size=1, max_size=4))
    before = rows_of(apply, given_values)
    entries = apply.entries(apply.changes(before, NO_ENTRIES, 1))
    after = apply.changes(rows_of(apply, [None] * len(given_values), "f"), entries, 2)
    both = {"before": before, "after": after}
    # Equality takes zeros of either sign for the same, which their texts do not.
    sql = (
        "SELECT before.c IS NOT DISTINCT FROM after.c AND "
        "CAST(before.c AS VARCHAR) IS NOT DISTINCT FROM CAST(after.c AS VARCHAR) AS same "
        "FROM before JOIN after USING (id) WHERE _weight = -1"
    )
    assert ENGINE.query(sql, both).column("same").to_pylist() == [True] * len(given_values)


def rows_of(apply: Apply, values: list[object], event: str = "e") -> pa.Table:
    """Return a row of each value, of as many keys."""
    schema = pa.schema([f for f in apply.schema if f.name in {"id", "c", "event_id"}])
    columns = {"id": list(range(len(values))), "c": values, "event_id": [event] * len(values)}
    arrays = [pa.array(columns[field.name], field.type) for field in schema]
    return placed(pa.Table.from_arrays(arrays, schema=schema))


def placed(rows: pa.Table) -> pa.Table:
    """Return rows as they follow one another in a partition."""
    return rows.append_column("_offset", pa.array(range(rows.num_rows)))


@settings(max_examples=100, deadline=None)
@given(data=st.data(), name=st.sampled_from(KEYS))
def test_keys_are_the_same_exactly_if_their_values_are(data: st.DataObject, name: str) -> None:
    apply = apply_of(Column("id", "BIGINT"), Column("c", name), reads=(), key=("c", "id"))
    values = data.draw(st.lists(VALUES[name], min_size=1, max_size=5))
    rows = rows_of(apply, values)
    distinct = ENGINE.query("SELECT DISTINCT c, id FROM rows", {"rows": rows})
    assert len(apply.keys(rows)) == distinct.num_rows
    alone = apply_of(Column("id", "BIGINT"), Column("c", name), reads=(), key=("c",))
    distinct = ENGINE.query("SELECT DISTINCT c FROM rows", {"rows": rows})
    assert len(alone.keys(rows)) == distinct.num_rows


def test_values_whose_texts_joined_are_the_same_are_other_keys() -> None:
    apply = apply_of(Column("a", "VARCHAR"), Column("b", "VARCHAR"), reads=(), key=("a", "b"))
    pairs = [('x","y', "z"), ("x", 'y","z'), ("x\0", "z"), ("x", "\0z"), ("x", "NULL"), ("x", "")]
    rows = pa.table(
        {"a": [a for a, _ in pairs], "b": [b for _, b in pairs], "event_id": ["e"] * len(pairs)}
    )
    assert len(apply.keys(rows)) == len(pairs)


def epochs_of(apply: Apply, changes: pa.Table) -> list[int]:
    """Return for each row the epoch that an index with all of them has for its key."""
    entries = apply.entries(changes)
    newest = dict(zip(*(entries.column(c).to_pylist() for c in ("key", "epoch")), strict=True))
    texts = ENGINE.query(f"SELECT {apply.key_sql} AS k FROM changes", {"changes": changes})
    return [newest[text] for text in texts.column("k").to_pylist()]


def test_what_the_index_does_not_have_yet_is_kept() -> None:
    apply = apply_of(Column("id", "BIGINT"), Column("v", "BIGINT"), reads=(), key=("id",))
    rows = pa.table({"id": [1, 2], "v": [1, 1], "event_id": ["e", "f"]})
    changes = apply.changes(placed(rows), NO_ENTRIES, 5)
    assert still_said(changes, [None, 4]).num_rows == 2
    assert still_said(changes, [5, 6]).column("id").to_pylist() == [1]


@pytest.mark.parametrize("name", ["live", "row", "key", "k", "l", "old", "rows", "held", "changes"])
def test_a_key_may_have_any_name(name: str) -> None:
    apply = apply_of(
        Column(name, "VARCHAR"), Column("v", "BIGINT"), reads=(), key=(name,), version="v"
    )
    rows = placed(pa.table({name: ["a", "b", "c"], "v": [1, 2, 3], "event_id": ["e", "f", "g"]}))
    changes = apply.changes(rows, NO_ENTRIES, 1)
    entries = apply.entries(changes)
    assert entries.column("key").to_pylist() == ['["a"]', '["b"]', '["c"]']
    assert still_said(changes, epochs_of(apply, changes)).num_rows == 3
    newer = rows.set_column(1, "v", pa.array([2, 3, 4]))
    again = apply.changes(newer, entries, 2)
    assert sorted(again.column("_weight").to_pylist()) == [-1, -1, -1, 1, 1, 1]


VERSIONS = {
    "BIGINT": [None, -(2**63), -1, 0, 2**63 - 1],
    "DECIMAL(20,0)": [None, -(10**19), 0, 2**64 - 1],
    "DATE": [None, -(2**31) + 1, -1_000_000, 0, 20_000, 2**31 - 1],
    "TIMESTAMPTZ": [None, -(2**63) + 1, -(2**62), 0, 1, 2**62, 2**63 - 1],
    "VARCHAR": [None, "", "\0", "10", "9", "é", "\U0001f600"],
}
"""Values of each kind of version, the oldest first."""


@pytest.mark.parametrize("name", VERSIONS)
@pytest.mark.parametrize("same_epoch", [True, False])
def test_the_greater_version_holds_and_none_is_the_oldest(name: str, *, same_epoch: bool) -> None:
    apply = apply_of(Column("id", "BIGINT"), Column("c", name), reads=(), key=("id",), version="c")
    ranks = list(itertools.product(range(len(VERSIONS[name])), repeat=2))
    made = [rows_of(apply, [VERSIONS[name][pair[at]] for pair in ranks], f"e{at}") for at in (0, 1)]
    if same_epoch:
        changes = [apply.changes(pa.concat_tables(made), NO_ENTRIES, 1)]
    else:
        first = apply.changes(made[0], NO_ENTRIES, 1)
        changes = [first, apply.changes(made[1], apply.entries(first), 2)]
    together = pa.concat_tables(changes)
    assert sum(together.column("_weight").to_pylist()) == len(ranks)
    left = still_said(together, epochs_of(apply, together))
    holds = dict(zip(*(left.column(c).to_pylist() for c in ("id", "event_id")), strict=True))
    assert holds == {i: "e1" if then >= now else "e0" for i, (now, then) in enumerate(ranks)}


@pytest.mark.parametrize("same_epoch", [True, False])
def test_of_one_id_and_version_the_first_row_stays(*, same_epoch: bool) -> None:
    columns = (Column("id", "BIGINT"), Column("n", "BIGINT"), Column("v", "BIGINT"))
    apply = apply_of(*columns, reads=("n",), key=("id",), version="v")
    rows = placed(pa.table({"id": [1] * 2, "n": [1, 2], "v": [7] * 2, "event_id": ["e"] * 2}))
    first, again = rows.slice(0, 1), rows.slice(1)
    if same_epoch:
        changes = apply.changes(pa.concat_tables([again, first]), NO_ENTRIES, 1)
    else:
        changes = apply.changes(first, NO_ENTRIES, 1)
        assert apply.changes(again, apply.entries(changes), 2).num_rows == 0
    assert changes.column("n").to_pylist() == [1]


def test_a_deletion_that_is_not_told_is_none() -> None:
    columns = (Column("id", "BIGINT"), Column("v", "BIGINT"))
    apply = apply_of(*columns, reads=(), key=("id",), version="v", deleted="gone")
    events, gone = ["e", "f", "g"], [None, True, False]
    rows = pa.table({"id": [1, 2, 3], "v": [1, 1, 1], "event_id": events, "gone": gone})
    changes = apply.changes(placed(rows), NO_ENTRIES, 1).to_pylist()
    assert {c["id"]: c["_weight"] for c in changes} == {1: 1, 2: 0, 3: 1}
