"""The writing end of the log on Kafka; every process may have one."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress

from headrace.log.kafka.client import Kafka
from headrace.log.kafka.messages import check
from headrace.log.kafka.reader import KafkaLogReader
from headrace.log.kafka.sender import Sender
from headrace.log.partitioner import split
from headrace.model.batch import Batch
from headrace.model.clock import Clock
from headrace.model.errors import Closed, Fenced, HeadraceError, Invalid, Unavailable
from headrace.model.failpoint import failpoint
from headrace.model.log import DELETED, Appended, Done, StateEntry, TopicInfo

QUEUE_BYTES_MAX = 32 << 20
INFO_S_MAX = 5.0
"""For so long a topic is taken to have the partitions that it had."""


class KafkaLog(KafkaLogReader):
    """The log in a Kafka cluster; see `model.log.Log`.

    Records without state stand for themselves: of an append that fails with `outcome_unknown`, or
    whose process dies, some may be there. Records with state are an act (`state.py`): all of them
    are read and the state is put, or neither. At most `queue_bytes_max` wait to be sent.
    """

    def __init__(
        self, kafka: Kafka, clock: Clock, *, queue_bytes_max: int = QUEUE_BYTES_MAX
    ) -> None:
        super().__init__(kafka, clock)
        self._queue_bytes_max = queue_bytes_max
        self._sending = Sender(kafka, clock, queue_bytes_max)
        self._own_sender = self._sending
        self._acts = ThreadPoolExecutor(1, thread_name_prefix="headrace-acts")
        self._asking = ThreadPoolExecutor(1, thread_name_prefix="headrace-topics")
        self._infos: dict[str, tuple[TopicInfo, float]] = {}
        """Topics that were appended to, and when they were asked for."""
        self._turns: dict[str, itertools.count[int]] = {}
        self._lock = threading.Lock()
        self._is_closed = False
        try:
            self._state.create()
        except BaseException:
            self.close()
            raise

    def create(self, topic: str, partitions: int) -> TopicInfo:
        """See `Log`."""
        self._check_open()
        self._infos.pop(topic, None)
        self._admin.create(self._kafka.name_of(topic), partitions, {})
        info = self._admin.topic(topic)
        if info.partitions != partitions:
            raise Invalid(
                f"The topic {topic} has {info.partitions} partitions, not {partitions}",
                hint="a topic's partitions stay as they are: a record's place hangs on them",
                code="topic_exists",
            )
        return info

    def delete(self, topic: str) -> None:
        """See `Log`."""
        self._check_open()
        info = self._admin.topic(topic)
        # First, so that nobody finds the topic gone and no word of it.
        self._state.put({DELETED + info.incarnation: topic.encode()}, {})
        self._infos.pop(topic, None)
        self._admin.delete(self._kafka.name_of(topic))

    def put_if(self, key: str, expected_revision: int, value: bytes | None) -> StateEntry | None:
        """See `Log`; safe to call from many threads."""
        self._check_open()
        expect = {key: expected_revision}
        self._state.check(expect)
        revision = self._state.put({key: value}, expect)
        return None if value is None else StateEntry(key, value, revision)

    def trim(self, topic: str, before: Sequence[int]) -> None:
        """See `Log`; a topic's own retention says when, as whoever else reads it expects."""
        self._check_open()
        info = self._admin.topic(topic)
        if len(before) != info.partitions:
            raise Invalid(
                f"{topic} has {info.partitions} partitions; {len(before)} offsets were given",
                code="partitions_differ",
            )

    def append(
        self,
        topic: str,
        records: Batch,
        state: Mapping[str, bytes] | None = None,
        expect: Mapping[str, int] | None = None,
    ) -> list[Appended]:
        """See `Log`."""
        self._check_open()
        if state or expect:
            return self._act(topic, records, state or {}, expect or {})
        return self._send(topic, records)

    def submit(
        self,
        topic: str,
        records: Batch,
        done: Done,
        state: Mapping[str, bytes] | None = None,
        expect: Mapping[str, int] | None = None,
    ) -> None:
        """See `Log`; one with state is done after those with state before it, one at a time."""
        self._check_open()
        if state or expect:
            self._acts.submit(self._act_and_tell, topic, records, done, state or {}, expect or {})
            return
        try:
            self._submit(topic, records, done)
        except (Closed, Unavailable):
            raise
        except HeadraceError as error:
            refused = error
            self._sending.tell_later(lambda: done(refused))

    def close(self) -> None:
        """See `LogReader`; waits for what was submitted."""
        with self._lock:
            if self._is_closed:
                return
            self._is_closed = True
        self._acts.shutdown()
        self._asking.shutdown()
        super().close()

    def _check_open(self) -> None:
        if self._is_closed:
            raise Closed("The log is closed")

    def _act_and_tell(
        self,
        topic: str,
        records: Batch,
        done: Done,
        state: Mapping[str, bytes],
        expect: Mapping[str, int],
    ) -> None:
        try:
            done(self._act(topic, records, state, expect))
        except HeadraceError as error:
            done(error)

    def _act(
        self, topic: str, records: Batch, state: Mapping[str, bytes], expect: Mapping[str, int]
    ) -> list[Appended]:
        """Append records and put state in one act.

        1. Begin the act. 2. Append its records, each with its name. 3. Settle it with the state.
        """
        info = self._partitioned(topic)
        check(records, self._kafka.record_bytes_max)
        self._state.check(expect)
        if not len(records):
            self._state.put(state, expect)
            return []
        act = self._clock.new_id().hex()
        named = self._state.begin(act, info)  # 1.
        failpoint("act.1")
        try:
            appended = self._send(topic, records, named)  # 2.
            failpoint("act.2")
            self._state.put(state, expect, act)  # 3.
        except Fenced:
            raise
        except HeadraceError:
            with suppress(HeadraceError):
                self._state.abort(act)
            raise
        failpoint("act.3")
        return appended

    def _send(self, topic: str, records: Batch, act: str = "") -> list[Appended]:
        result: Future[list[Appended]] = Future()

        def done(answer: list[Appended] | HeadraceError) -> None:
            if isinstance(answer, HeadraceError):
                result.set_exception(answer)
            else:
                result.set_result(answer)

        self._submit(topic, records, done, act)
        return result.result()

    def _submit(self, topic: str, records: Batch, done: Done, act: str = "") -> None:
        info = self._partitioned(topic)
        check(records, self._kafka.record_bytes_max)
        if not len(records):
            self._sending.tell_later(lambda: done([]))
            return
        with self._lock:
            turn = next(self._turns.setdefault(topic, itertools.count())) % info.partitions
        places = split(records, info.partitions, turn)

        def told(answer: dict[int, list[int]] | HeadraceError) -> None:
            if isinstance(answer, HeadraceError):
                self._infos.pop(topic, None)
                done(answer)
            else:
                done(_appended(topic, places, answer))

        self._sending.send(topic, self._kafka.name_of(topic), records, places, told, act)

    def _partitioned(self, topic: str) -> TopicInfo:
        """Return a topic as it is, or was a moment ago."""
        found = self._infos.get(topic)
        if found is None:
            return self._learn(topic)
        info, asked_s = found
        now_s = self._clock.monotonic_s()
        if now_s - asked_s > INFO_S_MAX:
            # Asked for beside the appends: while brokers change, an answer takes seconds.
            self._infos[topic] = (info, now_s)
            with suppress(RuntimeError):
                self._asking.submit(self._learn, topic)
        return info

    def _learn(self, topic: str) -> TopicInfo:
        """Ask what partitions a topic has, and have the client know them too."""
        known = self._infos.get(topic)
        info = self._admin.topic(topic)
        if known is None or known[0].incarnation != info.incarnation:
            self._sending.learn(self._kafka.name_of(topic))
        self._infos[topic] = (info, self._clock.monotonic_s())
        return info


def _appended(
    topic: str, places: Mapping[int, Sequence[int]], offsets: Mapping[int, Sequence[int]]
) -> list[Appended]:
    """Return where records went: what others appended in between parts them."""
    answer: list[Appended] = []
    for partition, found in offsets.items():
        positions, begin = places[partition], 0
        for end in range(1, len(found) + 1):
            if end == len(found) or found[end] != found[end - 1] + 1:
                answer.append(Appended(topic, partition, found[begin], positions[begin:end]))
                begin = end
    return answer
