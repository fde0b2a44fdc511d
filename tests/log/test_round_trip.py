from __future__ import annotations

from contextlib import closing

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from headrace.log.embedded import EmbeddedLog
from headrace.log.row import pack, unpack
from headrace.model.batch import Batch, decode, encode
from headrace.model.clock import SystemClock
from headrace.testing.log_place import read_rows, rows_of

RECORDS = st.tuples(
    st.integers(-(2**63), 2**63 - 1),
    st.binary(min_size=16, max_size=16),
    st.integers(0, 2**64 - 1),
    st.none() | st.binary(max_size=40),
    st.binary(max_size=40),
    st.binary(max_size=40) | st.binary(max_size=40).map(lambda part: part * 500),
)


def as_batch(records):
    batch = Batch()
    for received_at, id_, mark, key, headers, value in records:
        batch.add(value, received_at=received_at, id=id_, key=key, headers=headers, mark=mark)
    return batch


@pytest.fixture(scope="module")
def log(tmp_path_factory):
    place = tmp_path_factory.mktemp("round-trip")
    with closing(EmbeddedLog(place / "log", SystemClock(), segment_bytes_max=20_000)) as log:
        yield log


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(batches=st.lists(st.lists(RECORDS, min_size=1, max_size=6), min_size=1, max_size=4))
def test_records_come_back_as_they_went(log, batches):
    log.create("events", 1)
    for records in batches:
        log.append("events", as_batch(records))
    sent = [record for records in batches for record in rows_of(as_batch(records))]
    found = read_rows(log, "events")
    log.delete("events")
    assert found == sent


@given(st.lists(RECORDS, min_size=1, max_size=6), st.integers(0, 2**40))
def test_a_row_unpacks_to_its_blob(records, base_offset):
    batch = as_batch(records)
    blob = encode(batch)
    row = pack(1, 2, base_offset, len(batch), batch.received_at, 0, blob)
    assert unpack(row) == blob
    assert decode([(base_offset, len(batch), blob)]).num_rows == len(batch)
