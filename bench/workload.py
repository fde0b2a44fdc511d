"""Small events of a game, and the pipelines over them that the benchmarks run.

`pipeline` is also a pipeline file: `headrace run bench/workload.py`.
"""

from __future__ import annotations

import random
from collections.abc import Iterator

import msgspec

from headrace import Pipeline, Record, field
from headrace.collect.envelopes import open_body
from headrace.collect.exchange import HeaderList
from headrace.collect.groups import give_ids
from headrace.collect.intake import Intake, Naming
from headrace.define.check import check
from headrace.model.batch import Batch
from headrace.model.clock import SystemClock
from headrace.model.plan import Plan, Topic

PARTITIONS = 3
PLAYERS = 100_000
HOSTS = 4
LINES = 100
"""Records of a body, as a client that sends NDJSON makes it."""


class Event(Record):
    """What a player did."""

    event_type: str
    player: int
    host: str | None = field("Host", default=None)
    user_agent: str | None = field("User-Agent", default=None)
    price: int | None = None


BY_PLAYER = "SELECT player, count(*) AS n FROM events GROUP BY player"
VIEWS = {
    "by_type": "SELECT event_type, count(*) AS n, sum(price) AS total FROM events GROUP BY 1",
    "by_player": "SELECT player, count(*) AS n, max(price) AS dearest FROM events GROUP BY 1",
    "players_by_host": "SELECT host, count(DISTINCT player) AS players FROM events GROUP BY 1",
}
"""A few groups, as many as there are players, and exact distinct counts of all of them."""


def make_pipeline(views: dict[str, str]) -> Pipeline:
    """Return a pipeline with the table `events` and these views over it."""
    made = Pipeline("bench")
    made.topic("events", Event, partitions=PARTITIONS)
    for name, sql in views.items():
        made.view(name, sql)
    return made


pipeline = make_pipeline(VIEWS)


def make_plan(views: dict[str, str]) -> Plan:
    """Return `make_pipeline`, compiled."""
    found = check(make_pipeline(views))
    if not isinstance(found, Plan):
        raise SystemExit("\n".join(map(str, found)))
    return found


def events(
    count: int, players: int = PLAYERS, seed: int = 0, user_agent: str = "load/1"
) -> Iterator[bytes]:
    """Yield events as a client writes them, of 90 bytes or more; the same for the same seed."""
    chance = random.Random(seed)
    encode = msgspec.json.Encoder().encode
    kinds = ("purchase_sword", "purchase_knife", "join_guild", "default")
    for _ in range(count):
        yield encode(
            {
                "event_type": chance.choice(kinds),
                "player": chance.randrange(players),
                "Host": f"shop-{chance.randrange(HOSTS)}",
                "User-Agent": user_agent,
                "price": chance.randrange(2_000),
            }
        )


def as_the_door_makes_them(topic: Topic, values: list[bytes]) -> Iterator[Batch]:
    """Yield the batches that the door makes of bodies of `LINES` lines: judged, marked, named."""
    clock, intake = SystemClock(), Intake(topic)
    nothing_said, no_headers = Naming("", None, None), HeaderList([])
    for start in range(0, len(values), LINES):
        body = b"\n".join(values[start : start + LINES])
        records = open_body("lines", body, no_headers, LINES)
        batch = Batch()
        intake.add(records, intake.judge(records), nothing_said, clock.now_us(), batch)
        give_ids(batch, clock)
        yield batch
