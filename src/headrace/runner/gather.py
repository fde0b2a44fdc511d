"""What tasks returned, on the driver: which of it may stand, and the outcome that it makes.

A task runs without the ids known from earlier epochs, and a split partition's piece without what
the pieces before it held. That is right for what nearly always comes: no client repeats an id. The
driver has all ids that tasks asked for, so it sees where it was wrong, and `refuted` names the
partitions: those are run again, in one piece and with what was found of their ids. A partition in
one piece that has been told all that is known of the ids it asks for is what `LocalRunner` runs.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from headrace.model.plan import KNOWN_ID_SCHEMA
from headrace.model.runner import Epoch, KnownIds, Outcome, Range, TableCount, TopicCount
from headrace.model.tables import DataFile
from headrace.runner.cut import PartitionId, Piece, Task, packed, whole
from headrace.runner.task import Made, ResultRow, raised, table_of
from headrace.stage.duplicates import repeated, words

_CLOCK = KNOWN_ID_SCHEMA.get_field_index("clock_us")

Partials = dict[str, dict[str, list[pa.Table]]]


@dataclass(slots=True)
class TaskResult:
    """What a task returned. `asked` and `ids` are by the piece's place in the task."""

    number: int
    """Number of the task in its epoch."""
    task: Task = ()
    made: Made = field(default_factory=Made)
    asked: dict[int, list[pa.Table]] = field(default_factory=lambda: defaultdict(list))
    ids: dict[int, list[pa.Table]] = field(default_factory=lambda: defaultdict(list))
    keyed: dict[str, list[pa.Table]] = field(default_factory=lambda: defaultdict(list))
    partials: Partials = field(default_factory=dict)

    def take(self, row: ResultRow) -> None:
        """Take in a row of the task's; raise the error that it may hold."""
        _, kind, name, _, _, body = row
        match kind:
            case "made":
                self.made = msgspec.json.decode(body, type=Made)
                if self.made.error is not None:
                    raise raised(self.made.error)
            case "asked":
                self.asked[int(name)].append(table_of(body))
            case "ids":
                self.ids[int(name)].append(table_of(body))
            case "keyed":
                self.keyed[name].append(table_of(body))
            case _:
                add_partial(self.partials, row)


def add_partial(partials: Partials, row: ResultRow) -> None:
    """Take in a row of kind `partial`."""
    _, _, view, part, _, body = row
    partials.setdefault(view, {}).setdefault(part, []).append(table_of(body))


@dataclass(slots=True)
class _Done:
    """A piece and what came of it."""

    piece: Piece
    result: TaskResult
    place: int

    @property
    def asked(self) -> pa.Array:
        tables = [*self.result.asked.get(self.place, []), *self.result.ids.get(self.place, [])]
        if not tables:
            return pa.array([], KNOWN_ID_SCHEMA.field("id").type)
        chunks = [chunk for t in tables for chunk in t.column("id").chunks]
        return pc.unique(pa.concat_arrays(chunks))


def _by_partition(results: Iterable[TaskResult]) -> dict[PartitionId, list[_Done]]:
    """Return the pieces of each partition in the order of their offsets."""
    found: dict[PartitionId, list[_Done]] = defaultdict(list)
    for result in results:
        for place, piece in enumerate(result.task):
            found[piece.partition].append(_Done(piece, result, place))
    for pieces in found.values():
        pieces.sort(key=lambda one: one.piece.part.start)
    return dict(found)


def refuted(
    results: Sequence[TaskResult], epoch: Epoch, known: KnownIds
) -> dict[PartitionId, pa.Table | None]:
    """Return the partitions that must run again in one piece, with what is known of their ids.

    The tables have columns `id` and `clock_us`. A partition may stand if every id that it asks for
    and that is known was among `Piece.known`, and, where it is split: no id is in two of its
    pieces, and all of its clocks lie within the horizon, so that none was reset and no id expired
    in between; and every piece was read to its end.
    """
    starts = {(r.topic, r.partition): r.start for r in epoch.ranges}
    horizon_us = round(epoch.plan.options.horizon_s * 1_000_000)
    wrong: dict[PartitionId, pa.Table | None] = {}
    for partition, pieces in _by_partition(results).items():
        clock_us = epoch.clocks.get(f"{partition[0]}/{partition[1]}")
        asked = pa.concat_arrays([one.asked for one in pieces])
        found = None
        if clock_us is not None and len(asked):
            found = _known(known, partition, pc.unique(asked), starts[partition])
        told = pieces[0].piece.known
        news = _beyond(found, told)
        if news is not None or (
            pieces[0].piece.is_split and not _stands(pieces, asked, clock_us, horizon_us)
        ):
            both = [t for t in (told, news) if t is not None]
            wrong[partition] = pa.concat_tables(both) if both else None
    return wrong


def _known(known: KnownIds, partition: PartitionId, ids: pa.Array, before: int) -> pa.Table | None:
    clocks = known.find(*partition, ids, before)
    there = pc.is_valid(clocks)
    if not pc.any(there).as_py():
        return None
    return pa.table({"id": ids.filter(there), "clock_us": clocks.filter(there)})


