"""The definition of validity: whether bytes are a record of a topic, and if not, exactly why.

Every door and the stage ask the same `Validator`, so a record that was found valid once is valid
everywhere. A value is valid if

1. the whole body is UTF-8, in undeclared fields too, and one JSON object (RFC 8259);
2. it is at most `DEPTH_MAX` arrays and objects deep;
3. every declared field has its declared type and keeps its limits: integers fit 64 bits, numbers
   are finite, decimals fit their digits without rounding, timestamps lie between the years 1 and
   9999 in UTC;
4. no object in it has the same key twice, in undeclared fields too.

msgspec decides 1 and 3 but skips over bytes that it need not understand; what it leaves open is
settled by a cheap proof where there is one, and by a slow exact look where there is none.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from datetime import UTC, date, datetime
from decimal import Decimal, InvalidOperation
from types import GenericAlias
from typing import Annotated, Any, Literal

import msgspec
import numpy as np

from headrace.model.errors import Invalid
from headrace.model.schema import Field, Schema, Type

DEPTH_MAX = 64
"""Arrays and objects inside one another, the record itself included."""

NUMBER_DIGITS_MAX = 15
"""Significant digits of a decimal sent as a JSON number: what a double keeps of any of them."""

_MESSAGE_LENGTH_MAX = 300
"""A message quotes what was sent; its ends say what and where."""

_INT64 = {"ge": -(2**63), "le": 2**63 - 1}
_EPOCH_S = {"ge": -62_135_596_800, "le": 253_402_300_799}
"""0001-01-01 00:00:00 and 9999-12-31 23:59:59, in seconds since 1970."""
_UNITS_A_SECOND = {"s": 1, "ms": 1_000, "us": 1_000_000}
_YEARS_AT_THE_EDGE = (1, 9999)

_STRING = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"', re.DOTALL)
_DECIMAL_TEXT = re.compile(r"[+-]?[0-9]+(\.[0-9]+)?")
_LINES = 256
"""Values that are judged at once; if one of them may be wrong, each is looked at alone."""

_WHITESPACE = (b" ", b"\t", b"\n", b"\r")

_Check = Callable[[Any, str], None]

_HINTS = {
    "invalid_json": "Send one JSON object a record.",
    "invalid_utf8": "Encode the body as UTF-8.",
    "invalid_record": "Send the field as the topic's record type declares it.",
    "duplicate_key": "Send each key of an object once.",
    "too_deep": f"Send at most {DEPTH_MAX} arrays and objects inside one another.",
}


class Validator:
    """Judges values of one topic. `schema` None takes any JSON object with finite numbers.

    Keeps no state between two calls and may be used from many threads.
    """

    def __init__(self, schema: Schema | None) -> None:
        self.fingerprint = _ANY_OBJECT if schema is None else schema.fingerprint
        """What a door marks a valid record with: never 0, other for every other schema."""
        kind: type = dict
        self._check: _Check | None = None
        if schema is not None:
            kind, self._check = _struct(schema.name, schema.fields)
        decoder: msgspec.json.Decoder[Any] = msgspec.json.Decoder(kind)
        self._decode: Callable[[bytes], Any] = decoder.decode
        self._decode_lines: Callable[[bytes], list[Any]] = decoder.decode_lines

    def check(self, value: bytes) -> None:
        """Return if `value` is a valid record, else raise `Invalid`.

        Codes: `invalid_utf8`, `invalid_json`, `invalid_record`, `duplicate_key`, `too_deep`.
        """
        if not value.isascii():
            _check_utf8(value)
        containers = value.count(b"{") + value.count(b"[")
        if containers > DEPTH_MAX:
            _check_depth(value)
        try:
            record = self._decode(value)
        except (msgspec.DecodeError, ValueError) as error:
            raise _refusal(value, error) from None
        if self._check is not None:
            self._check(record, "$")
        try:
            # Most senders write JSON exactly as msgspec does, which writes no key twice.
            is_canonical = _encode(_decode_any(value)) == value
        except (msgspec.DecodeError, ValueError):
            is_canonical = False  # a number in an undeclared field that Python cannot hold
        if not is_canonical:
            _check_keys(value, containers)

    def check_many(self, values: Sequence[bytes]) -> dict[int, Invalid]:
        """Return what `check` raises, by position, for those of many values that are not valid.

        Several times as fast as one by one where most are valid.
        """
        refused = {}
        for start in range(0, len(values), _LINES):
            some = values[start : start + _LINES]
            if len(some) == 1 or not self._are_surely_valid(some):
                for i, value in enumerate(some, start):
                    try:
                        self.check(value)
                    except Invalid as error:
                        refused[i] = error
        return refused

    def _are_surely_valid(self, values: Sequence[bytes]) -> bool:
        """Judge values as lines of one text, which msgspec reads in one call."""
        text = b"\n".join(values)
        # Every record has a container of its own, so none can have all the others.
        containers = text.count(b"{") + text.count(b"[") - (len(values) - 1)
        if containers > DEPTH_MAX and any(
            v.count(b"{") + v.count(b"[") > DEPTH_MAX for v in values
        ):
            return False
        try:
            if not text.isascii():
                text.decode()
            records = self._decode_lines(text)
            if len(records) != len(values):
                return False  # blank lines are passed over
            if self._check is not None:
                for record in records:
                    self._check(record, "$")
            # What is written anew has a newline a record, so no value holds one of its own.
            ended = text + b"\n"
            # A sender that writes the declared fields in their order proves all of it without a
            # second reading; the first record tells whether to try.
            if _encode(records[0]) == values[0] and _encode_lines(records) == ended:
                return True
            return _encode_lines(_decode_any_lines(text)) == ended
        except (msgspec.DecodeError, ValueError, Invalid):
            return False


_ANY_OBJECT = Schema("", ()).fingerprint


def _check_utf8(value: bytes) -> None:
    try:
        value.decode()
    except UnicodeDecodeError as error:
        raise _invalid("invalid_utf8", f"Invalid UTF-8 at byte {error.start}") from None


def _check_depth(value: bytes) -> None:
    """Count nesting outside strings. Bytes that are not JSON may count wrongly: they fail later."""
    marks = np.frombuffer(_STRING.sub(b"", value), np.uint8)
    opened = (marks == ord("{")) | (marks == ord("["))
    closed = (marks == ord("}")) | (marks == ord("]"))
    depth = int(np.cumsum(opened.astype(np.int32) - closed).max(initial=0))
    if depth > DEPTH_MAX:
        raise _invalid("too_deep", f"Nested {depth} deep, at most {DEPTH_MAX} are allowed")


def _refusal(value: bytes, error: Exception) -> Invalid:
    text = str(error).replace("`", "")
    if not value.strip():
        return _invalid("invalid_json", "The record is empty")
    if isinstance(error, msgspec.ValidationError):
        return _invalid("invalid_record", text)
    if isinstance(error, msgspec.DecodeError):
        return _invalid("invalid_json", text)
    # Python refuses to make an integer of thousands of digits before any limit is looked at.
    return _invalid("invalid_record", "Number out of range")


def _check_keys(value: bytes, containers: int) -> None:
    """Refuse valid JSON with a key twice in an object."""
    try:
        if _keys_at_most(value, _distinct_keys(_decode_any(value)), containers):
            return
    except (msgspec.DecodeError, ValueError):
        pass  # as above
    json.loads(value, object_pairs_hook=_check_pairs, parse_int=str, parse_float=str)


_decode_any = msgspec.json.Decoder().decode
_decode_any_lines = msgspec.json.Decoder().decode_lines
_encode = msgspec.json.Encoder().encode
_encode_lines = msgspec.json.Encoder().encode_lines


def _keys_at_most(value: bytes, keys: int, containers: int) -> bool:
    """Return whether valid JSON surely has no more than `keys` keys, given that it has as many.

    Three upper bounds, cheapest first: every key has a colon; every key but the first of its
    object has a comma; every key is a string before a colon.
    """
    if value.count(b":") == keys or value.count(b",") + containers == keys:
        return True
    return value.count(b'":') == keys and not any(
        space in value and space + b":" in value for space in _WHITESPACE
    )


def _distinct_keys(value: Any) -> int:  # noqa: ANN401
    if type(value) is dict:
        inner = [v for v in value.values() if type(v) is dict or type(v) is list]
        return len(value) + sum(map(_distinct_keys, inner))
    return sum(_distinct_keys(v) for v in value if type(v) is dict or type(v) is list)


def _check_pairs(pairs: list[tuple[str, Any]]) -> None:
    seen = set()
    for key, _ in pairs:
        if key in seen:
            raise _invalid("duplicate_key", f"Key {key!r} stands twice in one object")
        seen.add(key)


def _struct(
    name: str, fields: tuple[Field, ...], *, inner: bool = False
) -> tuple[type[msgspec.Struct], _Check | None]:
    """Return the msgspec type of an object and the check of what that type leaves open.

    In an inner object null is refused for a field with a default, since the decoder cannot tell
    it from a missing one there.
    """
    members: list[tuple[str, Any] | tuple[str, Any, Any]] = []
    checks: list[tuple[str, str, _Check]] = []
    for i, field in enumerate(fields):
        kind, check = _type(field.type, nullable=field.nullable and not (inner and field.default))
        members.append((f"f{i}", kind) if field.required else (f"f{i}", kind, msgspec.UNSET))
        if check is not None:
            checks.append((f"f{i}", f".{field.alias}", check))
    rename = {f"f{i}": field.alias for i, field in enumerate(fields)}
    kind = msgspec.defstruct(name, members, rename=rename, kw_only=True, gc=False)
    return kind, _members_check(checks) if checks else None


def _members_check(checks: list[tuple[str, str, _Check]]) -> _Check:
    def check(record: Any, path: str) -> None:  # noqa: ANN401
        for member, step, check_member in checks:
            value = getattr(record, member)
            if value is not None and value is not msgspec.UNSET:
                check_member(value, path + step)

    return check


def _type(kind: Type, *, nullable: bool) -> tuple[Any, _Check | None]:
    annotation, check = _plain_type(kind, nullable=nullable)
    if nullable and annotation not in {Any, msgspec.Raw}:
        annotation = annotation | None
    return annotation, check


def _plain_type(kind: Type, *, nullable: bool) -> tuple[Any, _Check | None]:
    match kind.kind:
        case "timestamp":
            return _timestamp(kind)
        case "decimal":
            return msgspec.Raw, _decimal_check(kind, nullable=nullable)
        case "list" | "map":
            return _container(kind)
        case "struct":
            return _struct("Struct", kind.fields, inner=True)
        case _:
            return _scalar(kind), None


def _scalar(kind: Type) -> Any:  # noqa: ANN401
    match kind.kind:
        case "string":
            return _limited(Literal[kind.choices] if kind.choices else str, kind.limits)
        case "integer":
            return _limited(int, _narrowed(kind.limits, _INT64))
        case "text":
            return _limited(int, _INT64) | str
        case "number":
            return _limited(float, kind.limits)
        case "boolean":
            return bool
        case "date":
            return date
        case _:
            return Any


def _limited(plain: Any, limits: dict[str, Any]) -> Any:  # noqa: ANN401
    return Annotated[plain, msgspec.Meta(**limits)] if limits else plain


def _narrowed(limits: dict[str, Any], bounds: dict[str, int]) -> dict[str, Any]:
    """Add bounds of the column on the sides that the declared limits leave open."""
    narrowed = dict(limits)
    if "gt" not in limits:
        narrowed["ge"] = max(limits.get("ge", bounds["ge"]), bounds["ge"])
    if "lt" not in limits:
        narrowed["le"] = min(limits.get("le", bounds["le"]), bounds["le"])
    return narrowed


def _container(kind: Type) -> tuple[Any, _Check | None]:
    assert kind.item is not None
    item, check_item = _type(kind.item, nullable=kind.item_nullable)
    if kind.kind == "list":
        plain, check = GenericAlias(list, (item,)), check_item and _items_check(check_item)
    else:
        plain, check = GenericAlias(dict, (str, item)), check_item and _values_check(check_item)
    return _limited(plain, kind.limits), check


def _items_check(check_item: _Check) -> _Check:
    def check(items: list[Any], path: str) -> None:
        for item in items:
            if item is not None:
                check_item(item, f"{path}[...]")

    return check


def _values_check(check_item: _Check) -> _Check:
    check_items = _items_check(check_item)

    def check(items: dict[str, Any], path: str) -> None:
        check_items(list(items.values()), path)

    return check


def _timestamp(kind: Type) -> tuple[Any, _Check | None]:
    if kind.unit is None:
        return Annotated[datetime, msgspec.Meta(tz=True)], _check_year
    per_second = _UNITS_A_SECOND[kind.unit]
    limits: dict[str, Any] = {name: limit * per_second for name, limit in _EPOCH_S.items()}
    # A fraction of a microsecond has no place in the column, and a double none for the large ones.
    plain = int if kind.unit == "us" else float
    if plain is float:
        limits = {name: float(limit) for name, limit in limits.items()}
    return Annotated[plain, msgspec.Meta(**limits)], None


def _check_year(value: datetime, path: str) -> None:
    if value.year in _YEARS_AT_THE_EDGE:
        try:
            value.astimezone(UTC)
        except OverflowError:
            message = f"Expected a timestamp of the years 1 to 9999 in UTC - at {path}"
            raise _invalid("invalid_record", message) from None


def _decimal_check(kind: Type, *, nullable: bool) -> _Check:
    expected = f"decimal({kind.precision}, {kind.scale})"

    def check(raw: msgspec.Raw, path: str) -> None:
        text = bytes(raw).decode()
        if text == "null" and nullable:
            return
        number = _finite_decimal(text, expected, path)
        _check_digits(number, kind, expected, path)
        if text[0] != '"' and not text.lstrip("-").isdigit():
            _check_double(number, kind, path)
        _check_limits(number, kind.limits, path)

    return check


_WORDS = {"t": "bool", "f": "bool", "[": "array", "{": "object", "n": "null"}
"""What a JSON value is, by its first byte, where that can be no decimal."""


def _finite_decimal(text: str, expected: str, path: str) -> Decimal:
    """Return the number that JSON text stands for, as a string or a number of its own."""
    if text[0] in _WORDS:
        message = f"Expected {expected}, got {_WORDS[text[0]]} - at {path}"
        raise _invalid("invalid_record", message)
    if text[0] == '"':
        digits = msgspec.json.decode(text, type=str)
        if not _DECIMAL_TEXT.fullmatch(digits):
            message = f"Expected {expected} in plain digits - at {path}"
            raise _invalid("invalid_record", message)
        return Decimal(digits)
    try:
        return Decimal(text)
    except InvalidOperation:
        raise _invalid("invalid_record", f"Number out of range - at {path}") from None


def _check_double(number: Decimal, kind: Type, path: str) -> None:
    """Refuse a number that the decoder, which reads it as a double, would not keep exactly."""
    what = ""
    if len(number.as_tuple().digits) > NUMBER_DIGITS_MAX:
        what = f"over {NUMBER_DIGITS_MAX} digits"
    elif kind.precision == kind.scale and "e" in repr(float(number)):
        what = "this size"  # DuckDB casts no text such as 1e-05 to DECIMAL(5, 5)
    if what:
        raise Invalid(
            f"A decimal of {what} as a JSON number - at {path}",
            hint='Send it as a string, such as "0.10", so that no digit is lost.',
            code="invalid_record",
        )


def _check_digits(number: Decimal, kind: Type, expected: str, path: str) -> None:
    _, digits, exponent = number.as_tuple()
    assert isinstance(exponent, int)
    significant = len("".join(map(str, digits)).rstrip("0")) if number else 0
    zeros = len(digits) - significant
    after_point = -(exponent + zeros) if number else 0
    before_point = number.adjusted() + 1 if number else 0
    if after_point > kind.scale or before_point > kind.precision - kind.scale:
        message = f"Expected {expected}, got {number} - at {path}"
        raise _invalid("invalid_record", message)


def _check_limits(number: Decimal, limits: dict[str, Any], path: str) -> None:
    tests = {
        "ge": (number.__ge__, ">="),
        "gt": (number.__gt__, ">"),
        "le": (number.__le__, "<="),
        "lt": (number.__lt__, "<"),
    }
    for name, limit in limits.items():
        holds, sign = tests[name]
        try:
            kept = holds(Decimal(str(limit)))
        except InvalidOperation:
            kept = False
        if not kept:
            raise _invalid("invalid_record", f"Expected decimal {sign} {limit} - at {path}")


def _invalid(code: str, message: str) -> Invalid:
    if len(message) > _MESSAGE_LENGTH_MAX:
        message = message[: _MESSAGE_LENGTH_MAX // 2] + "…" + message[-_MESSAGE_LENGTH_MAX // 2 :]
    return Invalid(message, hint=_HINTS[code], code=code)
