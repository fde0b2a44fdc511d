"""What DuckDB decodes equals what msgspec decodes, for every value that is valid."""

from __future__ import annotations

import json
import math
import re
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal

import msgspec
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from headrace.define.types import record_columns
from headrace.model.errors import Invalid
from headrace.model.plan import Column
from headrace.model.schema import Field, Schema, Type
from headrace.stage.decode import RELATION, decode_sql
from headrace.stage.engine import Engine
from headrace.stage.validate import Validator

ENGINE = Engine(threads=1)
MICROS = {"s": 1_000_000, "ms": 1_000}


def decode(schema: Schema, values: list[bytes]) -> list[dict]:
    names = [f.name for f in schema.fields]
    rows = pa.table({"value": pa.array(values, pa.binary()).view(pa.string())})
    decoded = ENGINE.query(decode_sql(schema, names), {RELATION: rows})
    types = record_columns(schema)
    assert decoded.schema == ENGINE.arrow_schema([Column(n, types[n]) for n in names])
    return decoded.to_pylist()


def expected(kind: Type, raw: bytes):
    """The value by msgspec alone."""
    raw = bytes(raw)
    if raw == b"null":
        return None
    match kind.kind:
        case "json":
            return json.loads(raw)
        case "text":
            return str(msgspec.json.decode(raw, type=int | str))
        case "timestamp":
            return expected_timestamp(kind, raw)
        case "list":
            return [
                expected(kind.item, r) for r in msgspec.json.decode(raw, type=list[msgspec.Raw])
            ]
        case "map":
            items = msgspec.json.decode(raw, type=dict[str, msgspec.Raw])
            return {k: expected(kind.item, v) for k, v in items.items()}
        case "struct":
            return expected_fields(kind.fields, raw)
        case _:
            return msgspec.json.decode(raw, type=PLAIN[kind.kind])


PLAIN = {
    "string": str,
    "integer": int,
    "number": float,
    "boolean": bool,
    "date": date,
    "decimal": Decimal,
}


def expected_fields(fields: tuple[Field, ...], raw: bytes) -> dict:
    present = msgspec.json.decode(raw, type=dict[str, msgspec.Raw])
    missing = {f.alias: (f.default or "null").encode() for f in fields}
    given = {k: bytes(v) for k, v in present.items()}
    return {f.name: expected(f.type, (missing | given)[f.alias]) for f in fields}


def expected_timestamp(kind: Type, raw: bytes) -> datetime:
    if kind.unit is None:
        cut = re.sub(rb"(\.\d{6})\d+", rb"\1", raw)
        return msgspec.json.decode(cut, type=datetime).astimezone(UTC)
    if kind.unit == "us":
        us = int(raw)
    else:
        number = float(raw)
        rest = (number - math.floor(number)) * MICROS[kind.unit]
        us = math.floor(number) * MICROS[kind.unit] + math.floor(rest + 0.5)
    return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=us)


def comparable(kind: Type, value):
    """A decoded value in the form of `expected`; the sign of zero counts."""
    if value is None:
        return None
    match kind.kind:
        case "json":
            return json.loads(value)
        case "list":
            return [comparable(kind.item, v) for v in value]
        case "map":
            return {k: comparable(kind.item, v) for k, v in value}
        case "struct":
            return {f.name: comparable(f.type, value[f.name]) for f in kind.fields}
        case "number":
            return (value, math.copysign(1, value))
        case _:
            return value


def signed(kind: Type, value):
    """As `comparable`, for what `expected` gives."""
    if value is None:
        return None
    match kind.kind:
        case "list":
            return [signed(kind.item, v) for v in value]
        case "map":
            return {k: signed(kind.item, v) for k, v in value.items()}
        case "struct":
            return {f.name: signed(f.type, value[f.name]) for f in kind.fields}
        case "number":
            return (value, math.copysign(1, value))
        case _:
            return value


def assert_equal(schema: Schema, values: list[bytes]) -> None:
    record = Type("struct", fields=schema.fields)
    for value, row in zip(values, decode(schema, values), strict=True):
        assert comparable(record, row) == signed(record, expected(record, value)), value


