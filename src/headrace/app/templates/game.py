"""Events of a game: who does what, and how often.

headrace run pipeline.py
curl http://127.0.0.1:8080/purchase_a_sword
curl http://127.0.0.1:8080/count?by=event_type
"""

from headrace import Pipeline, Record, field, tumbling

pipeline = Pipeline("game")


class GameEvent(Record):
    """An event; request headers are among its fields under their own names."""

    event_type: str
    guild: str | None = None
    host: str | None = field("Host", default=None)
    user_agent: str | None = field("User-Agent", default=None)


events = pipeline.topic("events", GameEvent, partitions=3)

pipeline.route("/", events, {"event_type": "default"}, reply="This is the default response!\n")
pipeline.route(
    "/purchase_a_sword", events, {"event_type": "purchase_sword"}, reply="Sword Purchased!\n"
)
pipeline.route(
    "/join_guild/{guild}",
    events,
    {"event_type": "join_guild", "guild": "{guild}"},
    reply="Joined guild!\n",
)

pipeline.view(
    "events_by_type",
    "SELECT event_type, guild, count(*) AS n FROM events GROUP BY event_type, guild",
)

pipeline.table(
    "purchases",
    """
    SELECT event_id, received_at, host, event_type
    FROM events WHERE event_type LIKE 'purchase_%'
    """,
)
pipeline.view(
    "purchases_by_host",
    """
    SELECT host, event_type, count(*) AS purchases
    FROM purchases GROUP BY host, event_type
    """,
)
pipeline.view(
    "per_minute",
    "SELECT event_type, count(*) AS n FROM events GROUP BY event_type",
    window=tumbling("1 minute", on="received_at"),
)
pipeline.query(
    "/count",
    "SELECT {by}, sum(purchases) AS n FROM purchases_by_host GROUP BY 1",
    params={"by": ["host", "event_type"]},
)
