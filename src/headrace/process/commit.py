"""The one commit: how an epoch's records become visible, in one numbered order.

Embedded and on a cluster alike, only this module makes files of a pipeline's tables visible. What a
crash leaves behind at any point is finished by `recover.roll_forward`, which calls the same
`make_visible`.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from headrace.model.errors import Fenced, Internal, Invalid
from headrace.model.failpoint import failpoint
from headrace.model.runner import Epoch, Outcome, Range
from headrace.process.known_ids import forget_topic
from headrace.process.ledger import FileChange, LedgerRow, added, unbalanced
from headrace.process.owner import Owner
from headrace.process.ranges import check_chosen, check_described, partition_key, topic_of


def run_epoch(owner: Owner, ranges: tuple[Range, ...]) -> LedgerRow:
    """Run one epoch over `ranges` and make it visible; return its ledger row.

    1. The ranges were chosen from the ledger's last row.
    2. Run the stage, and find what rows of keyed tables change: every file is staged and durable,
       nothing is visible.
    3. Append ledger row n, accepted only over n−1: from here the epoch *has* happened.
    4. Commit each table that has files, dead letters and known ids among them.
    5. Remember what keyed tables hold now, fold the partials into the views, and publish the tables
       and views that are due.
    6. The caller may now trim the log up to the row's offsets.

    `Fenced`: another owner has taken over. `Unavailable`: nothing happened, the staged files are
    orphans. Whatever else is raised after 3 leaves the rest to the next start.
    """
    # 1
    failpoint("commit.1")
    topics = owner.log.describe()
    last = owner.ledger.last
    check_chosen(owner.log, topics, ranges, last)
    incarnations = {r.topic: topics[r.topic].incarnation for r in ranges}
    renewed = renewed_topics(last, incarnations)
    for topic in renewed:
        forget_topic(owner, topic)
    # Ids that were carried over are told by the clock that they were kept at.
    bare = {topic for topic in renewed if not owner.ids.knows(topic)}
    epoch = Epoch(
        number=owner.ledger.epoch + 1,
        plan=owner.plan,
        ranges=ranges,
        incarnations=incarnations,
        clocks=of_living(last.clocks, bare) if last else {},
        started_at_us=owner.clock.now_us(),
    )
    # 2
    outcome = _run(owner, epoch)
    owner.keyed.apply(outcome, epoch.number)
    failpoint("commit.2")
    with owner.lock:
        # 3
        row = next_row(owner, epoch, outcome)
        owner.ledger.append(row)
        failpoint("commit.3")
        # 4
        make_visible(owner, row)
        failpoint("commit.5")
        # 5
        owner.keyed.committed(owner.opened, row.epoch)
        owner.views.add(outcome.partials, _versions(owner), row.epoch)
        if outcome.known_ids is not None:
            owner.ids.add(outcome.known_ids)
        owner.views.set_clocks(row.clocks)
        owner.views.publish(owner.clock.now_us())
    # 6
    failpoint("commit.6")
    return row


def _run(owner: Owner, epoch: Epoch) -> Outcome:
    try:
        outcome = owner.runner.run(epoch, owner.ids)
    except Invalid:
        check_described(owner.log, epoch.incarnations)
        raise
    check_described(owner.log, epoch.incarnations)
    return outcome


def next_row(owner: Owner, epoch: Epoch, outcome: Outcome) -> LedgerRow:
    """Return the ledger row of an epoch that was run over the ledger's last row."""
    last = owner.ledger.last
    files = {
        name: FileChange(previous=owner.epoch_of(name), add=tuple(staged))
        for name, staged in outcome.files.items()
        if staged
    }
    fingerprint = owner.plan.fingerprint
    incarnations = {**(last.incarnations if last else {}), **epoch.incarnations}
    reached = {partition_key(r.topic, r.partition): r.end for r in outcome.ranges}
    offsets = of_living(last.offsets, renewed_topics(last, epoch.incarnations)) if last else {}
    row = LedgerRow(
        epoch=epoch.number,
        committed_at_us=owner.clock.now_us(),
        kind="epoch",
        plan=fingerprint,
        incarnations=incarnations,
        offsets={**offsets, **reached},
        read_from={partition_key(r.topic, r.partition): r.start for r in outcome.ranges},
        clocks={**epoch.clocks, **outcome.clocks},
        files=files,
        table_epochs={
            **(last.table_epochs if last else {}),
            **dict.fromkeys(files, epoch.number),
        },
        topics=outcome.topics,
        tables=outcome.tables,
        topic_totals=added(last.topic_totals if last else {}, outcome.topics),
        table_totals=added(last.table_totals if last else {}, outcome.tables),
        plan_text=plan_text(owner),
    )
    if wrong := unbalanced(row):
        raise Internal(f"The accounting of epoch {epoch.number} does not close: {wrong}")
    return row


def renewed_topics(last: LedgerRow | None, incarnations: Mapping[str, str]) -> set[str]:
    """Return the topics that were deleted and made anew since the ledger's last row."""
    known = last.incarnations if last else {}
    return {t for t, now in incarnations.items() if known.get(t, now) != now}


def of_living(by_partition: Mapping[str, int], renewed: set[str]) -> dict[str, int]:
    """Return what is kept by `topic/partition` without the topics that were made anew."""
    return {k: v for k, v in by_partition.items() if topic_of(k) not in renewed}


def plan_text(owner: Owner) -> str | None:
    """Return the plan as JSON if the ledger's last row is of another, else None."""
    last = owner.ledger.last
    if last is not None and last.plan == owner.plan.fingerprint:
        return None
    return msgspec.json.encode(owner.plan).decode()


def make_visible(owner: Owner, row: LedgerRow) -> list[str]:
    """Commit the files of a ledger row to each of its tables; return those that had to be.

    From one snapshot a table: its epoch is the row's → it was done before; it is the one that the
    row names as previous → commit; anything else → `Fenced`. A table that was dropped since is
    skipped.
    """
    done = []
    offsets = msgspec.json.encode(row.offsets).decode()
    for name, change in row.files.items():
        if name not in owner.opened:
            continue
        table = owner.table(name)
        number = owner.epoch_of(name)
        if number == row.epoch:
            continue
        if number != change.previous:
            raise Fenced(
                f"{name} is at epoch {number}; epoch {row.epoch} follows {change.previous}",
                hint="Another process has taken over this pipeline.",
            )
        txns = {owner.epoch_txn(name): row.epoch}
        if change.remove:
            files = owner.files_txn(name)
            txns[files] = table.snapshot.txns.get(files, 0) + 1
        table.commit(
            change.add,
            change.remove,
            txns=txns,
            metadata={"epoch": str(row.epoch), "offsets": offsets},
        )
        done.append(name)
        failpoint("commit.4")
    return done


def _versions(owner: Owner) -> dict[str, int]:
    tables = {view.table: owner.plan.table(view.table) for view in owner.plan.views}
    return {name: owner.table(t.storage).snapshot.version for name, t in tables.items()}
