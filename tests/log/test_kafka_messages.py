"""Records as messages, and messages of other programs as records."""

from __future__ import annotations

import uuid

import pyarrow as pa
import pytest
from confluent_kafka import TIMESTAMP_CREATE_TIME, Message
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.log.kafka import messages as messages_module
from headrace.log.kafka.messages import (
    ID,
    OURS,
    RECEIVED_AT,
    check,
    decode,
    decode_any,
    foreign_id,
    headers_of,
)
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
    found, acts = row(message(headers=headers_of(batch, "act")(0), key=b"k"))
    assert acts == [(0, "act")]
    names = ("received_at", "id", "mark", "key", "headers", "value")
    assert tuple(found[name] for name in names) == rows_of(batch)[0]


def test_plain_headers_are_kafkas_own():
    batch = Batch()
    batch.add(b"v", received_at=7, id=bytes(16), headers=b'{"a":"1"}')
    assert headers_of(batch)(0) == [
        ("headrace-id", b"00000000-0000-0000-0000-000000000000"),
        ("headrace-received-at", b"7"),
        ("a", b"1"),
    ]


@st.composite
def ours(draw):
    """Headers as we write them, or nearly."""
    batch = Batch()
    batch.add(
        b"v", received_at=draw(st.integers(-2, 1 << 63)), id=draw(st.sampled_from(IDS)),
        headers=draw(HEADERS), mark=draw(st.integers(0, 2)),
    )  # fmt: skip
    return headers_of(batch, draw(st.sampled_from(["", "act"])))(0)


IDS = [bytes(16), bytes(range(16)), b"\xff" * 16]
TEXTS = st.one_of(
    st.none(),
    st.sampled_from([b"", b"7", b" 7", b"1_0", b"-1", b"9" * 19, b"9" * 40, b"x", b"\xff"]),
    st.sampled_from([str(uuid.UUID(bytes=id_)).encode() for id_ in IDS]),
    # As long as a UUID's text, and not as UUIDs are written.
    st.sampled_from([b"0" * 32 + b"----", b"        -0000-0000-0000-000000000000", b"-" * 36]),
    # Too short and too long: together of the right length.
    st.sampled_from(
        [b"00000000-0000-0000-0000-00000000000", b"000000000-0000-0000-0000-000000000000"]
    ),
)
NAMES = st.sampled_from([*OURS, "a", "b"])
ANY = st.lists(st.tuples(NAMES, TEXTS), max_size=4)


@settings(deadline=None, max_examples=300)
@given(
    sent=st.lists(
        st.tuples(
            st.one_of(
                ours(),
                st.none(),
                ANY,
                st.builds(lambda i, t, r: [(ID, i), (RECEIVED_AT, t), *r], TEXTS, TEXTS, ANY),
            ),
            st.none() | st.just(b"k"),
            st.none() | st.binary(max_size=2),
        ),
        min_size=1,
        max_size=4,
    )
)
def test_what_is_read_in_bulk_is_what_is_read_one_by_one(sent):
    messages = [
        message(offset=n, headers=headers, key=key, value=value, at_ms=n)
        for n, (headers, key, value) in enumerate(sent)
    ]
    assert decode(messages, TOPIC_ID) == decode_any(messages, TOPIC_ID)


def test_messages_of_ours_are_read_in_bulk():
    """Also those with marks, headers and acts of their own."""
    batch = Batch()
    for n, own in enumerate([b"", b"", b'{"a":"1"}', b"{}"]):
        batch.add(b"v", received_at=n, id=IDS[1], headers=own, mark=n)
    sent = [message(offset=n, headers=headers_of(batch, "act"[: 3 * n])(n)) for n in range(4)]
    assert messages_module._decode_ours(sent) == decode_any(sent, TOPIC_ID)


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
