"""Dead letters as every folder speaks of them: what became of one, and the words for it.

A letter is a row of `system/dead_letters` and never changes. What was done about it is a keyed
value in the log, and a record that is replayed says in its headers where it comes from.
"""

from __future__ import annotations

from typing import Literal

import msgspec

STATE_PREFIX = "dead-letter/"
"""The log's key of what was done about a letter: this, then the letter's id."""

LETTER_HEADER = "headrace-letter"
"""Record header that names the letter whose record is replayed."""
ATTEMPT_HEADER = "headrace-attempt"
"""Record header that says how often the record has failed before."""
ONLY_HEADER = "headrace-only"
"""Record header that names the one table which a replayed record is for."""

Status = Literal["open", "replayed", "discarded"]


class Act(msgspec.Struct, frozen=True):
    """What was done about a letter, and when (microseconds)."""

    act: Literal["replayed", "discarded"]
    at_us: int
    why: str = ""
