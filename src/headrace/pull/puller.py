"""One source's way into the log: each page and the cursor after it go into it in one act.

Per page:

1. take the page from the source;
2. of a sweep: leave out what is not news, and write down in the index what the page changes there
   (`seen.py`);
3. append the records and the source's new state, which holds the cursor, in one act, expecting the
   revision that this owner last saw;
4. read the state back: it is what was written, or another owner has taken over.

A crash before 3 is durable takes the same page again, the index having taken its change back; after
it, the next one. Two owners of one source are told apart by the revision: the later one is
`Fenced`.

After the last page of a full sweep, in the same way: deletions of the keys that it did not give, a
page at a time in the order of the keys, then the service's own count, if a topic wants it. The
state says how far that is, so a crash resumes it before the source is opened again.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from hashlib import blake2b
from pathlib import Path
from typing import Protocol, cast

import msgspec
import tenacity
from msgspec.structs import replace

from headrace.model import plan as plans
from headrace.model.batch import Batch
from headrace.model.clock import Clock, rfc3339
from headrace.model.errors import Fenced, Internal, Invalid, Unavailable
from headrace.model.log import Appended, StateEntry
from headrace.model.source import Count, Page, PulledRecord, Source, Sweep, Swept
from headrace.pull.records import Door
from headrace.pull.seen import Entry, Seen
from headrace.pull.state import (
    STATES,
    Pace,
    SourceReport,
    SourceState,
    filled_by,
    read_state,
    state_key,
)
from headrace.pull.sweeps import SweepProgress, follow, is_believed, keyed, sort_out

BACKOFF_S_MIN, BACKOFF_S_MAX = 0.5, 60.0
"""Bounds of the pause after a failure that asks for no longer one; it doubles each time."""
JITTER_S = 0.5
"""Up to this much is added by chance, so that sources do not come back together."""
DELETIONS_MAX = 1000
"""Deletions that are appended in one act."""

_BACKOFF = tenacity.wait_exponential_jitter(
    multiplier=BACKOFF_S_MIN, max=BACKOFF_S_MAX, jitter=JITTER_S
)


class PullLog(Protocol):
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


Report = Callable[[SourceReport], None]
KnownKeys = Callable[[str], Iterable[bytes]]
"""From a topic to the keys whose records are in tables over it, each once or more."""


def no_keys(_topic: str) -> Iterable[bytes]:
    """Know of no keys: what vanished while an index was lost is not found out."""
    return ()


class Puller:
    """One source's way into the log; `run` is called once, on a thread of its own."""

    def __init__(
        self,
        declared: plans.Source,
        source: Source,
        door: Door,
        log: PullLog,
        reading: threading.Lock,
        *,
        index: Path | None = None,
        counts: Door | None = None,
        known_keys: KnownKeys = no_keys,
    ) -> None:
        """Open nothing yet.

        `reading` is held while the log is read, which only one thread may do. `index` is where a
        source that sweeps keeps what it has seen; `counts` makes batches for the topic that
        `declared.counts` names; `known_keys` is asked when an index was lost.
        """
        self.report = SourceReport(declared.name, declared.topic)
        self.failure: BaseException | None = None
        self._declared = declared
        self._key = state_key(declared.name)
        self._source = source
        self._door = door
        self._log = log
        self._reading = reading
        self._counts = counts
        self._known_keys = known_keys
        self._index_path = index
        self._seen: Seen | None = None
        self._revision = 0
        self._value = b""
        self._pace = Pace()
        self._state = SourceState()

    def run(self, clock: Clock, stop: threading.Event, report: Report) -> None:
        """Pull until done, stopped or failed; what is wrong is kept, never raised."""
        try:
            self._until_done(clock, stop, report)
        except Invalid as error:
            self.report.error, self.report.hint = error.message, error.hint
        except BaseException as error:  # noqa: BLE001 - who runs the puller raises it where it is seen
            self.failure = error
        finally:
            if self._seen is not None:
                self._seen.close()
        self.report.go_on()
        report(self.report)

    def _until_done(self, clock: Clock, stop: threading.Event, report: Report) -> None:
        """Pull, and after `Unavailable` wait and open again at the last durable cursor."""
        pages = 0

        def came_further(failed: tenacity.RetryCallState) -> None:
            nonlocal pages
            if self.report.pages > pages:
                failed.attempt_number = 1
            pages = self.report.pages

        def tell(failed: tenacity.RetryCallState) -> None:
            pause_s = failed.upcoming_sleep
            self.report.wait(_unavailable(failed).message, pause_s, clock.now_us())
            report(self.report)

        trying = tenacity.Retrying(
            retry=tenacity.retry_if_exception_type(Unavailable),
            wait=_pause_s,
            stop=tenacity.stop_when_event_set(stop),
            sleep=lambda pause_s: cast("None", clock.wait(stop, pause_s)),
            after=came_further,
            before_sleep=tell,
            retry_error_callback=lambda _: None,
        )
        trying(self._pull, clock, stop, report)

    def _pull(self, clock: Clock, stop: threading.Event, report: Report) -> None:
        if stop.is_set():
            return
        self._resume()
        if self._seen is not None or self._state.sweep is not None:
            self._agree()
        self._end_sweep(clock, stop, report)
        cursor = bytes(self._state.cursor)
        for page in self._source.open(None if cursor == b"null" else cursor):
            if stop.is_set():
                return
            if page.sweep is None:
                self._append(page)
                self.report.notice = page.notice
            else:
                self._append_news(page, page.sweep)
            self.report.advance(page.progress[1], self._pace, clock.monotonic_s())
            report(self.report)
            self._end_sweep(clock, stop, report)
            if page.done:
                self._end()
                return

    def _append(self, page: Page) -> None:
        """Append a page of no sweep: all of it."""
        unchanged = not page.records and page.cursor == bytes(self._state.cursor)
        if unchanged and page.done == self._state.done:
            return
        state = replace(
            self._state,
            cursor=msgspec.Raw(page.cursor),
            records=self._state.records + len(page.records),
            pages=self._state.pages + bool(page.records),
            done=page.done,
        )
        self._put(self.report.topic, self._door.batch(page), state)

    def _append_news(self, page: Page, sweep: Sweep) -> None:
        """Append what of a sweep's page is new or changed."""
        seen = self._seen or self._agree()
        before = follow(self._state.sweep, sweep)
        if before.ended and not page.records:
            return
        news = sort_out(page, seen.look_up(keyed(page)), before.mark)
        progress = replace(
            before,
            ended=before.ended or page.sweep_done,
            pages=before.pages + 1,
            records=before.records + len(page.records),
            changed=before.changed + len(news.changed),
            new=before.new + news.new,
        )
        ends = progress.full and progress.ended and not before.ended
        state = replace(
            self._state,
            cursor=msgspec.Raw(page.cursor),
            records=self._state.records + len(news.changed),
            pages=self._state.pages + 1,
            done=False,
            topic=self.report.topic,
            sweep=progress,
            deleting=b"" if ends else None,
        )
        batch = self._door.batch(replace(page, records=news.changed))
        self._put(self.report.topic, batch, state, news.entries)

    def _end_sweep(self, clock: Clock, stop: threading.Event, report: Report) -> None:
        """Do what is left to do after the last page of a full sweep, if anything is."""
        while self._state.deleting is not None and not stop.is_set():
            self._delete(clock)
            report(self.report)
        if self._state.counting and not stop.is_set():
            self._count(clock)

    def _end(self) -> None:
        """Say that the source is done, if nothing is left to do about its last sweep."""
        state = self._state
        if not state.done and state.deleting is None and not state.counting:
            self._put(self.report.topic, Batch(), replace(state, done=True))

    def _delete(self, clock: Clock) -> None:
        """Append a page of deletions; after the last one the sweep is complete."""
        state, seen = self._state, self._seen or self._agree()
        progress, beyond = cast("SweepProgress", state.sweep), cast("bytes", state.deleting)
        if progress.mark < seen.whole_from:
            # The index was begun during the sweep: what is not in it may well have been given.
            self._put(self.report.topic, Batch(), replace(state, deleting=None))
            return
        if not beyond and not self._is_believed(seen, progress):
            state = replace(state, doubted=progress.mark)
            self._put(self.report.topic, Batch(), self._completed(state, clock))
            return
        keys = seen.not_given(progress.mark, beyond, DELETIONS_MAX)
        state = replace(
            state,
            records=state.records + len(keys),
            deleting=keys[-1] if keys else beyond,
            sweep=replace(progress, deleted=progress.deleted + len(keys)),
        )
        if len(keys) < DELETIONS_MAX:
            state = self._completed(replace(state, doubted=None), clock)
        swept = cast("Swept", self._source)
        records = [
            PulledRecord(swept.deletion(key), key, seen_at_us=progress.started_at_us, deleted=True)
            for key in keys
        ]
        sweep = Sweep(progress.number, progress.started_at_us, progress.full)
        batch = self._door.batch(Page(records, bytes(state.cursor), sweep=sweep))
        self._put(self.report.topic, batch, state, dict.fromkeys(keys))

    def _completed(self, state: SourceState, clock: Clock) -> SourceState:
        return replace(
            state,
            deleting=None,
            counting=self._counts is not None,
            completed_at_us=clock.now_us(),
        )

    def _is_believed(self, seen: Seen, progress: SweepProgress) -> bool:
        """Return whether what the sweep missed is gone; the report tells if not."""
        self.report.notice = ""
        if seen.incomplete:
            self._complete(seen)
        known, missed = seen.size() - progress.new, seen.size(progress.mark)
        doubted = self._state.doubted
        if is_believed(known, missed, seen.size(doubted) if doubted else 0):
            return True
        self.report.notice = (
            f"Sweep {progress.number} missed {missed} of {known} keys, which is not believed until"
            " the next full sweep misses them too"
        )
        return False

    def _complete(self, seen: Seen) -> None:
        """Add to an index that was begun anew what the tables know of the source."""
        topic = self.report.topic
        with self._reading:
            others = filled_by(self._log.scan(STATES), topic) - {self.report.name}
        if others:
            # Nothing in a table says which source a key is of.
            self.report.notice = (
                "The index was lost; what vanished before it was made anew is not found out, as"
                f" {', '.join(sorted(others))} fills {topic} too"
            )
        seen.complete(() if others else self._known_keys(topic))

    def _count(self, clock: Clock) -> None:
        """Append the service's own count."""
        progress, counts = cast("SweepProgress", self._state.sweep), self._counts
        state = replace(self._state, counting=False)
        if counts is None:
            self._put(self.report.topic, Batch(), state)
            return
        asked_at = rfc3339(clock.now_us())
        records, filter_ = cast("Swept", self._source).count()
        count = Count(self.report.name, self._declared.kind, filter_, records, asked_at)
        # A name of the sweep, so that a count that somehow comes again is a duplicate.
        name = f"count/{progress.number}/{progress.started_at_us}"
        record = PulledRecord(msgspec.json.encode(count), id=name)
        batch = counts.batch(Page([record], bytes(state.cursor)))
        self._put(counts.topic, batch, state)

    def _put(
        self,
        topic: str,
        batch: Batch,
        state: SourceState,
        entries: dict[bytes, Entry | None] | None = None,
    ) -> None:
        if self._seen is not None:
            state = replace(state, content=_content(batch, entries or {}))
        value = msgspec.json.encode(state)
        if self._seen is not None:
            self._seen.write(self._value, value, entries or {})  # 2
        try:
            self._log.append(topic, batch, {self._key: value}, {self._key: self._revision})  # 3
        except Fenced:
            # An append whose answer was lost on the way may have been ours.
            self._resume(value)
            return
        self._resume(value)  # 4

    def _resume(self, written: bytes | None = None) -> None:
        """Take over what the log keeps; `Fenced` if it is not what this owner has `written`."""
        with self._reading:
            entry = self._log.get(self._key)
        if written is not None and (entry is None or entry.value != written):
            raise Fenced(
                f"Source {self.report.name} is pulled by another process too",
                hint="stop one of the two: each source has one owner",
            )
        self._revision, self._value = (entry.revision, entry.value) if entry else (0, b"")
        self._state = read_state(entry)
        self.report.take(self._state)

    def _agree(self) -> Seen:
        """Have the index say what the log says; make it anew if that cannot be done."""
        if self._index_path is None:
            raise Internal(f"Source {self.report.name} sweeps and was given no place for its index")
        seen = self._seen or Seen(self._index_path)
        if not seen.settle(self._value):
            last = self._state.sweep
            seen.begin(self._value, last.mark + 1 if last else 1, incomplete=last is not None)
        self._seen = seen
        return seen


def _content(batch: Batch, entries: dict[bytes, Entry | None]) -> str:
    """Return 32 hex digits that differ if a page does anything else than another."""
    digest = blake2b(digest_size=16)
    digest.update(msgspec.msgpack.encode((batch.keys, batch.values, list(entries.items()))))
    return digest.hexdigest()


def _unavailable(failed: tenacity.RetryCallState) -> Unavailable:
    return cast("Unavailable", failed.outcome and failed.outcome.exception())


def _pause_s(failed: tenacity.RetryCallState) -> float:
    return max(_BACKOFF(failed), _unavailable(failed).retry_after_s)
