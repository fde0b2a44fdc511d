"""Sends messages to Kafka: idempotent, in order, and answered once all copies that count have them.

Whatever waits is sent together while earlier requests are under way, so a lone record goes at once
and many go in large requests. What may wait is bounded in bytes and in time.

The time is kept here, and not by Kafka's client: to give a message up, it begins a new sequence, in
which it sends again what brokers may have kept of the old one. So whoever waited is told that the
outcome is unknown, and the client goes on trying; what then comes to be kept is kept once.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future

from confluent_kafka import KafkaError, KafkaException, Message, Producer

from headrace.log.kafka.client import Kafka, meaning, outcome_unknown
from headrace.log.kafka.messages import headers_of
from headrace.model.batch import Batch
from headrace.model.clock import Clock
from headrace.model.errors import Closed, HeadraceError, Unavailable

Told = Callable[[dict[int, list[int]] | HeadraceError], None]
"""Gets the offsets of the records of each partition, in the order in which they were sent."""

POLL_S = 0.1
OVERHEAD_BYTES = 600
"""About what a message takes in the client beside its own bytes: its headers' names, its place."""
FLIGHT_BYTES = 1_500
"""About what those that are sent together take beside that, be it a lone one or a thousand."""
STALLED_S = 10.0
"""When for so long nothing was kept that waits, more is refused at once, so that who sends hears of
it in time. Longer than a partition takes to get another leader."""

_logger = logging.getLogger(__name__)


class _Flight:
    """Records that were sent together and not answered yet; used on the polling thread alone."""

    __slots__ = (
        "deadline_s", "error", "is_told", "land", "offsets", "remaining", "size_bytes", "told",
        "topic",
    )  # fmt: skip

    def __init__(
        self, topic: str, places: Mapping[int, Sequence[int]], size_bytes: int, told: Told,
        land: Callable[[_Flight], None], deadline_s: float,
    ) -> None:  # fmt: skip
        self.topic = topic
        self.offsets: dict[int, list[int]] = {partition: [] for partition in places}
        self.remaining = sum(map(len, places.values()))
        self.size_bytes = size_bytes
        self.told = told
        self.land = land
        self.deadline_s = deadline_s
        self.is_told = False
        self.error: KafkaError | None = None

    def delivered(self, error: KafkaError | None, message: Message) -> None:
        """Note what became of one message; Kafka's client calls this from `poll`."""
        if error is None:
            self.offsets[message.partition()].append(message.offset())
            self.done(1)
        else:
            self.failed(1, error)

    def failed(self, count: int, error: KafkaError) -> None:
        """Note that so many messages were not sent or not kept."""
        # What leaves open whether a record is there outweighs what says that one is not.
        if self.error is None or not isinstance(meaning(self.error, ""), Unavailable):
            self.error = error
        self.done(count)

    def done(self, count: int) -> None:
        """Count messages off; the last one ends the flight."""
        self.remaining -= count
        if not self.remaining:
            self.land(self)


