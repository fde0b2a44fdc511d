"""Two streams of a plant: what its machines measure, and what becomes of orders.

headrace run pipeline.py
headrace tail --table happenings --from beginning
curl http://127.0.0.1:8080/pieces
"""

from pathlib import Path

from headrace import Pipeline, Record, tumbling

PLANT = ""
"""Address of the plant's stream server, such as "http://127.0.0.1:8091".

Without one, five minutes of a plant are replayed from the files in the folder `plant`."""

# Tables get new rows every second; `epoch_records_max=1_000` would bound how many.
pipeline = Pipeline("factory", every="1 second", private_addresses=True)


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


# Keyed by machine, so what happens at a machine stays in order.
metrics = pipeline.topic("metrics", Metric, partitions=3, key="machine")
workorder = pipeline.topic("workorder", WorkOrder, partitions=3, key="machine")

for topic in (metrics, workorder):
    if PLANT:
        # After a break it goes on at the time of the last record that is durable.
        pipeline.source(
            topic.name,
            kind="http_stream",
            topic=topic,
            url=f"{PLANT}/stream_data_{topic.name}",
            position="time",
            resume_param="from",
        )
    else:
        pipeline.source(
            topic.name,
            kind="replay",
            topic=topic,
            path=str(Path(__file__).parent / "plant" / f"{topic.name}.ndjson"),
            order_by="time",
            delay_s=0.1,
        )

pipeline.table(
    "happenings",
    {
        metrics: "SELECT time, machine, metric AS what, value AS amount FROM metrics",
        workorder: """
            SELECT time, machine, step AS what, CAST(pieces AS DOUBLE) AS amount FROM workorder
        """,
    },
)
pipeline.table(
    "measured",
    "SELECT CAST(time AS TIMESTAMPTZ) AS measured_at, machine, metric, value FROM metrics",
)

pipeline.view(
    "metrics_per_minute",
    """
    SELECT machine, metric, count(*) AS n, min(value) AS lowest, max(value) AS highest
    FROM measured GROUP BY machine, metric
    """,
    window=tumbling("1 minute", on="measured_at"),
)
pipeline.view(
    "pieces_by_machine",
    """
    SELECT machine, sum(pieces) FILTER (WHERE step = 'finished') AS good,
           sum(pieces) FILTER (WHERE step = 'scrapped') AS scrapped
    FROM workorder GROUP BY machine
    """,
)
pipeline.query("/pieces", "SELECT machine, good, scrapped FROM pieces_by_machine ORDER BY machine")
