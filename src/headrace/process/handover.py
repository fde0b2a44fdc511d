"""What a pipeline does before its log begins anew: in another cluster, or after a restore.

Offsets begin again at 0 under new incarnations. What is in the tables stays, nothing is read twice,
and a client that sends again what was acknowledged before is still known by its ids.
"""

from __future__ import annotations

import msgspec

from headrace.model.errors import Internal
from headrace.model.failpoint import failpoint
from headrace.model.plan import KNOWN_ID_SCHEMA, KNOWN_IDS
from headrace.process.commit import make_visible
from headrace.process.ledger import FileChange, LedgerRow
from headrace.process.owner import Owner
from headrace.process.ranges import waiting
from headrace.stage.duplicates import carried


def begin_anew(owner: Owner) -> None:
    """Make every topic anew, once everything in the log is in the tables; `Internal` if it is not.

    Whoever opens the pipeline after any of these steps goes on right, in this log or another one:

    1. A ledger epoch carries the known ids over: they come before every offset from now on.
    2. Each topic is deleted, which keyed state remembers, and created again, empty.
    3. A ledger row names no offsets: every topic that it meets is new to it, and read from its
       start.
    """
    last = owner.ledger.last
    topics = owner.log.describe()
    if any(r.end > r.start for r in waiting(owner.log, owner.plan, topics, last)):
        raise Internal("The log was to be drained before its topics are made anew")
    # 1
    _carry_ids(owner)
    failpoint("anew.1")
    # 2
    for topic in topics.values():
        owner.log.delete(topic.name)
        owner.log.create(topic.name, topic.partitions)
    failpoint("anew.2")
    # 3
    if owner.ledger.last is not None:
        row = _after(owner, owner.ledger.last, "begun_anew")
        owner.ledger.append(msgspec.structs.replace(row, incarnations={}, offsets={}))


def _carry_ids(owner: Owner) -> None:
    last = owner.ledger.last
    table = owner.table(KNOWN_IDS)
    if last is None or not table.snapshot.files:
        return
    kept = carried(owner.tables.read(table.snapshot).cast(KNOWN_ID_SCHEMA))
    add = (owner.tables.stage(KNOWN_IDS, kept, unique=("id",)),) if kept.num_rows else ()
    row = _after(owner, last, "carried")
    change = FileChange(last.table_epochs.get(KNOWN_IDS, 0), add, tuple(table.snapshot.files))
    epochs = {**last.table_epochs, KNOWN_IDS: row.epoch}
    row = msgspec.structs.replace(row, files={KNOWN_IDS: change}, table_epochs=epochs)
    with owner.lock:
        owner.ledger.append(row)
        make_visible(owner, row)


def _after(owner: Owner, last: LedgerRow, kind: str) -> LedgerRow:
    """Return a row after the last one in which no record is read."""
    return msgspec.structs.replace(
        last,
        epoch=last.epoch + 1,
        committed_at_us=owner.clock.now_us(),
        kind=kind,
        read_from={},
        files={},
        topics={},
        tables={},
        plan_text=None,
    )
