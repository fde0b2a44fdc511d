"""What every runner guarantees, as a list that any runner's tests run over it.

```python
@pytest.mark.parametrize("guarantee", GUARANTEES, ids=lambda g: g.__name__)
def test_mine_keeps(guarantee):
    guarantee(Bench(log, tables, clock, MyRunner))
```

Each guarantee gets a bench of its own: an empty log, empty tables, and how to make the runner.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass

import pyarrow as pa

from headrace.define.types import arrow_schema
from headrace.model.batch import Batch
from headrace.model.clock import Clock
from headrace.model.errors import Unavailable
from headrace.model.ids import client_id
from headrace.model.log import Log, LogReader
from headrace.model.plan import (
    DEAD_LETTER_SCHEMA,
    DEAD_LETTERS,
    KNOWN_ID_SCHEMA,
    KNOWN_IDS,
    SYSTEM_COLUMNS,
    Column,
    Plan,
    StatePart,
    Table,
    TableInput,
    Topic,
    View,
)
from headrace.model.runner import Epoch, Outcome, Range, Runner
from headrace.model.schema import Field, Schema, Type
from headrace.model.tables import Tables
from headrace.stage.duplicates import IdIndex

MakeRunner = Callable[[LogReader, Tables, Clock], Runner]

_SYSTEM = tuple(
    Column(name, kind)
    for name, kind in zip(
        SYSTEM_COLUMNS, ("VARCHAR", "TIMESTAMPTZ", "VARCHAR", "INTEGER", "BIGINT"), strict=True
    )
)
_SYSTEM_SQL = ", ".join(SYSTEM_COLUMNS)
_SCHEMA = Schema(
    "Event",
    (
        Field("kind", "kind", Type("string")),
        Field("n", "N n", Type("integer"), nullable=True, required=False),
    ),
)


def _table(name: str, select: str, fields: Sequence[str], *columns: Column) -> Table:
    one = TableInput("events", select, (*fields, *SYSTEM_COLUMNS))
    return Table(name, (one,), (*columns, *_SYSTEM))


PLAN = Plan(
    name="suite",
    topics=(Topic("events", 2, _SCHEMA), Topic("quiet", 1)),
    tables=(
        _table(
            "events",
            f"SELECT kind, n, {_SYSTEM_SQL} FROM events",
            ("kind", "n"),
            Column("kind", "VARCHAR"),
            Column("n", "BIGINT"),
        ),
        _table(
            "small",
            f"SELECT CAST(n AS TINYINT) AS n, {_SYSTEM_SQL} FROM events WHERE kind <> 'no'",
            ("kind", "n"),
            Column("n", "TINYINT"),
        ),
    ),
    views=(
        View(
            name="counts",
            table="events",
            sql="SELECT kind, count(*) AS n FROM events GROUP BY kind",
            columns=(Column("kind", "VARCHAR"), Column("n", "BIGINT")),
            key=("kind",),
            reads=("kind",),
            parts=(
                StatePart(
                    "groups",
                    "groups",
                    (Column("kind", "VARCHAR"), Column("n", "BIGINT")),
                    "SELECT kind, count(*) AS n FROM rows GROUP BY kind",
                    "SELECT kind, CAST(sum(n) AS BIGINT) AS n FROM parts GROUP BY kind",
                ),
            ),
            final_sql="SELECT kind, n FROM groups",
        ),
    ),
)
"""A topic with a table of all its records, one that filters and can fail, and a view."""


@dataclass(frozen=True)
class Bench:
    """Where a guarantee is tried."""

    log: Log
    tables: Tables
    clock: Clock
    make: MakeRunner

    def send(self, *values: bytes, ids: Sequence[str] = ()) -> None:
        """Append records to partition 0 or 1, whichever their number says; make topics first."""
        if "events" not in self.log.describe():
            for topic in PLAN.topics:
                self.log.create(topic.name, topic.partitions)
        batch = Batch()
        for i, value in enumerate(values):
            chosen = ids[i] if i < len(ids) else ""
            made = client_id("suite", "events", chosen) if chosen else self.clock.new_id()
            # One key, so one partition: the order of the records is the order of their offsets.
            batch.add(value, received_at=self.clock.now_us(), id=made, key=b"k")
        self.log.append("events", batch)

    def epoch(
        self, number: int = 1, after: Outcome | None = None, ends: dict[str, int] | None = None
    ) -> Epoch:
        """Return the epoch that reads on after an outcome, up to the log's ends or `ends`."""
        done = {f"{r.topic}/{r.partition}": r.end for r in after.ranges} if after else {}
        ranges = tuple(
            Range(topic, partition, start, (ends or {}).get(f"{topic}/{partition}", end))
            for topic in ("events", "quiet")
            for partition, end in enumerate(self.log.ends(topic))
            for start in [done.get(f"{topic}/{partition}", 0)]
        )
        return Epoch(
            number=number,
            plan=PLAN,
            ranges=ranges,
            incarnations={n: t.incarnation for n, t in self.log.describe().items()},
            clocks=after.clocks if after else {},
            started_at_us=1_767_225_600_000_000,
        )

    def run(self, *epochs: Epoch, ids: IdIndex | None = None) -> list[Outcome]:
        """Return the outcomes of epochs that do not depend on one another."""
        with closing(self.make(self.log, self.tables, self.clock)) as runner:
            return [runner.run(epoch, ids or IdIndex()) for epoch in epochs]

    def rows(self, *outcomes: Outcome, of: str) -> pa.Table:
        """Return the rows of the files that were staged for a table, as its readers would."""
        schemas = {DEAD_LETTERS: DEAD_LETTER_SCHEMA, KNOWN_IDS: KNOWN_ID_SCHEMA}
        for table in PLAN.tables:
            schemas[f"tables/{table.name}"] = arrow_schema(table.columns)
        files = [file for outcome in outcomes for file in outcome.files.get(of, [])]
        snapshot = self.tables.snapshot(of) or self.tables.create(of, schemas[of]).snapshot
        return self.tables.read(snapshot, files)


