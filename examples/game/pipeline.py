"""A game's doors: what players do, kept as events and counted as it happens."""

from headrace import Pipeline, Record, field, tumbling

pipeline = Pipeline("game")


class GameEvent(Record):
    """What the game server learns of a player's act: the act itself and the request's headers."""

    event_type: str
    description: str | None = None
    accept: str | None = field("Accept", default=None)
    host: str | None = field("Host", default=None)
    user_agent: str | None = field("User-Agent", default=None)


events = pipeline.topic("events", GameEvent, partitions=3)
messages = pipeline.topic("MessageHistory", GameEvent, partitions=3)

# Swords, knives and guilds.
pipeline.route("/", events, {"event_type": "default"}, reply="This is the default response!\n")
pipeline.route(
    "/purchase_a_sword", events, {"event_type": "purchase_sword"}, reply="Sword Purchased!\n"
)
pipeline.route(
    "/purchase_a_knife",
    events,
    {"event_type": "purchase_knife", "description": "very sharp knife"},
    reply="Knife Purchased!\n",
)
pipeline.route("/buy_a_sword", events, {"event_type": "buy_sword"}, reply="Sword Purchased!\n")
pipeline.route(
    "/join_guild/{guildname}",
    events,
    {"event_type": "joined_guild:{guildname}"},
    reply="Guild Joined!\n",
)

# Groups: who asks to join, and what becomes of it.
pipeline.route(
    "/request_group", messages, {"event_type": "request_group"}, reply="Request Submitted!\n"
)
pipeline.route(
    "/accept_member", messages, {"event_type": "accept_member"}, reply="Member Accepted!\n"
)
pipeline.route(
    "/decline_member", messages, {"event_type": "decline_member"}, reply="Member Declined!\n"
)
pipeline.route("/message", messages, {"event_type": "message"}, reply="Message Sent!\n")


# A table for each type of event: the event as it came, its time and the request's headers.
COLUMNS = """
    _value AS raw_event, received_at AS "timestamp", accept AS "Accept", host AS "Host",
    user_agent AS "User-Agent", event_type
"""
TYPES = {
    events: ("default", "purchase_sword", "purchase_knife", "buy_sword"),
    messages: ("request_group", "accept_member", "decline_member", "message"),
}
for topic, types in TYPES.items():
    for name in types:
        table = "default_event" if name == "default" else name
        sql = f"SELECT {COLUMNS} FROM \"{topic.name}\" WHERE event_type = '{name}'"
        pipeline.table(table, sql)
pipeline.table(
    "joined_guild",
    f"""
    SELECT {COLUMNS}, substr(event_type, length('joined_guild:') + 1) AS guild
    FROM events WHERE event_type LIKE 'joined_guild:%'
    """,
)

# What was bought, however it was asked for.
pipeline.table(
    "purchases",
    """
    SELECT event_id, received_at, host, user_agent, description,
           CASE event_type WHEN 'purchase_knife' THEN 'knife' ELSE 'sword' END AS item
    FROM events WHERE event_type IN ('purchase_sword', 'purchase_knife', 'buy_sword')
    """,
)

pipeline.view(
    "hosts_by_event",
    "SELECT event_type, host, count(*) AS n FROM events GROUP BY event_type, host",
)
pipeline.view(
    "hosts_by_message",
    "SELECT event_type, host, count(*) AS n FROM MessageHistory GROUP BY event_type, host",
)
pipeline.view(
    "group_requests",
    """
    SELECT count(*) FILTER (WHERE event_type = 'request_group') AS requested,
           count(*) FILTER (WHERE event_type = 'accept_member') AS accepted,
           count(*) FILTER (WHERE event_type = 'decline_member') AS declined,
           count(DISTINCT host) AS hosts
    FROM MessageHistory
    """,
)
pipeline.view(
    "purchases_by_host",
    """
    SELECT host, item, count(*) AS purchases, approx_count_distinct(user_agent) AS agents
    FROM purchases GROUP BY host, item
    """,
)
pipeline.view("guilds", "SELECT guild, count(*) AS members FROM joined_guild GROUP BY guild")
pipeline.view(
    "events_per_minute",
    "SELECT event_type, count(*) AS n FROM events GROUP BY event_type",
    window=tumbling("1 minute", on="received_at"),
)

pipeline.query(
    "/count",
    "SELECT {by}, sum(purchases)::BIGINT AS n FROM purchases_by_host GROUP BY ALL ORDER BY n DESC",
    params={"by": ["host", "item"]},
)
pipeline.query(
    "/hosts",
    """
    SELECT host, n FROM hosts_by_event WHERE event_type = $event_type
    UNION ALL SELECT host, n FROM hosts_by_message WHERE event_type = $event_type
    ORDER BY n DESC, host
    """,
    params={"event_type": "string"},
)
