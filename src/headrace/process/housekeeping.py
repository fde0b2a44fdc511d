"""What keeps a pipeline's cost flat: compaction, checkpoints, expiry of ids, retention, trimming.

None of it changes what a query answers, but for retention by age, which is an epoch of its own.
Everything is bounded by what the ledger, the slowest view and the duplicate horizon still need.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress

import msgspec
import pyarrow as pa

from headrace.model.errors import Unavailable
from headrace.model.failpoint import failpoint
from headrace.model.plan import LEDGER
from headrace.model.tables import Table
from headrace.process.commit import make_visible, plan_text
from headrace.process.known_ids import expire_ids
from headrace.process.ledger import FileChange, LedgerRow, expire
from headrace.process.owner import Owner
from headrace.process.ranges import partition_key
from headrace.tables.compact import compact, plan_compaction
from headrace.tables.expire import expire_rows

BESIDE_EVERY_S = 1.0
"""How often the thread looks for tables with too many files or commits."""
CHANGELOG_BYTES = 32 << 20
"""How large a file of a changelog becomes: its rows are in memory while they are looked through."""
CHANGELOG_ROWS_MIN = 10_000
"""A changelog with no more rows than this beyond twice its table's is left alone."""
LOOK_AGAIN = 1.25
"""A file is looked through again once its changelog has this many times the rows."""
ORPHAN_AGE_US = 3600 * 1_000_000
"""A file staged so long before the last epoch was committed belongs to none under way."""