def _event(kind: str, n: object = None) -> bytes:
    return json.dumps({"kind": kind, "N n": n}).encode()


def _offsets(rows: pa.Table) -> list[int]:
    found: list[int] = sorted(rows.column("_offset").to_pylist())
    return found


GOOD = [_event("yes", 1), _event("no", 2), _event("yes", 3), _event("maybe")]
MIXED = [*GOOD, b"{", _event("yes", 1000), b'{"kind":"\xff"}', _event("no", 1000), *GOOD]
"""12 records: 2 that are not valid, 1 that fails in `small`, 3 that `small` filters out."""


def every_record_is_accounted_for(bench: Bench) -> None:
    """Read = decoded + dead + duplicates; decoded = rows + filtered + failed."""
    bench.send(*MIXED, ids=["a", "b", "a"])
    (outcome,) = bench.run(bench.epoch())
    topic, events, small = (
        outcome.topics["events"],
        outcome.tables["events"],
        outcome.tables["small"],
    )
    assert (topic.read, topic.decoded, topic.dead, topic.duplicates) == (12, 9, 2, 1)
    assert (events.decoded, events.rows, events.filtered, events.failed) == (9, 9, 0, 0)
    assert (small.decoded, small.rows, small.filtered, small.failed) == (9, 5, 3, 1)


def files_hold_the_rows_that_were_counted(bench: Bench) -> None:
    """What is staged is what the accounting says, and says so itself."""
    bench.send(*MIXED)
    (outcome,) = bench.run(bench.epoch())
    for name, count in outcome.tables.items():
        files = outcome.files[f"tables/{name}"]
        assert sum(f.rows for f in files) == count.rows
        assert bench.rows(outcome, of=f"tables/{name}").num_rows == count.rows


def rows_have_exactly_the_columns_of_the_plan(bench: Bench) -> None:
    """Names, types and order; values as sent."""
    bench.send(*GOOD)
    (outcome,) = bench.run(bench.epoch())
    rows = bench.rows(outcome, of="tables/events")
    assert rows.schema.names == [c.name for c in PLAN.tables[0].columns]
    assert rows.column("n").to_pylist() == [1, 2, 3, None]
    assert rows.column("_topic").to_pylist() == ["events"] * 4
    assert len(set(rows.column("event_id").to_pylist())) == len(GOOD)
    assert _offsets(rows) == [0, 1, 2, 3]


def nothing_is_visible(bench: Bench) -> None:
    """A runner stages; it creates no table and commits nothing."""
    bench.send(*MIXED)
    bench.run(bench.epoch())
    assert bench.tables.names() == []


