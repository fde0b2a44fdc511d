"""What a request asks for in its query string, each value read by its type.

Whatever is not asked for by name is refused at the end, with what there is: a misspelt filter that
is quietly ignored gives a wrong count.
"""

from __future__ import annotations

import datetime as dt
import difflib
import math
import re
from collections.abc import Iterable, Sequence
from decimal import Decimal, InvalidOperation

import msgspec

from headrace.model.errors import Invalid

ARGUMENTS_MAX = 100
"""Arguments that a request may have."""

WAIT_S_MAX = 30.0
"""Longest wait for `at_least`, seconds."""

SHOWN_MAX = 80
"""Characters of a wrong value that its message repeats."""

_DIGITS_MAX = 100
"""Characters of a number; more than any type holds, few enough to parse."""

_INTEGER = re.compile(r"[+-]?[0-9]{1,40}")
_INTEGERS = {
    "TINYINT": (-(2**7), 2**7 - 1),
    "SMALLINT": (-(2**15), 2**15 - 1),
    "INTEGER": (-(2**31), 2**31 - 1),
    "BIGINT": (-(2**63), 2**63 - 1),
    "UTINYINT": (0, 2**8 - 1),
    "USMALLINT": (0, 2**16 - 1),
    "UINTEGER": (0, 2**32 - 1),
    "UBIGINT": (0, 2**64 - 1),
    "HUGEINT": (-(2**127), 2**127 - 1),
}
_DECIMAL = re.compile(r"DECIMAL\((\d+),\s*(\d+)\)")


class Arguments:
    """The arguments of one request; every one must be taken before `finish`."""

    def __init__(self, items: Sequence[tuple[str, str]]) -> None:
        if len(items) > ARGUMENTS_MAX:
            raise Invalid(
                f"The request has {len(items)} parameters; {ARGUMENTS_MAX} are allowed",
                code="too_many_parameters",
            )
        self.items = list(items)
        self._taken: set[str] = set()

    def take(self, name: str) -> str | None:
        """Return the value of a parameter that may be given once; None if it is not."""
        self._taken.add(name)
        values = [v for k, v in self.items if k == name]
        if len(values) > 1:
            raise Invalid(
                f"Parameter {name} is given {len(values)} times",
                hint="Give it once.",
                code="repeated_parameter",
            )
        return values[0] if values else None

    def take_integer(self, name: str, default: int, least: int, most: int) -> int:
        """Return a whole number within bounds."""
        text = self.take(name)
        if text is None:
            return default
        number = int(text) if _INTEGER.fullmatch(text) else None
        if number is None or not least <= number <= most:
            raise wrong(name, text, f"a whole number from {least} to {most}")
        return number

    def take_seconds(self, name: str, default: float, most: float) -> float:
        """Return a number of seconds from 0 to `most`."""
        text = self.take(name)
        if text is None:
            return default
        seconds = _finite(text)
        if seconds is None or not 0 <= seconds <= most:
            raise wrong(name, text, f"seconds from 0 to {most:g}")
        return seconds

    def take_at_least(self) -> dict[str, int]:
        """Return the offsets that the answer must reach: `topic/partition` → offset.

        An offset is the one after the last record wanted. What the collector says of an append in
        `X-Headrace-Offsets` (with `=` for the colon) can be given as it is.
        """
        text = self.take("at_least")
        wanted: dict[str, int] = {}
        for part in filter(None, (text or "").split(",")):
            place, _, offset = part.replace("=", ":").rpartition(":")
            topic, _, partition = place.rpartition("/")
            if not (topic and partition.isascii() and partition.isdigit() and _offset(offset)):
                raise wrong("at_least", part, "topic/partition:offset, as events/0:42")
            wanted[f"{topic}/{int(partition)}"] = int(offset)
        return wanted

    def rest(self) -> list[tuple[str, str]]:
        """Take and return whatever was not taken yet, in order."""
        left = [(k, v) for k, v in self.items if k not in self._taken]
        self._taken.update(k for k, _ in left)
        return left

    def finish(self, known: Iterable[str] = ()) -> None:
        """Refuse what nobody took; `known` are names that would have been."""
        names = sorted({*self._taken, *known})
        for name, _ in self.items:
            if name not in self._taken:
                raise unknown_parameter(name, names)


