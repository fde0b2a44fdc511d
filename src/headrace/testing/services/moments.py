"""Moments as the services write and read them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
DAY_US = 86_400_000_000
SECOND_US = 1_000_000


def moment(us: int) -> datetime:
    """Return microseconds since 1970 as a moment in UTC."""
    return EPOCH + timedelta(microseconds=us)


def micros(text: str) -> int | None:
    """Return ISO 8601 text (a date, or date and time; UTC where no zone is said), or None."""
    try:
        found = datetime.fromisoformat(text.strip())
    except ValueError:
        return None
    found = found if found.tzinfo else found.replace(tzinfo=UTC)
    return (found - EPOCH) // timedelta(microseconds=1)


def millis_text(us: int, zone: str = "+00:00") -> str:
    """Return a moment with milliseconds, as GBIF (`+00:00`) and OBIS (`Z`) write it."""
    return moment(us).strftime("%Y-%m-%dT%H:%M:%S.") + f"{us // 1000 % 1000:03d}{zone}"


def http_date(us: int) -> str:
    """Return a moment as HTTP writes it (RFC 9110, 5.6.7), in whole seconds, rounded up."""
    at = moment(-(-us // SECOND_US) * SECOND_US)
    days = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
    months = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"]
    day, month = days[at.weekday()], months[at.month - 1]
    return f"{day}, {at.day:02d} {month} {at.year} {at:%H:%M:%S} GMT"
