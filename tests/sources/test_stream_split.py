"""How bytes of a stream are cut into records, wherever they are cut on the way."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.model.errors import Invalid
from headrace.sources import stream_split
from headrace.sources.stream_split import FORMATS, Item, format_of

NDJSON = b'{"a": 1}\r\n\n  {"b": "x\\ny"} \n{broken\n[1, 2]\n3'
NDJSON_ITEMS = [b'{"a": 1}', b'{"b": "x\\ny"}', b"{broken", b"[1, 2]", b"3"]
JSON = b'{"a": {"b": "}]\\"{"}}[1, [2]] {"c": 3}\n\ntext {"d": 4}5'
JSON_ITEMS = [b'{"a": {"b": "}]\\"{"}}', b"[1, [2]]", b'{"c": 3}', b"text", b'{"d": 4}', b"5"]
SSE = (
    b": a remark\n\n"
    b"id: 1\nevent: new\ndata: first\n\n"
    b"data:second\r\ndata:  line\r\n\r\n"
    b"id: 2\rdata: third\r\rid: 3\n\ndata\n\ndata: never\n"
)
SSE_ITEMS = [Item(b"first", "1"), Item(b"second\n line"), Item(b"third", "2"), Item(b"")]


def cut(format_, pieces):
    splitter = FORMATS[format_]()
    found = [item for piece in pieces for item in splitter.feed(piece)]
    return [*found, *splitter.rest()]


@pytest.mark.parametrize(
    ("format_", "stream", "items"),
    [
        ("ndjson", NDJSON, [Item(v) for v in NDJSON_ITEMS]),
        ("json", JSON, [Item(v) for v in JSON_ITEMS]),
        ("sse", SSE, SSE_ITEMS),
    ],
)
@given(st.lists(st.integers(0, 200), max_size=12))
def test_any_cut_gives_the_same_records(format_, stream, items, edges):
    places = sorted({0, *(e % (len(stream) + 1) for e in edges), len(stream)})
    pieces = [stream[a:b] for a, b in pairwise(places)]
    assert cut(format_, pieces) == items
    assert cut(format_, [bytes([byte]) for byte in stream]) == items


def test_a_record_comes_as_soon_as_it_has_ended():
    splitter = FORMATS["json"]()
    assert [i.value for i in splitter.feed(b'{"a":1}{"b"')] == [b'{"a":1}']
    assert [i.value for i in splitter.feed(b":2}")] == [b'{"b":2}']
    splitter = FORMATS["sse"]()
    assert [i.value for i in splitter.feed(b"data: x\n\n")] == [b"x"]


def test_a_stream_that_never_ends_a_record_is_refused(monkeypatch):
    monkeypatch.setattr(stream_split, "DOCUMENT_BYTES_MAX", 100)
    for format_, start in (("ndjson", b"x"), ("json", b'{"a":"'), ("sse", b"data: ")):
        splitter = FORMATS[format_]()
        list(splitter.feed(start))
        for _ in range(9):
            list(splitter.feed(b"x" * 10))
        with pytest.raises(Invalid) as refused:
            list(splitter.feed(b"x" * 10))
        assert refused.value.code == "document_too_large"


@pytest.mark.parametrize(
    ("content_type", "format_"),
    [
        ("text/event-stream; charset=utf-8", "sse"),
        ("application/x-ndjson", "ndjson"),
        ("Application/JSONL", "ndjson"),
        ("application/json", "json"),
        ("", "json"),
    ],
)
def test_the_format_is_told_by_the_content_type(content_type, format_):
    assert format_of(content_type) == format_
