"""What an epoch of 250 rows costs, and what the process role holds, as what was before it grows.

    python bench/growth.py [--quick]

Three things grow, one at a time: groups of a view, commits of the tables, rows of a table. Each
sample is the median of some epochs, every view published in each; its ratio is what the epoch takes
of the processor against one over the smallest of its kind: a flat line is 1. Each kind runs in a
process of its own, so that its memory is its own.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
from contextlib import closing, nullcontext
from pathlib import Path

from measure import Figures, Row, medians, memory_mb, tell, timed
from workload import VIEWS, as_the_door_makes_them, events, make_plan

from headrace.log.embedded import EmbeddedLog
from headrace.model.clock import SystemClock
from headrace.model.runner import Range
from headrace.process.commit import run_epoch
from headrace.process.housekeeping import Housekeeper
from headrace.process.recover import recover
from headrace.runner.local import LocalRunner
from headrace.stage.engine import Engine
from headrace.tables.delta import DeltaTables

EPOCH_ROWS = 250
SAMPLES = 9
GROW_ROWS = 100_000
"""Rows of an epoch that only makes something grow."""
KEEP_EVERY = 64
"""Epochs between two rounds of housekeeping, which in a run has its own thread."""

BY_TYPE = {"by_type": VIEWS["by_type"]}
BY_PLAYER = {"by_player": VIEWS["by_player"]}
STEPS = {
    "groups": (BY_PLAYER, (1_000, 10_000, 100_000, 1_000_000)),
    "commits": (BY_TYPE, (100, 1_000, 10_000)),
    "rows": (BY_TYPE, (100_000, 1_000_000, 10_000_000)),
}
QUICK_MAX = {"groups": 100_000, "commits": 1_000, "rows": 1_000_000}


class Process:
    """The process role without its loop: epochs happen when they are asked for."""

    def __init__(self, views: dict[str, str], folder: Path) -> None:
        clock = SystemClock()
        self._plan = make_plan(views)
        self._topic = self._plan.topic("events")
        self._log = EmbeddedLog(folder / "log", clock)
        self._log.create("events", self._topic.partitions)
        tables = DeltaTables(folder, clock)
        self._runner = LocalRunner(self._log, tables, clock)
        self._engine = Engine()
        self._owner = recover(
            self._plan, self._log, tables, self._runner, clock, self._engine, folder / "keys"
        )
        self._keeper = Housekeeper(self._owner, nullcontext)
        self._clock = clock
        self._epochs = 0

    def append(self, values: list[bytes]) -> None:
        """Put events into the log."""
        for batch in as_the_door_makes_them(self._topic, values):
            self._log.append("events", batch)

    def epoch(self) -> None:
        """Run an epoch over all that waits, and publish every view."""
        last = self._owner.ledger.last
        starts = last.offsets if last else {}
        ranges = tuple(
            Range("events", p, start, end)
            for p, end in enumerate(self._log.ends("events"))
            if end > (start := starts.get(f"events/{p}", 0))
        )
        run_epoch(self._owner, ranges)
        self._owner.views.publish(self._clock.now_us(), force=True)

    def keep(self) -> None:
        """Do the housekeeping that is due."""
        self._epochs += 1
        if self._epochs % KEEP_EVERY == 0:
            self._keeper.tables()
            self._owner.views.maintain()
            self._keeper.trim()

    def sample(self, players: int) -> Figures:
        """Return what a small epoch costs, median of some."""
        figures = []
        for seed in range(SAMPLES):
            self.append(list(events(EPOCH_ROWS, players, seed)))
            figures.append(timed(self.epoch))
            self.keep()
        return {**medians(figures), "memory_mb": memory_mb()}

    def close(self) -> None:
        """Release everything."""
        self._runner.close()
        self._engine.close()
        self._log.close()


def grow(kind: str, to: int) -> list[tuple[int, Figures]]:
    """Let one thing grow; return the figures at each step."""
    views, steps = STEPS[kind]
    found = []
    with tempfile.TemporaryDirectory() as folder, closing(Process(views, Path(folder))) as process:
        at = 0
        template = list(events(GROW_ROWS)) if kind == "rows" else []
        for step in [s for s in steps if s <= to]:
            while at < step:
                at += grow_once(kind, process, at, step, template)
                process.epoch()
                process.keep()
            players = step if kind == "groups" else 1_000
            found.append((step, process.sample(players)))
    return found


def grow_once(kind: str, process: Process, at: int, to: int, template: list[bytes]) -> int:
    """Append what the next epoch makes grow; return by how much."""
    if kind == "commits":
        process.append(list(events(10, 1_000, at)))
        return 1
    size = min(GROW_ROWS, to - at)
    if kind == "rows":
        process.append(template[:size])
    else:
        players = random.Random(at).sample(range(at, at + size), size)
        process.append([b'{"event_type":"a","player":%d}' % p for p in players])
    return size


def measured(kind: str, to: int) -> list[tuple[int, Figures]]:
    """Return what `grow` returns, from a process of its own."""
    command = [sys.executable, __file__, "--only", kind, "--to", str(to)]
    said = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
    return json.loads(said)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a tenth of each")
    parser.add_argument("--only", choices=sorted(STEPS))
    parser.add_argument("--to", type=int)
    options = parser.parse_args()
    if options.only:
        print(json.dumps(grow(options.only, options.to or STEPS[options.only][1][-1])))
        return
    rows: list[Row] = []
    for kind, (_, steps) in STEPS.items():
        samples = measured(kind, QUICK_MAX[kind] if options.quick else steps[-1])
        smallest = samples[0][1]["cpu_s"]
        rows += [
            {
                "what": f"{count:,} {kind}",
                "ratio": figures["cpu_s"] / smallest,
                "epoch CPU ms": figures["cpu_s"] * 1000,
                "epoch ms": figures["wall_s"] * 1000,
                "memory MB": figures["memory_mb"],
            }
            for count, figures in samples
        ]
    tell("growth", rows, epoch_rows=EPOCH_ROWS, samples=SAMPLES)


if __name__ == "__main__":
    main()