# --- schemas and values of them ------------------------------------------------------------------

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
NAMES = st.sampled_from(
    [
        *("a", "User-Agent", "dwc:kingdom", "http://unknown.org/language", "it's", "class", "$.x"),
        *("a.b", "~/1", "ключ", "😀", "{}", "order", "value", "a b", "`", "[0]", "%"),
    ]
)
NUMBER_TEXTS = st.one_of(
    st.floats(allow_nan=False, allow_infinity=False).map(repr),
    st.integers(-(10**25), 10**25).map(str),
    st.sampled_from(["-0", "-0.0", "1E5", "1e-400", "2.2250738585072011e-308", "0e7", "1e+300"]),
    st.tuples(st.integers(-(10**6), 10**6), st.integers(0, 10**19), st.integers(-30, 30)).map(
        lambda t: f"{t[0]}.{t[1]}e{t[2]}"
    ),
)
ESCAPES = st.sampled_from([r"\u0041", r"\ud83d\ude00", r"\n", r"\/", r"\u0000", r"\u2028", r"\""])
STRING_TEXTS = st.one_of(
    TEXT.map(lambda t: json.dumps(t, ensure_ascii=False)),
    TEXT.map(json.dumps),
    st.lists(ESCAPES, max_size=3).map(lambda parts: '"' + "".join(parts) + '"'),
)
TIMES = st.builds(
    lambda when, zone, sep, digits, end: (
        '"'
        + when.replace(tzinfo=None).isoformat(sep=sep, timespec="seconds")
        + digits
        + (end or zone)
        + '"'
    ),
    st.datetimes(datetime(1, 1, 1), datetime(9999, 12, 31)),  # noqa: DTZ001 - the zone is text
    st.integers(-1439, 1439).map(
        lambda m: f"{'-' if m < 0 else '+'}{abs(m) // 60:02}:{abs(m) % 60:02}"
    ),
    st.sampled_from(["T", " ", "t"]),
    st.one_of(st.just(""), st.integers(0, 10**12).map(lambda n: f".{n}")),
    st.sampled_from(["", "Z", "z", "+0530", "-00:00"]),
)


def scalar_types():
    plain = st.sampled_from(["string", "integer", "text", "number", "boolean", "date", "json"])
    return st.one_of(
        plain.map(Type),
        st.sampled_from([None, "s", "ms", "us"]).map(lambda u: Type("timestamp", unit=u)),
        st.integers(1, 38).flatmap(
            lambda p: st.integers(0, p).map(lambda s: Type("decimal", precision=p, scale=s))
        ),
    )


def struct_type(items):
    return st.lists(st.tuples(NAMES, items, st.booleans(), st.booleans()), max_size=3).map(
        lambda members: Type("struct", fields=tuple(fields_of(members)))
    )


def fields_of(members) -> list[Field]:
    unique = {alias.lower(): (alias, *rest) for alias, *rest in members}.values()
    return [
        Field(f"f{i}", alias, kind, nullable=nullable, required=required)
        for i, (alias, kind, nullable, required) in enumerate(unique)
    ] or [Field("f0", "only", Type("integer"), required=False)]


TYPES = st.recursive(
    scalar_types(),
    lambda items: st.one_of(
        items.map(lambda t: Type("list", item=t, item_nullable=True)),
        items.map(lambda t: Type("map", item=t, item_nullable=True)),
        struct_type(items),
    ),
    max_leaves=4,
)
SCHEMAS = st.lists(st.tuples(NAMES, TYPES, st.booleans(), st.booleans()), max_size=4).map(
    lambda members: Schema("Generated", tuple(fields_of(members)))
)


def value_texts(kind: Type) -> st.SearchStrategy[str]:  # noqa: C901, PLR0911, PLR0912 - one case a kind
    """JSON texts that often, not always, are of a type."""
    match kind.kind:
        case "string":
            return STRING_TEXTS
        case "integer":
            near = [2**63, 2**63 - 1, -(2**63), -(2**63) - 1, 2**53 + 1]
            return st.one_of(st.integers(), st.sampled_from(near)).map(str)
        case "text":
            return st.one_of(STRING_TEXTS, value_texts(Type("integer")), NUMBER_TEXTS)
        case "number":
            return NUMBER_TEXTS
        case "boolean":
            return st.sampled_from(["true", "false"])
        case "date":
            return st.dates().map(lambda d: f'"{d.isoformat()}"')
        case "timestamp" if kind.unit is None:
            return TIMES
        case "timestamp":
            seconds = st.integers(-62_135_596_801, 253_402_300_800)
            whole = seconds.map(lambda n: str(n * {"s": 1, "ms": 1000, "us": 10**6}[kind.unit]))
            return whole if kind.unit == "us" else st.one_of(whole, NUMBER_TEXTS)
        case "decimal":
            digits = st.decimals(allow_nan=False, allow_infinity=False, places=kind.scale)
            texts = st.one_of(digits.map(lambda d: f"{d:f}"), st.integers().map(str))
            return st.one_of(texts.map(lambda t: f'"{t}"'), texts, NUMBER_TEXTS)
        case "list":
            return st.lists(or_null(kind.item), max_size=3).map(lambda v: f"[{', '.join(v)}]")
        case "map":
            pairs = st.dictionaries(TEXT, or_null(kind.item), max_size=3)
            return pairs.map(lambda d: object_text(d.items()))
        case "struct":
            return object_texts(kind.fields)
        case _:
            return st.recursive(
                st.one_of(STRING_TEXTS, NUMBER_TEXTS, st.sampled_from(["null", "true"])),
                lambda v: st.lists(v, max_size=3).map(lambda i: f"[{','.join(i)}]"),
                max_leaves=3,
            )


def or_null(kind: Type) -> st.SearchStrategy[str]:
    return st.one_of(value_texts(kind), value_texts(kind), st.just("null"))


def object_text(pairs) -> str:
    return "{" + ",".join(f"{json.dumps(k, ensure_ascii=False)}: {v}" for k, v in pairs) + "}"


