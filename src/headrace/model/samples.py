"""Samples: what each role of each node uses of its machine, as a table of its own."""

from __future__ import annotations

import pyarrow as pa

SAMPLES = "system/samples"
"""Storage name of the table. Every node appends to it, so no epoch speaks for it."""

SAMPLES_NAME = "samples"
"""Its name in SQL. A table or view of the pipeline that is called so goes first."""

SAMPLE_SCHEMA = pa.schema(
    [
        ("sampled_at", pa.timestamp("us", tz="UTC")),
        ("node", pa.string()),
        ("role", pa.string()),
        ("pid", pa.int64()),
        ("processes", pa.int32()),
        ("threads", pa.int32()),
        ("cpu_percent", pa.float64()),
        ("memory_bytes", pa.int64()),
        ("host_cpu_percent", pa.float64()),
        ("host_memory_used_bytes", pa.int64()),
        ("host_memory_bytes", pa.int64()),
        ("epoch", pa.int64()),
        ("epoch_s", pa.float64()),
        ("freshness_s", pa.float64()),
        ("records", pa.int64()),
        ("behind", pa.int64()),
    ]
)
"""One row for each role at each time; `role` is `supervisor` for what starts the others.

- `pid`: the role's process. What it has started itself (workers that answer SQL, Spark's driver) is
  counted with it: `processes` and `threads` in all.
- `cpu_percent`: percent of one core since the sample before, so two busy cores are 200.
- `memory_bytes`: resident memory; pages that several of the processes share are counted by each.
- `host_cpu_percent`: percent of all cores of the machine, whoever uses them;
  `host_memory_used_bytes` of `host_memory_bytes` are not available to anybody.

Only of a process role that owns the pipeline, else null:

- `epoch`: the newest; `records`: read from the log since the pipeline began, all topics together;
  `behind`: in the log, and in no table yet.
- `epoch_s`: seconds that the newest epoch took. `freshness_s`: from when the last record that it
  read of a partition had been received until it was committed, the longest of its partitions. Both
  null if there was no epoch since the sample before.
"""
