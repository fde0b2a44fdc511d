"""What each role of each node used of its machine, from the samples."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from headrace.app.report.flow import chart, line
from headrace.app.report.known import Known, Rows
from headrace.app.report.parts import Chart, Grid, Section, Series, Unit

# Two runs on one machine, as a standby beside its owner, have the same roles: within a run, which
# the supervisor's process tells, it is the mean of a point's samples; runs are added up.
_OF_RUNS = """
    SELECT t, node, role, sum(cpu) AS cpu, sum(memory) AS memory, max(host) AS host,
           max(host_memory) AS host_memory
    FROM (
        SELECT epoch_us(sampled_at) // {width} * {width} AS t, node, role, run,
               avg(cpu_percent) AS cpu, avg(memory_bytes) AS memory,
               avg(host_cpu_percent) AS host, avg(host_memory_used_bytes) AS host_memory
        FROM (
            SELECT *, max(CASE WHEN role = 'supervisor' THEN pid END)
                      OVER (PARTITION BY node, sampled_at) AS run
            FROM headrace.samples WHERE {within}
        ) GROUP BY ALL
    ) GROUP BY ALL ORDER BY t
"""
_IN_SHORT = """
    SELECT node, role, count(*) AS samples, round(avg(cpu_percent), 1) AS mean,
           round(quantile_cont(cpu_percent, 0.95), 1) AS p95, round(max(cpu_percent), 1) AS most,
           round(avg(memory_bytes) / 1e6, 1) AS memory, round(max(memory_bytes) / 1e6, 1) AS peak,
           count(DISTINCT pid) AS starts
    FROM headrace.samples WHERE {within} GROUP BY ALL ORDER BY node, role
"""
_UNITS = (
    "One core that is busy all the time is 100 %. A role's workers are counted with it; its memory "
    "is what is resident."
)
_COLUMNS = (
    *("node", "role", "samples", "CPU mean, % of a core", "CPU 95th percentile", "CPU most"),
    *("memory mean, MB", "memory peak, MB", "starts"),
)


def machines(known: Known) -> Section:
    """CPU and memory against time, for each role and node."""
    name, title = "machines", "CPU and memory"
    if not known.has_samples:
        return Section(name, title, ("No samples were taken here.",))
    within = known.within("sampled_at")
    rows = known.query(_OF_RUNS.format(width=known.bucket_us, within=within))
    if not rows:
        return Section(name, title, ("No samples were taken in this time.",))
    nodes = sorted({str(row["node"]) for row in rows})
    charts = [c for node in nodes for c in _of_node(known, node, rows)]
    short = known.query(_IN_SHORT.format(within=within))
    grid = Grid(_COLUMNS, tuple(tuple(row.values()) for row in short), title="In short")
    return Section(name, title, (_UNITS,), tuple(charts), (grid,))


def _of_node(known: Known, node: str, rows: Rows) -> Sequence[Chart]:
    own = [row for row in rows if row["node"] == node]

    def drawn(what: str, unit: Unit, column: str, *, by_role: bool = True) -> Chart:
        values: dict[str, dict[int, float | None]] = defaultdict(dict)
        for row in own:
            name = str(row["role"]) if by_role else "all that runs there"
            values[name][int(str(row["t"]))] = float(str(row[column]))
        series = [Series(name, line(known, values[name])) for name in sorted(values)]
        return chart(known, f"{what}, {node}", unit, series)

    return (
        drawn("CPU of each role", "%", "cpu"),
        drawn("Memory of each role", "bytes", "memory"),
        drawn("CPU of the machine, all cores", "%", "host", by_role=False),
        drawn("Memory of the machine", "bytes", "host_memory", by_role=False),
    )
