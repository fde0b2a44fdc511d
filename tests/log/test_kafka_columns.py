"""Messages in columns are decoded as they are one by one."""

from __future__ import annotations

from typing import NamedTuple

import pyarrow as pa
from confluent_kafka import TIMESTAMP_CREATE_TIME, Message
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.log.kafka import columns
from headrace.log.kafka.columns import SHAPES_MAX, decode_columns
from headrace.log.kafka.messages import decode

TOPIC_ID = "62731247-c766-437c-9f4b-ae06c559e28b"
PARTITION = 2
HEADER = pa.list_(pa.struct([("key", pa.string()), ("value", pa.binary())]))

UUID = "01234567-89ab-cdef-0123-456789abcdef"
IDS = [
    UUID.encode(),
    UUID.upper().encode(),
    b"0123456-789ab-cdef-0123-456789abcdef",
    b"01234567-89ab-cdef-0123-456789abcdeg",
    b"0123456789abcdef0123456789abcdef",
    b"",
    None,
]
NUMBERS = [b"0", b"7", b"007", b"1" * 18, b"-5", b"+5", b"1_0", b" 9 ", b"0x1F", b"x", b"", None]
NUMBERS += [b"%d" % n for n in ((1 << 63) - 1, 1 << 63, -(1 << 63), (1 << 64) - 1, 1 << 64)]
TEXTS = [b"", b"a", b'"', b"\\", b"\n", b"\x7f", b"\xff", "ä".encode(), b"/ plain'", None]
HEADERS = st.lists(
    st.tuples(st.just("headrace-id"), st.sampled_from(IDS))
    | st.tuples(
        st.sampled_from(["headrace-received-at", "headrace-mark"]), st.sampled_from(NUMBERS)
    )
    | st.tuples(
        st.sampled_from(["headrace-headers", "headrace-act", "a", 'b"', "ö"]),
        st.sampled_from(TEXTS),
    ),
    max_size=6,
)
OURS = st.tuples(
    st.tuples(st.just("headrace-id"), st.sampled_from(IDS)),
    st.tuples(st.just("headrace-received-at"), st.sampled_from(NUMBERS)),
).flatmap(lambda two: HEADERS.map(lambda more: [*two, *more]))


class Sent(NamedTuple):
    gap: int
    """How much its offset is more than the one before."""
    at_ms: int
    key: bytes | None
    headers: list[tuple[str, bytes | None]] | None
    value: bytes | None


SENT = st.lists(
    st.builds(
        Sent,
        st.integers(1, 5),
        st.sampled_from([-1, 0, 1, 1_767_225_600_123]),
        st.sampled_from([None, b"", b"k"]),
        st.none() | st.just([]) | HEADERS | OURS,
        st.sampled_from([None, b"", b"v"]),
    ),
    min_size=1,
    max_size=12,
)


def both(sent):
    """Return the same messages as Kafka's client gives them and as Spark does."""
    offset, one_by_one, rows = 0, [], []
    for gap, at_ms, key, headers, value in sent:
        offset += gap
        stamp = (TIMESTAMP_CREATE_TIME, at_ms)
        one_by_one.append(
            Message(topic="t", partition=PARTITION, offset=offset, value=value, headers=headers,
                    key=key, timestamp=stamp)
        )  # fmt: skip
        told = None if headers is None else [{"key": k, "value": v} for k, v in headers]
        rows.append((offset, at_ms * 1000, key, value, told))
    kinds = [pa.int64(), pa.timestamp("us", "UTC"), pa.binary(), pa.binary(), HEADER]
    names = ["offset", "timestamp", "key", "value", "headers"]
    arrays = [pa.array(c, k) for c, k in zip(zip(*rows, strict=True), kinds, strict=True)]
    return one_by_one, pa.RecordBatch.from_arrays(arrays, names)


def same(sent):
    one_by_one, found = both(sent)
    records, acts = decode(one_by_one, TOPIC_ID)
    # A slice has the same values at other places.
    padded = pa.Table.from_batches([found, found, found]).combine_chunks().to_batches()[0]
    for batch in (found, padded.slice(len(sent), len(sent))):
        decoded = decode_columns(batch, PARTITION, TOPIC_ID)
        assert decoded.records.equals(records)
        decoded.records.validate(full=True)
        told = [(act or b"").decode("utf-8", "replace") for act in decoded.acts.to_pylist()]
        assert [(i, act) for i, act in enumerate(told) if act] == acts
    return records


@settings(deadline=None, max_examples=150)
@given(sent=SENT)
def test_columns_are_decoded_as_messages_are(sent):
    same(sent)


USUAL = [("headrace-id", UUID.encode()), ("headrace-received-at", b"1767225600123456")]


def test_what_headrace_writes_needs_no_other_way(monkeypatch):
    marks = ([], [("headrace-mark", b"17")])
    own = ([], [("a", b"1"), ("b", b"x y")], [("headrace-headers", b'{ "a":"1"}')])
    sent = [
        Sent(1, 5, None if i else b"k", [*USUAL, *mark, *named, ("headrace-act", b"act")], b"v")
        for mark in marks
        for named in own
        for i in range(5)
    ]
    one_by_one, found = both(sent)
    records, _ = decode(one_by_one, TOPIC_ID)
    monkeypatch.setattr(columns, "_decode_others", None)
    assert decode_columns(found, PARTITION, TOPIC_ID).records.equals(records)


def test_more_kinds_of_headers_than_are_decoded_by_columns():
    kinds = [[(f"x{j}", b"1") for j in range(i)] for i in range(SHAPES_MAX + 3)]
    sent = [Sent(1, 0, None, [*USUAL, *more], b"") for more in kinds * 4]
    assert same(sent).num_rows == 4 * len(kinds)


def test_messages_that_another_program_wrote():
    records = same([Sent(3, 1000 + i, None, None, b"{}") for i in range(50)])
    assert len(set(records.column("id").to_pylist())) == 50
