"""From record classes to schemas: every type, and every annotation that is refused."""

from __future__ import annotations

from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Annotated, Any, Literal

import msgspec
import pytest

from headrace import Json, Record, field
from headrace.define.problem import Faults
from headrace.define.shape import schema_of
from headrace.define.types import duckdb_type
from headrace.model.schema import Schema


class Address(Record):
    city: str
    post_code: str | None = field("post-code", default=None)


class Everything(Record):
    text: str
    whole: int
    real: float
    flag: bool
    at: datetime
    at_ms: datetime = field("At-ms", unit="ms", default=datetime(2026, 1, 1, tzinfo=UTC))
    day: date = date(2026, 1, 2)
    price: Decimal = field(digits=(18, 2), default=Decimal("1.50"))
    tags: list[str | None] = []  # noqa: RUF012 - a record gets its own
    counts: dict[str, list[int]] | None = None
    address: Address | None = None
    anything: Json = None
    colour: Literal["red", "green"] = "red"
    small: Annotated[int, msgspec.Meta(ge=0, lt=10)] = 3
    word: Annotated[str, msgspec.Meta(pattern="^[a-z]+$", max_length=5)] = "abc"
    name: int | str | None = None
    names: list[int | str] = []  # noqa: RUF012 - a record gets its own
    times: list[datetime] = field(unit="s", default=[])


def faults_of(record: type[Record]) -> list[tuple[str, str]]:
    faults = Faults()
    assert schema_of(record, faults) is None
    return [(p.code, p.message) for p in faults.problems]


def schema(record: type[Record]) -> Schema:
    faults = Faults()
    found = schema_of(record, faults)
    assert found is not None, faults.problems
    return found


def test_every_type_has_its_column():
    columns = {f.name: duckdb_type(f.type) for f in schema(Everything).fields}
    assert columns == {
        "text": "VARCHAR",
        "whole": "BIGINT",
        "real": "DOUBLE",
        "flag": "BOOLEAN",
        "at": "TIMESTAMPTZ",
        "at_ms": "TIMESTAMPTZ",
        "day": "DATE",
        "price": "DECIMAL(18,2)",
        "tags": "VARCHAR[]",
        "counts": "MAP(VARCHAR, BIGINT[])",
        "address": 'STRUCT("city" VARCHAR, "post_code" VARCHAR)',
        "anything": "VARCHAR",
        "colour": "VARCHAR",
        "small": "BIGINT",
        "word": "VARCHAR",
        "name": "VARCHAR",
        "names": "VARCHAR[]",
        "times": "TIMESTAMPTZ[]",
    }


def test_aliases_defaults_and_limits_are_kept():
    fields = {f.name: f for f in schema(Everything).fields}
    assert fields["at_ms"].alias == "At-ms"
    assert fields["at_ms"].default == "1767225600000"
    assert fields["day"].default == '"2026-01-02"'
    assert fields["price"].default == '"1.50"'
    assert fields["tags"].default == "[]"
    assert fields["tags"].type.item_nullable
    assert fields["address"].type.fields[1].alias == "post-code"
    assert fields["colour"].type.choices == ("green", "red")
    assert fields["small"].type.limits == {"ge": 0, "lt": 10}
    assert fields["word"].type.limits == {"pattern": "^[a-z]+$", "max_length": 5}
    assert fields["times"].type.item is not None
    assert fields["times"].type.item.unit == "s"


def test_no_default_means_required_and_none_means_nullable():
    class Event(Record):
        a: str
        b: str | None
        c: str | None = None
        d: str = "x"

    found = {f.name: (f.required, f.nullable, f.default) for f in schema(Event).fields}
    assert found == {
        "a": (True, False, None),
        "b": (True, True, None),
        "c": (False, True, None),
        "d": (False, False, '"x"'),
    }


def test_a_record_class_is_a_msgspec_struct_with_its_aliases():
    made = msgspec.json.decode(b'{"city": "Rome", "post-code": "1"}', type=Address)
    assert (made.city, made.post_code) == ("Rome", "1")


def test_fields_are_inherited_and_overridden():
    class Base(Record):
        host: str = field("Host")
        at: datetime = field(unit="ms")

    class Derived(Base):
        at: datetime
        more: int = 0

    fields = {f.name: f for f in schema(Derived).fields}
    assert fields["host"].alias == "Host"
    assert fields["at"].type.unit is None
    assert {f.name: f for f in schema(Base).fields}["at"].type.unit == "ms"


class Node(Record):
    child: Node | None = None


class Hooked(Record):
    a: str

    def __post_init__(self) -> None: ...


