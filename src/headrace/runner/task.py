"""What runs inside Spark's tasks: the stage over some pieces, and merges of large partials.

A task stages its files where the tables are and returns what they are called, with everything else
that became of its pieces. It may run twice, or fail half way and be run again: what the driver does
not hear of are files that no commit will name.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import lru_cache

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from headrace.define.view_state import merge_key
from headrace.model.clock import SystemClock
from headrace.model.errors import Corrupt, HeadraceError, Invalid, Unavailable
from headrace.model.log import LogReader
from headrace.model.plan import DEAD_LETTERS, Plan, StatePart
from headrace.model.runner import Range, TableCount, TopicCount
from headrace.model.tables import DataFile
from headrace.runner.cut import PartitionId, Piece, Task
from headrace.runner.places import Place
from headrace.runner.staged import READ_BYTES_MAX, file_name, joined, unique_columns
from headrace.stage.engine import Engine
from headrace.stage.records import Slice
from headrace.stage.stage import Stage, StageResult

RESULT_SCHEMA = "task LONG, kind STRING, name STRING, part STRING, bucket INT, body BINARY"
"""What tasks return, in Spark's words: many rows a task.

======== =============== ===== ======= ====================================================
kind     name            part  bucket  body
======== =============== ===== ======= ====================================================
made                                   a `Made` as JSON, one a task
asked    piece's place                 column `id`: ids asked for that are not among `ids`
ids      piece's place                 ids kept, `plan.KNOWN_ID_SCHEMA`
keyed    table                         rows of a keyed table
partial  view            part  of key  partial aggregates
======== =============== ===== ======= ====================================================

Bodies but the first are Arrow streams.
"""
ResultRow = tuple[int, str, str, str, int, bytes]
"""The same as a tuple."""

_ARROW_RESULT = pa.schema(
    [
        ("task", pa.int64()),
        ("kind", pa.string()),
        ("name", pa.string()),
        ("part", pa.string()),
        ("bucket", pa.int32()),
        ("body", pa.binary()),
    ]
)

BODY_BYTES_MAX = 16 << 20
"""About how many bytes of a table go into one row of the result."""

_RETURNED = (Invalid, Unavailable, Corrupt)
"""Errors that trying again on another machine would only repeat. Any other one ends the worker."""


class PieceMade(msgspec.Struct):
    """What the driver must know of a piece to see whether it may stand."""

    part: Range
    """What was read: it ends before what was asked if that was too large."""
    earliest_us: int | None = None
    latest_us: int | None = None
    """Bounds of received_at."""


class Made(msgspec.Struct):
    """What became of a task; see `model.runner.Outcome` for the parts of the same names."""

    pieces: list[PieceMade] = []
    files: dict[str, DataFile] = {}
    clocks: dict[str, int] = {}
    topics: dict[str, TopicCount] = {}
    tables: dict[str, TableCount] = {}
    partial_rows: int = 0
    error: tuple[str, str, str, str] | None = None
    """Kind, message, hint and code of an error; then nothing else is there."""


@dataclass(frozen=True)
class Settings:
    """Of everything that a worker keeps from one task to the next; equal settings, same worker."""

    place: Place
    plan: bytes
    """The plan as JSON."""
    threads: int
    memory_limit: str


@dataclass(frozen=True)
class Job:
    """What all tasks of a job are told; tasks find theirs by number."""

    settings: Settings
    tasks: Sequence[Task]
    first: int
    """Number of the first task in its epoch."""
    started_at_us: int
    buckets: int
    """How many buckets partials are cut into by key, to be merged; 1: they are not."""


class AskedIds:
    """`KnownIds` that knows what was looked up before, and remembers what is asked for."""

    def __init__(self, task: Task) -> None:
        self._known = {p.partition: p.known for p in task if p.known is not None}
        self._asked: dict[PartitionId, list[pa.Array]] = defaultdict(list)

    def find(self, topic: str, partition: int, ids: pa.Array, before: int) -> pa.Array:
        """See `model.runner.KnownIds`; `before` is what the looking up was done with."""
        del before
        self._asked[topic, partition].append(ids)
        known = self._known.get((topic, partition))
        if known is None:
            return pa.nulls(len(ids), pa.int64())
        places = pc.index_in(ids, value_set=known.column("id").combine_chunks())
        return known.column("clock_us").combine_chunks().take(places)

    def asked(self, partition: PartitionId) -> pa.Array | None:
        """Return the ids asked for, each once; None if there was none."""
        asked = self._asked.get(partition)
        return pc.unique(pa.concat_arrays(asked)) if asked else None


class _Workshop:
    """What a worker keeps while the settings stay: compiled stage, opened log and tables."""

    def __init__(self, settings: Settings) -> None:
        self.plan = msgspec.json.decode(settings.plan, type=Plan)
        self.engine = Engine(settings.threads, settings.memory_limit)
        self.stage = Stage(self.plan, self.engine)
        clock = SystemClock()
        self.log = settings.place.open_log(clock)
        self.tables = settings.place.open_tables(clock)


# A Python worker of Spark's runs one task at a time and outlives it; this is what it keeps.
_workshop = lru_cache(maxsize=1)(_Workshop)


def open_workshop(settings: Settings, numbers: Iterable[int]) -> Iterator[int]:
    """Have this worker open and compile what tasks need; `numbers` are of no use."""
    _workshop(settings)
    yield from numbers


def run_tasks(job: Job, numbers: Iterable[int]) -> Iterator[ResultRow]:
    """Run the tasks of these numbers."""
    for number in numbers:
        yield from _run_task(job, number)


def run_in_arrow(job: Job, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """Run the tasks whose numbers come in (one column), for Spark's `mapInArrow`."""
    for batch in batches:
        yield from _in_arrow(run_tasks(job, batch.column(0).to_pylist()))


