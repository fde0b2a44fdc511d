"""The table of known ids: kept short, and without topics that are no more.

Rows are added by epochs. Here they are only taken out, by commits that say so in `#files`; that
changes nothing that counts, because a look-up compares clocks and offsets.
"""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc

from headrace.model.failpoint import failpoint
from headrace.model.plan import KNOWN_IDS
from headrace.process.owner import Owner
from headrace.stage.duplicates import CARRIED


def expire_ids(owner: Owner) -> int:
    """Forget ids past the horizon; return how many rows of their table went."""
    last = owner.ledger.last
    if last is None:
        return 0
    horizon_us = round(owner.plan.options.horizon_s * 1_000_000)
    owner.ids.expire(last.clocks, horizon_us)
    rows = owner.tables.read(owner.table(KNOWN_IDS).snapshot)
    partitions = pc.cast(rows.column("partition"), "string")
    keys = pc.binary_join_element_wise(rows.column("topic"), partitions, "/")
    limits = pa.array([c - horizon_us for c in last.clocks.values()], pa.int64())
    places = pc.index_in(keys, value_set=pa.array(list(last.clocks), pa.string()))
    young = pc.greater_equal(rows.column("clock_us"), pc.take(limits, places))
    return _keep(owner, rows, pc.fill_null(young, True))


def forget_topic(owner: Owner, topic: str) -> int:
    """Forget the ids of a topic that was made anew; return how many rows of their table went.

    Its offsets begin again, so an id of the old incarnation could name a new record a duplicate.
    Those that were carried over on purpose stay (`process/handover.py`).
    """
    owner.ids.forget(topic)
    rows = owner.tables.read(owner.table(KNOWN_IDS).snapshot)
    elsewhere = pc.not_equal(rows.column("topic"), topic)
    return _keep(owner, rows, pc.or_(elsewhere, pc.equal(rows.column("offset"), CARRIED)))


def _keep(owner: Owner, rows: pa.Table, kept: pa.ChunkedArray) -> int:
    """Rewrite the table with the rows that are kept, if that makes it smaller."""
    left = rows.filter(kept)
    table = owner.table(KNOWN_IDS)
    if left.num_rows == rows.num_rows and len(table.snapshot.files) <= 1:
        return 0
    with owner.lock:
        add = [owner.tables.stage(KNOWN_IDS, left, unique=("id",))] if left.num_rows else []
        failpoint("expiry.1")
        txn = owner.files_txn(KNOWN_IDS)
        number = table.snapshot.txns.get(txn, 0) + 1
        epoch = {owner.epoch_txn(KNOWN_IDS): owner.epoch_of(KNOWN_IDS)}
        table.commit(add, table.snapshot.files, txns={txn: number, **epoch})
        failpoint("expiry.2")
    return int(rows.num_rows - left.num_rows)
