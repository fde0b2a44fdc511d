"""From the log to a durable table and three views, against DuckDB doing the same work once.

    python bench/pipeline.py [--rows 1000000] [--rounds 3] [--quick]

The log is written as the door writes it: bodies of 100 lines, judged, marked, named, and committed
in groups. What is timed is the process role's loop until it has caught up and every view is
published: reading the log, the stage, the duplicates rule and dead letters, the durable commits,
the fold and the publish. Beside it DuckDB starts from the same records already in memory and, in
one shot, decodes them, writes Parquet, computes the three aggregates and writes them: no log, no
validity, no durability, no increments. That is a limit; the peer is Spark's Structured Streaming as
`local[2]`, warm, which reads the same events from Kafka in one batch and makes rows and one count
(`structured_streaming.py`). Beside it ours makes that one count too. It is left out where Java is
missing.
"""

from __future__ import annotations

import argparse
import importlib
import itertools
import os
import tempfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, closing
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
from measure import Figures, Row, alternated, memory_mb, tell, timed
from workload import BY_PLAYER, PARTITIONS, VIEWS, as_the_door_makes_them, events, make_plan

from headrace.app.cluster import spark
from headrace.log.embedded import EmbeddedLog
from headrace.model.clock import SystemClock
from headrace.process.loop import EpochProgress, Loop
from headrace.process.recover import recover
from headrace.runner.local import LocalRunner
from headrace.stage.engine import Engine
from headrace.tables.delta import DeltaTables

THREADS = 2
GROUP_BODIES = 40
"""Bodies that share a commit of a busy log."""
SCAN_ROWS = 5_000
OURS, SAME = "three views", "one count"
"""What ours makes: all of it, and what the peer does."""
BARE = "bare DuckDB, once"
Streams = AbstractContextManager[dict[str, Callable[[], Figures]]]
WIRE = (
    '{"event_type":"VARCHAR","player":"BIGINT","Host":"VARCHAR","User-Agent":"VARCHAR",'
    '"price":"BIGINT"}'
)
COLUMNS = f"""event_id::VARCHAR AS event_id, received_at, 'events' AS _topic, _partition, _offset,
    f.event_type AS event_type, f.player AS player, f.Host AS host,
    f."User-Agent" AS user_agent, f.price AS price
    FROM (SELECT *, from_json(value, '{WIRE}') AS f FROM records)"""


def write_log(log: EmbeddedLog, rows: int, plan) -> None:
    """Fill the log as a busy door does."""
    topic = plan.topic("events")
    log.create(topic.name, topic.partitions)
    bodies = as_the_door_makes_them(topic, list(events(rows)))
    while group := list(itertools.islice(bodies, GROUP_BODIES)):
        for batch in group[1:]:
            group[0].extend(batch)
        log.append(topic.name, group[0])


class Headrace:
    """The process role's loop, each time in a data directory of its own."""

    def __init__(self, log: EmbeddedLog, plan, folder: Path, rows: int) -> None:
        self._log, self._plan, self._folder, self._rows = log, plan, folder, rows
        self._clock = SystemClock()
        self._numbers = itertools.count()

    def run(self) -> Figures:
        """Catch up from the log's start."""
        clock, plan = self._clock, self._plan
        root = self._folder / f"{plan.fingerprint}-{next(self._numbers)}"
        tables = DeltaTables(root, clock)
        runner = LocalRunner(self._log, tables, clock, threads=THREADS)
        engine = Engine(threads=THREADS)
        progress = EpochProgress()
        with closing(runner), closing(engine):
            owner = recover(plan, self._log, tables, runner, clock, engine, root / "keys")
            loop = Loop(owner, threading.Event(), progress, drain=lambda: True)
            figures = timed(loop.run)
            counted = tables.read(tables.snapshot("views/by_player")).column("n")
        assert sum(counted.to_pylist()) == self._rows
        return {**figures, "epochs": progress.epochs, "memory_mb": memory_mb()}


