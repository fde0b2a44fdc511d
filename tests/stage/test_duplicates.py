"""The duplicates rule is a function of the log alone."""

from __future__ import annotations

import itertools

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.model.batch import RECORDS, is_client_chosen
from headrace.model.clock import uuid7
from headrace.model.ids import client_id
from headrace.model.plan import KNOWN_ID_SCHEMA
from headrace.stage.duplicates import RESET, IdIndex, Partition, chosen_by_client

HORIZON = 10


def records(rows: list[tuple[bytes, int]], first: int = 0) -> pa.RecordBatch:
    n = len(rows)
    return pa.RecordBatch.from_arrays(
        [
            pa.array(range(first, first + n), pa.int64()),
            pa.array([at for _, at in rows], RECORDS.field("received_at").type),
            pa.array([i for i, _ in rows], pa.binary(16)),
            pa.array([0] * n, pa.uint64()),
            pa.nulls(n, pa.binary()),
            pa.array([b""] * n, pa.binary()),
            pa.array([b"{}"] * n, pa.binary()),
        ],
        schema=RECORDS,
    )


def by_definition(rows: list[tuple[bytes, int]], valid: list[bool]) -> list[bool]:
    """The rule, record by record."""
    kept: dict[tuple[bytes, bool], int] = {}
    clock = None
    duplicates = []
    for (record_id, at), is_valid in zip(rows, valid, strict=True):
        if clock is not None and at < clock - HORIZON:
            clock, kept = at, {}
        clock = at if clock is None else max(clock, at)
        chosen, key = is_client_chosen(record_id), (record_id, is_valid)
        duplicate = chosen and key in kept and clock - kept[key] <= HORIZON
        if chosen and not duplicate:
            kept[key] = clock
        duplicates.append(duplicate)
    return duplicates


def in_epochs(rows, valid, cuts, *, forget: bool) -> list[bool]:
    """The same by the product, cut into epochs; with or without clean-up between them."""
    index, clock, duplicates = IdIndex(), None, []
    edges = sorted({0, len(rows), *(c for c in cuts if c < len(rows))})
    for start, end in itertools.pairwise(edges):
        part = Partition("t", 0, records(rows[start:end], start), clock)
        found, kept, clock = part.find(np.array(valid[start:end]), index, HORIZON)
        duplicates += found.tolist()
        if kept is not None:
            assert kept.schema == KNOWN_ID_SCHEMA
            index.add(kept)
        if forget:
            index.expire({"t/0": clock}, HORIZON)
    return duplicates


IDS = [client_id("s", "t", str(i)) for i in range(4)] + [uuid7(1, b"0123456789")]
ROWS = st.lists(
    st.tuples(st.sampled_from(IDS), st.integers(0, 40), st.booleans() | st.just(True)),
    min_size=1,
    max_size=40,
)


@settings(max_examples=500, deadline=None)
@given(ROWS, st.lists(st.integers(0, 40)), st.booleans())
def test_any_cut_into_epochs_finds_the_same_duplicates(drawn, cuts, forget):
    rows, valid = [(i, at) for i, at, _ in drawn], [v for *_, v in drawn]
    assert in_epochs(rows, valid, cuts, forget=forget) == by_definition(rows, valid)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(IDS), st.integers(0, 3)), min_size=1, max_size=60))
def test_a_clock_that_mostly_goes_forward(steps):
    clock, rows = 0, []
    for record_id, step in steps:
        clock += step
        rows.append((record_id, clock))
    valid = [True] * len(rows)
    for cuts in ([], range(len(rows)), [len(rows) // 2]):
        assert in_epochs(rows, valid, cuts, forget=True) == by_definition(rows, valid)


def test_ids_are_told_apart_by_who_made_them():
    ids = [*IDS, RESET]
    flags = chosen_by_client(pa.array([b"x" * 16, *ids], pa.binary(16)).slice(1))
    assert flags.tolist() == [is_client_chosen(i) for i in ids]


def test_ids_make_duplicates_only_of_later_offsets():
    index = IdIndex()
    index.add(kept_ids([(IDS[0], 5, 100), (IDS[0], 9, 200)]))
    ids = pa.array([IDS[0], IDS[1]], pa.binary(16))
    assert index.find("t", 0, ids, before=100).to_pylist() == [None, None]
    assert index.find("t", 0, ids, before=101).to_pylist() == [5, None]
    assert index.find("t", 0, ids, before=999).to_pylist() == [9, None]
    assert index.find("t", 1, ids, before=999).to_pylist() == [None, None]
    assert index.find("u", 0, ids, before=999).to_pylist() == [None, None]


def test_adding_the_same_again_changes_nothing_that_is_found():
    index = IdIndex()
    rows = kept_ids([(IDS[0], 5, 100)])
    index.add(rows)
    index.add(rows)
    assert index.find("t", 0, pa.array([IDS[0]], pa.binary(16)), 999).to_pylist() == [5]


def test_expiry_forgets_what_is_past_the_horizon_of_its_partition():
    index = IdIndex()
    index.add(kept_ids([(IDS[0], 5, 1), (IDS[1], 20, 2)]))
    index.add(kept_ids([(IDS[0], 5, 1)], partition=1))
    index.expire({"t/0": 30}, HORIZON)
    assert len(index) == 2
    ids = pa.array(IDS[:2], pa.binary(16))
    assert index.find("t", 0, ids, 99).to_pylist() == [None, 20]
    assert index.find("t", 1, ids, 99).to_pylist() == [5, None]
    index.forget("t")
    assert len(index) == 0


@pytest.mark.parametrize("batch", [1, 7, 1000])
def test_many_ids_in_many_runs(batch):
    ids = [client_id("s", "t", str(i)) for i in range(3000)]
    index = IdIndex()
    for start in range(0, 3000, batch):
        some = ids[start : start + batch]
        index.add(kept_ids([(i, start + n, start + n) for n, i in enumerate(some)]))
    asked = pa.array([*ids, client_id("s", "t", "no")], pa.binary(16))
    assert index.find("t", 0, asked, 10**6).to_pylist() == [*range(3000), None]
    assert index.size_bytes == 3000 * 32


def test_the_memory_bound_forgets_the_oldest_and_counts_them():
    index = IdIndex(bytes_max=800 * 32)
    ids = [client_id("s", "t", str(i)) for i in range(1000)]
    for start in range(0, 1000, 100):
        some = ids[start : start + 100]
        index.add(kept_ids([(i, start + n, start + n) for n, i in enumerate(some)]))
    assert index.size_bytes <= 800 * 32
    assert index.forgotten == 1000 - len(index)
    found = index.find("t", 0, pa.array(ids, pa.binary(16)), 10**6).to_pylist()
    assert found == [None] * index.forgotten + list(range(index.forgotten, 1000))


def kept_ids(rows: list[tuple[bytes, int, int]], partition: int = 0) -> pa.Table:
    columns = [
        ["t"] * len(rows),
        [partition] * len(rows),
        [i for i, _, _ in rows],
        [clock for _, clock, _ in rows],
        [offset for *_, offset in rows],
    ]
    arrays = [pa.array(c, f.type) for c, f in zip(columns, KNOWN_ID_SCHEMA, strict=True)]
    return pa.Table.from_arrays(arrays, schema=KNOWN_ID_SCHEMA)