def the_same_epoch_again_gives_the_same_rows(bench: Bench) -> None:
    """Also from another runner, and whatever was staged before."""
    bench.send(*MIXED, ids=["a", "b", "a"])
    first, second = bench.run(bench.epoch(), bench.epoch())
    (third,) = bench.run(bench.epoch())
    for name in ("tables/events", "tables/small", DEAD_LETTERS, KNOWN_IDS):
        rows = bench.rows(first, of=name).to_pylist()
        assert rows
        assert bench.rows(second, of=name).to_pylist() == rows
        assert bench.rows(third, of=name).to_pylist() == rows
    # A GROUP BY on several threads gives its groups in any order, and they are merged in any.
    assert _groups(first) == _groups(second) == _groups(third)


def getting_ready_changes_nothing(bench: Bench) -> None:
    """A runner may be told to get ready at any time, and again."""
    bench.send(*MIXED)
    epoch = bench.epoch()
    (first,) = bench.run(epoch)
    with closing(bench.make(bench.log, bench.tables, bench.clock)) as runner:
        runner.prepare(PLAN)
        runner.prepare(PLAN)
        second = runner.run(epoch, IdIndex())
        runner.prepare(PLAN)
        third = runner.run(epoch, IdIndex())
    for again in (second, third):
        assert (again.topics, again.tables) == (first.topics, first.tables)
        assert _groups(again) == _groups(first)


def _groups(outcome: Outcome) -> dict[tuple[str, str], list[str]]:
    """Return the rows of every partial, in one order."""
    return {
        (view, name): sorted(map(repr, rows.to_pylist()))
        for view, parts in outcome.partials.items()
        for name, rows in parts.items()
    }


def any_cut_gives_the_same_rows(bench: Bench) -> None:
    """Two epochs instead of one: the same rows, dead letters and sums, each record once."""
    bench.send(*MIXED, ids=["a", "b", "a", "", "", "", "", "", "b"])
    (whole,) = bench.run(bench.epoch())
    partition = next(p for p, end in enumerate(bench.log.ends("events")) if end)
    for cut in range(1, len(MIXED)):
        (first,) = bench.run(bench.epoch(ends={f"events/{partition}": cut}))
        known = IdIndex()
        if first.known_ids is not None:
            known.add(first.known_ids)
        (second,) = bench.run(bench.epoch(2, first), ids=known)
        for name in ("tables/events", "tables/small"):
            assert _offsets(bench.rows(first, second, of=name)) == _offsets(
                bench.rows(whole, of=name)
            )
        assert _letters(bench, first, second) == _letters(bench, whole)
        assert _counts([first, second]) == _counts([whole])
        assert second.clocks == whole.clocks


def _letters(bench: Bench, *outcomes: Outcome) -> list[str]:
    found: list[str] = bench.rows(*outcomes, of=DEAD_LETTERS).column("letter_id").to_pylist()
    return sorted(found)


def _counts(outcomes: Iterable[Outcome]) -> dict[str, int]:
    """Return the view of `PLAN`, folded by hand."""
    totals: dict[str, int] = {}
    for outcome in outcomes:
        for part in outcome.partials.get("counts", {}).values():
            for row in part.to_pylist():
                totals[row["kind"]] = totals.get(row["kind"], 0) + row["n"]
    return totals


def partials_are_of_the_rows_that_were_staged(bench: Bench) -> None:
    """A view's partial counts each staged row once."""
    bench.send(*MIXED)
    (outcome,) = bench.run(bench.epoch())
    assert _counts([outcome]) == {"yes": 5, "no": 3, "maybe": 2}


def dead_letters_keep_the_bytes_and_the_reason(bench: Bench) -> None:
    """Original value, place, code and message, and which table alone failed."""
    bench.send(*MIXED)
    (outcome,) = bench.run(bench.epoch())
    rows = sorted(bench.rows(outcome, of=DEAD_LETTERS).to_pylist(), key=lambda r: r["offset"])
    found = [(r["offset"], r["stage"], r["output"], r["code"], r["value"]) for r in rows]
    assert found == [
        (4, "decode", None, "invalid_json", MIXED[4]),
        (5, "row", "small", "sql_error", MIXED[5]),
        (6, "decode", None, "invalid_utf8", MIXED[6]),
    ]
    assert all(r["message"] and r["key"] == b"k" and r["attempt"] == 1 for r in rows)


