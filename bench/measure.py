"""How every benchmark measures: both sides in turn, medians, one table, one JSON line.

A figure means little without what it is compared with in the same run on the same machine, so
`tell` puts the ratio first and says how busy the machine was with other work.
"""

from __future__ import annotations

import gc
import json
import os
import platform
import resource
import statistics
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

RESULTS = Path(__file__).parent / "results"
PACKAGES = ("duckdb", "pyarrow", "deltalake", "apsw", "granian", "msgspec")

Figures = dict[str, float]
Row = dict[str, float | str]


def alternated(sides: dict[str, Callable[[], Figures]], rounds: int) -> dict[str, Figures]:
    """Run every side in turn, `rounds` times and once before to warm up; return its medians."""
    found: dict[str, list[Figures]] = {name: [] for name in sides}
    for round_ in range(rounds + 1):
        for name, run in sides.items():
            gc.collect()
            figures = run()
            if round_:
                found[name].append(figures)
    return {name: medians(figures) for name, figures in found.items()}


def medians(figures: list[Figures]) -> Figures:
    """Return the median of each figure over some runs."""
    return {name: statistics.median([f[name] for f in figures]) for name in figures[0]}


def timed(act: Callable[[], object]) -> Figures:
    """Return the seconds that `act` takes, by the wall and of all processors of this process."""
    wall, cpu = time.perf_counter(), time.process_time()
    act()
    return {"wall_s": time.perf_counter() - wall, "cpu_s": time.process_time() - cpu}


def memory_mb() -> float:
    """Return what this process holds in memory now."""
    status = Path("/proc/self/status")
    if status.exists():
        line = next(w for w in status.read_text().splitlines() if w.startswith("VmRSS"))
        return int(line.split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024**2


def machine() -> dict[str, object]:
    """Return what the figures were measured on."""
    return {
        "cpus": os.cpu_count(),
        "cpu": _cpu(),
        "load": round(os.getloadavg()[0], 1),
        "system": platform.platform(terse=True),
        "python": platform.python_version(),
        **{name: version(name) for name in PACKAGES},
    }


def _cpu() -> str:
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    return next((w.split(": ")[1] for w in lines if w.startswith("model name")), "unknown")


def tell(bench: str, rows: list[Row], **settings: object) -> None:
    """Print the table and the JSON line of a benchmark, and keep the line in `results/`."""
    columns = list(rows[0])
    texts = [columns, *([_text(row[name]) for name in columns] for row in rows)]
    widths = [max(len(line[i]) for line in texts) for i in range(len(columns))]
    for line in texts:
        first, *rest = zip(line, widths, strict=True)
        print(first[0].ljust(first[1]), *(text.rjust(width) for text, width in rest), sep="  ")
    told = json.dumps(
        {
            "bench": bench,
            "date": time.strftime("%Y-%m-%d", time.gmtime()),
            "machine": machine(),
            "settings": settings,
            "rows": [{k: _rounded(v) for k, v in row.items()} for row in rows],
        }
    )
    print(told)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{bench}.json").write_text(told + "\n")


def _rounded(value: float | str) -> float | str:
    return value if isinstance(value, str) else float(f"{value:.4g}")


def _text(value: float | str) -> str:
    if isinstance(value, str):
        return value
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