@st.composite
def object_texts(draw, fields: tuple[Field, ...]) -> str:
    pairs = [("undeclared", draw(NUMBER_TEXTS))] if draw(st.booleans()) else []
    for field in fields:
        if field.required or draw(st.booleans()):
            null = field.nullable and draw(st.booleans())
            pairs.append((field.alias, "null" if null else draw(value_texts(field.type))))
    return object_text(pairs)


@settings(
    max_examples=250,
    deadline=None,
    report_multiple_bugs=False,
    suppress_health_check=list(HealthCheck),
)
@given(st.data())
def test_decode_equals_msgspec_for_all_that_is_valid(data):
    schema = data.draw(SCHEMAS)
    texts = data.draw(st.lists(object_texts(schema.fields), min_size=1, max_size=12))
    validator = Validator(schema)
    valid = []
    for text in texts:
        try:
            validator.check(text.encode())
        except Invalid:
            continue
        valid.append(text.encode())
    if valid:
        assert_equal(schema, valid)


def one(kind: Type, **options) -> Schema:
    return Schema("One", (Field("x", "x", kind, **options),))


@pytest.mark.parametrize(
    ("kind", "text", "value"),
    [
        (Type("timestamp"), '"2020-01-01T00:00:00.1234567Z"', (2020, 1, 1, 0, 0, 0, 123456)),
        (Type("timestamp"), '"2020-01-01t00:00:00.9999999z"', (2020, 1, 1, 0, 0, 0, 999999)),
        (Type("timestamp"), '"2020-01-01 05:30:00+05:30"', (2020, 1, 1)),
        (Type("timestamp", unit="s"), "1577836800.123456", (2020, 1, 1, 0, 0, 0, 123456)),
        (Type("timestamp", unit="ms"), "1577836800000.5", (2020, 1, 1, 0, 0, 0, 500)),
        (Type("timestamp", unit="us"), "1577836800000001", (2020, 1, 1, 0, 0, 0, 1)),
        (Type("timestamp", unit="s"), "253402300799", (9999, 12, 31, 23, 59, 59)),
        (Type("timestamp", unit="ms"), "253402300799000", (9999, 12, 31, 23, 59, 59)),
        (Type("timestamp", unit="s"), "-62135596800", (1, 1, 1)),
    ],
)
def test_timestamps_follow_one_rule(kind, text, value):
    when = datetime(*value, tzinfo=timezone.utc)  # noqa: UP017 - as a user writes it
    raw = f'{{"x":{text}}}'.encode()
    Validator(one(kind)).check(raw)
    assert decode(one(kind), [raw]) == [{"x": when}]


@pytest.mark.parametrize(
    ("options", "body", "value"),
    [
        ({"required": False, "default": "7"}, "{}", 7),
        ({"required": False, "default": "7"}, '{"x":1}', 1),
        ({"required": False, "default": "7", "nullable": True}, "{}", 7),
        ({"required": False, "default": "7", "nullable": True}, '{"x":null}', None),
        ({"required": False, "nullable": True}, "{}", None),
        ({"required": False}, "{}", None),
    ],
)
def test_a_default_is_for_what_is_missing(options, body, value):
    schema = one(Type("integer"), **options)
    Validator(schema).check(body.encode())
    assert decode(schema, [body.encode()]) == [{"x": value}]


@pytest.mark.parametrize(
    ("kind", "default", "value"),
    [
        (Type("timestamp"), '"2020-01-01T00:00:00Z"', datetime(2020, 1, 1, tzinfo=UTC)),
        (Type("decimal", precision=5, scale=2), '"1.50"', Decimal("1.50")),
        (Type("list", item=Type("string")), '["it\'s"]', ["it's"]),
        (Type("map", item=Type("integer")), "{}", []),
        (
            Type("struct", fields=(Field("y", "dwc:y", Type("integer"), default="3"),)),
            '{"dwc:y": 4}',
            {"y": 4},
        ),
        (Type("struct", fields=(Field("y", "Y-y", Type("integer"), default="3"),)), "{}", {"y": 3}),
    ],
)
def test_defaults_of_every_kind(kind, default, value):
    schema = one(kind, required=False, default=default)
    assert decode(schema, [b"{}"]) == [{"x": value}]


def test_null_stays_null_in_a_struct_whose_names_differ():
    kind = Type("struct", fields=(Field("y", "Y-y", Type("timestamp"), required=False),))
    schema = one(kind, required=False, nullable=True)
    values = [b"{}", b'{"x":null}', b'{"x":{}}']
    assert decode(schema, values) == [{"x": None}, {"x": None}, {"x": {"y": None}}]


def test_only_what_is_asked_for_is_decoded():
    schema = Schema("Two", (Field("a", "a", Type("integer")), Field("b", "b", Type("integer"))))
    assert '"b"' not in decode_sql(schema, ["a"])
    assert "from_json" not in decode_sql(schema, ["_offset"])
    assert "from_json" not in decode_sql(None, ["_offset"])
