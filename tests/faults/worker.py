"""A process that appends numbered events and owns the pipeline, until a failpoint ends it.

`python worker.py DATA TOTAL MODE`: MODE `both` appends and processes, `append` only fills the log,
`own` owns log and pipeline and appends nothing, with a horizon so short that the log is trimmed,
`process` only owns the pipeline over a log that nobody writes. Started again, it goes on: what was
not acknowledged is sent again under the same client-chosen id, as a client would. The tables are in
DATA, or at the URL that the variable TABLES_URL holds.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
import threading
from pathlib import Path

import msgspec

from headrace.define.check import check, load
from headrace.log.embedded import EmbeddedLog, EmbeddedLogReader
from headrace.model.batch import Batch
from headrace.model.clock import SystemClock
from headrace.model.ids import client_id
from headrace.model.pipeline_options import Options
from headrace.model.plan import Plan
from headrace.process.loop import EpochProgress, Loop
from headrace.process.recover import recover
from headrace.runner.local import LocalRunner
from headrace.stage.engine import Engine
from headrace.tables.delta import DeltaTables
from headrace.tables.repair import repair
from headrace.testing.checker import Acknowledged

HERE = Path(__file__).parent
BAD_EVERY = 10
BATCH = 20
OWN_S = 1.0
"""How long `own` goes on at least, so that what it committed comes of age and is trimmed."""
SMALL = Options(
    every_s=0.001,
    segment_bytes_max=40_000,
    table_files_max=6,
    commits_per_checkpoint=5,
    keep_commits_s=0,
    log_retention_s=0,
    tidy_every_s=0.02,
    retain_every_s=0.02,
)
"""Small bounds everywhere, so that a short run does all kinds of work."""


def compiled(mode: str) -> Plan:
    plan = check(load(HERE / "numbered.py"))
    assert isinstance(plan, Plan), plan
    cut = int(os.environ.get("CUT_BYTES", "6000"))
    horizon_s = 0.05 if mode == "own" else 600
    options = dataclasses.replace(SMALL, epoch_bytes_max=cut, horizon_s=horizon_s)
    return msgspec.structs.replace(plan, options=options)


def event(number: int) -> bytes:
    kind = f"k{number % 5}"
    amount: object = number if number % BAD_EVERY else "bad"
    return json.dumps({"number": number, "kind": kind, "amount": amount}).encode()


def append(log: EmbeddedLog, numbers: list[int], clock: SystemClock) -> None:
    batch = Batch()
    for n in numbers:
        chosen = client_id("test", "events", f"event-{n}")
        batch.add(event(n), received_at=clock.now_us(), id=chosen)
    log.append("events", batch)


def main() -> None:
    data, total, mode = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    clock = SystemClock()
    plan = compiled(mode)
    acknowledged = Acknowledged(data / "acknowledged")
    known = set(acknowledged.read())
    todo = [n for n in range(total) if n not in known]
    options = plan.options
    if mode == "process":
        log = EmbeddedLogReader(data / "log")
    else:
        log = EmbeddedLog(data / "log", clock, segment_bytes_max=options.segment_bytes_max)
        if "events" not in log.describe():
            log.create("events", 3)
    if mode == "append":
        for at in range(0, len(todo), BATCH):
            append(log, todo[at : at + BATCH], clock)
            acknowledged.add(todo[at : at + BATCH])
        log.close()
        return
    tables = DeltaTables(os.environ.get("TABLES_URL") or data, clock)
    engine = Engine(threads=1)
    runner = LocalRunner(log, tables, clock, threads=1)
    keys = data / "run" / "keys"
    owner = recover(plan, log, tables, runner, clock, engine, keys, lambda: repair(tables))
    fed = threading.Event()

    def feed() -> None:
        for at in range(0, len(todo), BATCH):
            append(log, todo[at : at + BATCH], clock)
            acknowledged.add(todo[at : at + BATCH])
            clock.sleep(0.01)
        fed.set()

    if mode == "both":
        threading.Thread(target=feed, daemon=True).start()
    elif mode == "own":
        threading.Timer(OWN_S, fed.set).start()
    else:
        fed.set()
    Loop(owner, threading.Event(), EpochProgress(), drain=fed.is_set, threads=1).run()
    (data / "done").write_text("done")
    runner.close()
    log.close()


if __name__ == "__main__":
    main()
