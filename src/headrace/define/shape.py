"""From a `Record` class to its `Schema`: the class's annotations, checked, as a value."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import get_type_hints

import msgspec
from msgspec import inspect

from headrace.define.problem import Faults, Place
from headrace.define.record import FieldSpec, Record, place_of, spec_of
from headrace.model.errors import Invalid
from headrace.model.plan import RECORD_COLUMNS
from headrace.model.schema import Field, Kind, Schema, Type

_LIMITS = ("ge", "gt", "le", "lt", "min_length", "max_length", "pattern")
_DIGITS_MAX = 38
_INTEGERS = range(-(2**63), 2**63)
_TICKS = {"s": 1, "ms": 1_000, "us": 1_000_000}

_SIMPLE: dict[type[inspect.Type], Kind] = {
    inspect.StrType: "string",
    inspect.IntType: "integer",
    inspect.FloatType: "number",
    inspect.BoolType: "boolean",
    inspect.DateTimeType: "timestamp",
    inspect.DateType: "date",
    inspect.DecimalType: "decimal",
    inspect.AnyType: "json",
}


def schema_of(record: type[Record], faults: Faults) -> Schema | None:
    """Return the schema of a record class, or None with at least one fault added."""
    before = len(faults.problems)
    fields = _fields(record, (), faults)
    reserved = {name.lower() for name in RECORD_COLUMNS}
    for name in (f.name for f in fields if f.name.lower() in reserved):
        faults.add(
            place_of(record, name),
            f"{record.__name__}.{name} has the name of a column that every table has",
            hint=f'Give it another name and keep the one in JSON: field("{name}").',
            code="reserved_column",
        )
    return Schema(record.__name__, fields) if len(faults.problems) == before else None


def _fields(
    record: type[Record], outer: tuple[type[Record], ...], faults: Faults
) -> tuple[Field, ...]:
    """Return the fields of a record class, which stands inside those of `outer`."""
    place = place_of(record)
    with faults.collect(place):
        _check_class(record, outer)
        found = []
        infos = _inspected(record).fields
        hints = get_type_hints(record, include_extras=True)
        _check_names(record, place, infos, faults)
        for info in infos:
            with faults.collect(place_of(record, info.name)):
                found.append(_Maker(record, outer, faults).field(info, hints[info.name]))
        return tuple(found)
    return ()


def _inspected(record: type[Record]) -> inspect.StructType:
    try:
        info = inspect.type_info(record)
    except (TypeError, NameError) as error:
        raise Invalid(f"{record.__name__}: {error}", code="bad_annotation") from error
    if not isinstance(info, inspect.StructType):
        raise Invalid(f"{record.__name__} is no plain record class", code="bad_record")
    return info


def _check_class(record: type[Record], outer: tuple[type[Record], ...]) -> None:
    name, config = record.__name__, record.__struct_config__
    if record in outer:
        raise Invalid(
            f"{name} contains itself, so it has no fixed set of columns",
            hint="Declare that field as Json and read it with JSON functions.",
            code="recursive_record",
        )
    if hasattr(record, "__post_init__"):
        raise Invalid(
            f"{name} has a __post_init__, which would not run: records are judged without Python",
            hint="Use msgspec.Meta limits in the annotations, or filter in a table's SQL.",
            code="custom_hook",
        )
    if config.array_like or config.tag is not None or config.forbid_unknown_fields:
        raise Invalid(
            f"{name} sets array_like, tag or forbid_unknown_fields, which records do not have",
            hint="Leave the option out: a record is a JSON object and may have more fields.",
            code="bad_record",
        )


def _check_names(
    record: type[Record], place: Place, infos: Sequence[inspect.Field], faults: Faults
) -> None:
    if not infos:
        faults.add(place, f"{record.__name__} has no fields", code="empty_record")
    for what, names in (
        ("JSON names", [f.encode_name for f in infos]),
        ("column names", [f.name for f in infos]),
    ):
        seen: dict[str, str] = {}
        for name in names:
            other = seen.setdefault(name.lower(), name)
            if other is not name:
                faults.add(
                    place,
                    f"{record.__name__} has the {what} {other!r} and {name!r}, "
                    "which SQL does not tell apart",
                    hint="Keep one of them, or declare the whole object as Json.",
                    code="ambiguous_name",
                )


class _Maker:
    """Makes the fields of one record class."""

    def __init__(
        self, record: type[Record], outer: tuple[type[Record], ...], faults: Faults
    ) -> None:
        self._record, self._outer, self._faults = record, outer, faults

    def field(self, info: inspect.Field, annotation: object) -> Field:
        """Return a field; `Invalid` says what is wrong with it."""
        label = f"{self._record.__name__}.{info.name}"
        if not info.encode_name:
            raise Invalid(f"{label} has an empty JSON name", code="bad_alias")
        spec = spec_of(self._record, info.name)
        kind, nullable = self._nullable(info.type, spec, label)
        _check_spec(kind, spec, label)
        default = _default(info, annotation, kind, nullable=nullable, label=label)
        return Field(info.name, info.encode_name, kind, nullable, info.required, default)

    def _nullable(self, info: inspect.Type, spec: FieldSpec, label: str) -> tuple[Type, bool]:
        info = _unwrapped(info)
        if not isinstance(info, inspect.UnionType):
            return self._type(info, spec, label), isinstance(info, inspect.AnyType)
        rest = [t for t in info.types if not isinstance(t, inspect.NoneType)]
        nullable = len(rest) < len(info.types)
        if _is_text(rest):
            return Type("text"), nullable
        if len(rest) != 1:
            raise Invalid(
                f"{label} takes several types, but a column has one",
                hint="Declare it as Json, as str if all of them are text, or as int | str if some "
                "are whole numbers.",
                code="bad_annotation",
            )
        return self._type(_unwrapped(rest[0]), spec, label), True

    def _type(self, info: inspect.Type, spec: FieldSpec, label: str) -> Type:
        if isinstance(info, inspect.LiteralType):
            return _choices(info, label)
        if isinstance(info, inspect.ListType):
            item, nullable = self._nullable(info.item_type, spec, label)
            return Type("list", item=item, item_nullable=nullable, limits=_limits(info, label))
        if isinstance(info, inspect.DictType):
            if not isinstance(info.key_type, inspect.StrType) or _limits(info.key_type, label):
                raise Invalid(f"{label}: keys of a JSON object are str", code="bad_annotation")
            item, nullable = self._nullable(info.value_type, spec, label)
            return Type("map", item=item, item_nullable=nullable, limits=_limits(info, label))
        if isinstance(info, inspect.StructType) and issubclass(info.cls, Record):
            inner = _fields(info.cls, (*self._outer, self._record), self._faults)
            return Type("struct", fields=inner)
        kind = _SIMPLE.get(type(info))
        if kind is None:
            raise Invalid(
                f"{label} has a type that records do not have",
                hint="Types: str, int, float, bool, datetime, date, Decimal, list, dict[str, T], "
                "Literal, Json and Record classes.",
                code="bad_annotation",
            )
        if kind == "decimal":
            return _decimal(spec, label)
        unit = spec.unit if kind == "timestamp" else None
        return Type(kind, unit=unit, limits=_limits(info, label))


def _is_text(types: Sequence[inspect.Type]) -> bool:
    """Return whether a union is plain `int | str`, whose limits would be those of either."""
    plain = (inspect.IntType(), inspect.StrType())
    return len(types) == len(plain) and all(t in plain for t in types)


def _unwrapped(info: inspect.Type) -> inspect.Type:
    return info.type if isinstance(info, inspect.Metadata) else info


def _choices(info: inspect.LiteralType, label: str) -> Type:
    if not all(isinstance(value, str) for value in info.values):
        raise Invalid(f"{label}: choices must all be str", code="bad_annotation")
    return Type("string", choices=tuple(str(v) for v in info.values))


def _decimal(spec: FieldSpec, label: str) -> Type:
    if spec.digits is None:
        raise Invalid(
            f"{label} does not say how many digits it has",
            hint="Write field(digits=(18, 2)): 18 digits in all, 2 of them after the point.",
            code="missing_digits",
        )
    precision, scale = spec.digits
    if not (1 <= precision <= _DIGITS_MAX and 0 <= scale <= precision):
        raise Invalid(
            f"{label} cannot have {precision} digits with {scale} of them after the point",
            hint=f"1 to {_DIGITS_MAX} digits in all, as many or fewer after the point.",
            code="bad_digits",
        )
    return Type("decimal", precision=precision, scale=scale)


def _limits(info: inspect.Type, label: str) -> dict[str, float | int | str]:
    if getattr(info, "multiple_of", None) is not None or getattr(info, "tz", None) is False:
        raise Invalid(
            f"{label} has a limit that records do not have",
            hint=f"Limits: {', '.join(_LIMITS)}. Timestamps always have a zone.",
            code="bad_limit",
        )
    found = {name: getattr(info, name, None) for name in _LIMITS}
    pattern = found["pattern"]
    if pattern is not None:
        try:
            re.compile(pattern)
        except re.error as error:
            raise Invalid(f"{label}: pattern {pattern!r}: {error}", code="bad_limit") from error
    return {name: value for name, value in found.items() if value is not None}


def _leaf(kind: Type) -> Type:
    return _leaf(kind.item) if kind.item else kind


def _check_spec(kind: Type, spec: FieldSpec, label: str) -> None:
    leaf = _leaf(kind).kind
    if spec.unit is not None and leaf != "timestamp":
        raise Invalid(f"{label} has a unit but is no datetime", code="bad_unit")
    if spec.unit is not None and spec.unit not in _TICKS:
        raise Invalid(
            f"{label}: {spec.unit!r} is no unit of an epoch number",
            hint='Units: "s", "ms", "us".',
            code="bad_unit",
        )
    if spec.digits is not None and leaf != "decimal":
        raise Invalid(f"{label} has digits but is no Decimal", code="bad_digits")


def _default(
    info: inspect.Field, annotation: object, kind: Type, *, nullable: bool, label: str
) -> str | None:
    """Return the JSON text of a default; None where there is none or it is null."""
    if info.required:
        return None
    value = info.default
    if value is msgspec.NODEFAULT:
        value = info.default_factory()
    if value is None:
        if nullable:
            return None
        raise Invalid(
            f"{label} has the default None but does not take null",
            hint="Add `| None` to its annotation.",
            code="bad_default",
        )
    if nullable and kind.kind != "json":
        raise Invalid(
            f"{label} takes null and has a default other than null: absent and null would differ",
            hint="Drop `| None`, or make the default None and write COALESCE in the table's SQL.",
            code="nullable_default",
        )
    try:
        text = _json(value, kind)
        # Read back with the annotation's own limits: a default must itself be valid.
        msgspec.convert(value, annotation)
    except (msgspec.ValidationError, ValueError, TypeError, OverflowError) as error:
        raise Invalid(f"{label}: default {value!r}: {error}", code="bad_default") from error
    return text


def _json(value: object, kind: Type) -> str:
    """Return the JSON text that a record would hold; ValueError if no record can hold it."""
    if isinstance(value, int) and value not in _INTEGERS:
        msg = "an integer has 64 bits"
        raise ValueError(msg)
    if isinstance(value, float) and not math.isfinite(value):
        msg = "JSON has no such number"
        raise ValueError(msg)
    if isinstance(value, datetime):
        return _timestamp(value, kind)
    if isinstance(value, Decimal):
        _check_digits(value, kind)
    if isinstance(value, datetime | date | Decimal | str | int | float | Record | list | dict):
        return msgspec.json.encode(value).decode()
    msg = "this is no JSON value"
    raise TypeError(msg)


def _timestamp(value: datetime, kind: Type) -> str:
    if value.tzinfo is None:
        msg = "a timestamp needs a zone, such as tzinfo=UTC"
        raise ValueError(msg)
    if kind.unit is None:
        return msgspec.json.encode(value.astimezone(UTC)).decode()
    ticks = round(value.timestamp() * _TICKS[kind.unit])
    return str(ticks)


def _check_digits(value: Decimal, kind: Type) -> None:
    _sign, digits, exponent = value.as_tuple()
    if not isinstance(exponent, int):
        msg = "a decimal is finite"
        raise ValueError(msg)  # noqa: TRY004 - the value is wrong, not its type
    whole = max(len(digits) + exponent, 0)
    if -exponent > kind.scale or whole > kind.precision - kind.scale:
        msg = f"it does not fit {kind.precision} digits with {kind.scale} after the point"
        raise ValueError(msg)
