"""An epoch through the local runner, against the best bare DuckDB doing exactly that.

    python bench/stage.py [--rows 300000] [--rounds 3] [--quick]

Both sides begin with the same Arrow in memory and end with a Parquet file and a count by key.
DuckDB decodes the same fields with `from_json`, makes the same columns, writes Parquet in a thread
meanwhile, and does nothing else: no validation, no dead letters, no duplicates rule, no fsync.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
from measure import Figures, alternated, tell, timed
from workload import BY_PLAYER, PARTITIONS, as_the_door_makes_them, events, make_plan

from headrace.model.batch import UNMARKED, decode, encode
from headrace.model.clock import SystemClock
from headrace.model.runner import Epoch, Range
from headrace.runner.local import LocalRunner
from headrace.stage.duplicates import IdIndex
from headrace.tables.delta import DeltaTables

THREADS = 2
SCAN_ROWS = 5_000
SYSTEM = """event_id::VARCHAR AS event_id, received_at, 'events' AS _topic,
    {partition}::INTEGER AS _partition, "offset" AS _offset"""
FIELDS = """f.event_type AS event_type, f.player AS player, f.Host AS host,
    f."User-Agent" AS user_agent, f.price AS price"""
WIRE = (
    '{"event_type":"VARCHAR","player":"BIGINT","Host":"VARCHAR","User-Agent":"VARCHAR",'
    '"price":"BIGINT"}'
)


class MemoryLog:
    """The part of a log that a runner reads, over records in memory."""

    def __init__(self, partitions: list[list[pa.RecordBatch]]) -> None:
        self.partitions = partitions

    def read(
        self, topic: str, partition: int, start: int, end: int, *, bytes_max: int = 0
    ) -> Iterator[pa.RecordBatch]:
        """See `model.log.LogReader`."""
        assert topic == "events"
        assert start == 0
        assert bytes_max >= 0
        yield from self.partitions[partition]
        assert sum(b.num_rows for b in self.partitions[partition]) == end


def records_of(rows: int, plan) -> list[list[pa.RecordBatch]]:
    """Return what a log holds of `rows` events: batches of each partition, as its reader gives."""
    topic = plan.topic("events")
    blobs: list[list[tuple[int, int, bytes]]] = [[] for _ in range(PARTITIONS)]
    ends = [0] * PARTITIONS
    for i, batch in enumerate(as_the_door_makes_them(topic, list(events(rows)))):
        partition = i % PARTITIONS
        blobs[partition].append((ends[partition], len(batch), encode(batch)))
        ends[partition] += len(batch)
    return [[decode(of[i : i + 80]) for i in range(0, len(of), 80)] for of in blobs]


def unmarked(batches: list[pa.RecordBatch]) -> list[pa.RecordBatch]:
    """Return the same records as if no door had judged them."""
    at = batches[0].schema.get_field_index("mark")
    return [
        b.set_column(at, b.schema.field(at), pa.repeat(pa.scalar(UNMARKED, pa.uint64()), len(b)))
        for b in batches
    ]


class Headrace:
    """The local runner; its files lie in `folder`."""

    def __init__(self, partitions: list[list[pa.RecordBatch]], plan, folder: Path) -> None:
        clock = SystemClock()
        self._folder = folder
        self._tables = DeltaTables(folder, clock)
        self._runner = LocalRunner(MemoryLog(partitions), self._tables, clock, threads=THREADS)
        counts = [sum(b.num_rows for b in batches) for batches in partitions]
        ranges = tuple(Range("events", p, 0, n) for p, n in enumerate(counts))
        self._epoch = Epoch(1, plan, ranges, {"events": "one"}, {}, clock.now_us())
        self._rows = sum(counts)

    def run(self) -> Figures:
        """Run the epoch."""
        figures = timed(lambda: self._runner.run(self._epoch, IdIndex()))
        remove_files(self._folder, self._rows)
        return figures


class Bare:
    """DuckDB and pyarrow, put together as well as we can."""

    def __init__(self, partitions: list[list[pa.RecordBatch]], folder: Path) -> None:
        self._partitions = [
            pa.Table.from_arrays(
                [
                    table.column("value").cast(pa.string()),
                    pa.chunked_array(
                        [
                            pa.ExtensionArray.from_storage(pa.uuid(), chunk)
                            for chunk in table.column("id").chunks
                        ]
                    ),
                    table.column("received_at"),
                    table.column("offset"),
                ],
                names=["value", "event_id", "received_at", "offset"],
            )
            for table in map(pa.Table.from_batches, partitions)
        ]
        self._rows = sum(t.num_rows for t in self._partitions)
        self._folder = folder
        self._con = duckdb.connect(config={"threads": str(THREADS)})
        self._con.execute("SET TimeZone = 'UTC'")
        self._writer = ThreadPoolExecutor(1)

    def run(self) -> Figures:
        """Do what the stage does."""
        figures = timed(self._work)
        remove_files(self._folder, self._rows)
        return figures

    def _work(self) -> None:
        con = self._con
        for i, records in enumerate(self._partitions):
            batches = records.to_batches(max_chunksize=SCAN_ROWS)
            con.register(f"records{i}", pa.Table.from_batches(batches, records.schema))
        sql = " UNION ALL ".join(
            f"SELECT {SYSTEM.format(partition=i)}, {FIELDS} FROM"
            f" (SELECT *, from_json(value, '{WIRE}') AS f FROM records{i})"
            for i in range(len(self._partitions))
        )
        rows = con.sql(sql).to_arrow_table()
        written = self._writer.submit(
            pq.write_table,
            rows,
            self._folder / "rows.parquet",
            compression="zstd",
            use_dictionary=["event_type", "host", "user_agent", "_topic", "price"],
        )
        con.register("rows", rows)
        con.sql(BY_PLAYER.replace("events", "rows")).to_arrow_table()
        written.result()


def remove_files(folder: Path, rows: int) -> None:
    """Check that all rows were written, and make room for the next round."""
    files = list(folder.rglob("*.parquet"))
    assert sum(pq.read_metadata(f).num_rows for f in files) == rows
    for file in files:
        file.unlink()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=300_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="100,000 rows, 3 rounds")
    options = parser.parse_args()
    if options.quick:
        options.rows, options.rounds = 100_000, 3
    plan = make_plan({"by_player": BY_PLAYER})
    marked = records_of(options.rows, plan)
    with tempfile.TemporaryDirectory() as folder:
        places = [Path(folder) / name for name in ("marked", "unmarked", "bare")]
        for place in places:
            place.mkdir()
        found = alternated(
            {
                "bare": Bare(marked, places[2]).run,
                "marked valid": Headrace(marked, plan, places[0]).run,
                "validated here": Headrace([unmarked(b) for b in marked], plan, places[1]).run,
            },
            options.rounds,
        )
    bare = found["bare"]
    rows = [
        {
            "records": name,
            "ratio": bare["wall_s"] / figures["wall_s"],
            "cpu ratio": bare["cpu_s"] / figures["cpu_s"],
            "stage/s": options.rows / figures["wall_s"],
            "bare DuckDB/s": options.rows / bare["wall_s"],
        }
        for name, figures in found.items()
        if name != "bare"
    ]
    tell("stage", rows, records=options.rows, rounds=options.rounds)


if __name__ == "__main__":
    main()
