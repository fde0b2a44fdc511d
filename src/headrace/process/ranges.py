"""Which records the next epoch reads: all that are there, up to a bound in bytes and records."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from headrace.model.errors import Corrupt, Invalid, Unavailable
from headrace.model.log import DELETED, LogReader, TopicInfo
from headrace.model.plan import Plan
from headrace.model.runner import Range
from headrace.process.ledger import LedgerRow


def partition_key(topic: str, partition: int) -> str:
    """Return how a partition is named in the ledger: `topic/partition`."""
    return f"{topic}/{partition}"


def topic_of(key: str) -> str:
    """Return the topic of a `topic/partition`."""
    return key.rpartition("/")[0]


def positions(log: LogReader, info: TopicInfo, last: LedgerRow | None) -> list[tuple[int, int]]:
    """Return for each partition of a topic where to read on, and where the log ends.

    A topic that the ledger does not know, or knows under an incarnation that was deleted since, is
    read from the start of the log. An end before a committed offset is `Corrupt`: records that
    were acknowledged and processed are gone, and offsets would be handed out twice. `Unavailable`:
    the topic was deleted or made anew since it was described.
    """
    try:
        return _positions(log, info, last)
    except (Corrupt, Invalid):
        check_described(log, {info.name: info.incarnation})
        raise


def _positions(log: LogReader, info: TopicInfo, last: LedgerRow | None) -> list[tuple[int, int]]:
    check_incarnation(log, info.name, info.incarnation, last)
    ends, starts = log.ends(info.name), log.starts(info.name)
    known = last is not None and last.incarnations.get(info.name) == info.incarnation
    found = []
    for partition, end in enumerate(ends):
        at = starts[partition]
        key = partition_key(info.name, partition)
        if known and last is not None and key in last.offsets:
            at = last.offsets[key]
            if end < at:
                raise Corrupt(
                    f"The log of {key} ends at {end}, but the tables contain it up to {at}",
                    hint="The log lost records; restore the data directory from a backup.",
                )
            if at < starts[partition]:
                raise Corrupt(
                    f"The log of {key} starts at {starts[partition]}, but {at} comes next",
                    hint="Records were removed before they were processed; restore a backup.",
                )
        found.append((at, end))
    return found


def waiting(
    log: LogReader, plan: Plan, topics: Mapping[str, TopicInfo], last: LedgerRow | None
) -> list[Range]:
    """Return everything that the log has and no table contains, a range a partition."""
    return [
        Range(info.name, partition, at, end)
        for info in (topics[t.name] for t in plan.topics if t.name in topics)
        for partition, (at, end) in enumerate(positions(log, info, last))
        if end > at
    ]


def choose(
    log: LogReader, there: Sequence[Range], *, bytes_max: int, records_max: int | None
) -> tuple[Range, ...]:
    """Return what of the ranges that are `there` the next epoch reads.

    Where more is there than the bounds allow, every partition gives the same share, so none waits
    for another.
    """
    if not there:
        return ()
    share = 1.0
    size = sum(log.size_between(r.topic, r.partition, r.start, r.end) for r in there)
    if size > bytes_max:
        share = bytes_max / size
    count = records_in(there)
    if records_max is not None and count * share > records_max:
        share = records_max / count
    ranges = []
    left = records_max if records_max is not None else count
    for one in there:
        take = min(max(1, int((one.end - one.start) * share)), left)
        left -= take
        if take > 0:
            ranges.append(msgspec.structs.replace(one, end=one.start + take))
    return tuple(ranges)


def records_in(ranges: Sequence[Range]) -> int:
    """Return how many offsets ranges hold."""
    return sum(r.end - r.start for r in ranges)


def check_chosen(
    log: LogReader,
    topics: Mapping[str, TopicInfo],
    ranges: Sequence[Range],
    last: LedgerRow | None,
) -> None:
    """Raise `Unavailable` unless ranges begin where these incarnations of their topics go on."""
    for name in {r.topic for r in ranges}:
        places = positions(log, topics[name], last) if name in topics else []
        begins = {p: at for p, (at, _) in enumerate(places)}
        if any(begins.get(r.partition) != r.start for r in ranges if r.topic == name):
            raise _made_anew(name)


def check_described(log: LogReader, incarnations: Mapping[str, str]) -> None:
    """Raise `Unavailable` unless topics still have these incarnations."""
    now = log.describe()
    for name, incarnation in incarnations.items():
        if name not in now or now[name].incarnation != incarnation:
            raise _made_anew(name)


def _made_anew(topic: str) -> Unavailable:
    return Unavailable(f"Topic {topic} was deleted or made anew while it was read")


def check_log(log: LogReader, last: LedgerRow | None) -> None:
    """Raise `Corrupt` unless the log is the one that the ledger's offsets are of."""
    topics = log.describe()
    for name in last.incarnations if last else ():
        incarnation = topics[name].incarnation if name in topics else None
        check_incarnation(log, name, incarnation, last)
        if name in topics:
            positions(log, topics[name], last)


def check_incarnation(
    log: LogReader, topic: str, incarnation: str | None, last: LedgerRow | None
) -> None:
    """Raise `Corrupt` if a topic's incarnation changed without its having been deleted."""
    known = last.incarnations.get(topic) if last else None
    if known is None or known == incarnation or log.get(DELETED + known) is not None:
        return
    raise Corrupt(
        f"The tables contain records of topic {topic} that its log never had",
        hint="The log was lost or belongs elsewhere; restore the data directory from a backup.",
    )