class Sender:
    """A producer with its thread; safe to use from many threads."""

    def __init__(self, kafka: Kafka, clock: Clock, queue_bytes_max: int) -> None:
        self._kafka = kafka
        self._clock = clock
        self._queue_bytes_max = queue_bytes_max
        self._lock = threading.Lock()
        self._queued_bytes = 0
        self._moved_s = 0.0
        """When something was kept last, or began to wait when nothing did."""
        self._is_closed = False
        self._stop = threading.Event()
        self._unsent: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._flights: deque[_Flight] = deque()
        """Those under way, and some that have landed since, by their deadlines."""
        self._broken: Producer | None = None
        self._producer = self._new_producer()
        self._thread = threading.Thread(target=self._run, name="headrace-kafka", daemon=True)
        self._thread.start()

    def send(
        self, topic: str, name: str, records: Batch, places: Mapping[int, Sequence[int]],
        told: Told, act: str = "",
    ) -> None:  # fmt: skip
        """Send records to partitions of the topic that Kafka knows as `name`; `told` is told.

        `places` are the positions of each partition's records. Raises `Unavailable`, with nothing
        sent, while too many bytes wait, or none of them has been kept for long.
        """
        size_bytes = records.size_bytes + OVERHEAD_BYTES * len(records) + FLIGHT_BYTES
        now_s = self._clock.monotonic_s()
        deadline_s = now_s + self._kafka.delivery_s_max
        flight = _Flight(topic, places, size_bytes, told, self._land, deadline_s)
        values, keys = records.values, records.keys
        headers = headers_of(records, act)
        with self._lock:
            self._reserve(size_bytes, now_s)
            self._flights.append(flight)
            producer, left = self._producer, flight.remaining
            try:
                for partition, positions in places.items():
                    for i in positions:
                        producer.produce(
                            name, values[i], keys[i], partition, flight.delivered,
                            headers=headers(i),
                        )  # fmt: skip
                        left -= 1
            except (KafkaException, BufferError) as error:
                reason = _reason(error)
                self._unsent.put(lambda: flight.failed(left, reason))

    def send_one(self, name: str, value: bytes) -> int:
        """Send a value to a topic's only partition and return its offset once it is durable."""
        result: Future[int] = Future()

        def delivered(error: KafkaError | None, message: Message) -> None:
            if error is None:
                result.set_result(message.offset())
            else:
                result.set_exception(self._failure(error, name))

        with self._lock:
            self._check_open()
            try:
                self._producer.produce(name, value, None, 0, delivered)
            except (KafkaException, BufferError) as error:
                raise self._failure(_reason(error), name) from error
        try:
            return result.result(self._kafka.delivery_s_max)
        except TimeoutError as error:
            raise self._no_answer() from error

    def learn(self, name: str) -> None:
        """Have the client learn anew what partitions a topic has, and where."""
        try:
            self._producer.list_topics(name, self._kafka.timeout_s)
        except KafkaException as error:
            raise meaning(error.args[0], name) from error

    def tell_later(self, act: Callable[[], None]) -> None:
        """Call `act` on this sender's thread."""
        with self._lock:
            self._check_open()
            self._unsent.put(act)

    def close(self) -> None:
        """Wait for what was sent, then end; it may take as long as a delivery may."""
        with self._lock:
            if self._is_closed:
                return
            self._is_closed = True
        if self._producer.flush(self._kafka.delivery_s_max):
            # Nothing is sent any more, and whoever waits is told.
            self._producer.purge()
            self._producer.flush(POLL_S)
        self._stop.set()
        self._thread.join()

    def _reserve(self, size_bytes: int, now_s: float) -> None:
        self._check_open()
        if not self._queued_bytes:
            self._moved_s = now_s
        elif now_s - self._moved_s > STALLED_S:
            raise Unavailable(
                f"Kafka has kept nothing for {now_s - self._moved_s:.0f} s",
                hint="send again later; see whether its brokers run and can be reached",
                code="log_stalled",
            )
        elif (
            self._queued_bytes + min(size_bytes, self._queue_bytes_max // 2) > self._queue_bytes_max
        ):
            # However large: once half of the room is free it is let in, or it never might be.
            raise Unavailable(
                "Too many bytes wait to be written to Kafka",
                hint="send again later; see whether the brokers keep up",
                code="log_queue_full",
            )
        self._queued_bytes += size_bytes

    def _check_open(self) -> None:
        if self._is_closed:
            raise Closed("The log is closed")

    def _new_producer(self) -> Producer:
        kafka = self._kafka
        return Producer(
            kafka.config(
                **{
                    "acks": "all",
                    "enable.idempotence": True,
                    "delivery.timeout.ms": 0,  # never; see above
                    "message.max.bytes": kafka.message_bytes_max,
                    # What waits is bounded by us; the client's own bounds must not come first.
                    "queue.buffering.max.messages": 0,
                    "queue.buffering.max.kbytes": 2_000_000,
                    "topic.metadata.propagation.max.ms": 5000,
                    "linger.ms": 1,
                }
            )
        )

    # On the sender's own thread.

    def _run(self) -> None:
        while not self._stop.is_set() or not self._unsent.empty():
            self._producer.poll(POLL_S)
            while not self._unsent.empty():
                self._unsent.get()()
            self._give_up()
            if self._broken is not None:
                self._replace(self._broken)

    def _give_up(self) -> None:
        """Tell those who have waited long enough; their bytes count until they land."""
        now_s = self._clock.monotonic_s()
        while self._flights and (
            self._flights[0].deadline_s < now_s or not self._flights[0].remaining
        ):
            flight = self._flights.popleft()
            if flight.remaining:
                self._tell(flight, self._no_answer())

    def _no_answer(self) -> Unavailable:
        return outcome_unknown(f"no answer came within {self._kafka.delivery_s_max:g} s")

    def _land(self, flight: _Flight) -> None:
        now_s = self._clock.monotonic_s()
        with self._lock:
            self._queued_bytes -= flight.size_bytes
            if flight.error is None:
                self._moved_s = now_s
        answer = flight.error and self._failure(flight.error, flight.topic)
        self._tell(flight, answer or flight.offsets)

    def _tell(self, flight: _Flight, answer: dict[int, list[int]] | HeadraceError) -> None:
        if flight.is_told:
            return
        flight.is_told = True
        try:
            flight.told(answer)
        except Exception:
            _logger.exception("What waited for the log raised an error when it was told")

    def _failure(self, error: KafkaError, topic: str) -> HeadraceError:
        if error.fatal() or error.code() == KafkaError._FATAL:  # noqa: SLF001 - the code's name
            self._broken = self._producer
        return meaning(error, topic)

    def _replace(self, broken: Producer) -> None:
        """Go on with a new producer: one that has failed for good sends nothing any more."""
        with self._lock:
            if self._producer is broken:
                self._producer = self._new_producer()
            self._broken = None
        broken.purge()
        broken.flush(POLL_S)


def _reason(error: KafkaException | BufferError) -> KafkaError:
    if isinstance(error, KafkaException):
        return error.args[0]
    return KafkaError(KafkaError._QUEUE_FULL)  # noqa: SLF001 - the code's name
