"""One topic, one view: what was seen, and how often.

headrace run pipeline.py
curl --json '{"name": "first"}' http://127.0.0.1:8080/v1/topics/events
curl http://127.0.0.1:8080/v1/views/by_name
"""

from headrace import Pipeline, Record

pipeline = Pipeline("minimal")


class Event(Record):
    """What a record must look like; anything else becomes a dead letter with the reason."""

    name: str
    amount: int = 1


events = pipeline.topic("events", Event)

pipeline.view(
    "by_name",
    "SELECT name, count(*) AS events, sum(amount) AS amount FROM events GROUP BY name",
)
