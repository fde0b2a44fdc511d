"""What the process role holds on Spark as groups of a view grow, and Spark's driver beside it.

    python bench/driver.py [--local] [--cluster FOLDER] [--quick]

Two epochs of a million records each, over a view with so many groups, each group in both epochs;
the view is published after each. Told is the most memory that the process role held, Python with
DuckDB and Arrow, and Spark's driver, the Java process that it starts. Each number of groups runs in
processes of its own. The ratio is to the fewest groups: what grows is the view's state.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import msgspec
from measure import Row, tell
from pyspark import SparkContext
from workload import BY_PLAYER, make_plan

import cluster
from headrace.app.site import site_of
from headrace.model.clock import SystemClock
from headrace.model.deployment import Deployment
from headrace.model.layout import Layout

EPOCHS = 2
GROUPS = (1_000, 100_000, 1_000_000)
RECORDS, RECORDS_QUICK = 1_000_000, 100_000


def players(groups: int, count: int) -> Iterator[bytes]:
    """Yield events of so many players, one after another."""
    encode = msgspec.json.Encoder().encode
    for number in range(count):
        yield encode({"event_type": "default", "player": number % groups, "price": number})


def peak_mb(pid: int | str) -> float:
    """Return the most that a process has held in memory."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) / 1024


def process(deployment: Deployment, records: int, folder: Path) -> dict[str, float]:
    """Be the process role for some epochs; return what it and Spark's driver held at most."""
    size = cluster.Size(records, warm=EPOCHS - 1, count=1)
    epoch_s = cluster.headrace(
        deployment, cluster.spread(make_plan({"by_player": BY_PLAYER})), folder, size
    )
    java = SparkContext._gateway.proc.pid  # noqa: SLF001 - named nowhere else
    return {"epoch_s": epoch_s, "python_mb": peak_mb("self"), "java_mb": peak_mb(java)}


def measure(deployment: Deployment, groups: int, records: int, folder: Path) -> dict[str, float]:
    """Fill the topic and measure in a process of its own."""
    plan, clock = cluster.spread(make_plan({"by_player": BY_PLAYER})), SystemClock()
    with closing(site_of(Layout.at(folder), clock, deployment).log()) as log:
        cluster.fill(log, plan.topics[0], players(groups, records * EPOCHS))
    asked = {"deployment": deployment, "records": records, "folder": str(folder / str(groups))}
    command = [sys.executable, __file__, "--process", msgspec.json.encode(asked).decode()]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    cluster.add_where(parser)
    parser.add_argument("--quick", action="store_true", help="a tenth of the records, no million")
    parser.add_argument("--process", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.process:
        asked = json.loads(options.process)
        deployment = msgspec.convert(asked["deployment"], Deployment)
        print(json.dumps(process(deployment, asked["records"], Path(asked["folder"]))))
        return
    records = RECORDS_QUICK if options.quick else RECORDS
    rows: list[Row] = []
    before = os.getloadavg()[0]
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        deployment = cluster.deploy(stack, folder, options)
        for groups in (g for g in GROUPS if g <= records):
            found = measure(deployment, groups, records, folder)
            first = rows[0]["process MB"] if rows else found["python_mb"]
            rows.append(
                {
                    "groups": f"{groups:,}",
                    "ratio": found["python_mb"] / first,
                    "process MB": found["python_mb"],
                    "Spark's driver MB": found["java_mb"],
                    "epoch ms": found["epoch_s"] * 1000,
                }
            )
    told = {"records_an_epoch": records, "epochs": EPOCHS, "load_before": before}
    tell("driver", rows, spark=cluster.where(options), **told)


if __name__ == "__main__":
    main()