def unknown_parameter(name: str, known: Sequence[str]) -> Invalid:
    """Return the error for a parameter that means nothing here."""
    near = difflib.get_close_matches(name, known, n=1)
    guess = f"Did you mean {near[0]}? " if near else ""
    there = f"There are: {', '.join(known)}." if known else "There are no parameters here."
    return Invalid(f"Parameter {name} is unknown", hint=guess + there, code="unknown_parameter")


def wrong(name: str, text: str, expected: str) -> Invalid:
    """Return the error for a value that is not what it must be."""
    shown = text if len(text) <= SHOWN_MAX else text[:SHOWN_MAX] + "…"
    return Invalid(
        f"Parameter {name} cannot be {shown!r}", hint=f"Give {expected}.", code="invalid_parameter"
    )


def column_value(name: str, text: str, type_: str) -> str:
    """Return a text that a cast to the DuckDB type `type_` takes for exactly this value.

    DuckDB's own casts are lenient: they round 5.7 to 6 and take `yes` for true.
    """
    kind = type_.upper()
    if kind == "VARCHAR":
        return text
    if kind in {"DOUBLE", "FLOAT"} or kind in _INTEGERS or _DECIMAL.fullmatch(kind):
        return _number(name, text, kind)
    if kind == "BOOLEAN":
        if text not in {"true", "false"}:
            raise wrong(name, text, "true or false")
        return text
    if kind.startswith("TIMESTAMP"):
        return timestamp(name, text).isoformat()
    if kind == "DATE":
        return date(name, text).isoformat()
    raise Invalid(
        f"Column {name} of type {type_} cannot be compared with a value",
        hint="Only __null=true or __null=false works on it.",
        code="invalid_filter",
    )


def _number(name: str, text: str, kind: str) -> str:
    if kind in _INTEGERS:
        least, most = _INTEGERS[kind]
        if not _INTEGER.fullmatch(text) or not least <= int(text) <= most:
            raise wrong(name, text, f"a whole number from {least} to {most}")
        return str(int(text))
    if match := _DECIMAL.fullmatch(kind):
        return _decimal(name, text, int(match[1]), int(match[2]))
    if (number := _finite(text)) is None:
        raise wrong(name, text, "a finite number")
    return repr(number)


def timestamp(name: str, text: str) -> dt.datetime:
    """Return a time with its zone from RFC 3339 text."""
    try:
        # A plus sign is a space in a query string.
        value = msgspec.convert(text.replace(" ", "+"), dt.datetime, strict=False)
    except (msgspec.ValidationError, ValueError):
        value = None
    if not isinstance(value, dt.datetime) or value.tzinfo is None or text[4:5] != "-":
        raise wrong(name, text, "a time as 2026-01-31T12:00:00Z")
    try:
        return value.astimezone(dt.UTC)
    except OverflowError as e:
        raise wrong(name, text, "a time as 2026-01-31T12:00:00Z") from e


def date(name: str, text: str) -> dt.date:
    """Return a day from YYYY-MM-DD."""
    try:
        return msgspec.convert(text, dt.date)
    except (msgspec.ValidationError, ValueError) as e:
        raise wrong(name, text, "a day as 2026-01-31") from e


def query_value(name: str, text: str, type_: str) -> object:
    """Return the value of a named query's parameter, by its declared type."""
    if type_ == "integer":
        return int(column_value(name, text, "BIGINT"))
    if type_ == "number":
        return float(column_value(name, text, "DOUBLE"))
    if type_ == "boolean":
        return column_value(name, text, "BOOLEAN") == "true"
    if type_ == "timestamp":
        return timestamp(name, text)
    return text


def _offset(text: str) -> bool:
    return (
        text.isascii()
        and text.isdigit()
        and _INTEGER.fullmatch(text) is not None
        and int(text) < 2**63
    )


def _finite(text: str) -> float | None:
    # float() also takes underscores, spaces and digits of other scripts.
    if not re.fullmatch(r"[+-]?[0-9.]+([eE][+-]?[0-9]+)?", text):
        return None
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _decimal(name: str, text: str, precision: int, scale: int) -> str:
    if _finite(text) is None or len(text) > _DIGITS_MAX:
        raise wrong(name, text, "a number")
    try:
        number = Decimal(text)
        exact = number.quantize(Decimal(1).scaleb(-scale))
    except InvalidOperation as e:
        raise wrong(name, text, f"a number of at most {precision} digits") from e
    if exact != number or abs(exact) >= Decimal(10) ** (precision - scale):
        raise wrong(name, text, f"a number of {precision} digits, {scale} after the point")
    return f"{exact:f}"
