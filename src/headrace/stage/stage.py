"""The stage: records in; rows, dead letters and partial aggregates out. Pure.

What comes out is a function of the plan, the slices, the ids known before and the time given. No
record is lost and none stops another: each one read is decoded, dead or a duplicate; each one that
is decoded becomes a row of a table, is filtered out by its SQL, or failed there alone.

A record that is replayed for one table (`ONLY_HEADER`) is decoded like any other, but reaches, and
counts as decoded in, that table alone; so the sums of the other tables still close.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from headrace.define.types import quoted, record_columns
from headrace.model.plan import RECORD_COLUMNS, Plan, Table, TableInput, Topic
from headrace.model.runner import KnownIds, TableCount, TopicCount
from headrace.stage.decode import RELATION, decode_sql, stored_columns
from headrace.stage.duplicates import Partition
from headrace.stage.engine import Engine, SqlError, bisect
from headrace.stage.failing import RowSql
from headrace.stage.letters import Letters
from headrace.stage.records import Kept, Slice
from headrace.stage.validate import Validator

ROWS = "rows"
"""Name of the relation that partial SQL reads."""

SQL_ERROR = "sql_error"
"""Code of a record that a table's SQL, or the partial of one of its views, fails on."""

DECODE_ERROR = "decode_error"
"""Code of a valid record that the engine cannot decode; there should be none."""

_PLACE = ("_topic", "_partition", "_offset")

Flags = npt.NDArray[np.bool_]
Partials = dict[str, dict[str, pa.Table]]


@dataclass(slots=True)
class StageResult:
    """What became of some slices; see `model.runner.Outcome` for the parts of the same names.

    `rows` has the tables with at least one row, each with exactly the plan's columns; `partials`
    the views of those tables.
    """

    letters: Letters
    rows: dict[str, pa.Table] = field(default_factory=dict)
    partials: Partials = field(default_factory=dict)
    known_ids: pa.Table | None = None
    clocks: dict[str, int] = field(default_factory=dict)
    topics: dict[str, TopicCount] = field(default_factory=dict)
    tables: dict[str, TableCount] = field(default_factory=dict)
    keyed: dict[str, pa.Table] = field(default_factory=dict)
    """Rows of keyed tables, once their partials were tried."""