def ids_known_before_make_duplicates(bench: Bench) -> None:
    """And those kept at the same or later offsets do not, so that a range can be read again."""
    bench.send(*GOOD, ids=["a", "b", "c", "d"])
    (first,) = bench.run(bench.epoch())
    known = IdIndex()
    assert first.known_ids is not None
    known.add(first.known_ids)
    (again,) = bench.run(bench.epoch(), ids=known)
    assert again.topics["events"].duplicates == 0
    bench.send(*GOOD, ids=["e", "a", "f", "b"])
    (second,) = bench.run(bench.epoch(2, first), ids=known)
    assert second.topics["events"].duplicates == 2  # noqa: PLR2004 - a and b
    assert _offsets(bench.rows(second, of="tables/events")) == [4, 6]


def clocks_go_on_from_where_they_were(bench: Bench) -> None:
    """The clock after an epoch is the running maximum of received_at; others stay."""
    bench.send(*GOOD)
    before = bench.epoch()
    (outcome,) = bench.run(before)
    assert list(outcome.clocks.values()) == [bench.clock.now_us()]
    (idle,) = bench.run(bench.epoch(2, outcome))
    assert idle.clocks == outcome.clocks


def an_epoch_without_records_gives_nothing(bench: Bench) -> None:
    """No files, no partials, and every range ends where it was asked to."""
    bench.send(*GOOD)
    (first,) = bench.run(bench.epoch())
    (idle,) = bench.run(bench.epoch(2, first))
    assert not any(idle.files.values())
    assert not any(part.num_rows for parts in idle.partials.values() for part in parts.values())
    assert idle.known_ids is None


def ranges_end_no_later_than_asked(bench: Bench) -> None:
    """What is reported as read was read, and no more."""
    bench.send(*MIXED)
    partition = next(p for p, end in enumerate(bench.log.ends("events")) if end)
    epoch = bench.epoch(ends={f"events/{partition}": 5})
    (outcome,) = bench.run(epoch)
    assert outcome.topics["events"].read == 5  # noqa: PLR2004 - as asked
    for asked in epoch.ranges:
        (got,) = [r for r in outcome.ranges if (r.topic, r.partition) == _place(asked)] or [asked]
        assert got.start == asked.start
        assert got.end <= asked.end


def _place(part: Range) -> tuple[str, int]:
    return (part.topic, part.partition)


class _Unreadable:
    """A log that cannot be read just now."""

    def __init__(self, log: LogReader) -> None:
        self._log = log

    def __getattr__(self, name: str) -> object:
        return getattr(self._log, name)

    def read(self, *_args: object, **_options: object) -> Iterator[pa.RecordBatch]:
        raise Unavailable("The log cannot be read now")


def a_log_that_cannot_be_read_changes_nothing(bench: Bench) -> None:
    """`Unavailable` comes through, and the runner goes on when the log is back."""
    bench.send(*GOOD)
    unreadable: LogReader = _Unreadable(bench.log)  # type: ignore[assignment]
    with closing(bench.make(unreadable, bench.tables, bench.clock)) as runner:
        try:
            runner.run(bench.epoch(), IdIndex())
        except Unavailable:
            pass
        else:
            raise AssertionError("an epoch was made out of nothing")
    (outcome,) = bench.run(bench.epoch())
    assert outcome.topics["events"].decoded == len(GOOD)


GUARANTEES: tuple[Callable[[Bench], None], ...] = (
    every_record_is_accounted_for,
    files_hold_the_rows_that_were_counted,
    rows_have_exactly_the_columns_of_the_plan,
    nothing_is_visible,
    the_same_epoch_again_gives_the_same_rows,
    getting_ready_changes_nothing,
    any_cut_gives_the_same_rows,
    partials_are_of_the_rows_that_were_staged,
    dead_letters_keep_the_bytes_and_the_reason,
    ids_known_before_make_duplicates,
    clocks_go_on_from_where_they_were,
    an_epoch_without_records_gives_nothing,
    ranges_end_no_later_than_asked,
    a_log_that_cannot_be_read_changes_nothing,
)
"""Every guarantee, by the name of its function."""