def _beyond(found: pa.Table | None, told: pa.Table | None) -> pa.Table | None:
    """Return the rows that were found and not told before; None if there are none."""
    if found is None or told is None:
        return found
    again = pc.is_in(found.column("id"), value_set=told.column("id"))
    return found.filter(pc.invert(again)) if not pc.all(again).as_py() else None


def _stands(
    pieces: Sequence[_Done], asked: pa.Array, clock_us: int | None, horizon_us: int
) -> bool:
    made = [one.result.made.pieces[one.place] for one in pieces]
    if any(m.part.end < one.piece.part.end for m, one in zip(made, pieces, strict=True)):
        return False
    times = [t for m in made for t in (m.earliest_us, m.latest_us) if t is not None]
    times += [clock_us] if clock_us is not None else []
    if times and max(times) - min(times) > horizon_us:
        return False
    # Two ids that share one half are as good as never met, and cost only time.
    return not (len(asked) and repeated(words(asked)[0]).any())


def again(
    results: Sequence[TaskResult],
    wrong: dict[PartitionId, pa.Table | None],
    epoch: Epoch,
    target_bytes: int,
) -> tuple[list[TaskResult], list[Task]]:
    """Return the results that stay, and the tasks to run instead of those that do not."""
    gone = [r for r in results if any(p.partition in wrong for p in r.task)]
    asked = {(r.topic, r.partition): r for r in epoch.ranges}
    sizes: dict[PartitionId, int] = defaultdict(int)
    pieces = []
    for piece in (p for r in gone for p in r.task):
        if piece.partition in wrong:
            sizes[piece.partition] += piece.size_bytes
        else:
            pieces.append(piece)
    pieces += [whole(epoch, asked[p], sizes[p], found) for p, found in wrong.items()]
    return [r for r in results if r not in gone], packed(pieces, target_bytes)


def known_ids(results: Sequence[TaskResult], epoch: Epoch) -> pa.Table | None:
    """Return the ids that an epoch kept, with their clocks as of the whole partition."""
    tables = []
    for partition, pieces in _by_partition(results).items():
        clock_us = epoch.clocks.get(f"{partition[0]}/{partition[1]}", 0)
        for one in pieces:
            ids = one.result.ids.get(one.place, [])
            tables += [_at_least(i, clock_us) for i in ids] if one.piece.is_split else ids
            clock_us = max(clock_us, one.result.made.pieces[one.place].latest_us or 0)
    return pa.concat_tables(tables) if tables else None


def _at_least(ids: pa.Table, clock_us: int) -> pa.Table:
    clocks = np.maximum(ids.column("clock_us").to_numpy(), clock_us)
    return ids.set_column(_CLOCK, KNOWN_ID_SCHEMA.field("clock_us"), pa.array(clocks))


def outcome(
    epoch: Epoch,
    results: Sequence[TaskResult],
    partials: dict[str, dict[str, pa.Table]],
    ids: pa.Table | None,
) -> Outcome:
    """Return what became of an epoch; the file of known ids is still to come."""
    files: dict[str, list[DataFile]] = defaultdict(list)
    clocks = dict(epoch.clocks)
    topics: dict[str, TopicCount] = {}
    tables = {t.name: TableCount() for t in epoch.plan.tables}
    keyed: dict[str, list[pa.Table]] = defaultdict(list)
    for result in results:
        made = result.made
        for name, file in made.files.items():
            files[name].append(file)
        for key, clock_us in made.clocks.items():
            # Pieces of a split partition are only right where no clock was reset.
            is_split = any(
                p.is_split and f"{p.part.topic}/{p.part.partition}" == key for p in result.task
            )
            clocks[key] = max(clocks.get(key, 0), clock_us) if is_split else clock_us
        for topic, of_topic in made.topics.items():
            _add(topics.setdefault(topic, TopicCount()), of_topic)
        for table, of_table in made.tables.items():
            _add(tables[table], of_table)
        for table, rows in result.keyed.items():
            keyed[table] += rows
    return Outcome(
        files=dict(files),
        partials=partials,
        known_ids=ids,
        clocks=clocks,
        topics=topics,
        tables=tables,
        ranges=_ranges(epoch, results),
        keyed={table: pa.concat_tables(rows) for table, rows in keyed.items()},
    )


def _add(total: TopicCount | TableCount, more: TopicCount | TableCount) -> None:
    for name in total.__struct_fields__:
        setattr(total, name, getattr(total, name) + getattr(more, name))


def _ranges(epoch: Epoch, results: Sequence[TaskResult]) -> tuple[Range, ...]:
    pieces = _by_partition(results)
    ranges = []
    for asked in epoch.ranges:
        done = pieces.get((asked.topic, asked.partition))
        end = done[-1].result.made.pieces[done[-1].place].part.end if done else asked.end
        ranges.append(msgspec.structs.replace(asked, end=end))
    return tuple(ranges)
