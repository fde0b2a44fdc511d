"""Two streams of a plant, tapped over HTTP: what its machines measure, and what becomes of orders.

See README.md. `stream_server.py` is the plant.
"""

import os

from headrace import Pipeline, Record, tumbling

PLANT = os.environ.get("HEADRACE_PLANT", "http://127.0.0.1:8091")

# At most a thousand records an epoch, and Parquet every ten seconds.
pipeline = Pipeline(
    "factory",
    every=os.environ.get("HEADRACE_EVERY", "10 s"),
    epoch_records_max=int(os.environ.get("HEADRACE_RECORDS_MAX", "1000")),
    # The plant is a server of this machine, or of the same network.
    private_addresses=True,
)


class Metric(Record):
    """What a machine measured."""

    time: str
    machine: str
    metric: str
    value: float


class WorkOrder(Record):
    """A step of an order on a machine."""

    time: str
    machine: str
    order: str
    step: str
    pieces: int


metrics = pipeline.topic("metrics", Metric, partitions=3, key="machine")
workorder = pipeline.topic("workorder", WorkOrder, partitions=3, key="machine")

for topic in (metrics, workorder):
    pipeline.source(
        topic.name,
        kind="http_stream",
        topic=topic,
        url=f"{PLANT}/stream_data_{topic.name}",
        position="time",
        resume_param="from",
    )

# One table over both topics: what happened at each machine, in the order in which it came.
pipeline.table(
    "happenings",
    {
        metrics: """
            SELECT CAST(time AS TIMESTAMPTZ) AS happened_at, machine, metric AS what,
                   value AS amount
            FROM metrics
        """,
        workorder: """
            SELECT CAST(time AS TIMESTAMPTZ) AS happened_at, machine, step AS what,
                   CAST(pieces AS DOUBLE) AS amount
            FROM workorder
        """,
    },
)
pipeline.table(
    "measured",
    """
    SELECT CAST(time AS TIMESTAMPTZ) AS measured_at, machine, metric,
           CAST(value AS DECIMAL(12, 2)) AS value
    FROM metrics
    """,
)

pipeline.view(
    "metrics_per_minute",
    """
    SELECT machine, metric, count(*) AS n, min(value) AS lowest, avg(value) AS mean,
           max(value) AS highest
    FROM measured GROUP BY machine, metric
    """,
    window=tumbling("1 minute", on="measured_at"),
)
pipeline.view(
    "pieces_by_machine",
    """
    SELECT machine, sum(pieces) FILTER (WHERE step = 'finished') AS good,
           sum(pieces) FILTER (WHERE step = 'scrapped') AS scrapped,
           count(DISTINCT "order") AS orders
    FROM workorder GROUP BY machine
    """,
)
pipeline.query("/pieces", "SELECT machine, good, scrapped FROM pieces_by_machine ORDER BY machine")
