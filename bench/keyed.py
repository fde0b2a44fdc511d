"""What it costs to change a few keys of a large keyed table.

    python bench/keyed.py [--quick]

A table of a million keys with two views over it; epochs that change 1,000 and 10,000 of them, drawn
at random, the worst case for files sorted by key, and 10,000 that lie side by side. Told are the
epoch (look the old rows up, stage and commit the changelog, fold the views), the publish of the
table, and the bytes that both write. Beside it stands bare DuckDB doing the publish alone: the
whole table read, the changed keys replaced, one Parquet file written. The last line is the index of
old rows made again after it was deleted.
"""

from __future__ import annotations

import argparse
import random
import shutil
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import duckdb
import msgspec
from measure import Row, memory_mb, tell
from workload import as_the_door_makes_them

from headrace import Pipeline, Record
from headrace.define.check import check
from headrace.log.embedded import EmbeddedLog
from headrace.model.clock import SystemClock
from headrace.model.plan import Plan
from headrace.model.runner import Range
from headrace.process.commit import run_epoch
from headrace.process.owner import Owner
from headrace.process.recover import recover
from headrace.runner.local import LocalRunner
from headrace.stage.engine import Engine
from headrace.tables.delta import DeltaTables

KEYS = 1_000_000
GROW_ROWS = 100_000
ROUNDS = 5
KINGDOMS = ("Animalia", "Plantae", "Fungi", "Chromista")


class Specimen(Record):
    """A thin occurrence record."""

    id: str
    version: int
    kingdom: str | None = None
    species: str | None = None
    dataset: str | None = None
    country: str | None = None
    latitude: float | None = None
    longitude: float | None = None


def plan() -> Plan:
    pipe = Pipeline("keyed")
    specimens = pipe.topic("specimens", Specimen, partitions=3, key="id", store=False)
    columns = ", ".join(Specimen.__annotations__)
    sql = f"SELECT {columns} FROM specimens"
    pipe.table("held", {specimens: sql}, key="id", version="version")
    pipe.view("by_kingdom", "SELECT kingdom, count(*) AS n FROM held GROUP BY kingdom")
    pipe.view("species", "SELECT dataset, count(DISTINCT species) AS n FROM held GROUP BY dataset")
    made = check(pipe)
    assert isinstance(made, Plan), made
    return made


def specimen(key: int, version: int) -> bytes:
    chance = random.Random(key * 31 + version)
    return msgspec.json.encode(
        {
            "id": f"{key:012d}",
            "version": version,
            "kingdom": chance.choice(KINGDOMS),
            "species": f"Species {chance.randrange(20_000)}",
            "dataset": f"dataset-{chance.randrange(200)}",
            "country": f"{chance.randrange(200):03d}",
            "latitude": round(chance.uniform(-90, 90), 5),
            "longitude": round(chance.uniform(-180, 180), 5),
        }
    )


