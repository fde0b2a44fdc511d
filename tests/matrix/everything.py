"""A pipeline with one of everything: every kind of field, table, view and aggregate."""

import datetime as dt
from decimal import Decimal

from headrace import Json, Pipeline, Record, field, hopping, tumbling

pipeline = Pipeline("everything", horizon="10 minutes")


class Place(Record):
    """Where it was, inside an event."""

    name: str
    floor: int | None = None


class Event(Record):
    """Something that happened: a field of each type."""

    kind: str
    n: int | None = None
    x: float | None = None
    price: Decimal | None = field(digits=(10, 2), default=None)
    ok: bool | None = None
    text: str | None = None
    seen_at: dt.datetime | None = None
    at_ms: dt.datetime | None = field(unit="ms", default=None)
    day: dt.date | None = None
    tags: list[str] | None = None
    where: Place | None = None
    more: dict[str, int] | None = None
    rest: Json = None
    user_agent: str | None = field("User-Agent", default=None)


class Other(Record):
    """What another door takes, into the same table."""

    kind: str
    n: int


class Thing(Record):
    """A version of a thing, or the word that it is gone."""

    key: str
    version: int | None = None
    kind: str | None = None
    n: int | None = None
    x: float | None = None
    tags: list[str] | None = None
    gone: bool = False


events = pipeline.topic("events", Event, partitions=3)
other = pipeline.topic("other", Other, partitions=3, store=False)
free = pipeline.topic("free")
things = pipeline.topic("things", Thing, partitions=3, key="key", store=False)

pipeline.route("/did/{what}", events, {"kind": "{what}"}, reply="Noted\n")

pipeline.table(
    "everything",
    {
        events: "SELECT kind, n, x, price, seen_at FROM events",
        other: """
            SELECT kind, n, CAST(NULL AS DOUBLE) AS x, CAST(NULL AS DECIMAL(10, 2)) AS price,
                   CAST(NULL AS TIMESTAMPTZ) AS seen_at FROM other
        """,
    },
)
# Some records fail here and nowhere else; some are left out.
pipeline.table(
    "casts",
    """
    SELECT kind, CAST(text AS INTEGER) AS number, "where".name AS place, _value AS raw,
           _headers AS headers FROM events WHERE kind <> 'c'
    """,
)
pipeline.table("loose", "SELECT _value AS value, length(_value) AS n FROM free")
pipeline.table(
    "held",
    {things: "SELECT key, version, kind, n, x, tags, gone FROM things"},
    key="key",
    version="version",
    deleted="gone",
)
pipeline.table("last", "SELECT key, kind, n, x FROM things", key="key")

pipeline.view(
    "counts",
    """
    SELECT kind, count(*) AS c, count(n) AS cn, count_if(n > 1) AS many, sum(n) AS s,
           sum(price) AS paid, avg(n) AS mean, avg(price) AS mean_price, min(x) AS least,
           max(seen_at) AS newest, max(day) FILTER (WHERE ok) AS d, bool_and(ok) AS each_ok,
           bool_or(ok) AS some_ok, min(text) AS word
    FROM events GROUP BY kind
    """,
    publish_to="everything_query",
)
pipeline.view(
    "doubles",
    """
    SELECT kind, sum(x) AS s, fsum(x) AS f, avg(x) AS mean, sum(x) FILTER (WHERE ok) AS s_ok,
           stddev(x) AS sd, variance(n) AS v, stddev_pop(n) AS sp, var_pop(x) AS vp,
           stddev_samp(price) AS ss, var_samp(price) AS vs
    FROM events GROUP BY kind
    """,
)
pipeline.view(
    "distinct",
    """
    SELECT kind, GROUPING(kind) AS all_kinds, count(DISTINCT n) AS dn, count(DISTINCT x) AS dx,
           count(DISTINCT text) FILTER (WHERE ok) AS dt, approx_count_distinct(text) AS about
    FROM events GROUP BY ROLLUP (kind)
    """,
    publish_to="everything_query",
)
pipeline.view(
    "quantiles",
    """
    SELECT kind, median(x) AS m, quantile_cont(n, [0.1, 0.5, 0.9]) AS q, quantile_disc(n, 0.5) AS d,
           approx_quantile(price, 0.25) AS a, quantile(x, 0.75) AS upper
    FROM events GROUP BY kind
    """,
)
# Ties go to the event id, so neither the cut nor the partitions decide.
pipeline.view(
    "ends",
    """
    SELECT kind, first(n) AS f, last(price) AS l, first(text ORDER BY n) AS fo,
           last(x ORDER BY seen_at DESC) AS lo, arg_min(text, x) AS poorest,
           arg_max(n, seen_at) AS newest, max_by(text, price) AS dearest,
           min_by(kind, n) AS lowest
    FROM events GROUP BY kind
    """,
)
pipeline.view(
    "sets",
    """
    SELECT kind, n, GROUPING(kind, n) AS g, count(*) AS c, sum(x) AS s
    FROM everything GROUP BY GROUPING SETS ((kind, n), (kind), ()) HAVING count(*) > 1
    """,
)
pipeline.view("squares", "SELECT sum(number * number) AS s, count(*) AS c FROM casts")
pipeline.view(
    "arrived",
    "SELECT kind, count(*) AS c, count(DISTINCT n) AS d FROM everything GROUP BY kind",
    window=tumbling("1 minute", on="received_at", lateness="10 s"),
)
pipeline.view(
    "seen",
    "SELECT count(*) AS c, sum(n) AS s FROM events",
    window=hopping("2 minutes", every="1 minute", on="seen_at"),
)
pipeline.view("lengths", "SELECT n, count(*) AS c FROM loose GROUP BY n")
pipeline.view(
    "held_by_kind",
    """
    SELECT kind, count(*) AS c, sum(n) AS s, min(n) AS lo, max(x) AS hi, avg(x) AS mean,
           count(DISTINCT n) AS d, median(n) AS m, bool_or(n > 2) AS some, stddev(n) AS sd
    FROM held GROUP BY GROUPING SETS ((kind), ())
    """,
    publish_to="held_query",
)
pipeline.view(
    "held_arrived",
    "SELECT kind, count(*) AS c FROM held GROUP BY kind",
    window=tumbling("2 minutes", on="received_at"),
)
pipeline.view("last_total", "SELECT count(*) AS c, sum(n) AS s, sum(x) AS sx FROM last")
