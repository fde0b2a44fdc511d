"""All views of a pipeline, as its owner keeps them: load, fold, publish.

Each view's state is in memory; `view_store.py` keeps it on disk together with the version of the
table that it contains. What the table has beyond that version, or all of it for a view that is new
or was changed, waits as a backlog of files that is folded file by file, between epochs: partials
merge in any order, so new rows need not wait for old ones. A view is published once its backlog is
done, so that a changed view takes the place of the old one only when it has caught up.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from headrace.define.types import quoted
from headrace.define.view_sql import WATERMARK_PASSED, WINDOW_END
from headrace.model.clock import Clock
from headrace.model.errors import Corrupt, Invalid
from headrace.model.plan import WEIGHT, Plan, View
from headrace.model.tables import DataFile, Snapshot, Tables
from headrace.process.follow import commits_since
from headrace.process.keyed import KeyedTables
from headrace.process.keyed_table import KeyedTable
from headrace.process.view_store import Contained, ViewStore
from headrace.stage.apply import partials_of_changes
from headrace.stage.engine import Engine, SqlError
from headrace.stage.fold import ViewState, partials_of

PUBLISH_SHARE = 0.2
"""The part of the time that publishing may take, all views together."""

WRITERS_MAX = 8
"""Views that are written at the same time."""

CATCH_UP_AT_START_S = 2.0
CATCH_UP_BETWEEN_EPOCHS_S = 0.2
"""How long a view's backlog may hold up an epoch."""

IDLE_US = 2_000_000
"""A partition from which nothing came for this long no longer holds the watermark back."""

VERSIONS_BEHIND_MAX = 20
"""How many commits without rows for a view may pass before its state names the newest."""

Changes = Callable[[View, pa.Table, pa.Table, Contained], None]
"""Takes what of a view changes, before it is published: rows that are new or other than before, the
keys of rows that are gone, and what the view contains."""


