"""How an owner begins: finish the ledger's last epoch, then hold everything in memory again.

This is the ordinary path, not an exceptional one: a clean start, a start after kill -9 and a
take-over from another owner are the same.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from pathlib import Path

import msgspec
import pyarrow as pa

from headrace.define.compatible import compatible
from headrace.define.keyed import mark_of, read_mark
from headrace.model.clock import Clock
from headrace.model.errors import Corrupt, Fenced, Invalid, Unavailable
from headrace.model.failpoint import failpoint
from headrace.model.log import Log, LogReader
from headrace.model.plan import (
    DEAD_LETTER_SCHEMA,
    DEAD_LETTERS,
    KNOWN_ID_SCHEMA,
    KNOWN_IDS,
    LEDGER,
    Column,
    Plan,
)
from headrace.model.runner import Runner
from headrace.model.tables import Snapshot, Tables
from headrace.process.changes import ChangeTopics
from headrace.process.commit import make_visible
from headrace.process.keyed import KeyedTables
from headrace.process.ledger import Ledger, LedgerRow, last_row, pipelines_of
from headrace.process.owner import Owner
from headrace.process.ranges import check_log
from headrace.process.views import ViewKeeper
from headrace.stage.duplicates import IdIndex
from headrace.stage.engine import Engine

CHANGES = "changes/"
_SYSTEM = {DEAD_LETTERS: DEAD_LETTER_SCHEMA, KNOWN_IDS: KNOWN_ID_SCHEMA}


def recover(
    plan: Plan,
    log: Log,
    tables: Tables,
    runner: Runner,
    clock: Clock,
    engine: Engine,
    keys: Path,
    repair: Callable[[], object] = tuple,
    expect: Callable[[], Mapping[str, int]] = dict,
) -> Owner:
    """Return the owner of a pipeline, everything that had happened made visible.

    `keys` is the folder of the indexes of keyed tables' old rows, a cache. `expect` says what every
    append of the owner expects of keyed state: see `process/standing.py`.

    1. Repair what a power cut left at the end of a table (`repair`).
    2. Roll the ledger's last row forward; for a table that was cut back, every row it now lacks.
    3. Check the plan against the tables that exist; make missing tables, add new columns.
    4. Check that the log is the one that the ledger's offsets are of.
    5. Load known ids, keyed tables and views.

    `Invalid`: the plan cannot go on with these tables; nothing but 1 and 2 was done.
    """
    # 1
    repair()
    ledger = Ledger(tables, plan.name, clock)
    keyed = KeyedTables(plan, tables, clock, engine, keys)
    changes = ChangeTopics(log, clock, expect)
    owner = Owner(
        plan=plan,
        log=log,
        tables=tables,
        runner=runner,
        clock=clock,
        ledger=ledger,
        keyed=keyed,
        views=ViewKeeper(plan, tables, clock, engine, keyed, changes.send),
        ids=IdIndex(),
    )
    # 2
    with owner.lock:
        roll_forward(owner)
        # 3
        adopt_plan(owner, engine)
    # 4
    check_log(log, ledger.last)
    # 5
    snapshot = owner.table(KNOWN_IDS).snapshot
    # Delta has no binary of fixed length.
    owner.ids.add(tables.read(snapshot).cast(KNOWN_ID_SCHEMA))
    if ledger.last:
        owner.views.set_clocks(ledger.last.clocks)
    owner.keyed.recover(owner.opened)
    owner.views.recover()
    owner.views.publish(clock.now_us())
    return owner


def roll_forward(owner: Owner) -> list[str]:
    """Make visible what the ledger says has happened; return the tables that lacked something."""
    last = owner.ledger.last
    if last is None:
        return []
    failpoint("rollforward.1")
    for name in last.table_epochs:
        table = owner.tables.open(name)
        if table is not None:
            owner.opened[name] = table
    rows = [last]
    if behind := [owner.epoch_of(n) for n in owner.opened if _lacks_more(owner, n, last)]:
        rows = owner.ledger.rows_after(min(behind))
    done: list[str] = []
    for row in rows:
        lacking = {n: c for n, c in row.files.items() if _lacks(owner, n, row.epoch)}
        done += make_visible(owner, msgspec.structs.replace(row, files=lacking))
        failpoint("rollforward.2")
    for name in owner.opened:
        check_epoch(owner, name)
    return done


def check_epoch(owner: Owner, name: str) -> None:
    """Raise unless a table is at the epoch that the ledger names for it.

    `Fenced` if somebody has committed to the ledger since it was read, else `Corrupt`.
    """
    ledger = owner.ledger
    epoch = ledger.last.table_epochs.get(name, 0) if ledger.last else 0
    if owner.epoch_of(name) == epoch:
        return
    message = f"{name} is at epoch {owner.epoch_of(name)}; the ledger says {epoch}"
    version = ledger.table.snapshot.version
    if ledger.table.refresh().version != version:
        raise Fenced(message, hint="Another process has taken over this pipeline.")
    raise Corrupt(message, hint="Restore the data directory from a backup.")


def _lacks(owner: Owner, name: str, epoch: int) -> bool:
    return name in owner.opened and owner.epoch_of(name) < epoch


def _lacks_more(owner: Owner, name: str, last: LedgerRow) -> bool:
    """Return whether a table lacks epochs before the last: repair cut its newest commit off."""
    change = last.files.get(name)
    lacks = _lacks(owner, name, last.table_epochs[name])
    return lacks and (change is None or change.previous != owner.epoch_of(name))


def check_fit(plan: Plan, log: LogReader, tables: Tables) -> None:
    """Raise if a plan cannot run on what is stored; nothing is touched.

    `Invalid`: the plan cannot go on with the tables. `Corrupt`: the tables contain records that the
    log never had. Tables that a power cut damaged are passed over: an owner repairs them and checks
    again.
    """
    try:
        ledger = tables.snapshot(LEDGER)
        last = last_row(tables, ledger) if ledger else None
        with closing(Engine(threads=1)) as engine:
            existing = stored_columns(tables, engine) if last else {}
            marks = stored_marks(tables) if last else {}
    except (Corrupt, Unavailable):
        return
    if ledger:
        check_name(plan, ledger)
    check_plan(plan, existing, marks)
    check_log(log, last)


def check_name(plan: Plan, ledger: Snapshot) -> None:
    """Raise `Invalid` if the tables are those of a pipeline with another name."""
    others = pipelines_of(ledger)
    if others and plan.name not in others:
        raise Invalid(
            f"The data directory belongs to the pipeline {others[0]}, not to {plan.name}",
            hint="name another one with --data, or give the pipeline its old name back",
            code="other_pipeline",
        )


def stored_columns(tables: Tables, engine: Engine) -> dict[str, tuple[Column, ...]]:
    """Return the columns of every table that is stored: by name, changelogs as `changes/name`."""
    found = {
        name.removeprefix("tables/"): tables.snapshot(name)
        for name in tables.names()
        if name.startswith(("tables/", CHANGES))
    }
    return {name: engine.columns(snapshot) for name, snapshot in found.items() if snapshot}


def stored_marks(tables: Tables) -> dict[str, str]:
    """Return by which columns each stored keyed table is kept, by its name: see `mark_of`.

    A changelog carries it as a transaction id, which outlives every clean-up of its log.
    """
    found = {
        n.removeprefix(CHANGES): tables.snapshot(n) for n in tables.names() if n.startswith(CHANGES)
    }
    return {
        name: txn
        for name, snapshot in found.items()
        for txn in (snapshot.txns if snapshot else ())
        if read_mark(txn)
    }


def check_plan(
    plan: Plan, existing: Mapping[str, Sequence[Column]], marks: Mapping[str, str]
) -> None:
    """Raise `Invalid` if a plan cannot go on with tables of these columns and marks."""
    if problems := compatible(plan, existing, marks):
        raise Invalid(
            "\n".join(p.message for p in problems),
            hint=problems[0].hint,
            code="incompatible_plan",
        )


def adopt_plan(owner: Owner, engine: Engine) -> None:
    """Make the tables of the plan that are missing, and add columns that it has in addition.

    A table that was dropped and is wanted again begins at the epoch that the ledger names, so that
    nothing from before is rolled forward into it.
    """
    epochs = owner.ledger.last.table_epochs if owner.ledger.last else {}
    check_plan(owner.plan, stored_columns(owner.tables, engine), stored_marks(owner.tables))
    marks = {t.storage: mark_of(t.keyed) for t in owner.plan.tables if t.keyed}
    wanted = {t.storage: engine.arrow_schema(t.log_columns) for t in owner.plan.tables}
    for name, schema in (wanted | _SYSTEM).items():
        table = owner.opened.get(name) or owner.tables.open(name)
        if table is None and name in _SYSTEM and name in epochs:
            raise Corrupt(f"{name} is missing", hint="Restore the data directory from a backup.")
        if table is None:
            txns = {owner.epoch_txn(name): epochs[name]} if name in epochs else {}
            txns |= {marks[name]: 1} if name in marks else {}
            table = owner.tables.create(name, schema, txns=txns)
        owner.opened[name] = table
        check_epoch(owner, name)
        have = table.snapshot.schema
        if new := [f for f in schema if f.name not in have.names]:
            table.commit(schema=pa.schema([*have, *new]), metadata={"columns_added": str(len(new))})
