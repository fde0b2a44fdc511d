"""Runs epochs in Spark's tasks: the same stage, by DuckDB, wherever Spark runs it.

Spark schedules, retries and shuffles; it plans no SQL of ours. An epoch is one job while its
partials are small: each task reads its offsets of the log, runs the stage and stages its files
where the tables are, and the driver gets what they are called, the ids, the counts and the
partials. What a task that fails or runs twice leaves behind are files that no commit will name.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import msgspec
import pyarrow as pa
from py4j.protocol import Py4JError
from pyspark.errors import PySparkException
from pyspark.sql import functions

from headrace.model.clock import Clock
from headrace.model.errors import Internal, Unavailable
from headrace.model.log import LogReader
from headrace.model.plan import KNOWN_IDS, Plan
from headrace.model.runner import Epoch, KnownIds, Outcome
from headrace.model.tables import Tables
from headrace.runner import gather, spark_session
from headrace.runner.cut import TASK_BYTES_MAX, TASK_BYTES_MIN, Task, cut
from headrace.runner.gather import TaskResult
from headrace.runner.places import Place
from headrace.runner.staged import unique_columns
from headrace.runner.task import (
    RESULT_SCHEMA,
    Job,
    ResultRow,
    Settings,
    merge_in_arrow,
    open_workshop,
    rows_of,
    run_in_arrow,
    run_tasks,
)

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

_BUCKET_ROWS = 100_000
"""About how many rows of partials a merging task gets."""

_SPARK_ERRORS = (PySparkException, Py4JError, OSError)
_WORDS_MAX = 500
_TRACEBACK = "Traceback (most recent call last):"


@dataclass(frozen=True)
class Sizes:
    """From which size on work is shared out."""

    task_bytes_min: int = TASK_BYTES_MIN
    """Bytes of the log that a task reads at least."""
    merged_rows_min: int = 1_000_000
    """Rows of an epoch's partials from which on tasks merge them by key, and not the driver."""