class MaintainedView:
    """One view: its state, what it contains, and what is still to be folded in."""

    def __init__(
        self,
        view: View,
        tables: Tables,
        clock: Clock,
        engine: Engine,
        pipeline: str,
        changes: Changes | None,
        keyed: KeyedTable | None,
    ) -> None:
        """`keyed` is the table that the view reads, published, if it is a keyed one."""
        self.view = view
        self._keyed = keyed
        self._source = keyed.spec.storage if keyed else f"tables/{view.table}"
        self.store = ViewStore(view, tables, clock, engine, pipeline)
        self._tables = tables
        self._clock = clock
        self._engine = engine
        self._pipeline = pipeline
        self._changes = changes if view.topic else None
        self._state = ViewState(view, engine)
        self._backlog: deque[DataFile] = deque()
        self._base: Snapshot | None = None
        self.contained = Contained("", 0, 0)
        self._stored: Contained | None = None
        self._changed = False
        self.cost_s = 0.0
        """What a publish takes, a moving average; 0 before the first."""
        self.next_flip_us: int | None = None
        """The watermark at which the next window passes, if that is known."""
        self._published: pa.Table | None = None
        self._next_s = -math.inf

    @property
    def caught_up(self) -> bool:
        """Return whether the state holds all rows of the version that it contains."""
        return not self._backlog

    @property
    def needed_version(self) -> int:
        """Return the version of the table whose commits and files the view still needs."""
        if self._stored is not None:
            return self._stored.version
        return self._base.version if self._base else 0

    def load(self) -> None:
        """Load the stored state and find what the table has beyond it; else start over."""
        table = self._tables.open(self._source)
        if table is None:
            raise Corrupt(f"The table {self.view.table} of view {self.view.name} is missing")
        snapshot = table.snapshot
        stored = self.store.contained(snapshot.table_id)
        added = None
        kept_since = self._keyed.kept_since if self._keyed else 0
        if stored is not None and kept_since <= stored.version:
            epoch_txn = self._epoch_txn(snapshot)
            added = commits_since(table, stored.version, stored.epoch, epoch_txn)
        if stored is None or added is None or any(a.removed_rows for a in added):
            self._start_over(snapshot)
            return
        self._state = ViewState(self.view, self._engine, self.store.load())
        self._backlog = deque(f for a in added for f in a.files)
        self._base = snapshot
        self._stored = stored
        self._changed = bool(self._backlog)
        epoch = max(stored.epoch, self._epoch_of(snapshot))
        self.contained = Contained(stored.table_id, snapshot.version, epoch)
        self._find_flip_of_public()

    def rebuild(self) -> None:
        """Start over from the table's newest version, and fold all of it."""
        snapshot = self._tables.snapshot(self._source)
        if snapshot is None:
            raise Corrupt(f"The table {self.view.table} of view {self.view.name} is missing")
        self._start_over(snapshot)
        self.catch_up(math.inf)

    def _start_over(self, snapshot: Snapshot) -> None:
        self._state = ViewState(self.view, self._engine)
        self._backlog = deque(() if self._keyed else snapshot.files)
        if self._keyed:
            # Old rows in a changelog have the columns that views read then, perhaps not this one's.
            for file in self._keyed.snapshot.files:
                self._fold_file(self._keyed.snapshot, file)
        self._base = snapshot
        self._stored = None
        self._changed = True
        self.contained = Contained(snapshot.table_id, snapshot.version, self._epoch_of(snapshot))

    def _epoch_of(self, snapshot: Snapshot) -> int:
        """Return the newest epoch that a snapshot of the table contains; 0 if none."""
        return snapshot.txns.get(self._epoch_txn(snapshot), 0)

    def _epoch_txn(self, snapshot: Snapshot) -> str:
        return f"{self._pipeline}/{snapshot.name}#epoch"

    def catch_up(self, seconds: float) -> None:
        """Fold files of the backlog, at least one, until `seconds` have passed."""
        began_s = self._clock.monotonic_s()
        while self._backlog:
            assert self._base is not None
            self._fold_file(self._base, self._backlog[0])
            self._backlog.popleft()
            if self._clock.monotonic_s() - began_s >= seconds:
                return

    def _fold_file(self, snapshot: Snapshot, file: DataFile) -> None:
        """Take in the rows of a file of the table, or the changes in one of its changelog."""
        # A table without a key may have a column of the weight's name, which is then like others.
        changelog = self._keyed is not None and snapshot.name == self._source
        names = [*self.view.reads, *([WEIGHT] if changelog else [])]
        fields = [snapshot.schema.field(name) for name in names]
        narrow = msgspec.structs.replace(snapshot, schema=pa.schema(fields))
        rows = self._tables.read(narrow, [file])
        partials = partials_of_changes if changelog else partials_of
        try:
            self._state.add(partials(self.view, rows, self._engine))
        except SqlError as error:
            raise Invalid(
                f"View {self.view.name} fails on rows that are in {self.view.table}: "
                f"{error.message}",
                hint="use TRY_CAST or a WHERE that leaves these rows out",
                code="view_failed",
            ) from error

    def add(self, partials: Mapping[str, pa.Table] | None, version: int, epoch: int) -> None:
        """Take in an epoch's partials, None if there are none, and what is contained now."""
        if partials is not None:
            self._state.add(partials)
            self._changed = True
        self.contained = Contained(self.contained.table_id, version, epoch)

    def is_due(self, now_s: float, watermark_us: int | None) -> bool:
        """Return whether to publish now."""
        flip_us = self.next_flip_us
        flips = watermark_us is not None and flip_us is not None and watermark_us >= flip_us
        return (self.is_behind or flips) and now_s >= self._next_s

    @property
    def is_behind(self) -> bool:
        """Return whether the public table does not show what the state holds."""
        return self._changed or not self.store.in_step

    def prepare(self, watermark_us: int | None) -> Callable[[], None]:
        """Make what is to be published; return what writes it, which needs no engine.

        Published is, in this order: 1. the change topic, here; then by what is returned 2. the
        state, 3. the public table.
        """
        if self.view.window and watermark_us is None:
            watermark_us = self._state.latest_us()
        rows = self._state.final(watermark_us)
        # 1
        if self._changes is not None:
            self._send_changes(rows, self._changes)
        stale = self._stored is None or self._changed
        parts = self._state.fold() if stale else {}
        self._find_next_flip(watermark_us)

        def write() -> None:
            # 2
            if stale:
                self.store.write_state(parts, self.contained)
                self._stored = self.contained
            # 3
            assert self._stored is not None
            self.store.write_public(rows, self._stored)
            self._changed = False

        return write

    def took(self, seconds: float) -> None:
        """Take in what a publish cost."""
        self.cost_s = 0.8 * self.cost_s + 0.2 * seconds if self.cost_s else seconds

    def wait_until(self, next_s: float) -> None:
        """Publish no earlier than `next_s`, monotonic."""
        self._next_s = next_s

    def name_contained(self) -> None:
        """Let the stored state name the newest version when many brought no rows for it."""
        stored = self._stored
        if stored is None or self.is_behind or self._backlog:
            return
        if self.contained.version - stored.version >= VERSIONS_BEHIND_MAX:
            self.store.name_contained(self.contained)
            self._stored = self.contained

    def _send_changes(self, rows: pa.Table, changes: Changes) -> None:
        before = self._published
        if before is None:
            before = self.store.public_rows()
        keys = ", ".join(quoted(name) for name in self.view.key)
        changed, gone = rows, rows.slice(0, 0).select(self.view.key)
        if before is not None:
            both = {"rows": rows, "before": before}
            sql = "SELECT * FROM rows EXCEPT ALL SELECT * FROM before"
            changed = self._engine.query(sql, both)
            sql = f"SELECT {keys} FROM before EXCEPT SELECT {keys} FROM rows"
            gone = self._engine.query(sql, both) if keys else gone
        if changed.num_rows or gone.num_rows:
            changes(self.view, changed, gone, self.contained)
        self._published = rows

    def _find_next_flip(self, watermark_us: int | None) -> None:
        window = self.view.window
        if window is None or watermark_us is None:
            return
        starts = self._state.window_starts().to_numpy(zero_copy_only=False)
        ends = starts + window.size_us + window.lateness_us
        later = ends[ends > watermark_us]
        self.next_flip_us = int(np.min(later)) if len(later) else None

    def _find_flip_of_public(self) -> None:
        """Find what `_find_next_flip` does in the table that was published before the start."""
        window = self.view.window
        rows = self.store.public_rows() if window else None
        if window is None or rows is None:
            return
        still_open = rows.filter(pc.invert(rows.column(WATERMARK_PASSED)))
        end = pc.min(pc.cast(still_open.column(WINDOW_END), pa.int64())).as_py()
        self.next_flip_us = None if end is None else end + window.lateness_us


