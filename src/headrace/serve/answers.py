"""Pages that were answered before: a page of one version never changes.

Dashboards ask the same again and again; between two versions they get the same bytes.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import NamedTuple

BYTES_MAX = 32 << 20
"""Bytes of all answers held."""
ANSWER_BYTES_MAX = 1 << 20
"""Bytes of an answer that is held."""


class Answer(NamedTuple):
    """A page's bytes, and the cursor of the next."""

    body: bytes
    cursor: str | None


class Answers:
    """The answers used last, up to a number of bytes; safe to use from many threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._held: OrderedDict[Hashable, Answer] = OrderedDict()
        self._bytes = 0

    def get(self, key: Hashable, make: Callable[[], Answer]) -> Answer:
        """Return the answer of a key, which must name the version; made if it is not held."""
        with self._lock:
            held = self._held.get(key)
            if held is not None:
                self._held.move_to_end(key)
                return held
        made = make()
        if len(made.body) <= ANSWER_BYTES_MAX:
            self._put(key, made)
        return made

    def _put(self, key: Hashable, answer: Answer) -> None:
        with self._lock:
            old = self._held.pop(key, None)
            self._bytes += len(answer.body) - (0 if old is None else len(old.body))
            self._held[key] = answer
            while self._bytes > BYTES_MAX:
                _, dropped = self._held.popitem(last=False)
                self._bytes -= len(dropped.body)
