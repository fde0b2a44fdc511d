"""Reads messages of one partition from an offset on, as the broker keeps them."""

from __future__ import annotations

from confluent_kafka import Consumer, KafkaError, Message, TopicPartition

from headrace.log.kafka.client import DENIED, Kafka, meaning
from headrace.model.clock import Clock
from headrace.model.errors import Closed, Corrupt, Invalid, Unavailable

MESSAGES_MAX = 8192
BYTES_MAX = 8 << 20
"""A fetch returns about so many messages or bytes."""
FIRST_MESSAGES = 256
"""So many are asked for while it is not known how large they are."""
WAIT_S = 0.5
LINGER_MS = 10
BACKOFF_MS = 5
"""So long the client fetches nothing once it has fetched enough ahead; left alone, a second."""
PREFETCH_KB = 4 << 10
"""What the client fetches ahead, which is lost when a read ends: it knows no ranges."""


class Fetcher:
    """A consumer that belongs to no group; for one thread at a time.

    A broker holds a question to which it has no records yet for `linger_ms`, and whoever turns to
    another place meanwhile waits that long: so it is long only for one who stays in one place.
    """

    def __init__(self, kafka: Kafka, clock: Clock, *, linger_ms: int = LINGER_MS) -> None:
        self._kafka = kafka
        self._linger_ms = linger_ms
        self._clock = clock
        self._consumer: Consumer | None = None
        self._at: tuple[str, int, int] | None = None
        """Topic, partition and offset of the message that comes next."""
        self._is_closed = False
        self.record_bytes = 0.0
        """Mean size of the messages fetched last, 0 if there were none."""

    def close(self) -> None:
        """Let the connections go; later fetches raise `Closed`."""
        self._is_closed = True
        self.reset()

    def rest(self) -> None:
        """Fetch nothing ahead until the next fetch."""
        if self._consumer is not None:
            self._consumer.unassign()
        self._at = None

    def reset(self) -> None:
        """Begin anew, as if nothing were known of any topic."""
        if self._consumer is not None:
            self._consumer.close()
        self._consumer, self._at, self.record_bytes = None, None, 0.0

    def fetch(
        self, name: str, partition: int, start: int, end: int, *, bytes_max: int = BYTES_MAX
    ) -> tuple[list[Message], int]:
        """Return messages with `start` ≤ offset < `end`, and the offset to go on from.

        Offsets may be missing, and the messages none: then all up to that offset are. Raises
        `Invalid`, code `offset_trimmed`, if `start` is not kept any more, `Corrupt` if messages
        fail their checksum, and `Unavailable` if nothing comes for as long as a question may take.
        """
        consumer = self._opened()
        if self._at != (name, partition, start):
            consumer.assign([TopicPartition(name, partition, start)])
        self._at = None
        deadline_s = self._clock.monotonic_s() + self._kafka.timeout_s
        while True:
            count = self._count(min(BYTES_MAX, bytes_max))
            found = consumer.consume(min(count, end - start), WAIT_S)
            messages, stop = self._sorted(found, start, end, name)
            if stop > start:
                # Where offsets are missing, messages behind the range may have been taken too.
                if messages is found or all(
                    m.error() is not None or m.offset() < end for m in found
                ):
                    self._at = (name, partition, stop)
                self._measure(messages)
                return messages, stop
            if self._clock.monotonic_s() > deadline_s:
                raise Unavailable(
                    f"Kafka has sent nothing of {name}/{partition} for {self._kafka.timeout_s} s",
                    hint="see whether its brokers run and can be reached",
                    code="kafka_unavailable",
                )

    def _opened(self) -> Consumer:
        if self._is_closed:
            raise Closed("The log is closed")
        if self._consumer is None:
            self._consumer = Consumer(
                self._kafka.config(
                    **{
                        # No group is ever joined; the client asks for a name all the same.
                        "group.id": "headrace",
                        "enable.auto.commit": False,
                        "enable.partition.eof": True,
                        # A broker hands on what its disk gives; by itself the client believes it.
                        "check.crcs": True,
                        "auto.offset.reset": "error",
                        "queued.max.messages.kbytes": PREFETCH_KB,
                        "fetch.wait.max.ms": self._linger_ms,
                        "fetch.queue.backoff.ms": BACKOFF_MS,
                    }
                )
            )
        return self._consumer

    def _count(self, bytes_max: int) -> int:
        if not self.record_bytes:
            return FIRST_MESSAGES
        return max(1, min(MESSAGES_MAX, round(bytes_max / self.record_bytes)))

    def _measure(self, messages: list[Message]) -> None:
        if messages:
            self.record_bytes = max(1.0, sum(map(len, messages)) / len(messages))

    def _sorted(
        self, found: list[Message], start: int, end: int, name: str
    ) -> tuple[list[Message], int]:
        """Return the messages of the range, and the offset that everything before is known of."""
        offsets = [message.offset() for message in found if message.error() is None]
        if len(offsets) == len(found) and offsets and offsets[0] >= start and offsets[-1] < end:
            return found, offsets[-1] + 1
        messages: list[Message] = []
        stop = start
        for message in found:
            error, offset = message.error(), message.offset()
            if error is None:
                if offset >= start:
                    stop = max(stop, min(offset + 1, end))
                    if offset < end:
                        messages.append(message)
            elif error.code() == KafkaError._PARTITION_EOF:  # noqa: SLF001 - the code's name
                stop = max(stop, min(offset, end))
            elif error.code() in _OUT_OF_RANGE:
                raise Invalid(
                    f"Offset {start} of {name} is not kept any more",
                    hint="read from the start that the log names",
                    code="offset_trimmed",
                )
            elif error.code() == KafkaError._BAD_MSG:  # noqa: SLF001 - the code's name
                raise Corrupt(
                    f"Kafka's copy of {name} from offset {start} on is damaged: {error.str()}",
                    hint="have another broker lead the partition, and this one's copy made anew",
                    code="damaged_batch",
                )
            elif error.fatal() or error.code() in DENIED:
                raise meaning(error, name)
            # What else there is, such as a change of leaders, passes, or nothing comes in time.
        return messages, stop


_OUT_OF_RANGE = {
    KafkaError.OFFSET_OUT_OF_RANGE,
    KafkaError._AUTO_OFFSET_RESET,  # noqa: SLF001 - the code's name
}
