"""What a task makes of the messages that Spark's connector brings to it."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from headrace.log.kafka.client import Kafka
from headrace.log.kafka.columns import decode_columns
from headrace.log.kafka.reader import KafkaLogReader
from headrace.model.errors import Internal, Unavailable
from headrace.model.log import LogReader
from headrace.model.runner import Range
from headrace.runner.cut import Piece, Read
from headrace.runner.staged import READ_BYTES_MAX, joined
from headrace.runner.task import Job, in_arrow, run

TOO_LARGE = "task_too_large"
"""Code of the error of a task that was brought more than it may read."""


def run_brought(job: Job, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """Run a task on the messages that come in (`connector.COLUMNS`), for Spark's `mapInArrow`.

    They are those of a part of one range. The task's number follows from where the part begins, so
    that it is the same wherever and in whichever job Spark makes the same result again.
    """
    kafka = job.settings.place.log
    assert isinstance(kafka, Kafka)
    first = next((batch for batch in batches if batch.num_rows), None)
    if first is None:
        return
    ranges = [(kafka.name_of(p.part.topic), p.part.partition) for (p,) in job.tasks]
    place = ranges.index((first.column("topic")[0].as_py(), first.column("partition")[0].as_py()))
    (piece,) = job.tasks[place]
    begin = first.column("offset")[0].as_py() - piece.part.start
    number = job.first + place + len(ranges) * begin
    messages = itertools.chain([first], batches)
    yield from in_arrow(run(job, number, lambda log: [brought(log, piece, messages)]))


def brought(log: LogReader, piece: Piece, batches: Iterable[pa.RecordBatch]) -> Read:
    """Return the part of a piece that some of its messages are, at least one.

    Its range is from the first message to the last: what else belongs to it only the driver knows.
    """
    assert isinstance(log, KafkaLogReader)
    found: list[pa.RecordBatch] = []
    offsets: list[int] = []
    left = READ_BYTES_MAX
    for batch in batches:
        if not batch.num_rows:
            continue
        _check(batch)
        left -= batch.nbytes
        if left < 0:
            raise Unavailable("Spark has brought more than one task may read", code=TOO_LARGE)
        offsets += [batch.column("offset")[i].as_py() for i in (0, -1)]
        records = _visible(log, batch, piece)
        if records.num_rows:
            found.append(records)
    part = Range(piece.part.topic, piece.part.partition, offsets[0], offsets[-1] + 1)
    return Read(piece._replace(part=part), joined(found) if found else None, part.end)


def _check(batch: pa.RecordBatch) -> None:
    partition, topic = (pc.min_max(batch.column(name)) for name in ("partition", "topic"))
    if partition["min"] != partition["max"] or topic["min"] != topic["max"]:
        raise Internal("Spark has brought messages of several partitions to one task")


def _visible(log: KafkaLogReader, batch: pa.RecordBatch, piece: Piece) -> pa.RecordBatch:
    """Return the records of messages, without those of acts that were given up."""
    records, acts = decode_columns(batch, piece.part.partition, piece.incarnation)
    if acts.null_count == len(acts):
        return records
    names = acts.dictionary_encode()
    told = [(name or b"").decode("utf-8", "replace") for name in names.dictionary.to_pylist()]
    aborted = log.aborted({name for name in told if name})
    if not aborted:
        return records
    is_gone = np.array([name in aborted for name in told])
    gone = pa.array(is_gone).take(names.indices).fill_null(False)
    return records.filter(pc.invert(gone))
