"""What `headrace doctor` finds."""

from __future__ import annotations

from typing import NamedTuple


class Finding(NamedTuple):
    """What was looked at, and whether it is as it should be."""

    what: str
    fine: bool
    found: str
    hint: str = ""