def _in_arrow(rows: Iterable[ResultRow]) -> Iterator[pa.RecordBatch]:
    """Yield rows of a result, each a batch of its own: they are large."""
    for row in rows:
        arrays = [pa.array([v], f.type) for v, f in zip(row, _ARROW_RESULT, strict=True)]
        yield pa.RecordBatch.from_arrays(arrays, schema=_ARROW_RESULT)


def rows_of(batch: pa.RecordBatch) -> Iterator[ResultRow]:
    """Yield the rows of a result's batch."""
    for row in batch.to_pylist():
        yield _row(**row)


def _run_task(job: Job, number: int) -> Iterator[ResultRow]:
    task = job.tasks[number - job.first]
    try:
        shop = _workshop(job.settings)
        made, slices = _read(shop.log, task)
        known = AskedIds(task)
        result = shop.stage.run(slices, known, job.started_at_us)
        _stage_files(shop, result, made)
    except _RETURNED as error:
        _workshop.cache_clear()
        kept = (type(error).kind_code, error.message, error.hint, error.code)
        yield _row(number, "made", body=msgspec.json.encode(Made(error=kept)))
        return
    made.clocks, made.topics, made.tables = result.clocks, result.topics, result.tables
    made.partial_rows = sum(p.num_rows for v in result.partials.values() for p in v.values())
    yield _row(number, "made", body=msgspec.json.encode(made))
    yield from _ids(number, task, known, result.known_ids)
    for table, rows in result.keyed.items():
        for body in bodies(rows):
            yield _row(number, "keyed", table, body=body)
    parts = {v.name: {p.name: p for p in v.parts} for v in shop.plan.views}
    for view, partials in result.partials.items():
        for name, rows in partials.items():
            for bucket, some in _buckets(shop.engine, parts[view][name], rows, job.buckets):
                for body in bodies(some):
                    yield _row(number, "partial", view, name, bucket, body)


def _read(log: LogReader, task: Task) -> tuple[Made, list[Slice]]:
    made, slices = Made(), []
    for piece in task:
        records, end = _records(log, piece)
        part = msgspec.structs.replace(piece.part, end=end)
        made.pieces.append(PieceMade(part))
        if records is not None:
            slices.append(Slice(*piece.partition, piece.incarnation, piece.clock_us, records))
            times = pc.min_max(records.column("received_at").cast(pa.int64())).as_py()
            made.pieces[-1] = PieceMade(part, times["min"], times["max"])
    return made, slices


def _records(log: LogReader, piece: Piece) -> tuple[pa.RecordBatch | None, int]:
    """Return a piece's records (None: the log has a gap there), and the offset after them."""
    (topic, partition), at, end = piece.partition, piece.part.start, piece.part.end
    batches: list[pa.RecordBatch] = []
    left = READ_BYTES_MAX
    while at < end and left > 0:
        read = log.read(topic, partition, at, end, bytes_max=left)
        some = [batch for batch in read if batch.num_rows]
        if not some:
            # A log may leave gaps; one that lost records was found out before.
            at = end
            break
        batches += some
        left -= sum(batch.nbytes for batch in some)
        at = int(some[-1].column("offset")[-1].as_py()) + 1
    return joined(batches) if batches else None, at