class Bare:
    """DuckDB and pyarrow over records in memory, once."""

    def __init__(self, log: EmbeddedLog, folder: Path) -> None:
        self._folder = folder
        pieces = []
        for partition in range(PARTITIONS):
            end = log.ends("events")[partition]
            for batch in log.read("events", partition, 0, end, bytes_max=1 << 40):
                ids = pa.ExtensionArray.from_storage(pa.uuid(), batch.column("id"))
                columns = {
                    "value": batch.column("value").cast(pa.string()),
                    "event_id": ids,
                    "received_at": batch.column("received_at"),
                    "_partition": pa.repeat(pa.scalar(partition, pa.int32()), len(batch)),
                    "_offset": batch.column("offset"),
                }
                pieces.append(pa.RecordBatch.from_pydict(columns))
        records = pa.Table.from_batches(pieces)
        self._records = pa.Table.from_batches(records.to_batches(max_chunksize=SCAN_ROWS))
        self._con = duckdb.connect(config={"threads": str(THREADS)})
        self._con.execute("SET TimeZone = 'UTC'")
        self._writer = ThreadPoolExecutor(1)

    def run(self) -> Figures:
        """Do everything."""
        return timed(self._work)

    def _work(self) -> None:
        con = self._con
        con.register("records", self._records)
        rows = con.sql(f"SELECT {COLUMNS}").to_arrow_table()
        written = [self._write("events", rows, ["event_type", "host", "user_agent", "_topic"])]
        con.register("events", rows)
        for name, sql in VIEWS.items():
            written.append(self._write(name, con.sql(sql).to_arrow_table(), False))
        for one in written:
            one.result()

    def _write(self, name: str, rows: pa.Table, dictionary):
        path = self._folder / f"{name}.parquet"
        return self._writer.submit(
            pq.write_table, rows, path, compression="zstd", use_dictionary=dictionary
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="200,000 rows")
    options = parser.parse_args()
    if options.quick:
        options.rows = 200_000
    plan, before = make_plan(VIEWS), os.getloadavg()[0]
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        log = stack.enter_context(closing(EmbeddedLog(folder / "log", SystemClock())))
        write_log(log, options.rows, plan)
        sides = {
            OURS: Headrace(log, plan, folder, options.rows).run,
            BARE: Bare(log, folder).run,
        }
        if streams := find_streams():
            one = make_plan({"by_player": BY_PLAYER})
            sides[SAME] = Headrace(log, one, folder, options.rows).run
            twice = itertools.chain(events(options.rows), events(options.rows))
            sides |= stack.enter_context(streams(twice, options.rows, folder))
        found = alternated(sides, options.rounds)
    ours, same = found.pop(OURS), found.pop(SAME, None)
    rows = [row(OURS, BARE, ours, found.pop(BARE), options.rows)]
    if same is not None:
        rows += [row(SAME, name, same, beside, options.rows) for name, beside in found.items()]
    tell("pipeline", rows, records=options.rows, rounds=options.rounds, load_before=before)


def find_streams() -> Callable[[Iterator[bytes], int, Path], Streams] | None:
    """Return what starts Structured Streaming; None, and say why, where that cannot run."""
    reason = spark.missing()
    if reason:
        print(f"# without Structured Streaming: {reason}")
        return None
    return importlib.import_module("streamed").ways


def row(made: str, name: str, ours: Figures, beside: Figures, records: int) -> Row:
    """Return a line of the table: ours, making `made`, against one that stands beside it."""
    return {
        "small events into": made,
        "beside": name,
        "ratio": beside["wall_s"] / ours["wall_s"],
        "cpu ratio": beside["cpu_s"] / ours["cpu_s"] if "cpu_s" in beside else "",
        "headrace/s": records / ours["wall_s"],
        "beside it/s": records / beside["wall_s"],
        "epochs": ours["epochs"],
        "memory MB": ours["memory_mb"],
    }


if __name__ == "__main__":
    main()
