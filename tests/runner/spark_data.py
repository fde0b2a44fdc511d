"""A pipeline that meets all that a runner must keep, and records for it."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pyarrow as pa
from hypothesis import strategies as st

from headrace import Pipeline, Record, tumbling
from headrace.define.check import check
from headrace.log.embedded import EmbeddedLog
from headrace.log.kafka import Kafka
from headrace.model.batch import Batch
from headrace.model.clock import ManualClock
from headrace.model.ids import client_id
from headrace.model.log import Log
from headrace.model.plan import DEAD_LETTER_SCHEMA, DEAD_LETTERS, KNOWN_ID_SCHEMA, KNOWN_IDS, Plan
from headrace.model.runner import Epoch, Outcome, Range
from headrace.model.tables import Snapshot
from headrace.runner.places import Place
from headrace.runner.spark import Sizes, SparkRunner
from headrace.stage.engine import Engine
from headrace.stage.fold import ViewState
from headrace.tables.delta import DeltaTables

ENGINE = Engine(threads=1)
HORIZON_S = 60
PARTITIONS = 2
SMALL = Sizes(task_bytes_min=1)
MERGED = Sizes(task_bytes_min=1, merged_rows_min=0)


class Event(Record):
    kind: str
    n: int | None = None
    x: float | None = None
    text: str | None = None


class Thing(Record):
    key: str
    n: int
    gone: bool = False


def plan() -> Plan:
    pipe = Pipeline("spark")
    pipe.topic("events", Event, partitions=PARTITIONS)
    things = pipe.topic("things", Thing, key="key", store=False)
    pipe.table("casts", "SELECT kind, CAST(text AS INTEGER) AS number FROM events WHERE n <> 0")
    pipe.table(
        "held", {things: "SELECT key, n, gone FROM things"}, key="key", version="n", deleted="gone"
    )
    pipe.view(
        "sets",
        "SELECT kind, n, count(*) AS c, sum(x) AS s, count(DISTINCT x) AS d FROM events"
        " GROUP BY GROUPING SETS ((kind, n), ())",
    )
    pipe.view("squares", "SELECT sum(number * number) AS s, count(*) AS c FROM casts")
    pipe.view("sketch", "SELECT kind, approx_count_distinct(n) AS a FROM events GROUP BY kind")
    pipe.view(
        "arrived",
        "SELECT kind, count(*) AS c FROM events GROUP BY kind",
        window=tumbling("1 minute", on="received_at"),
    )
    pipe.view("total", "SELECT count(*) AS c, sum(n) AS s FROM held")
    made = check(pipe)
    assert isinstance(made, Plan), made
    return msgspec.structs.replace(
        made, options=dataclasses.replace(made.options, horizon_s=HORIZON_S)
    )


PLAN = plan()
SCHEMAS = {DEAD_LETTERS: DEAD_LETTER_SCHEMA, KNOWN_IDS: KNOWN_ID_SCHEMA} | {
    t.storage: ENGINE.arrow_schema(t.columns) for t in PLAN.tables
}


NOTHING = Outcome({}, {}, None, {}, {}, {}, ())


class Sent(NamedTuple):
    """A record; `gap_s` is how long after the one before it was received."""

    topic: str
    partition: int
    gap_s: int
    name: str | None
    value: bytes


EVENTS = st.fixed_dictionaries(
    {"kind": st.sampled_from("abc"), "n": st.sampled_from([0, 1, -3, 2**63 - 1])},
    optional={
        "x": st.sampled_from([0.1, -0.0, 1e16, 1e300, None]),
        "text": st.sampled_from(["7", "none", "50000"]),
    },
)
THINGS = st.fixed_dictionaries(
    {"key": st.sampled_from("pq"), "n": st.integers(0, 4), "gone": st.booleans()}
)
BAD = [b"{", b'{"kind":5}', b'{"key":"p"}', b'{"kind":"a","kind":"b"}', b"\xff", b"[" * 100]


def values(shape: st.SearchStrategy[dict[str, object]]) -> st.SearchStrategy[bytes]:
    return shape.map(lambda fields: json.dumps(fields).encode()) | st.sampled_from(BAD)


GAPS = st.sampled_from([0, 0, 1, 25, 61, -20, -200])
NAMES = st.sampled_from([None, None, None, "i", "j", "k"])
RECORDS = st.lists(
    st.builds(Sent, st.just("events"), st.integers(0, 1), GAPS, NAMES, values(EVENTS))
    | st.builds(Sent, st.just("things"), st.just(0), GAPS, NAMES, values(THINGS)),
    min_size=1,
    max_size=40,
)


class Data:
    """A log with records and tables, in a folder that tasks open too."""

    def __init__(
        self, folder: Path, log: Log | None = None, place: Path | Kafka | None = None
    ) -> None:
        """Use the folder's own log, or another one that tasks open at a place."""
        self.plan = PLAN
        self.clock = ManualClock()
        self.folder = folder
        self.log = log or EmbeddedLog(folder / "log", self.clock)
        self.log_place = place or folder / "log"
        self.tables = DeltaTables(folder, self.clock)
        for topic in PLAN.topics:
            self.log.create(topic.name, topic.partitions)

    def send(self, sent: list[Sent]) -> None:
        keys = {0: b"a", 1: b"c"}
        for one in sent:
            self.clock.set_now_us(self.clock.now_us() + one.gap_s * 1_000_000)
            batch = Batch()
            chosen = client_id("s", one.topic, one.name) if one.name else self.clock.new_id()
            batch.add(
                one.value, received_at=self.clock.now_us(), id=chosen, key=keys[one.partition]
            )
            self.log.append(one.topic, batch)

    def epoch(self, number: int, before: Outcome | None, share: float = 1.0) -> Epoch:
        done = {(r.topic, r.partition): r.end for r in before.ranges} if before else {}
        ranges = []
        for topic in self.plan.topics:
            for partition, end in enumerate(self.log.ends(topic.name)):
                start = done.get((topic.name, partition), 0)
                ranges.append(
                    Range(topic.name, partition, start, start + round((end - start) * share))
                )
        return Epoch(
            number=number,
            plan=self.plan,
            ranges=tuple(ranges),
            incarnations={n: t.incarnation for n, t in self.log.describe().items()},
            clocks=before.clocks if before else {},
            started_at_us=0,
        )

    def spark(self, session, kind=Place, **options: Any) -> SparkRunner:
        place = kind(self.log_place, self.folder)
        return SparkRunner(self.log, self.tables, self.clock, place, session=session, **options)

    def said(self, outcome: Outcome) -> dict[str, object]:
        """Return what an outcome says, in one order, with its files' rows and its views."""
        views = {}
        for view in self.plan.views:
            state = ViewState(view, ENGINE)
            if view.name in outcome.partials:
                state.add(outcome.partials[view.name])
            views[view.name] = multiset(state.final())
        return {
            "rows": {n: multiset(self.rows(n, outcome)) for n in outcome.files},
            "views": views,
            "known": multiset(outcome.known_ids),
            "keyed": {n: multiset(rows) for n, rows in outcome.keyed.items()},
            "counts": (outcome.topics, outcome.tables),
            "ranges": (outcome.clocks, outcome.ranges),
        }

    def rows(self, name: str, outcome: Outcome) -> pa.Table:
        files = outcome.files[name]
        root = str(self.folder / name)
        return self.tables.read(Snapshot(name, root, "", 0, (), {}, SCHEMAS[name], {}), files)

    def close(self) -> None:
        self.log.close()


def multiset(rows: pa.Table | None) -> Counter[str]:
    return Counter(map(repr, [] if rows is None else rows.to_pylist()))


def event(**fields: object) -> bytes:
    return json.dumps({"kind": "a", "n": 1, **fields}).encode()