def _stage_files(shop: _Workshop, result: StageResult, made: Made) -> None:
    """Stage rows and dead letters. Known ids are not: the driver may have to set their clocks."""
    staged = {file_name(table): rows for table, rows in result.rows.items()}
    letters = result.letters.table()
    if letters is not None:
        staged[DEAD_LETTERS] = letters
    for name, rows in staged.items():
        made.files[name] = shop.tables.stage(name, rows, unique=unique_columns(name))


def _ids(number: int, task: Task, known: AskedIds, kept: pa.Table | None) -> Iterator[ResultRow]:
    for place, piece in enumerate(task):
        topic, partition = piece.partition
        ids = None
        if kept is not None:
            of_partition = pc.and_(
                pc.equal(kept.column("topic"), topic), pc.equal(kept.column("partition"), partition)
            )
            ids = kept.filter(of_partition)
            yield from _bodies_of(number, "ids", place, ids)
        asked = known.asked(piece.partition)
        if asked is not None:
            if ids is not None:
                seen = pc.is_in(asked, value_set=ids.column("id").combine_chunks())
                asked = asked.filter(pc.invert(seen))
            yield from _bodies_of(number, "asked", place, pa.table({"id": asked}))


def _bodies_of(number: int, kind: str, place: int, ids: pa.Table) -> Iterator[ResultRow]:
    if ids.num_rows:
        for body in bodies(ids):
            yield _row(number, kind, str(place), body=body)


def _buckets(
    engine: Engine, part: StatePart, rows: pa.Table, count: int
) -> Iterator[tuple[int, pa.Table]]:
    """Yield (bucket, rows) so that rows of one key, from whichever task, share a bucket."""
    key = merge_key(part)
    if count == 1 or not key or not rows.num_rows:
        yield 0, rows
        return
    sql = f"SELECT CAST(hash({', '.join(key)}) % {count} AS INTEGER) AS bucket FROM rows"
    bucket_of = engine.query(sql, {"rows": rows.select(key)}).column("bucket").to_numpy()
    order = np.argsort(bucket_of, kind="stable")
    edges = np.searchsorted(bucket_of[order], np.arange(count + 1))
    sorted_rows = rows.take(pa.array(order))
    for bucket in range(count):
        some = sorted_rows.slice(edges[bucket], edges[bucket + 1] - edges[bucket])
        if some.num_rows:
            yield bucket, some


def merge_in_arrow(
    settings: Settings, batches: Iterator[pa.RecordBatch]
) -> Iterator[pa.RecordBatch]:
    """Merge partials of many tasks, bucket by bucket, for `mapInArrow`.

    What comes in are all rows of kind `partial` of some buckets; what goes out too, but with each
    key of a part once.
    """
    rows = (row for batch in batches for row in rows_of(batch))
    yield from _in_arrow(_merged(settings, rows))


def _merged(settings: Settings, rows: Iterable[ResultRow]) -> Iterator[ResultRow]:
    waiting: dict[tuple[str, str, int], list[pa.Table]] = defaultdict(list)
    for _, _, view, part, bucket, body in rows:
        waiting[view, part, bucket].append(table_of(body))
    if not waiting:
        return
    shop = _workshop(settings)
    merge = {(v.name, p.name): p.merge_sql for v in shop.plan.views for p in v.parts}
    for view, part, bucket in list(waiting):
        parts = pa.concat_tables(waiting.pop((view, part, bucket)))
        merged = shop.engine.query(merge[view, part], {"parts": parts})
        for body in bodies(merged.cast(parts.schema)):
            yield _row(-1, "partial", view, part, bucket, body)


def bodies(rows: pa.Table) -> Iterator[bytes]:
    """Yield rows as Arrow streams of about `BODY_BYTES_MAX` bytes, one at least."""
    step = max(1, rows.num_rows * BODY_BYTES_MAX // max(rows.nbytes, BODY_BYTES_MAX))
    for start in range(0, max(1, rows.num_rows), step):
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, rows.schema) as stream:
            stream.write_table(rows.slice(start, step))
        yield sink.getvalue().to_pybytes()


def table_of(body: bytes) -> pa.Table:
    """Return the table of one of `bodies`."""
    with closing(pa.ipc.open_stream(body)) as stream:
        return stream.read_all()


def raised(error: tuple[str, str, str, str]) -> HeadraceError:
    """Return the error that a task met."""
    kind, message, hint, code = error
    kinds: dict[str, type[HeadraceError]] = {k.kind_code: k for k in _RETURNED}
    return kinds[kind](message, hint=hint, code=code)


def _row(
    task: int, kind: str, name: str = "", part: str = "", bucket: int = 0, body: bytes = b""
) -> ResultRow:
    return task, kind, name, part, bucket, body