class SparkRunner:
    """A `Runner` on a Spark session, which is begun when it is first needed and kept.

    `log` tells sizes and `tables` stages known ids, both from this process; `place` is how tasks
    open the same. `master` and `settings` are Spark's. Each task's DuckDB has as many threads as
    `spark.task.cpus` and `memory_limit`. A `session` that is passed in stays the caller's.

    Tasks read the log themselves, whatever it is.
    """

    def __init__(
        self,
        log: LogReader,
        tables: Tables,
        clock: Clock,  # noqa: ARG002 - every part that runs takes one; this one needs no time yet
        place: Place,
        *,
        master: str = "local[2]",
        settings: Mapping[str, str] | None = None,
        memory_limit: str = "1GB",
        session: SparkSession | None = None,
        sizes: Sizes = Sizes(),
    ) -> None:
        self._log = log
        self._tables = tables
        self._place = place
        self._master = master
        self._settings = dict(settings or {})
        self._memory_limit = memory_limit
        self._given = session
        self._session: SparkSession | None = None
        self._beginning = threading.Lock()
        self._preparing: threading.Thread | None = None
        self._sizes = sizes
        self._encoded: tuple[Plan, bytes] | None = None
        self._rows_a_record = 1.0
        """Rows of partials that a record of the last epoch made; a guess before there is one."""

    def prepare(self, plan: Plan) -> None:
        """See `model.runner`: a session is begun, and workers open what tasks of the plan need.

        Spark ends workers that had nothing to do for a minute.
        """
        if self._preparing is None or not self._preparing.is_alive():
            self._preparing = threading.Thread(
                target=self._prepare, args=(plan,), name="spark-prepare", daemon=True
            )
            self._preparing.start()

    def run(self, epoch: Epoch, known: KnownIds) -> Outcome:
        """See `model.runner`.

        1. Cut the ranges into tasks, and run them as one job.
        2. Run again, as one job each time, the partitions that ids met before make wrong.
        3. Merge the partials by key, in tasks, if they are many.
        4. Stage the known ids, whose clocks only now are known.
        """
        session = self._begun()
        try:
            return self._run(session, epoch, known)
        except _SPARK_ERRORS as error:
            raised = _raised_in_task(error)
            if raised:
                raise Internal(f"A task failed: {raised}") from error
            self._drop_dead()
            raise Unavailable(
                f"Spark could not run the epoch: {_first_line(error)}",
                hint="See the log of Spark's driver and executors.",
                code="spark_failed",
            ) from error

    def close(self) -> None:
        """End the session, unless it was passed in; the next epoch would begin another."""
        with self._beginning:
            if self._session is not None:
                spark_session.end(self._session)
                self._session = None

    def _begun(self) -> SparkSession:
        if self._given is not None:
            return self._given
        with self._beginning:
            if self._session is None:
                self._session = spark_session.begin(self._master, self._settings)
            return self._session

    def _drop_dead(self) -> None:
        """Let go of a session that can run no jobs any more."""
        if self._session is not None and not spark_session.is_alive(self._session):
            self.close()

    def _prepare(self, plan: Plan) -> None:
        try:
            session = self._begun()
            slots, settings = self._room(session, plan)
            numbers = session.sparkContext.parallelize(range(slots), slots)
            numbers.mapPartitions(partial(open_workshop, settings)).count()
        except _SPARK_ERRORS:
            # The next epoch meets what is wrong, and says it.
            self._drop_dead()

    def _room(self, session: SparkSession, plan: Plan) -> tuple[int, Settings]:
        """Return how many tasks run at once, and what each of them is told."""
        threads = int(session.conf.get("spark.task.cpus", "1") or "1")
        slots = max(1, session.sparkContext.defaultParallelism // threads)
        return slots, Settings(self._place, self._encode(plan), threads, self._memory_limit)

    def _run(self, session: SparkSession, epoch: Epoch, known: KnownIds) -> Outcome:
        slots, settings = self._room(session, epoch.plan)
        records = sum(r.end - r.start for r in epoch.ranges)
        expected = records * min(self._rows_a_record, len(epoch.plan.views))
        run = _Run(session, settings, epoch, slots)
        if expected >= self._sizes.merged_rows_min:
            run.buckets = max(2, slots, round(expected / _BUCKET_ROWS))
        try:
            tasks = cut(epoch, self._log, slots, self._sizes.task_bytes_min)  # 1
            run.run(tasks)
            while wrong := gather.refuted(run.results, epoch, known):  # 2
                run.results, tasks = gather.again(run.results, wrong, epoch, TASK_BYTES_MAX)
                run.run(tasks)
            partials = run.partials()  # 3
        finally:
            run.close()
        if records:
            made = sum(result.made.partial_rows for result in run.results)
            self._rows_a_record = made / records
        ids = gather.known_ids(run.results, epoch)  # 4
        outcome = gather.outcome(epoch, run.results, partials, ids)
        if ids is not None:
            file = self._tables.stage(KNOWN_IDS, ids, unique=unique_columns(KNOWN_IDS))
            outcome.files[KNOWN_IDS] = [file]
        return outcome

    def _encode(self, plan: Plan) -> bytes:
        # The loop hands the same plan object to every epoch.
        if self._encoded is None or self._encoded[0] is not plan:
            self._encoded = (plan, msgspec.json.encode(plan))
        return self._encoded[1]


class _Run:
    """The jobs of one epoch."""

    def __init__(self, session: SparkSession, settings: Settings, epoch: Epoch, slots: int) -> None:
        self._session = session
        self._settings = settings
        self._epoch = epoch
        self._slots = slots
        self._started = 0
        self._kept: list[DataFrame] = []
        """Results whose partials stayed with the executors."""
        self.buckets = 1
        """How many buckets partials are cut into, to be merged in tasks; 1: they are not."""
        self.results: list[TaskResult] = []
        """Of all tasks that may stand."""

    def run(self, tasks: Sequence[Task]) -> None:
        """Run tasks as one job and add their results."""
        if not tasks:
            return
        job, first = self._job(tasks), self._started
        numbers = range(first, first + len(tasks))
        if self.buckets > 1:
            frame = self._session.range(numbers.start, numbers.stop, 1, len(numbers))
            rows = self._kept_apart(frame.mapInArrow(partial(run_in_arrow, job), RESULT_SCHEMA))
        else:
            # Spark's SQL plans longer than a small epoch takes.
            context = self._session.sparkContext
            slices = context.parallelize(numbers, len(numbers))
            rows = slices.mapPartitions(partial(run_tasks, job)).collect()
        results = self._results(rows)
        for number, result in results.items():
            result.task = tasks[number - first]
        self._add(results)

    def _kept_apart(self, frame: DataFrame) -> list[ResultRow]:
        """Run a job whose partials stay with the executors; return the other rows."""
        kept = frame.persist()
        try:
            rows = _rows(kept.where("kind <> 'partial'").toArrow())
        except BaseException:
            kept.unpersist()
            raise
        self._kept.append(kept)
        return rows

    def _results(self, rows: Iterable[ResultRow]) -> dict[int, TaskResult]:
        """Return the results of a job's tasks by their numbers."""
        results: dict[int, TaskResult] = {}
        for row in rows:
            number = row[0]
            if number not in results:
                results[number] = TaskResult(number)
            results[number].take(row)
        return results

    def _add(self, results: Mapping[int, TaskResult]) -> None:
        self._started = max(results, default=self._started) + 1
        self.results += results.values()

    def _job(self, tasks: Sequence[Task]) -> Job:
        at_us = self._epoch.started_at_us
        return Job(self._settings, tuple(tasks), self._started, at_us, self.buckets)

    def partials(self) -> dict[str, dict[str, pa.Table]]:
        """Return the partials of the results that stand: view → part → rows."""
        together: gather.Partials = {}
        if self._kept:
            for row in _rows(self._merged()):
                gather.add_partial(together, row)
        else:
            for result in self.results:
                for view, parts in result.partials.items():
                    for part, tables in parts.items():
                        together.setdefault(view, {}).setdefault(part, []).extend(tables)
        return {
            view: {part: pa.concat_tables(tables) for part, tables in parts.items()}
            for view, parts in together.items()
        }

    def _merged(self) -> pa.Table:
        stands = functions.col("task").isin([result.number for result in self.results])
        frame = self._kept[0]
        for more in self._kept[1:]:
            frame = frame.unionAll(more)
        frame = frame.where((functions.col("kind") == "partial") & stands)
        frame = frame.repartition(min(self.buckets, 4 * self._slots), "bucket")
        return frame.mapInArrow(partial(merge_in_arrow, self._settings), RESULT_SCHEMA).toArrow()

    def close(self) -> None:
        """Let go of what the executors keep."""
        for frame in self._kept:
            frame.unpersist()


def _rows(table: pa.Table) -> list[ResultRow]:
    """Return the rows of a result."""
    return [row for batch in table.to_batches() for row in rows_of(batch)]


def _raised_in_task(error: Exception) -> str:
    """Return the last line of the Python traceback that an error of a job holds, empty if none."""
    _, _, traceback = str(error).partition(_TRACEBACK)
    lines = [line.strip() for line in traceback.splitlines()]
    # What follows is where Java was.
    ours = list(itertools.takewhile(lambda line: not line.startswith("at "), lines))
    return next((line for line in reversed(ours) if line), "")[:_WORDS_MAX]


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:_WORDS_MAX] if lines else type(error).__name__