class Tagged(Record, tag="x"):
    a: str


class Closed(Record, forbid_unknown_fields=True):
    a: str


class Cases(Record):
    host: str = field("Host")
    other: str = field("HOST")


class Names(Record):
    host: str
    HOST: str = field("other")


class InnerCases(Record):
    inner: Cases


class Reserved(Record):
    event_id: str
    _Offset: int = field("n")


class Empty(Record):
    pass


@pytest.mark.parametrize(
    ("record", "code", "word"),
    [
        (Node, "recursive_record", "Node"),
        (Hooked, "custom_hook", "__post_init__"),
        (Tagged, "bad_record", "tag"),
        (Closed, "bad_record", "forbid_unknown_fields"),
        (Cases, "ambiguous_name", "JSON names 'Host' and 'HOST'"),
        (Names, "ambiguous_name", "column names 'host' and 'HOST'"),
        (InnerCases, "ambiguous_name", "Cases"),
        (Reserved, "reserved_column", "event_id"),
        (Reserved, "reserved_column", "_Offset"),
        (Empty, "empty_record", "no fields"),
    ],
)
def test_a_class_that_cannot_be_a_record_is_refused(record, code, word):
    assert any(c == code and word in m for c, m in faults_of(record)), faults_of(record)


@pytest.mark.parametrize(
    ("annotation", "default", "code"),
    [
        (float | str, msgspec.NODEFAULT, "bad_annotation"),
        (int | str | bool, msgspec.NODEFAULT, "bad_annotation"),
        (set[str], msgspec.NODEFAULT, "bad_annotation"),
        (bytes, msgspec.NODEFAULT, "bad_annotation"),
        (dict[int, str], msgspec.NODEFAULT, "bad_annotation"),
        (Literal[1, 2], msgspec.NODEFAULT, "bad_annotation"),
        (tuple[int, int], msgspec.NODEFAULT, "bad_annotation"),
        (Decimal, msgspec.NODEFAULT, "missing_digits"),
        (Annotated[int, msgspec.Meta(multiple_of=2)], msgspec.NODEFAULT, "bad_limit"),
        (str | None, "x", "nullable_default"),
        (str, None, "bad_default"),
        (int, "x", "bad_default"),
        (int, 2**63, "bad_default"),
        (float, float("nan"), "bad_default"),
        (datetime, datetime(2026, 1, 1), "bad_default"),  # noqa: DTZ001 - that is the fault
        (Annotated[int, msgspec.Meta(ge=0)], -1, "bad_default"),
    ],
)
def test_an_annotation_that_has_no_column_is_refused(annotation: Any, default: Any, code: str):
    space = {"__annotations__": {"a": annotation}, "__module__": __name__}
    if default is not msgspec.NODEFAULT:
        space["a"] = default
    record = type(Record)("Event", (Record,), space)
    assert [c for c, _ in faults_of(record)] == [code]


@pytest.mark.parametrize(
    ("annotation", "options", "code"),
    [
        (str, {"unit": "ms"}, "bad_unit"),
        (datetime, {"unit": "h"}, "bad_unit"),
        (str, {"digits": (3, 2)}, "bad_digits"),
        (Decimal, {"digits": (39, 2)}, "bad_digits"),
        (Decimal, {"digits": (3, 4)}, "bad_digits"),
        (Decimal, {"digits": (3, 2), "default": Decimal("10.00")}, "bad_default"),
        (Decimal, {"digits": (3, 2), "default": Decimal("1.001")}, "bad_default"),
        (Decimal, {"digits": (3, 2), "default": Decimal("NaN")}, "bad_default"),
    ],
)
def test_a_field_option_that_does_not_fit_is_refused(annotation, options, code):
    space = {"__annotations__": {"a": annotation}, "__module__": __name__, "a": field(**options)}
    record = type(Record)("Event", (Record,), space)
    assert [c for c, _ in faults_of(record)] == [code]


def test_all_faults_of_a_class_come_at_once():
    class Bad(Record):
        event_id: str
        price: Decimal
        mixed: float | str
        late: str | None = "x"

    assert {c for c, _ in faults_of(Bad)} == {
        "reserved_column",
        "missing_digits",
        "bad_annotation",
        "nullable_default",
    }


def test_the_fingerprint_follows_what_is_valid():
    class One(Record):
        a: int

    class Other(Record):
        a: int | None

    one, other = schema(One), schema(Other)
    assert one.fingerprint == schema(One).fingerprint
    assert one.fingerprint != other.fingerprint
    again = msgspec.json.decode(msgspec.json.encode(one), type=Schema)
    assert again == one
