import gzip
import json
import tracemalloc

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.collect import envelopes
from headrace.collect.envelopes import (
    form_of,
    inflate,
    is_compressed,
    open_body,
    split_array,
)
from headrace.collect.exchange import HeaderList
from headrace.model.errors import Invalid

NONE = HeaderList([])
MANY = 100_000

json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)
objects = st.dictionaries(st.text(max_size=8), json_values, max_size=4)
texts = objects.flatmap(
    lambda value: st.sampled_from(
        [
            json.dumps(value).encode(),
            json.dumps(value, ensure_ascii=False).encode("utf-8", "surrogatepass"),
            json.dumps(value, separators=(",", ":")).encode(),
        ]
    )
)
spaces = st.text(" \t\r\n", max_size=3).map(str.encode)


def code_of(act, *arguments):
    with pytest.raises(Invalid) as refused:
        act(*arguments)
    assert refused.value.message
    return refused.value.code


@given(st.lists(st.tuples(spaces, texts, spaces), min_size=1, max_size=8))
def test_an_array_is_split_into_the_exact_bytes_of_its_elements(parts):
    body = b"[" + b",".join(before + text + after for before, text, after in parts) + b"]"
    assert open_body("json", body, NONE, MANY).values == [text for _, text, _ in parts]


@given(
    st.lists(texts, min_size=1, max_size=8), st.sampled_from([b"\n", b"\r\n", b"\n\n", b"\n \n"])
)
def test_lines_are_split_into_records_and_blank_lines_are_none(lines, end):
    values = open_body("lines", end.join(lines), NONE, MANY).values
    assert [value.strip() for value in values] == lines


@given(texts)
def test_an_object_is_one_record_with_its_exact_bytes(text):
    records = open_body("json", text, NONE, MANY)
    assert records.values == [text]
    assert records.whole


@given(st.lists(texts, min_size=1, max_size=4), st.integers(1, 3))
def test_gzip_of_each_is_the_same_records(lines, members):
    body = b"\n".join(lines)
    cut = [body[i * len(body) // members : (i + 1) * len(body) // members] for i in range(members)]
    packed = b"".join(map(gzip.compress, cut))
    assert inflate(packed, 1 << 20) == body


def test_a_line_that_is_no_json_is_a_record_of_its_own():
    values = open_body("lines", b'{"a":1}\n{"a":\n{"a":3}', NONE, MANY).values
    assert values == [b'{"a":1}', b'{"a":', b'{"a":3}']


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"", "empty_body"),
        (b"  \n", "empty_body"),
        (b"[]", "empty_body"),
        (b"[1,", "malformed_json"),
        (b"[NaN]", "malformed_json"),
        (b'[{"a":1}]x', "malformed_json"),
        (b"[" * 10_000, "malformed_json"),
    ],
)
def test_what_cannot_be_taken_apart_is_refused_whole(body, code):
    assert code_of(open_body, "json", body, NONE, MANY) == code


@pytest.mark.parametrize("body", [b"", b"\n\n", b" \r\n "])
def test_lines_without_a_record_are_refused(body):
    assert code_of(open_body, "lines", body, NONE, MANY) == "empty_body"


def test_an_element_nested_too_deep_keeps_its_neighbours():
    deep = b'{"a":' + b"[" * 10_000 + b"]" * 10_000 + b"}"
    neighbour = b'{"text":"\\"],[\\\\","b":[1,{"c":2}]}'
    assert split_array(b"[" + neighbour + b", " + deep + b" ," + neighbour + b"]", MANY) == [
        neighbour,
        deep,
        neighbour,
    ]


@pytest.mark.parametrize("body", [b"[" + b"1," * 50 + b"1]", b"[" + b'{"a":1},' * 50 + b"{}]"])
def test_too_many_elements_are_refused_before_they_are_made(body):
    assert code_of(split_array, body, 50) == "too_many_records"
    assert len(split_array(body, 51)) == 51


def test_commas_within_elements_do_not_count():
    element = msgspec.json.encode(list(range(200)))
    assert split_array(b"[" + element + b"," + element + b"]", 2) == [element, element]


def test_too_many_lines_are_refused_before_they_are_made():
    assert code_of(open_body, "lines", b"\n" * 51, NONE, 50) == "too_many_records"


def test_a_gzip_bomb_is_never_unpacked_past_the_limit():
    bomb = gzip.compress(bytes(50 << 20))
    tracemalloc.start()
    assert code_of(inflate, bomb, 3 << 20) == "body_too_large"
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 8 << 20


def test_many_small_gzip_members_are_bounded_together():
    assert code_of(inflate, gzip.compress(bytes(1000)) * 20, 10_000) == ("body_too_large")


@pytest.mark.parametrize(
    "body",
    [
        b"{}",
        gzip.compress(b"{}", mtime=0)[:-9],
        gzip.compress(b"{}", mtime=0) + b"{}",
        b"\x1f\x8b",
        b"\x1f",
    ],
)
def test_broken_gzip_is_refused(body):
    assert code_of(inflate, body, 1000) == "malformed_gzip"


@pytest.mark.parametrize(
    ("content_type", "form"),
    [
        (None, "json"),
        ("application/json", "json"),
        ("Application/JSON; Charset=UTF-8", "json"),
        ('application/json; charset="utf8"', "json"),
        ("application/vnd.game+json", "json"),
        ("application/x-ndjson", "lines"),
        ("application/jsonl", "lines"),
        ("application/cloudevents+json; charset=utf-8", "event"),
        ("application/cloudevents-batch+json", "events"),
    ],
)
def test_content_types_that_are_taken(content_type, form):
    assert form_of(content_type) == form


@pytest.mark.parametrize(
    "content_type",
    [
        "",
        "text/plain",
        "application/x-www-form-urlencoded",
        "multipart/form-data; boundary=x",
        "application/json; charset=latin-1",
        "json",
    ],
)
def test_content_types_that_are_refused(content_type):
    assert code_of(form_of, content_type) == "unsupported_media_type"


def test_content_encodings():
    assert [is_compressed(e) for e in (None, "identity", "gzip", "X-GZIP")] == [0, 0, 1, 1]
    assert code_of(is_compressed, "br") == "unsupported_encoding"
    assert code_of(is_compressed, "gzip, gzip") == "unsupported_encoding"


@given(st.lists(json_values, min_size=1), st.integers(1, 7))
def test_elements_cut_by_brackets_are_those_that_are_read(values, step_bytes):
    body = b" " + msgspec.json.format(msgspec.json.encode(values), indent=1) + b"\n"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(envelopes, "_CUT_STEP_BYTES", step_bytes)
        cut = envelopes._elements(body, 100)
    assert cut == [bytes(raw) for raw in msgspec.json.decode(body, type=list[msgspec.Raw])]


@pytest.mark.parametrize("body", [b"[1", b'["', b"[1]]", b"[1] x", b"[[1]", b'[1,"]', b'["\\"]'])
def test_what_does_not_end_as_an_array_is_not_cut(body):
    with pytest.raises(Invalid) as refused:
        envelopes._elements(body, 100)
    assert refused.value.code == "malformed_json"


def test_commas_within_elements_are_no_records():
    body = b"[[" + b"1," * 500 + b'1],",,,,,,,"]'
    assert len(split_array(body, 2)) == 2
    with pytest.raises(Invalid, match="more than 1 records"):
        split_array(body, 1)
