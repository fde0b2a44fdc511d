"""The one writer of an embedded log: commits groups, seals segments, gives old ones up.

Used from one thread. `HeadraceError` means that nothing was done; any other error means that
durability is unknown or a promise is broken: the process must end and recover from disk.

*Appending.* 1. The group is worked out in memory. 2. Its rows are written in one transaction.
3. COMMIT. 4. The head is brought up to it; only then may anybody be told.

*Sealing segment N.* 1. N+1 is built with the first offset of every partition, the topics and all
keyed state, durable, and gets its name: from here N has ended. 2. N is marked closed. 3. N is
checkpointed and leaves WAL mode. A crash before 1 leaves N the newest; one after it is finished by
the next start. Appends go to N+1 only after 1, so no offset can be given twice.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import apsw

from headrace.log import segment as segments
from headrace.log.group import Answer, Append, Group, Head, Key, Statement, unknown_topic
from headrace.log.wal import check_wal
from headrace.model.clock import Clock
from headrace.model.errors import Corrupt, Internal, Invalid, Unavailable
from headrace.model.failpoint import failpoint, is_armed
from headrace.model.log import DELETED, StateEntry, TopicInfo

CHECKPOINT_PAGES = 1000
"""A WAL of about 4 MB is begun over: syncing a file that does not grow is faster."""

SEAL_AGAIN_AFTER_S = 1.0
_PAGE_BYTES = 4096
_ROW_BYTES = 100
"""What a row takes beside its blob."""


class Writer:
    """Opens or begins the log in `directory`, finishing what a crash interrupted."""

    def __init__(
        self,
        directory: Path,
        clock: Clock,
        *,
        segment_bytes_max: int,
        segment_age_s_max: float,
        append_bytes_max: int,
    ) -> None:
        self._directory = directory
        self._clock = clock
        self._segment_bytes_max = segment_bytes_max
        self._segment_age_us_max = round(segment_age_s_max * 1_000_000)
        self._append_bytes_max = append_bytes_max
        self._seal_not_before_s = 0.0
        self._wal_pages = 0
        self._unsettled: list[int] = []
        self._sealed: list[tuple[int, dict[Key, int]]] = []
        """Number and first offsets of every older segment, oldest first."""
        self._allowed: dict[int, list[int]] = {}
        """Topic number → offsets below which `trim` gave the records up."""
        segments.remove_leftovers(directory)
        numbers = segments.segment_numbers(directory) or [self._begin()]
        _check_no_segment_missing(numbers)
        for number in numbers[:-1]:
            self._load_sealed(number)
        self._open(numbers[-1])

    def _begin(self) -> int:
        segments.create_segment(self._directory, segments.Contents(1, self._clock.now_us()))
        return 1

    def _load_sealed(self, number: int) -> None:
        connection = segments.open_writing(self._path(number))
        try:
            self._sealed.append((number, segments.load_firsts(connection)))
            if not segments.is_settled(connection):
                check_wal(self._path(number), connection)
                if not segments.settle(connection):
                    self._unsettled.append(number)
        finally:
            connection.close()

    def _open(self, number: int, *, is_new: bool = False) -> None:
        """Make a segment the one that is written to; `is_new`: one that was made just now."""
        path = self._path(number)
        self._connection = segments.open_writing(path)
        if not is_new:
            check_wal(path, self._connection)
            # Frames that a crashed writer did not sync are visible now: nobody may be shown them
            # before they are durable. Starting the WAL over also makes `check_wal` exact. A new
            # segment has no frames, and a reader that has found it already would be in the way.
            self._connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_TRUNCATE)
        if segments.is_closed(self._connection):
            raise Corrupt(
                f"The log segment {path.name} is closed, and the one after it is missing",
                hint="log files were removed; restore the data directory from a backup",
                code="log_gap",
            )
        if is_armed("append.2"):
            self._connection.set_commit_hook(_reach_append_2)
        contents = segments.load_contents(self._connection)
        ends = {
            key: segments.end_of(self._connection, *key, first)
            for key, first in contents.firsts.items()
        }
        bytes_until = {key: segments.bytes_until(self._connection, *key) for key in contents.firsts}
        self._head = Head(contents, ends, bytes_until)
        ((self._size_bytes,),) = segments.query(
            self._connection,
            "SELECT coalesce(sum(length(blob) + ?), 0) FROM batches",
            (_ROW_BYTES,),
        )

    # Appending and keyed state.

    def append(self, appends: Sequence[Append]) -> list[Answer]:
        """Commit appends together and return what each is answered, in order."""
        group = Group(self._head, self._append_bytes_max)
        for append in appends:
            group.place(append)
        try:
            statements = group.statements()
        except Exception as error:  # noqa: BLE001 - one malformed batch must not fail its neighbours
            if len(appends) == 1:
                return [Internal(f"The batch cannot be encoded: {error}", code="batch_malformed")]
            return [answer for append in appends for answer in self.append([append])]
        try:
            self._commit(statements)
        except Unavailable as error:
            # Who was fenced may have been by an append of this group, which was not done.
            return [a if isinstance(a, Invalid) else error for a in group.answers]
        group.apply()
        return group.answers

    def put_if(self, key: str, expected_revision: int, value: bytes | None) -> StateEntry | None:
        """See `Log.put_if`."""
        group = Group(self._head, self._append_bytes_max)
        group.expect({key: expected_revision})
        group.put(key, value)
        self._commit(group.statements())
        group.apply()
        return self._head.contents.state.get(key)

    def _commit(self, statements: list[Statement]) -> None:
        """Run statements in one transaction, durable on return; `Unavailable` if there is no room.

        A lone statement is a transaction of its own: without BEGIN and COMMIT the door takes a
        quarter more single records.
        """
        if not statements:
            return
        try:
            failpoint("append.1")
            if len(statements) == 1:
                self._connection.execute(*statements[0])
            else:
                self._transact(statements)
        except (apsw.Error, OSError) as error:
            if not segments.is_no_room(error):
                raise
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
            raise Unavailable(
                f"The log has no room: {error}",
                hint="free space on the disk that holds the data directory; nothing else is needed",
                code="no_room",
            ) from error
        failpoint("append.3")
        for _, bindings in statements:
            size_bytes = _ROW_BYTES + (len(bindings[-1]) if isinstance(bindings[-1], bytes) else 0)
            self._size_bytes += size_bytes
            self._wal_pages += 1 + size_bytes // _PAGE_BYTES
        self._wal_pages += 1

    def _transact(self, statements: list[Statement]) -> None:
        self._connection.execute("BEGIN IMMEDIATE")
        for sql, bindings in statements:
            self._connection.execute(sql, bindings)
        self._connection.execute("COMMIT")

    # Topics.

    def create(self, topic: str, partitions: int) -> TopicInfo:
        """See `Log.create`."""
        contents = self._head.contents
        if topic in self._head.topics:
            info = contents.topics[self._head.topics[topic][0]]
            if info.partitions != partitions:
                raise Invalid(
                    f"The topic {topic} has {info.partitions} partitions, not {partitions}",
                    hint="keep the number, or delete the topic and create it again",
                    code="topic_exists",
                )
            return info
        if not topic or partitions < 1:
            raise Invalid("A topic needs a name and at least one partition")
        id_ = contents.next_topic
        info = TopicInfo(topic, segments.new_incarnation(self._clock.new_id()), partitions)
        keys = [(id_, partition) for partition in range(partitions)]
        statements: list[Statement] = [
            (segments.INSERT_TOPIC, segments.topic_row(id_, info)),
            ("UPDATE segment SET next_topic = ?", (id_ + 1,)),
        ]
        statements += [("INSERT INTO firsts VALUES (?,?,0,0)", key) for key in keys]
        self._commit(statements)
        contents.next_topic = id_ + 1
        contents.topics[id_] = info
        contents.firsts.update(dict.fromkeys(keys, 0))
        contents.bytes_before.update(dict.fromkeys(keys, 0))
        self._head.ends.update(dict.fromkeys(keys, 0))
        self._head.bytes_until.update(dict.fromkeys(keys, 0))
        self._head.topics[topic] = (id_, partitions)
        return info

    def delete(self, topic: str) -> None:
        """See `Log.delete`."""
        id_, partitions = self._find(topic)
        contents = self._head.contents
        group = Group(self._head, self._append_bytes_max)
        group.put(DELETED + contents.topics[id_].incarnation, topic.encode())
        self._commit(
            [
                ("DELETE FROM topics WHERE id = ?", (id_,)),
                ("DELETE FROM firsts WHERE topic = ?", (id_,)),
                *group.statements(),
            ]
        )
        group.apply()
        del contents.topics[id_], self._head.topics[topic]
        for partition in range(partitions):
            for known in (
                contents.firsts,
                contents.bytes_before,
                self._head.ends,
                self._head.bytes_until,
            ):
                del known[id_, partition]

    def _find(self, topic: str) -> tuple[int, int]:
        if topic not in self._head.topics:
            raise unknown_topic(topic)
        return self._head.topics[topic]

    # Segments.

    def tend(self) -> None:
        """Do what is due between two groups: start the WAL over, seal, settle."""
        if self._wal_pages >= CHECKPOINT_PAGES:
            self._wal_pages = 0
            try:
                self._connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_PASSIVE)
            except apsw.Error as error:
                if not segments.is_no_room(error):
                    raise
        if self._size_bytes and self._is_seal_due():
            self.seal()

    def _is_seal_due(self) -> bool:
        age_us = self._clock.now_us() - self._head.contents.opened_at_us
        is_full = self._size_bytes >= self._segment_bytes_max or age_us >= self._segment_age_us_max
        return is_full and self._clock.monotonic_s() >= self._seal_not_before_s

    def seal(self) -> bool:
        """End the newest segment and begin the next; see the module's words.

        Returns whether it was done: without room the segment goes on.
        """
        contents = self._head.contents
        number = contents.number + 1
        try:
            failpoint("seal.1")
            segments.create_segment(self._directory, self._next_contents())  # 1
        except (apsw.Error, OSError) as error:
            if not segments.is_no_room(error) or self._path(number).exists():
                raise
            segments.remove_leftovers(self._directory)
            self._seal_not_before_s = self._clock.monotonic_s() + SEAL_AGAIN_AFTER_S
            return False
        failpoint("seal.2")
        self._sealed.append((contents.number, contents.firsts))
        is_settled = segments.settle(self._connection)  # 2, 3
        self._connection.close()
        self._settle_rest()
        if not is_settled:
            self._unsettled.append(contents.number)
        turns = self._head.turns
        self._open(number, is_new=True)
        self._head.turns = turns
        self._wal_pages = 0
        return True

    def _next_contents(self) -> segments.Contents:
        contents = self._head.contents
        return segments.Contents(
            contents.number + 1,
            self._clock.now_us(),
            contents.next_topic,
            contents.revision,
            contents.topics,
            dict(self._head.ends),
            dict(self._head.bytes_until),
            contents.state,
        )

    def _settle_rest(self) -> None:
        """Try again what somebody's open connection prevented."""
        for number in list(self._unsettled):
            connection = segments.open_writing(self._path(number))
            try:
                if segments.settle(connection):
                    self._unsettled.remove(number)
            finally:
                connection.close()

    def release(self, topic: str, before: Sequence[int]) -> list[Path]:
        """Note that a topic's records below `before` are given up.

        Returns the segments that nobody needs any more, oldest first: the log has forgotten them,
        and the caller unlinks them.
        """
        id_, partitions = self._find(topic)
        if len(before) != partitions:
            raise Invalid(f"The topic {topic} has {partitions} partitions, not {len(before)}")
        allowed = self._allowed.get(id_, [0] * partitions)
        self._allowed[id_] = [max(pair) for pair in zip(allowed, before, strict=True)]
        releasable = 0
        while releasable < len(self._sealed) and self._is_releasable(releasable):
            releasable += 1
        if releasable and self._unsettled:
            self._settle_rest()
        released: list[Path] = []
        while len(released) < releasable and self._sealed[0][0] not in self._unsettled:
            released.append(self._path(self._sealed.pop(0)[0]))
        return released

    def _is_releasable(self, position: int) -> bool:
        """Return whether every record of an older segment is given up or its topic deleted."""
        _, firsts = self._sealed[position]
        is_last = position + 1 == len(self._sealed)
        after = self._head.contents.firsts if is_last else self._sealed[position + 1][1]
        for (id_, partition), first in firsts.items():
            end = after.get((id_, partition), first)
            is_alive = id_ in self._head.contents.topics
            if is_alive and end > max(first, self._allowed_at(id_, partition)):
                return False
        return True

    def _allowed_at(self, id_: int, partition: int) -> int:
        return self._allowed[id_][partition] if id_ in self._allowed else 0

    def close(self) -> None:
        """Bring the WAL home and let go of the newest segment."""
        try:
            self._connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_TRUNCATE)
        except apsw.Error as error:
            if not segments.is_no_room(error):
                raise
        finally:
            self._connection.close()

    def _path(self, number: int) -> Path:
        return segments.segment_path(self._directory, number)


def _reach_append_2(*_: object) -> bool:
    """Stand between a transaction's last write and its COMMIT; False lets it commit."""
    failpoint("append.2")
    return False


def _check_no_segment_missing(numbers: list[int]) -> None:
    if numbers != list(range(numbers[0], numbers[-1] + 1)):
        raise Corrupt(
            "Segments are missing from the middle of the log",
            hint="log files were removed; restore the data directory from a backup",
            code="log_gap",
        )
