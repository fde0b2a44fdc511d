"""The peer of `cluster` and `pipeline`: the same job in Spark's own Structured Streaming.

Written as its programming guide and its Kafka guide write such jobs: read a topic, decode it by a
declared schema, keep the rows as Parquet and a count by key up to date. There are two ways to have
two outputs, and both are here. `two queries` are one for the rows (append) and one for the counts
(update); each reads and decodes the topic. `one query` hands each batch to a function that caches
it and writes both. It does less than Headrace: it finds no duplicates, keeps no dead letters and no
accounts, and commits rows and counts apart.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from pyspark.sql import DataFrame, SparkSession
from pyspark.sql.functions import col, from_json
from pyspark.sql.functions import sum as total
from pyspark.sql.streaming import StreamingQuery

POLL_S = 0.05
SLOTS = 2


@dataclass(frozen=True)
class Job:
    """What is read and made."""

    topic: str
    schema: str
    """Of a message, as Spark's DDL."""
    columns: tuple[str, ...]
    """Those of a row, as SQL over the fields."""
    key: str
    """The column by which rows are counted."""


def tuned(session: SparkSession) -> SparkSession:
    """Return a session for small batches: as many partitions after a shuffle as tasks run."""
    own = session.newSession()
    own.conf.set("spark.sql.shuffle.partitions", str(SLOTS))
    return own


def decoded(session: SparkSession, bootstrap: str, job: Job, records: int) -> DataFrame:
    """Return the stream of rows, `records` a batch."""
    messages = (
        session.readStream.format("kafka")
        .option("kafka.bootstrap.servers", bootstrap)
        .option("subscribe", job.topic)
        .option("startingOffsets", "earliest")
        .option("maxOffsetsPerTrigger", records)
        .load()
    )
    event = from_json(col("value").cast("string"), job.schema).alias("event")
    place = ("topic", "partition", "offset", "timestamp")
    return (
        messages.select(event, *place)
        .selectExpr("event.*", *place)
        .selectExpr(*job.columns, *place)
    )


def two_queries(rows: DataFrame, job: Job, folder: Path) -> list[StreamingQuery]:
    """Start one query for each output."""

    def keep(changed: DataFrame, number: int) -> None:
        changed.write.mode("overwrite").parquet(f"{folder}/counts/{number}")

    kept = (
        rows.writeStream.format("parquet")
        .outputMode("append")
        .option("path", f"{folder}/rows")
        .option("checkpointLocation", f"{folder}/rows-checkpoint")
        .start()
    )
    counted = (
        rows.groupBy(job.key)
        .count()
        .writeStream.foreachBatch(keep)
        .outputMode("update")
        .option("checkpointLocation", f"{folder}/counts-checkpoint")
        .start()
    )
    return [kept, counted]


def one_query(rows: DataFrame, job: Job, folder: Path) -> list[StreamingQuery]:
    """Start one query that writes both outputs of each batch."""

    def keep(batch: DataFrame, number: int) -> None:
        batch.persist()
        batch.write.mode("overwrite").parquet(f"{folder}/rows/batch={number}")
        counts = batch.groupBy(job.key).count()
        if number:
            reader = batch.sparkSession.read.schema(counts.schema)
            before = reader.parquet(f"{folder}/counts/{number - 1}")
            both = before.unionAll(counts).groupBy(job.key)
            counts = both.agg(total("count").alias("count"))
        counts.write.mode("overwrite").parquet(f"{folder}/counts/{number}")
        batch.unpersist()

    query = rows.writeStream.foreachBatch(keep)
    return [query.option("checkpointLocation", f"{folder}/checkpoint").start()]


Way = Callable[[DataFrame, Job, Path], list[StreamingQuery]]
WAYS: dict[str, Way] = {"two queries": two_queries, "one query": one_query}


def run(
    session: SparkSession,
    bootstrap: str,
    job: Job,
    way: Way,
    folder: Path,
    records: int,
    warm: int,
    count: int,
) -> float:
    """Return the seconds of a batch: the median of `count` after the first `warm`.

    Where there are two queries, which run side by side, it is the slower one's. A batch's time is
    what Spark itself tells (`triggerExecution`): offsets, planning, work and its commit.
    """
    queries = way(decoded(session, bootstrap, job, records), job, folder)
    try:
        told = [_batches(query, warm + count) for query in queries]
    finally:
        for query in queries:
            query.stop()
    return max(statistics.median(seconds[warm:]) for seconds in told)


def _batches(query: StreamingQuery, count: int) -> Sequence[float]:
    """Return the seconds of a query's first batches, once there are so many."""
    while True:
        error = query.exception()
        if error is not None:
            raise error
        told = [p for p in query.recentProgress if p.numInputRows]
        if len(told) >= count:
            return [p.durationMs["triggerExecution"] / 1000 for p in told[:count]]
        time.sleep(POLL_S)