class Housekeeper:
    """Remembers when each kind of work was last done.

    Compaction and checkpoints run on a thread of their own (`begin`, `end`): they read and write
    beside the epochs and take the owner's lock only to commit. The rest runs between two epochs.
    """

    def __init__(self, owner: Owner, gate: Callable[[], AbstractContextManager[None]]) -> None:
        """`gate` is entered around each round of work; see `process/gate.py`."""
        self._owner = owner
        self._gate = gate
        self._options = owner.plan.options
        self._changelogs = {t.storage for t in owner.plan.tables if t.keyed}
        self._looked_through: dict[str, int] = {}
        """File of a changelog → rows that the whole of it had when the file was looked through."""
        self._checkpointed: dict[str, int] = {}
        self._next_tidy_s = owner.clock.monotonic_s() + self._options.tidy_every_s
        self._next_retention_s = owner.clock.monotonic_s()
        self._reached: deque[tuple[float, dict[str, str], dict[str, int]]] = deque()
        self._ended = threading.Event()
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._beside, name="housekeeping", daemon=True)

    def begin(self) -> None:
        """Start the thread."""
        self._thread.start()

    def end(self) -> None:
        """Stop the thread; its work under way is finished first."""
        self._ended.set()
        self._thread.join()

    def between_epochs(self) -> None:
        """Do what is due; raises what the thread failed with."""
        if self._failure is not None:
            raise self._failure
        now_s = self._owner.clock.monotonic_s()
        if now_s >= self._next_tidy_s:
            self._next_tidy_s = now_s + self._options.tidy_every_s
            expire_ids(self._owner)
            # The log's owner may be starting again; the log is trimmed next time.
            with suppress(Unavailable):
                self.trim()
            with self._owner.lock:
                self._owner.keyed.maintain(self._owner.opened)
                self._owner.views.maintain()
        if now_s >= self._next_retention_s:
            self._next_retention_s = now_s + self._options.retain_every_s
            retain(self._owner)
            self.expire_ledger()

    def expire_ledger(self) -> int:
        """Forget ledger rows older than commits are kept; return how many."""
        before_us = self._owner.clock.now_us() - round(self._options.keep_commits_s * 1_000_000)
        with self._owner.lock:
            return expire(self._owner.ledger, before_us, self._owner.files_txn(LEDGER))

    def _beside(self) -> None:
        period_s = min(self._options.tidy_every_s, BESIDE_EVERY_S)
        try:
            while not self._owner.clock.wait(self._ended, period_s):
                with self._gate():
                    self.tables()
        except BaseException as e:  # noqa: BLE001 - raised by the loop, between two epochs
            self._failure = e

    def tables(self) -> None:
        """Compact and checkpoint every table that needs it."""
        for name, table in [*self._owner.opened.items(), (LEDGER, self._owner.ledger.table)]:
            if name in self._changelogs:
                self.squeeze(name, table)
            else:
                self.compact(name, table)
            self.checkpoint(name, table)

    def compact(self, name: str, table: Table) -> None:
        """Make many small files of a table one, when there are too many."""
        if len(table.snapshot.files) <= self._options.table_files_max:
            return
        groups = plan_compaction(table.snapshot, files_max=self._options.table_files_max)
        txn, lock = self._owner.files_txn(name), self._owner.lock
        for group in groups:
            compact(self._owner.tables, table, group, txn=txn, lock=lock)

    def squeeze(self, name: str, table: Table) -> None:
        """Leave rows of a changelog out that say nothing any more.

        Small files are made one without them; of the large ones at most one a round is looked
        through, while the changelog has many more rows than its table, and written again if more
        than half of it is of no use. Followers that are behind read the commits of the original
        files, which stay until the slowest is past them.
        """
        owner, keyed = self._owner, name.partition("/")[2]
        files, files_max = table.snapshot.files, self._options.table_files_max
        txn, lock = owner.files_txn(name), owner.lock

        def living(changes: pa.Table) -> pa.Table:
            return owner.keyed.still_said(keyed, changes)

        def living_if_few(changes: pa.Table) -> pa.Table | None:
            kept = living(changes)
            return kept if kept.num_rows * 2 <= changes.num_rows else None

        if len(files) > files_max:
            bounds = {"files_max": files_max, "target_bytes": CHANGELOG_BYTES}
            for group in plan_compaction(table.snapshot, **bounds):
                compact(owner.tables, table, group, txn=txn, lock=lock, squeeze=living)
        rows = sum(file.rows for file in files)
        held = sum(file.rows for file in owner.keyed.table(keyed).snapshot.files)
        if rows < 2 * held + CHANGELOG_ROWS_MIN:
            return
        large = (f for f in table.snapshot.files if f.size_bytes > CHANGELOG_BYTES // 2)
        for file in large:
            if self._looked_through.get(file.path, 0) * LOOK_AGAIN <= rows:
                self._looked_through[file.path] = rows
                compact(owner.tables, table, [file], txn=txn, lock=lock, squeeze=living_if_few)
                return

    def checkpoint(self, name: str, table: Table) -> None:
        """Write a checkpoint every so many commits, then drop old commits and unused files."""
        version = table.snapshot.version
        each = self._options.commits_per_checkpoint
        done = self._checkpointed.setdefault(name, version - version % each)
        if version - done < each:
            return
        with self._owner.lock:
            version = table.snapshot.version
            table.checkpoint(self._options.keep_commits_s)
            keep = version
            if name.startswith(("tables/", "changes/")):
                slowest = self._owner.views.slowest_version(name.partition("/")[2])
                keep = min(version, slowest if slowest is not None else version)
            table.clean(self._staged_before_us() - ORPHAN_AGE_US, keep)
        self._checkpointed[name] = version

    def _staged_before_us(self) -> int:
        """Return a time before anything of the epoch under way was staged, or now if none is.

        The clock alone does not tell: it leaps when a machine that slept wakes up.
        """
        now_us, last = self._owner.clock.now_us(), self._owner.ledger.last
        return now_us if last is None else min(now_us, last.committed_at_us)

    def trim(self) -> None:
        """Let the log forget what was committed longer ago than its retention and the horizon.

        What a plan leaves out and the ledger knows stays from the ledger's offsets on: a later
        plan may read it again. What views have published stays as long, for whoever follows it.
        """
        last = self._owner.ledger.last
        if last is None:
            return
        now_s = self._owner.clock.monotonic_s()
        known = self._owner.log.describe()
        published = {t: known[t] for t in self._owner.plan.change_topics if t in known}
        reached = last.offsets | {
            partition_key(topic, partition): end
            for topic in published
            for partition, end in enumerate(self._owner.log.ends(topic))
        }
        made = last.incarnations | {t: info.incarnation for t, info in published.items()}
        self._reached.append((now_s, made, reached))
        kept_s = max(self._options.log_retention_s, self._options.horizon_s)
        incarnations: dict[str, str] = {}
        allowed: dict[str, int] | None = None
        while self._reached and now_s - self._reached[0][0] >= kept_s:
            _, incarnations, allowed = self._reached.popleft()
        if allowed is None:
            return
        read = {topic.name for topic in self._owner.plan.topics} | published.keys()
        for topic, info in known.items():
            if incarnations.get(topic) == info.incarnation:
                before = [allowed.get(partition_key(topic, p), 0) for p in range(info.partitions)]
                self._owner.log.trim(topic, before)
            elif topic not in read and last.incarnations.get(topic) != info.incarnation:
                # No table is made of it, so nothing but the log's age keeps its records.
                self._owner.log.trim(topic, self._owner.log.ends(topic))


def retain(owner: Owner) -> LedgerRow | None:
    """Take rows out that are past their table's retention; an epoch of its own.

    Files are rewritten, the ledger says so, the commits follow, and views over the tables are
    corrected within the same epoch. Compaction waits for all of it: the ledger must not name files
    that are gone by the time of their commit.
    """
    with owner.lock:
        return _retain(owner)


def _retain(owner: Owner) -> LedgerRow | None:
    last = owner.ledger.last
    if last is None:
        return None
    changes = {}
    for spec in owner.plan.tables:
        if spec.retention_s is not None:
            before_us = owner.clock.now_us() - round(spec.retention_s * 1_000_000)
            name = f"tables/{spec.name}"
            add, remove, gone = expire_rows(
                owner.tables, owner.table(name), "received_at", before_us
            )
            if gone:
                changes[name] = FileChange(owner.epoch_of(name), tuple(add), tuple(remove))
    if not changes:
        return None
    failpoint("retention.1")
    epoch = last.epoch + 1
    row = msgspec.structs.replace(
        last,
        epoch=epoch,
        committed_at_us=owner.clock.now_us(),
        kind="retention",
        plan=owner.plan.fingerprint,
        read_from={},
        files=changes,
        table_epochs={**last.table_epochs, **dict.fromkeys(changes, epoch)},
        topics={},
        tables={},
        plan_text=plan_text(owner),
    )
    owner.ledger.append(row)
    make_visible(owner, row)
    failpoint("retention.2")
    for view in owner.plan.views:
        if f"tables/{view.table}" in changes:
            owner.views.rebuild(view.name)
    owner.views.publish(owner.clock.now_us(), force=True)
    return row
