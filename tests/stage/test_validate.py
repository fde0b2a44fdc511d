"""Validity: what is refused, with which words, and that nothing makes the validator fall over."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.model.errors import Invalid
from headrace.model.schema import Field, Schema, Type
from headrace.stage.validate import DEPTH_MAX, Validator

RECORDED = Path(__file__).resolve().parents[3] / "shared" / "data" / "large"


def one(kind: Type, alias: str = "x", **options) -> Validator:
    return Validator(Schema("One", (Field("x", alias, kind, **options),)))


def refusal(validator: Validator, value: bytes | str) -> tuple[str, str]:
    with pytest.raises(Invalid) as caught:
        validator.check(value.encode() if isinstance(value, str) else value)
    assert caught.value.hint
    assert len(caught.value.message) <= 301
    return caught.value.code, caught.value.message


ANY = Validator(None)
INTEGER = one(Type("integer"))
LOOSE = one(Type("integer"), required=False)


@pytest.mark.parametrize(
    ("kind", "text", "message"),
    [
        (Type("integer"), '"5"', "Expected int, got str - at $.x"),
        (Type("integer"), "5.0", "Expected int, got float - at $.x"),
        (Type("integer"), "true", "Expected int, got bool - at $.x"),
        (Type("integer"), "null", "Expected int, got null - at $.x"),
        (Type("integer"), "9223372036854775808", "Expected int <= 9223372036854775807 - at $.x"),
        (Type("integer"), "-9223372036854775809", "Expected int >= -9223372036854775808 - at $.x"),
        (Type("integer"), "1" * 5000, "Integer value out of range - at $.x"),
        (Type("integer", limits={"gt": 3}), "3", "Expected int >= 4 - at $.x"),
        (Type("number"), "1e400", "Number out of range - at $.x"),
        (Type("number"), '"1"', "Expected float, got str - at $.x"),
        (Type("boolean"), "1", "Expected bool, got int - at $.x"),
        (Type("string"), "1", "Expected str, got int - at $.x"),
        (Type("string", choices=("a", "b")), '"c"', "Invalid enum value 'c' - at $.x"),
        (Type("string", limits={"min_length": 2}), '"c"', "Expected str of length >= 2 - at $.x"),
        (Type("date"), '"2020-02-30"', "Invalid RFC3339 encoded date - at $.x"),
        (Type("timestamp"), '"2020-02-30T00:00:00Z"', "Invalid RFC3339 encoded datetime - at $.x"),
        (Type("timestamp"), '"2020-02-03T00:00:00"', "Expected datetime with a timezone component"),
        (Type("timestamp"), "1", "Expected datetime, got int - at $.x"),
        (
            Type("timestamp"),
            '"0001-01-01T00:00:00+00:01"',
            "Expected a timestamp of the years 1 to 9999 in UTC - at $.x",
        ),
        (Type("timestamp", unit="s"), '"1"', "Expected float, got str - at $.x"),
        (Type("timestamp", unit="us"), "1.5", "Expected int, got float - at $.x"),
        (Type("timestamp", unit="s"), "1e12", "Expected float <= 253402300799.0 - at $.x"),
        (Type("decimal", precision=4, scale=2), "1e300", "Expected decimal(4, 2), got 1E+300"),
        (Type("decimal", precision=4, scale=2), "1.005", "Expected decimal(4, 2), got 1.005"),
        (Type("decimal", precision=4, scale=2), "100", "Expected decimal(4, 2), got 100 - at $.x"),
        (Type("decimal", precision=4, scale=2), '"NaN"', "Expected decimal(4, 2) in plain digits"),
        (Type("decimal", precision=4, scale=2), '"1e1"', "Expected decimal(4, 2) in plain digits"),
        (Type("decimal", precision=4, scale=2), '""', "Expected decimal(4, 2) in plain digits"),
        (Type("decimal", precision=4, scale=2), "null", "Expected decimal(4, 2), got null"),
        (Type("decimal", precision=4, scale=2), "[]", "Expected decimal(4, 2), got array"),
        (Type("decimal", precision=4, scale=2), "1e99999999999999999999", "Number out of range"),
        (
            Type("decimal", precision=38, scale=20),
            "0.1234567890123456",
            "A decimal of over 15 digits as a JSON number - at $.x",
        ),
        (
            Type("decimal", precision=5, scale=5),
            "0.00001",
            "A decimal of this size as a JSON number - at $.x",
        ),
        (
            Type("decimal", precision=4, scale=2, limits={"ge": "0.5"}),
            "0.4",
            "Expected decimal >= 0.5 - at $.x",
        ),
        (Type("list", item=Type("integer")), "[1, null]", "Expected int, got null - at $.x[1]"),
        (Type("list", item=Type("integer")), "{}", "Expected array, got object - at $.x"),
        (Type("map", item=Type("integer")), '{"a": ""}', "Expected int, got str - at $.x[...]"),
        (
            Type("struct", fields=(Field("y", "dwc:y", Type("integer")),)),
            '{"dwc:y": ""}',
            "Expected int, got str - at $.x.dwc:y",
        ),
        (Type("json"), '{"a": 1e400}', "Number out of range - at $.x[...]"),
    ],
)
def test_wrong_values_are_named_with_their_place(kind, text, message):
    code, said = refusal(one(kind), f'{{"x":{text}}}')
    assert code == "invalid_record"
    assert said.startswith(message)


def test_aliases_are_what_messages_name():
    assert refusal(one(Type("string"), "User-Agent"), '{"User-Agent":1}') == (
        "invalid_record",
        "Expected str, got int - at $.User-Agent",
    )
    missing = refusal(one(Type("string"), "User-Agent"), "{}")
    assert missing == ("invalid_record", "Object missing required field User-Agent")


@pytest.mark.parametrize("validator", [ANY, LOOSE])
@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"", "invalid_json"),
        (b" \n", "invalid_json"),
        (b"{", "invalid_json"),
        (b'{"x":1}}', "invalid_json"),
        (b'{"x":1} {"x":2}', "invalid_json"),
        (b'{"x":1,}', "invalid_json"),
        (b"{'x':1}", "invalid_json"),
        (b'{"y":NaN}', "invalid_json"),
        (b'{"y":-Infinity}', "invalid_json"),
        (b'{"y":01}', "invalid_json"),
        (b'{"y":"\\ud800"}', "invalid_json"),
        (b'{"y":"\x00"}', "invalid_json"),
        (b"\xef\xbb\xbf{}", "invalid_json"),
        (b"[]", "invalid_record"),
        (b"5", "invalid_record"),
        (b"null", "invalid_record"),
        (b'"x"', "invalid_record"),
        (b'{"y":"\xff"}', "invalid_utf8"),
        (b'{"y\xff":1}', "invalid_utf8"),
        (b'{"y":"\xed\xa0\x80"}', "invalid_utf8"),
        (b"\xff\xfe{\x00}\x00", "invalid_utf8"),
        (b'{"y":1,"y":1}', "duplicate_key"),
        (b'{"y":{"z":1,"z":2}}', "duplicate_key"),
        (b'{"y":[{"z":":,"},{"z":1,"z":2}]}', "duplicate_key"),
        (b'{"y":1,"\\u0079":1}', "duplicate_key"),
        (b'{ "y" :1,"z":":::", "y"\n: 2}', "duplicate_key"),
        (b'{"y":"\\":","y":2}', "duplicate_key"),
        (b"{" * 100_000, "too_deep"),
        (b'{"y":' + b"[" * DEPTH_MAX + b"]" * DEPTH_MAX + b"}", "too_deep"),
        (b'{"y":' + b"[" * 10_000 + b"]" * 10_000 + b"}", "too_deep"),
        (b'{"a":' * 10_000 + b"1" + b"}" * 10_000, "too_deep"),
    ],
)
def test_what_no_topic_takes(validator, body, code):
    assert refusal(validator, body)[0] == code


@pytest.mark.parametrize("validator", [ANY, LOOSE])
@pytest.mark.parametrize(
    "body",
    [
        b"{}",
        b' {"x" : 1}\r\n',
        b'{"x":1,"y":[],"z":{},"w":[[1,2],{"x":1}]}',
        b'{"y":"a:b,c","z":"\\":\\","}',
        b'{"y":"' + b"[{" * 1000 + b'"}',
        b'{"y":' + b"[" * (DEPTH_MAX - 1) + b"]" * (DEPTH_MAX - 1) + b"}",
        b'{"y":[' + b",".join([b"{}"] * 1000) + b"]}",
        b'{"y":"' + b"x" * (10 << 20) + b'"}',
        '{"é":"😀"}'.encode(),
        b'{"y":"\\ud83d\\ude00\\u0000"}',
        b'{"a":{"k":1},"b":{"k":1}}',
    ],
)
def test_what_every_topic_takes(validator, body):
    validator.check(body)


@pytest.mark.parametrize("text", ["1e400", "9" * 5000])
def test_numbers_in_undeclared_fields_need_not_fit(text):
    LOOSE.check(f'{{"y":{text}}}'.encode())
    LOOSE.check(f'{{"y" : {text},"z":"::,,"}}'.encode())
    assert refusal(LOOSE, f'{{"y":{text},"y":1}}')[0] == "duplicate_key"
    assert refusal(ANY, f'{{"y":{text}}}')[0] == "invalid_record"


KEYS = st.text('ab:," {}[]\\é', max_size=3)
TREES = st.recursive(
    st.one_of(KEYS, st.integers(), st.none()),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.lists(st.tuples(KEYS, inner), max_size=4)
    ),
    max_leaves=8,
)


def written(tree, space: str) -> tuple[str, bool]:
    """JSON text of a tree, in which a list of pairs is an object, and whether a key repeats."""
    if isinstance(tree, list) and tree and all(isinstance(v, tuple) for v in tree):
        parts = [(json.dumps(k), *written(v, space)) for k, v in tree]
        text = ",".join(f"{k}{space}:{space}{v}" for k, v, _ in parts)
        repeats = len({k for k, _ in tree}) < len(tree)
        return "{" + text + "}", repeats or any(r for *_, r in parts)
    if isinstance(tree, list):
        parts = [written(v, space) for v in tree]
        return "[" + ",".join(t for t, _ in parts) + "]", any(r for _, r in parts)
    return json.dumps(tree, ensure_ascii=False), False


@settings(max_examples=500, deadline=None)
@given(st.lists(st.tuples(KEYS, TREES), min_size=1, max_size=4), st.sampled_from(["", " ", "\t\n"]))
def test_repeated_keys_are_found_at_every_level(pairs, space):
    text, repeats = written(pairs, space)
    for validator in (ANY, LOOSE):
        if repeats:
            assert refusal(validator, text)[0] == "duplicate_key"
        else:
            validator.check(text.encode())


@settings(max_examples=500, deadline=None)
@given(st.one_of(st.binary(max_size=40), st.text('{}[]",:0e-\\uax', max_size=40).map(str.encode)))
def test_nothing_but_invalid_is_ever_raised(value):
    for validator in (ANY, LOOSE, INTEGER):
        assert verdict(validator, value) in CODES


CODES = {"valid", "invalid_json", "invalid_record", "invalid_utf8", "duplicate_key", "too_deep"}


def verdict(validator: Validator, value: bytes) -> str:
    try:
        validator.check(value)
    except Invalid as error:
        return error.code
    return "valid"


DEEP = b'{"y":' + b"[" * 64 + b"]" * 64 + b"}"
LINES = st.sampled_from(
    [
        *(b"", b" ", b"{}", b'{"x":1}', b'{"x": 1}', b'{"x":"1"}', b'{"x":1}\n', b"{", b"}"),
        *(b'{"x":1},{"x":2}', b'{"x":1,"x":2}', b'{"y":"\xff"}', DEEP, b"\n"),
    ]
)


@settings(max_examples=300, deadline=None)
@given(st.lists(LINES, max_size=12), st.sampled_from([0, 300]))
def test_many_at_once_are_judged_as_one_by_one(values, good):
    values = [b'{"x":7}'] * good + values
    for validator in (ANY, LOOSE, INTEGER):
        refused = validator.check_many(values)
        found = [refused[i].code if i in refused else "valid" for i in range(len(values))]
        assert found == [verdict(validator, value) for value in values]


def test_null_for_a_field_with_a_default_is_refused_in_inner_objects_only():
    inner = Field("y", "y", Type("integer"), nullable=True, required=False, default="1")
    assert refusal(one(Type("struct", fields=(inner,))), '{"x":{"y":null}}')[0] == "invalid_record"
    Validator(Schema("Top", (inner,))).check(b'{"y":null}')


def test_fingerprints_differ_with_what_is_valid():
    prints = {v.fingerprint for v in (ANY, INTEGER, LOOSE, one(Type("string")))}
    assert len(prints) == 4
    assert 0 not in prints
    assert one(Type("integer")).fingerprint == INTEGER.fingerprint


@pytest.mark.skipif(not RECORDED.is_dir(), reason="the recorded data is not beside the repository")
@pytest.mark.parametrize("name", ["gbif", "obis", "idigbio"])
def test_recorded_records_are_valid_for_any(name):
    (path,) = RECORDED.glob(f"{name}-*.ndjson.gz")
    with gzip.open(path) as lines:
        for n, line in enumerate(lines):
            ANY.check(line)
            ANY.check(json.dumps(msgspec.json.decode(line)).encode())
            if n == 500:
                break
