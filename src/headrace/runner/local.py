"""Runs epochs in this process: log ranges in, staged files and partials out."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor, wait

import pyarrow as pa

from headrace.model.clock import Clock
from headrace.model.log import LogReader
from headrace.model.plan import DEAD_LETTERS, KNOWN_IDS, Plan
from headrace.model.runner import Epoch, KnownIds, Outcome, Range
from headrace.model.tables import DataFile, Tables
from headrace.runner.staged import READ_BYTES_MAX, file_name, joined, unique_columns
from headrace.stage.engine import Engine
from headrace.stage.records import Slice
from headrace.stage.stage import Stage


class LocalRunner:
    """A `Runner` with one DuckDB and one thread that writes Parquet beside it.

    `threads` and `memory_limit` are the engine's. The same runner takes any plan; it keeps what
    the last one was compiled to.
    """

    def __init__(
        self,
        log: LogReader,
        tables: Tables,
        clock: Clock,  # noqa: ARG002 - every part that runs takes one; this one needs no time yet
        *,
        threads: int = 2,
        memory_limit: str | None = None,
    ) -> None:
        self._log = log
        self._tables = tables
        self._engine = Engine(threads, memory_limit)
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="parquet")
        self._compiled: tuple[Plan, Stage] | None = None

    def prepare(self, plan: Plan) -> None:
        """See `model.runner`; a plan is compiled within its first epoch."""

    def run(self, epoch: Epoch, known: KnownIds) -> Outcome:
        """See `model.runner`.

        1. Read the ranges.
        2. Make rows, and hand each table's to the writer; those of keyed tables go to the caller.
        3. Make partials meanwhile; a table that loses a row by that is written again.
        4. Write dead letters and known ids, and wait for all files to be durable.
        """
        slices, ranges = self._read(epoch)  # 1
        stage = self._stage(epoch.plan)
        result = stage.make_rows(slices, known, epoch.started_at_us)  # 2
        keyed = {t.name for t in epoch.plan.tables if t.keyed}
        writes = {
            file_name(t): self._write(file_name(t), r)
            for t, r in result.rows.items()
            if t not in keyed
        }
        try:
            for table in list(result.rows):  # 3
                if not stage.make_partials(result, slices, table) and table not in keyed:
                    # What the first write leaves is a file that no commit will name.
                    writes.pop(file_name(table)).result()
                    if table in result.rows:
                        rows = result.rows[table]
                        writes[file_name(table)] = self._write(file_name(table), rows)
            system = {DEAD_LETTERS: result.letters.table(), KNOWN_IDS: result.known_ids}  # 4
            writes |= {n: self._write(n, rows) for n, rows in system.items() if rows is not None}
            files = {name: [write.result()] for name, write in writes.items()}
        finally:
            wait(writes.values())
        return Outcome(
            files=files,
            partials=result.partials,
            known_ids=result.known_ids,
            clocks={**epoch.clocks, **result.clocks},
            topics=result.topics,
            tables=result.tables,
            ranges=ranges,
            keyed=result.keyed,
        )

    def close(self) -> None:
        """Release the engine and the writer."""
        self._writer.shutdown()
        self._engine.close()

    def _stage(self, plan: Plan) -> Stage:
        # The loop hands the same plan object to every epoch.
        if self._compiled is None or self._compiled[0] is not plan:
            self._compiled = (plan, Stage(plan, self._engine))
        return self._compiled[1]

    def _write(self, name: str, rows: pa.Table) -> Future[DataFile]:
        return self._writer.submit(self._tables.stage, name, rows, unique=unique_columns(name))

    def _read(self, epoch: Epoch) -> tuple[list[Slice], tuple[Range, ...]]:
        slices, ranges = [], []
        for asked in epoch.ranges:
            batches = [
                batch
                for batch in self._log.read(
                    asked.topic, asked.partition, asked.start, asked.end, bytes_max=READ_BYTES_MAX
                )
                if batch.num_rows
            ]
            if not batches:
                # A log may leave gaps; one that lost records was found out before.
                ranges.append(asked)
                continue
            records = joined(batches)
            part = Slice(
                asked.topic,
                asked.partition,
                epoch.incarnations[asked.topic],
                epoch.clocks.get(f"{asked.topic}/{asked.partition}"),
                records,
            )
            slices.append(part)
            end = asked.end
            if records.nbytes >= READ_BYTES_MAX:
                # Reading may have stopped there; else what comes behind is a gap.
                end = int(records.column("offset")[-1].as_py()) + 1
            ranges.append(Range(asked.topic, asked.partition, asked.start, end))
        return slices, tuple(ranges)
