"""Runs the worker and looks for breaches afterwards."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from deltalake import DeltaTable
from worker import BAD_EVERY

from headrace.log.embedded import EmbeddedLogReader
from headrace.model.clock import SystemClock
from headrace.process.ledger import last_row
from headrace.tables.delta import DeltaTables
from headrace.testing.checker import Acknowledged, Checker

WORKER = Path(__file__).parent / "worker.py"
TOTAL = 600
VIEWS = {
    "by_kind": """SELECT kind, count(*), sum(amount), count(DISTINCT bucket)
        FROM rows GROUP BY kind""",
}


def run(
    data: Path, mode: str = "both", failpoint: str = "", total: int = TOTAL, tables_url: str = ""
) -> int:
    env = {**os.environ, "HEADRACE_FAILPOINT": failpoint, "TABLES_URL": tables_url}
    done = subprocess.run(
        [sys.executable, str(WORKER), str(data), str(total), mode],
        env=env,
        capture_output=True,
        timeout=120,
        check=False,
    )
    if done.returncode not in (0, -signal.SIGKILL):
        pytest.fail(done.stderr.decode()[-3000:])
    return done.returncode


def breaches(data: Path, total: int = TOTAL, tables_url: str = "") -> list[str]:
    checker = Checker(data, "numbers", "number", VIEWS, tables_url=tables_url)
    acknowledged = Acknowledged(data / "acknowledged").read()
    assert len(acknowledged) == total
    found = checker.check(acknowledged, range(total))
    found += keyed_breaches(tables_url or data)
    log = EmbeddedLogReader(data / "log")
    tables = DeltaTables(tables_url or data, SystemClock())
    row = last_row(tables, tables.snapshot("system/ledger"))
    starts = {f"events/{p}": s for p, s in enumerate(log.starts("events"))}
    found += checker.check_log(starts, row.offsets)
    totals = row.topic_totals["events"]
    assert totals.read == totals.decoded + totals.dead + totals.duplicates
    assert totals.dead == len(range(0, total, BAD_EVERY))
    return found


def keyed_breaches(place: Path | str) -> list[str]:
    """Return what of the keyed table and its view is not what all rows of `numbers` come to."""
    numbers, latest, held = (
        DeltaTable(f"{place}/{name}").to_pyarrow_table().to_pylist()
        for name in ("tables/numbers", "tables/latest", "views/held")
    )
    newest: dict[tuple[str, int], int] = {}
    for row in numbers:
        key = (row["kind"], row["bucket"])
        newest[key] = max(newest.get(key, -1), row["number"])
    rows = sorted((*key, number) for key, number in newest.items() if number % 11)
    sums = {kind: [n for k, _, n in rows if k == kind] for kind, _, _ in rows}
    found = []
    if sorted((r["kind"], r["bucket"], r["number"]) for r in latest) != rows:
        found.append(f"keyed: {len(latest)} rows that are not the {len(rows)} newest")
    if {r["kind"]: (r["n"], int(r["total"])) for r in held} != {
        kind: (len(of), sum(of)) for kind, of in sums.items()
    }:
        found.append("the view over the keyed table is not its SQL over the newest rows")
    return found
