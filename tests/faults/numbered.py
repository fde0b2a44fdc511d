"""The pipeline of the fault tests: numbered events, some of them bad."""

from __future__ import annotations

from headrace import Pipeline, Record, tumbling

pipeline = Pipeline("numbered")


class Event(Record):
    number: int
    kind: str
    amount: int = 0


events = pipeline.topic("events", Event, partitions=3)
pipeline.table("numbers", "SELECT number, kind, amount, number % 7 AS bucket FROM events")
pipeline.view(
    "by_kind",
    """SELECT kind, count(*) AS n, sum(amount) AS total, count(DISTINCT bucket) AS buckets
    FROM numbers GROUP BY kind""",
)
pipeline.view(
    "windows",
    "SELECT kind, count(*) AS n FROM numbers GROUP BY kind",
    window=tumbling("10 seconds", on="received_at"),
)
pipeline.table("recent", "SELECT number FROM events", retention="100 milliseconds")
pipeline.table(
    "latest",
    "SELECT kind, number % 7 AS bucket, number, number % 11 = 0 AS gone FROM events",
    key=("kind", "bucket"),
    version="number",
    deleted="gone",
)
pipeline.view("held", "SELECT kind, count(*) AS n, sum(number) AS total FROM latest GROUP BY kind")
