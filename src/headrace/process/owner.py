"""What the one owner of a pipeline holds between two epochs.

All of it can be made again from storage: `process/recover.py` does. `lock` is held by every commit
to a table, from its snapshot to its last fsync, so that compaction beside an epoch cannot commit
from a state that the epoch changed.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, field

from headrace.model.clock import Clock
from headrace.model.errors import Internal
from headrace.model.log import Log
from headrace.model.plan import Plan
from headrace.model.runner import Runner
from headrace.model.tables import Table, Tables
from headrace.process.keyed import KeyedTables
from headrace.process.ledger import Ledger
from headrace.process.views import ViewKeeper
from headrace.stage.duplicates import IdIndex


@dataclass
class Owner:
    """The parts that the loop, the commit and the housekeeping share."""

    plan: Plan
    log: Log
    tables: Tables
    runner: Runner
    clock: Clock
    ledger: Ledger
    keyed: KeyedTables
    views: ViewKeeper
    ids: IdIndex
    opened: dict[str, Table] = field(default_factory=dict)
    """Storage name → table, of every table that epochs commit to."""
    lock: threading.RLock = field(default_factory=threading.RLock)

    def table(self, name: str) -> Table:
        """Return an opened table by its storage name."""
        if name not in self.opened:
            raise Internal(f"Table {name} is not open")
        return self.opened[name]

    def epoch_txn(self, name: str) -> str:
        """Return the application id under which a table counts epochs."""
        return f"{self.plan.name}/{name}#epoch"

    def files_txn(self, name: str) -> str:
        """Return the application id under which a table counts rewrites of its files."""
        return f"{self.plan.name}/{name}#files"

    def epoch_of(self, name: str) -> int:
        """Return the newest epoch that a table contains; 0 if none."""
        return self.table(name).snapshot.txns.get(self.epoch_txn(name), 0)

    def close(self) -> None:
        """Release the files that it holds open."""
        self.keyed.close()