class Process:
    """The process role without its loop, over a table that grows to so many keys."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._clock = SystemClock()
        self._plan = plan()
        self._topic = self._plan.topic("specimens")
        self._log = EmbeddedLog(folder / "log", self._clock)
        self._log.create("specimens", self._topic.partitions)
        self.tables = DeltaTables(folder, self._clock)
        self._runner = LocalRunner(self._log, self.tables, self._clock)
        self._engine = Engine()
        self.owner = self.begin()

    def begin(self) -> Owner:
        """Begin as the owner."""
        keys = self.folder / "run" / "keys"
        return recover(
            self._plan, self._log, self.tables, self._runner, self._clock, self._engine, keys
        )

    def change(self, keys: list[int], version: int) -> dict[str, float]:
        """Run one epoch that changes keys, then publish; return what both took and wrote."""
        values = [specimen(key, version) for key in keys]
        for batch in as_the_door_makes_them(self._topic, values):
            self._log.append("specimens", batch)
        last = self.owner.ledger.last
        starts = last.offsets if last else {}
        ends = enumerate(self._log.ends("specimens"))
        ranges = tuple(
            Range("specimens", p, starts.get(f"specimens/{p}", 0), end)
            for p, end in ends
            if end > starts.get(f"specimens/{p}", 0)
        )
        self.owner.keyed.table("held").wait_until(float("inf"))
        began, before = time.perf_counter(), self._stored("changes/held")
        run_epoch(self.owner, ranges)
        epoch_s, table_before = time.perf_counter() - began, self._stored("tables/held")
        began = time.perf_counter()
        self.owner.keyed.publish(1.0, force=True)
        return {
            "epoch_s": epoch_s,
            "publish_s": time.perf_counter() - began,
            "changelog_bytes": self._stored("changes/held") - before,
            "table_bytes": self._stored("tables/held") - table_before,
        }

    def _stored(self, name: str) -> int:
        return sum(f.stat().st_size for f in (self.folder / name).rglob("*") if f.is_file())

    def close(self) -> None:
        """Release everything."""
        self.owner.close()
        self._runner.close()
        self._engine.close()
        self._log.close()


def bare(process: Process, keys: list[int], to: Path) -> float:
    """Return the seconds that DuckDB takes to write the whole table with some keys replaced."""
    snapshot = process.tables.snapshot("tables/held")
    files = [str(Path(snapshot.root) / f.path) for f in snapshot.files]
    wanted = [f"{key:012d}" for key in keys]
    with duckdb.connect(config={"threads": "2"}) as con:
        con.execute("CREATE TABLE changed AS SELECT unnest(?) AS id", [wanted])
        con.execute(
            "CREATE TABLE new AS SELECT h.* FROM read_parquet(?) h JOIN changed USING (id)", [files]
        )
        began = time.perf_counter()
        con.execute(
            f"COPY (SELECT * FROM (SELECT * FROM read_parquet({files}) WHERE id NOT IN "
            "(SELECT id FROM changed) UNION ALL SELECT * FROM new) ORDER BY id) "
            f"TO '{to}' (FORMAT parquet, COMPRESSION zstd)"
        )
        return time.perf_counter() - began


def samples(total: int) -> Iterator[tuple[str, list[int]]]:
    """Yield what is changed, by name, a few times each."""
    chance = random.Random(1)
    for round_ in range(ROUNDS):
        for count in (1_000, 10_000):
            yield f"{count:,} random", chance.sample(range(total), count)
        start = round_ * 10_000
        yield "10,000 side by side", list(range(start, start + 10_000))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a tenth of the keys")
    total = KEYS // 10 if parser.parse_args().quick else KEYS
    found: dict[str, list[dict[str, float]]] = {}
    with tempfile.TemporaryDirectory() as name, closing(Process(Path(name))) as process:
        for start in range(0, total, GROW_ROWS):
            process.change(list(range(start, start + GROW_ROWS)), 1)
        for version, (what, keys) in enumerate(samples(total), 2):
            figures = process.change(keys, version)
            figures["bare_s"] = bare(process, keys, Path(name) / "bare.parquet")
            found.setdefault(what, []).append(figures)
        process.owner.close()
        shutil.rmtree(Path(name) / "run" / "keys")
        began = time.perf_counter()
        process.owner = process.begin()
        rebuilt_s = time.perf_counter() - began
    rows: list[Row] = []
    for what, many in found.items():
        median = {key: statistics.median(f[key] for f in many) for key in many[0]}
        rows.append(
            {
                "what": f"{what} of {total:,} keys",
                "ratio": median["publish_s"] / median["bare_s"],
                "epoch ms": median["epoch_s"] * 1000,
                "changelog kB": median["changelog_bytes"] / 1000,
                "publish ms": median["publish_s"] * 1000,
                "table kB": median["table_bytes"] / 1000,
                "DuckDB ms": median["bare_s"] * 1000,
            }
        )
    blank = dict.fromkeys(list(rows[0])[1:], 0.0)
    rows.append({"what": "index deleted, begun again", **blank, "epoch ms": rebuilt_s * 1000})
    tell("keyed", rows, keys=total, rounds=ROUNDS, memory_mb=memory_mb())


if __name__ == "__main__":
    main()
