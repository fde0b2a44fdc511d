"""Restores a backup: copy it, drain its log into the tables, make its topics anew."""

from __future__ import annotations

import threading
from contextlib import closing
from pathlib import Path

import msgspec

from headrace.control.files import replace
from headrace.log.embedded import EmbeddedLog
from headrace.model.clock import Clock
from headrace.model.errors import Corrupt
from headrace.model.layout import Layout
from headrace.model.plan import LEDGER, Plan
from headrace.model.tables import Tables
from headrace.process import backup
from headrace.process.handover import begin_anew
from headrace.process.ledger import read_rows
from headrace.process.loop import EpochProgress, Loop
from headrace.process.recover import recover
from headrace.runner.local import LocalRunner
from headrace.stage.engine import Engine
from headrace.tables.delta import DeltaTables
from headrace.tables.repair import repair


def restore(source: Path, layout: Layout, clock: Clock) -> int:
    """Restore a backup into an empty data directory; return the epoch it stands at.

    1. Copy the backup.
    2. Run the plan that the ledger names until everything in the log is in the tables.
    3. Make each topic anew: records from now on have offsets of a new incarnation. The ledger says
       so too, or answers would claim offsets that now name other records.
    4. It is no backup any more. One that broke off before this still is, and is not run.
    """
    # 1
    backup.restore(source, layout)
    tables = DeltaTables(layout.root, clock)
    repair(tables)
    plan = last_plan(tables)
    layout.run.mkdir(exist_ok=True)
    replace(layout.plan, msgspec.json.encode(plan))
    with closing(EmbeddedLog(layout.log, clock)) as log:
        # 2
        engine = Engine()
        with closing(LocalRunner(log, tables, clock)) as runner:
            owner = recover(plan, log, tables, runner, clock, engine, layout.keys)
            Loop(owner, threading.Event(), EpochProgress(), drain=lambda: True).run()
        # 3
        begin_anew(owner)
        owner.close()
    # 4
    (layout.root / backup.COMPLETE).unlink()
    return owner.ledger.epoch


def last_plan(tables: Tables) -> Plan:
    """Return the plan that the ledger's last row ran; `Corrupt` if it names none."""
    snapshot = tables.snapshot(LEDGER)
    rows = read_rows(tables, snapshot, after=0) if snapshot else []
    told = max((r for r in rows if r.plan_text), key=lambda r: r.epoch, default=None)
    if told is None or told.plan_text is None:
        raise Corrupt("The ledger names no plan", hint="Take another backup.")
    return msgspec.json.decode(told.plan_text, type=Plan)