class Stage:
    """A plan made ready to run on an engine. Used from one thread at a time.

    `run` does everything. A runner that writes rows while the partials are computed calls
    `make_rows`, and then `make_partials` for each table, itself.
    """

    def __init__(self, plan: Plan, engine: Engine) -> None:
        self._plan = plan
        self._engine = engine
        self._topics = {t.name: _Topic(t, plan, engine) for t in plan.topics}
        self._schemas = {t.name: engine.arrow_schema(t.made) for t in plan.tables}
        self._keyed = {t.name: t.keyed for t in plan.tables if t.keyed}
        self._horizon_us = round(plan.options.horizon_s * 1_000_000)

    def run(self, slices: Sequence[Slice], known: KnownIds, started_at_us: int) -> StageResult:
        """Return rows, partials, dead letters and counts of slices of different partitions."""
        result = self.make_rows(slices, known, started_at_us)
        for table in list(result.rows):
            self.make_partials(result, slices, table)
        return result

    def make_rows(self, slices: Sequence[Slice], known: KnownIds, now_us: int) -> StageResult:
        """Return everything but the partials."""
        result = StageResult(Letters(self._plan.name, now_us))
        result.tables = {t.name: TableCount() for t in self._plan.tables}
        pieces: dict[str, list[pa.Table]] = {}
        for name, topic in self._topics.items():
            if of_topic := [s for s in slices if s.topic == name]:
                kept, decoded = self._decode(topic, of_topic, known, result)
                for table, made in self._select_rows(topic, kept, decoded, result):
                    pieces.setdefault(table, []).append(made)
        for table, made_of in pieces.items():
            rows = pa.concat_tables(made_of).cast(self._schemas[table])
            count = result.tables[table]
            count.rows = rows.num_rows
            count.filtered = count.decoded - count.rows - count.failed
            if rows.num_rows:
                result.rows[table] = rows
        return result

    def make_partials(self, result: StageResult, slices: Sequence[Slice], table: str) -> bool:
        """Put the partials of a table's views into the result; return whether its rows stayed.

        A row whose partial cannot be computed is no row: its record becomes a dead letter of the
        table, and rows, counts and all partials are made without it. The partials of a keyed
        table are made later, of what its rows change; here they are only tried.
        """
        rows, stayed = result.rows.pop(table), True
        while True:
            partials, errors = self._compute(table, rows)
            if not errors:
                break
            stayed = False
            at = sorted(errors)
            self._fail(result, slices, table, rows.take(pa.array(at)), [errors[i] for i in at])
            left = np.ones(rows.num_rows, np.bool_)
            left[at] = False
            rows = rows.filter(pa.array(left))
        if rows.num_rows and table in self._keyed:
            result.keyed[table] = rows
        elif rows.num_rows:
            result.rows[table] = rows
            result.partials |= partials
        return stayed

    def _decode(
        self, topic: _Topic, slices: Sequence[Slice], known: KnownIds, result: StageResult
    ) -> tuple[Kept, pa.Table]:
        """Return the records that are valid and no duplicates, and the fields that are used."""
        errors = [topic.find_errors(s) for s in slices]
        valid = [_without(s.records.num_rows, e) for s, e in zip(slices, errors, strict=True)]
        partitions = [Partition(s.topic, s.partition, s.records, s.clock_us) for s in slices]
        while True:
            found = [
                p.find(flags, known, self._horizon_us)
                for p, flags in zip(partitions, valid, strict=True)
            ]
            kept = Kept.where(slices, [v & ~f[0] for v, f in zip(valid, found, strict=True)])
            pieces, failed = bisect(
                self._query(topic.decode_sql, RELATION), kept.relation(topic.columns)
            )
            # What cannot be decoded is dead, so which records are duplicates is asked again.
            for i, error in failed:
                of, (_, at) = int(kept.of[i]), kept[i]
                errors[of][at] = (DECODE_ERROR, error.message)
                valid[of][at] = False
            if not failed:
                break
        for part, dead, (duplicate, *_) in zip(slices, errors, found, strict=True):
            for at, (code, message) in dead.items():
                if not duplicate[at]:
                    topic.add_letter(result.letters, part, at, None, code, message)
        result.topics[topic.name] = TopicCount(
            read=sum(s.records.num_rows for s in slices),
            decoded=len(kept),
            dead=sum(int((~v & ~f[0]).sum()) for v, f in zip(valid, found, strict=True)),
            duplicates=sum(int(f[0].sum()) for f in found),
        )
        result.clocks |= {s.key: f[2] for s, f in zip(slices, found, strict=True)}
        ids = [f[1] for f in found if f[1] is not None]
        if ids:
            before = [] if result.known_ids is None else [result.known_ids]
            result.known_ids = pa.concat_tables([*before, *ids])
        return kept, pa.concat_tables(pieces)

    def _select_rows(
        self, topic: _Topic, kept: Kept, decoded: pa.Table, result: StageResult
    ) -> Iterator[tuple[str, pa.Table]]:
        """Yield the rows of each table that reads the topic."""
        only = kept.only()
        for table, columns, row_sql in topic.inputs:
            at = np.array([only.get(i, table) == table for i in range(len(kept))]) if only else None
            records = decoded.select(columns)
            if at is not None:
                records = records.filter(pa.array(at))
            places = np.arange(len(kept)) if at is None else np.flatnonzero(at)
            pieces, failed = row_sql.run(records)
            for i, message in failed:
                part, row = kept[int(places[i])]
                topic.add_letter(result.letters, part, row, table, SQL_ERROR, message)
            count = result.tables[table]
            count.decoded += len(places)
            count.failed += len(failed)
            if pieces:
                yield table, pa.concat_tables(pieces)

    def _compute(self, table: str, rows: pa.Table) -> tuple[Partials, dict[int, SqlError]]:
        """Return the partials of a table's views, and the errors of rows that fail in any.

        A partial that only several rows together make fail comes in pieces, to be merged later.
        """
        partials: Partials = {}
        errors: dict[int, SqlError] = {}
        places = self._places_of_living(table, rows)
        if len(places) < rows.num_rows:
            rows = rows.take(pa.array(places))
        for view in self._plan.views_of(table):
            read = rows.select(view.reads) if view.reads else rows
            partials[view.name] = {}
            for part in view.parts:
                pieces, failed = bisect(self._query(part.partial_sql, ROWS), read)
                errors |= {int(places[i]): error for i, error in failed}
                if pieces:
                    partials[view.name][part.name] = pa.concat_tables(pieces)
        return partials, errors

    def _places_of_living(self, table: str, rows: pa.Table) -> npt.NDArray[np.int64]:
        """Return the positions of the rows that views count: all but deletions."""
        keyed = self._keyed.get(table)
        if keyed is None or keyed.deleted is None:
            return np.arange(rows.num_rows)
        deleted = pc.fill_null(rows.column(keyed.deleted), fill_value=False)
        return np.flatnonzero(~deleted.to_numpy())

    def _fail(
        self,
        result: StageResult,
        slices: Sequence[Slice],
        table: str,
        rows: pa.Table,
        errors: Sequence[SqlError],
    ) -> None:
        """Make dead letters of rows that were made already."""
        by_key = {s.key: s for s in slices}
        places = zip(*(rows.column(c).to_pylist() for c in _PLACE), errors, strict=True)
        for topic, partition, offset, error in places:
            part = by_key[f"{topic}/{partition}"]
            at = int(np.searchsorted(part.records.column("offset").to_numpy(), offset))
            self._topics[topic].add_letter(
                result.letters, part, at, table, SQL_ERROR, error.message
            )
        result.tables[table].rows -= len(errors)
        result.tables[table].failed += len(errors)

    def _query(self, sql: str, relation: str) -> Callable[[pa.Table], pa.Table]:
        return lambda rows: self._engine.query(sql, {relation: rows})


