"""A log whose reading end many threads use, one after another; its writing end needs no turns."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Protocol

from headrace.model.batch import Batch
from headrace.model.log import Appended, StateEntry


class TurnLog(Protocol):
    """What of `Log` is needed here."""

    def append(
        self,
        topic: str,
        records: Batch,
        state: dict[str, bytes] | None = None,
        expect: dict[str, int] | None = None,
    ) -> list[Appended]:
        """See `Log`."""

    def get(self, key: str) -> StateEntry | None:
        """See `LogReader`."""

    def scan(self, prefix: str) -> list[StateEntry]:
        """See `LogReader`."""

    def put_if(self, key: str, expected_revision: int, value: bytes | None) -> StateEntry | None:
        """See `Log`."""


class InTurn:
    """The log, with what each append expects of keyed state beside what its caller expects."""

    def __init__(
        self,
        log: TurnLog,
        *,
        expect: Mapping[str, int] | None = None,
        reading: threading.Lock | None = None,
    ) -> None:
        """`reading` is held while the log is read; made if nobody else reads it."""
        self._log = log
        self._expect = expect or {}
        self._reading = reading or threading.Lock()

    def expecting(self, expect: Mapping[str, int]) -> InTurn:
        """Return the same log, whose appends expect these revisions."""
        return InTurn(self._log, expect=expect, reading=self._reading)

    def append(
        self,
        topic: str,
        records: Batch,
        state: dict[str, bytes] | None = None,
        expect: dict[str, int] | None = None,
    ) -> list[Appended]:
        """See `Log`."""
        return self._log.append(topic, records, state, {**(expect or {}), **self._expect} or None)

    def get(self, key: str) -> StateEntry | None:
        """See `LogReader`."""
        with self._reading:
            return self._log.get(key)

    def scan(self, prefix: str) -> list[StateEntry]:
        """See `LogReader`."""
        with self._reading:
            return self._log.scan(prefix)

    def put_if(self, key: str, expected_revision: int, value: bytes | None) -> StateEntry | None:
        """See `Log`."""
        return self._log.put_if(key, expected_revision, value)