class ViewKeeper:
    """The views of a plan. Used from one thread, under the owner's lock."""

    def __init__(
        self,
        plan: Plan,
        tables: Tables,
        clock: Clock,
        engine: Engine,
        keyed: KeyedTables,
        changes: Changes | None = None,
    ) -> None:
        """`changes` takes the changed rows of views with a topic; `keyed` is recovered first."""
        self._plan = plan
        self._keyed = keyed
        self._clock = clock
        self._clocks: dict[str, int] = {}
        self._tables = tables
        self._engine = engine
        self._changes = changes
        self._views: dict[str, MaintainedView] = {}

    def recover(self) -> None:
        """Load every view's state and begin to fold what the tables have beyond it.

        `Invalid` (view_failed): a view's SQL fails on rows that are in its table.
        """
        plan = self._plan
        self._views = {
            view.name: MaintainedView(
                view,
                self._tables,
                self._clock,
                self._engine,
                plan.name,
                self._changes,
                self._keyed.table(view.table) if plan.table(view.table).keyed else None,
            )
            for view in plan.views
        }
        # A view that starts over a keyed table begins with what is published of it.
        self._keyed.publish(PUBLISH_SHARE, force=True)
        for maintained in self._views.values():
            maintained.load()
        for maintained in self._views.values():
            maintained.catch_up(CATCH_UP_AT_START_S / len(self._views))

    def add(
        self,
        partials: Mapping[str, Mapping[str, pa.Table]],
        versions: Mapping[str, int],
        epoch: int,
    ) -> None:
        """Take in an epoch's partials (view → part → rows).

        `versions` are the tables' after the epoch's commits, by name without `tables/`.
        """
        for name, maintained in self._views.items():
            maintained.add(partials.get(name), versions[maintained.view.table], epoch)

    def set_clocks(self, clocks: Mapping[str, int]) -> None:
        """Take in the partitions' clocks, `topic/partition` → microseconds."""
        self._clocks = dict(clocks)

    def publish(self, now_us: int, *, force: bool = False) -> int:
        """Publish the views that are due; with `force`, all that are behind. Returns how many.

        Publishing takes at most a fifth of the time: a view waits T after a publish that costs c,
        with T ∝ √c over all views, which makes the sum of the waits least. Cheap ones are published
        in each epoch.
        """
        published = self._keyed.publish(PUBLISH_SHARE, force=force)
        writes: dict[MaintainedView, Callable[[], None]] = {}
        began_s = self._clock.monotonic_s()
        for maintained in self._views.values():
            if not maintained.caught_up:
                maintained.catch_up(math.inf if force else CATCH_UP_BETWEEN_EPOCHS_S)
            if not maintained.caught_up:
                continue
            watermark_us = self._watermark_us(maintained.view, now_us)
            now_s = math.inf if force else self._clock.monotonic_s()
            if maintained.is_due(now_s, watermark_us):
                writes[maintained] = maintained.prepare(watermark_us)
        if writes:
            _at_once(list(writes.values()))
            share_s = (self._clock.monotonic_s() - began_s) / len(writes)
            for maintained in writes:
                maintained.took(share_s)
                self._space_out(maintained)
        return published + len(writes)

    def rebuild(self, view: str) -> None:
        """Make a view's state anew from its table, from which rows were taken."""
        self._views[view].rebuild()

    def next_timer(self) -> int | None:
        """Return when a window will have passed in a view that is idle till then, wall time."""
        flips = [v.next_flip_us for v in self._views.values() if self._follows_clock(v.view)]
        return min((f + IDLE_US for f in flips if f is not None), default=None)

    def slowest_version(self, table: str) -> int | None:
        """Return the oldest version of what epochs append to a table that is still needed.

        None if nothing is made of it.
        """
        needed = [v.needed_version for v in self._views.values() if v.view.table == table]
        keyed = self._keyed.slowest_version(table)
        return min([*needed, *([] if keyed is None else [keyed])], default=None)

    def caught_up(self) -> bool:
        """Return whether no view has a backlog."""
        return all(v.caught_up for v in self._views.values())

    def maintain(self) -> None:
        """Do at most one checkpoint and clean-up of a view's tables."""
        for maintained in self._views.values():
            maintained.name_contained()
            if maintained.store.maintain():
                return

    def _space_out(self, maintained: MaintainedView) -> None:
        roots = sum(math.sqrt(v.cost_s) for v in self._views.values())
        wait_s = math.sqrt(maintained.cost_s) * roots / PUBLISH_SHARE
        maintained.wait_until(self._clock.monotonic_s() + wait_s - maintained.cost_s)

    def _watermark_us(self, view: View, now_us: int) -> int | None:
        """Return the watermark of a view that follows received_at; None if its rows tell.

        The least clock of the partitions that the table reads, or the wall clock for those idle.
        """
        if not self._follows_clock(view):
            return None
        table = next(t for t in self._plan.tables if t.name == view.table)
        idle_us = now_us - IDLE_US
        clocks = [
            self._clocks.get(f"{topic.name}/{partition}", idle_us)
            for topic in (self._plan.topic(i.topic) for i in table.inputs)
            for partition in range(topic.partitions)
        ]
        return min((max(clock, idle_us) for clock in clocks), default=idle_us)

    def _follows_clock(self, view: View) -> bool:
        return view.window is not None and view.window.on == "received_at"


def _at_once(writes: Sequence[Callable[[], None]]) -> None:
    """Write several views beside one another: most of it is waiting for the disk."""
    if len(writes) == 1:
        writes[0]()
        return
    with ThreadPoolExecutor(WRITERS_MAX, "publish") as pool:
        for written in [pool.submit(write) for write in writes]:
            written.result()
