"""Samples as CSV, one line for each role at each time, in the words of `sar -u` and `sar -r`."""

from __future__ import annotations

import csv
from pathlib import Path

from headrace.app.report.known import Known

COLUMNS = (
    *("timestamp", "hostname", "role", "pid", "%cpu", "kbmemused", "%memused", "threads"),
    *("%cpu_host", "kbmemused_host", "%memused_host"),
)
_SQL = """
    SELECT strftime(sampled_at, '%Y-%m-%d %H:%M:%S.%g UTC'), node, role, pid, round(cpu_percent, 2),
           memory_bytes // 1024, round(100 * memory_bytes / host_memory_bytes, 2), threads,
           host_cpu_percent, host_memory_used_bytes // 1024,
           round(100 * host_memory_used_bytes / host_memory_bytes, 2)
    FROM headrace.samples WHERE {within} ORDER BY sampled_at, node, role
"""


def write_csv(known: Known, path: Path) -> int:
    """Write the samples of the report's time; return how many. Units: percent, and 1,024 bytes.

    `%cpu` is of one core, `%memused` and `%cpu_host` of the whole machine.
    """
    rows = known.query(_SQL.format(within=known.within("sampled_at"))) if known.has_samples else []
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        writer.writerows(row.values() for row in rows)
    return len(rows)
