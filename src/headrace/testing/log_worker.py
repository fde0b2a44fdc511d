"""A process that appends numbered records to a log until somebody kills it.

`python -m headrace.testing.log_worker OPEN ARGUMENT ROUNDS`: OPEN is `module:function`, called with
ARGUMENT to get the log. The value of a record is its offset, so whoever reads the log afterwards
sees what is missing or stands twice. Every acknowledgement is printed as `topic end`.
"""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

from headrace.log.embedded import EmbeddedLog
from headrace.model.batch import Batch
from headrace.model.clock import SystemClock
from headrace.model.log import Log

COUNTED, PLAIN = "counted", "plain"
"""A topic whose end is also put as keyed state, in the same act, and one without."""

CURSOR = "cursor"
KEPT = 20
"""Older records than so many are given up now and then."""

_TRIM_EVERY = 5
_SEGMENT_BYTES_MAX = 2000


def numbered(start: int, end: int) -> Batch:
    """Return the records whose values are the offsets from `start` to before `end`."""
    clock = SystemClock()
    batch = Batch()
    for number in range(start, end):
        batch.add(b"%d" % number, received_at=clock.now_us(), id=clock.new_id())
    return batch


def open_embedded(directory: str) -> Log:
    """Open an embedded log that seals a segment every few appends."""
    return EmbeddedLog(Path(directory), SystemClock(), segment_bytes_max=_SEGMENT_BYTES_MAX)


def open_kafka(settings: str) -> Log:
    """Open a log on Kafka; `settings` are the fields of `headrace.log.kafka.Kafka`, as JSON."""
    # Here, for the client is an extra that a log of one's own machine does without.
    from headrace.log.kafka import Kafka, KafkaLog  # noqa: PLC0415

    return KafkaLog(Kafka(**json.loads(settings)), SystemClock())


def work(log: Log, rounds: int) -> None:
    """Append, acknowledge and trim."""
    for topic in (COUNTED, PLAIN):
        log.create(topic, 1)
        say(topic, log.ends(topic)[0])
    cursor = log.get(CURSOR)
    revision, counted = (cursor.revision, int(cursor.value)) if cursor else (0, 0)
    (plain,) = log.ends(PLAIN)
    for number in range(rounds):
        count = 1 + number % 4
        state = {CURSOR: b"%d" % (counted + count)}
        log.append(COUNTED, numbered(counted, counted + count), state, {CURSOR: revision})
        counted += count
        say(COUNTED, counted)
        entry = log.get(CURSOR)
        revision = entry.revision if entry else 0
        log.append(PLAIN, numbered(plain, plain + count))
        plain += count
        say(PLAIN, plain)
        if number % _TRIM_EVERY == 0:
            log.trim(COUNTED, [max(0, counted - KEPT)])
            log.trim(PLAIN, [max(0, plain - KEPT)])


def say(topic: str, end: int) -> None:
    """Acknowledge to whoever reads our output."""
    sys.stdout.write(f"{topic} {end}\n")
    sys.stdout.flush()


def main(arguments: list[str]) -> None:
    """Run the worker."""
    target, argument, rounds = arguments
    module, _, function = target.partition(":")
    opener: Callable[[str], Log] = getattr(importlib.import_module(module), function)
    with closing(opener(argument)) as log:
        work(log, int(rounds))


if __name__ == "__main__":
    main(sys.argv[1:])
