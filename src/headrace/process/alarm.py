"""The dead-letter alarm: more than half of at least a thousand records within a minute died."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping

from headrace.model.clock import Clock
from headrace.model.runner import TopicCount

WINDOW_S = 60.0
RECORDS_MIN = 1_000
RATIO_MAX = 0.5


class DeadLetterAlarm:
    """Watches the accounting of the epochs of the last minute."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._seen: deque[tuple[float, int, int]] = deque()

    def see(self, topics: Mapping[str, TopicCount]) -> str:
        """Take an epoch's accounting; return what is wrong, or an empty text."""
        now_s = self._clock.monotonic_s()
        read = sum(c.read for c in topics.values())
        dead = sum(c.dead for c in topics.values())
        self._seen.append((now_s, read, dead))
        while now_s - self._seen[0][0] > WINDOW_S:
            self._seen.popleft()
        read = sum(r for _, r, _ in self._seen)
        dead = sum(d for _, _, d in self._seen)
        if read >= RECORDS_MIN and dead > RATIO_MAX * read:
            return f"{dead} of the {read} records of the last minute are dead letters"
        return ""
