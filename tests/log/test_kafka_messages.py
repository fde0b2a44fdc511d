"""Records as messages, and messages of other programs as records."""

from __future__ import annotations

import uuid

import pyarrow as pa
import pytest
from confluent_kafka import TIMESTAMP_CREATE_TIME, Message
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.log.kafka.messages import check, decode, foreign_id, headers_of
from headrace.model.batch import RECORDS, Batch, is_client_chosen
from headrace.model.errors import Invalid
from headrace.testing.log_place import rows_of

TOPIC_ID = "62731247-c766-437c-9f4b-ae06c559e28b"
HEADERS = st.one_of(
    st.sampled_from([b"", b"{}", b'{"a":"1"}', b'{ "a":"1"}', b'{"headrace-id":"x"}']),
    st.just(b'{"a":"\\ud800"}'),
    st.binary(max_size=9),
)


def message(offset=5, value=b"v", headers=None, key=None, at_ms=1000):
    return Message(
        topic="t", partition=2, offset=offset, value=value, headers=headers, key=key,
        timestamp=(TIMESTAMP_CREATE_TIME, at_ms),
    )  # fmt: skip


def row(sent):
    records, acts = decode([sent], TOPIC_ID)
    assert records.schema == RECORDS
    columns = [column.cast(pa.int64()) if i == 1 else column for i, column in enumerate(records)]
    return dict(zip(RECORDS.names, [c[0].as_py() for c in columns], strict=True)), acts


@settings(deadline=None)
@given(
    headers=HEADERS,
    received_at=st.integers(-(1 << 62), 1 << 62),
    id_=st.binary(min_size=16, max_size=16),
    mark=st.integers(0, (1 << 64) - 1),
)
def test_a_record_comes_back_as_it_was(headers, received_at, id_, mark):
    batch = Batch()
    batch.add(b"v", received_at=received_at, id=id_, headers=headers, mark=mark, key=b"k")
    check(batch, 100)
    found, acts = row(message(headers=next(headers_of(batch, "act")), key=b"k"))
    assert acts == [(0, "act")]
    names = ("received_at", "id", "mark", "key", "headers", "value")
    assert tuple(found[name] for name in names) == rows_of(batch)[0]


def test_plain_headers_are_kafkas_own():
    batch = Batch()
    batch.add(b"v", received_at=7, id=bytes(16), headers=b'{"a":"1"}')
    assert list(headers_of(batch)) == [
        [
            ("headrace-id", b"00000000-0000-0000-0000-000000000000"),
            ("headrace-received-at", b"7"),
            ("a", b"1"),
        ]
    ]


def test_a_foreign_message_is_a_record_by_its_place():
    found, acts = row(message(headers=[("b", b"x"), ("n", None), ("b", b"\xff")], key=b""))
    assert acts == []
    assert (found["offset"], found["received_at"], found["mark"]) == (5, 1_000_000, 0)
    assert (found["key"], found["value"]) == (b"", b"v")
    assert found["headers"] == b'{"b":"\\\\xff","n":""}'
    assert found["id"] == row(message())[0]["id"] != row(message(offset=6))[0]["id"]
    assert not is_client_chosen(found["id"])
    assert row(message(value=None, at_ms=-1))[0]["value"] == b""


@pytest.mark.parametrize("bad", [b"", b"nonsense", b"\xff" * 36, b"9" * 40])
def test_our_headers_that_cannot_be_read_count_as_absent(bad):
    names = ("headrace-id", "headrace-received-at", "headrace-mark")
    found, _ = row(message(headers=[(name, bad) for name in names]))
    assert found == row(message())[0]


def test_foreign_ids_differ():
    topic = uuid.UUID(TOPIC_ID).bytes
    ids = {foreign_id(topic, p, o, 9) for p in range(3) for o in (0, 1, 2, (1 << 63) - 1)}
    assert len(ids) == 12


def test_a_record_too_large_is_refused_before_any_is_sent():
    batch = Batch()
    batch.add(b"v" * 10, received_at=0, id=bytes(16), key=b"kk")
    check(batch, 12)
    with pytest.raises(Invalid, match="11 may go"):
        check(batch, 11)