class _Topic:
    """A topic of the plan, compiled: its validator, what to decode, and the tables that read it."""

    def __init__(self, topic: Topic, plan: Plan, engine: Engine) -> None:
        self.name = topic.name
        self._validator = Validator(topic.schema)
        order = list(record_columns(topic.schema))
        used: set[str] = set()
        self.inputs: list[tuple[str, list[str], RowSql]] = []
        for table in plan.tables:
            for one in table.inputs:
                if one.topic == topic.name:
                    used.update(one.fields)
                    columns = [c for c in order if c in one.fields]
                    sql = _row_sql(table, one)
                    row_sql = RowSql(engine, topic.name, one.sql, sql, table.made)
                    self.inputs.append((table.name, columns, row_sql))
        self.columns = stored_columns(used)
        if used - set(RECORD_COLUMNS):
            self.columns.append("value")
        self.decode_sql = decode_sql(topic.schema, used)

    def find_errors(self, part: Slice) -> dict[int, tuple[str, str]]:
        """Return position → (code, message) of the records that are not valid."""
        marks = part.records.column("mark").to_numpy()
        unmarked = np.flatnonzero(marks != self._validator.fingerprint)
        values = part.records.column("value").take(pa.array(unmarked)).to_pylist()
        refused = self._validator.check_many(values)
        return {int(unmarked[i]): (e.code, e.message) for i, e in refused.items()}

    def add_letter(
        self, letters: Letters, part: Slice, at: int, output: str | None, code: str, message: str
    ) -> None:
        """Make a record a dead letter."""
        letters.add(part, at, output, self._validator.fingerprint, code, message)


def _without(n: int, positions: Iterable[int]) -> Flags:
    """Return n flags, all set but those at `positions`."""
    flags = np.ones(n, np.bool_)
    flags[list(positions)] = False
    return flags


def _row_sql(table: Table, one: TableInput) -> str:
    """Return the row SQL with exactly the table's columns and types around it."""
    columns = [f"CAST({quoted(c.name)} AS {c.type}) AS {quoted(c.name)}" for c in table.made]
    return f"SELECT {', '.join(columns)} FROM ({one.sql}) AS made"
