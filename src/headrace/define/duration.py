"""Lengths of time as people write them."""

from __future__ import annotations

import re
from datetime import timedelta

from headrace.model.errors import Invalid

_MICROSECONDS = {
    "us": 1,
    "microsecond": 1,
    "ms": 1_000,
    "millisecond": 1_000,
    "s": 1_000_000,
    "second": 1_000_000,
    "min": 60_000_000,
    "minute": 60_000_000,
    "h": 3_600_000_000,
    "hour": 3_600_000_000,
    "d": 86_400_000_000,
    "day": 86_400_000_000,
    "week": 604_800_000_000,
}
_TEXT = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]+)\s*")


def microseconds(length: str | timedelta) -> int:
    """Return a length such as "90 seconds", "1.5 h" or a timedelta in microseconds.

    Units: us, ms, s, min, h, d and the words microsecond to week, also in the plural. Months and
    years are refused, as they have no fixed length.
    """
    if isinstance(length, timedelta):
        return length // timedelta(microseconds=1)
    match = _TEXT.fullmatch(length) if isinstance(length, str) else None
    unit = match[2].lower() if match else ""
    factor = _MICROSECONDS.get(unit) or _MICROSECONDS.get(unit.removesuffix("s"))
    if match is None or factor is None:
        raise Invalid(
            f"{length!r} is not a length of time",
            hint='Write a number and a unit, such as "1 minute", "250 ms" or "30 days".',
            code="bad_duration",
        )
    return round(float(match[1]) * factor)


def seconds(length: str | timedelta) -> float:
    """Return a length in seconds; see `microseconds`."""
    return microseconds(length) / 1_000_000
