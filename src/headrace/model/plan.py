"""The compiled pipeline, a value: what `define` makes of a pipeline file and every role runs.

A plan holds no code: it can be printed, compared, kept in the ledger and sent to another machine.
SQL in it is DuckDB's dialect, already checked, with every relation and column quoted where needed.
"""

from __future__ import annotations

import hashlib
from typing import Literal

import msgspec
import pyarrow as pa

from headrace.model.pipeline_options import Options
from headrace.model.schema import Schema

SYSTEM_COLUMNS = ("event_id", "received_at", "_topic", "_partition", "_offset")
"""Columns of every table: VARCHAR (UUID text), TIMESTAMPTZ, VARCHAR, INTEGER, BIGINT."""

KEY_COLUMN = "_key"
"""Column that a keyed table has in addition: the record's own key, VARCHAR."""

RECORD_COLUMNS = (*SYSTEM_COLUMNS, KEY_COLUMN, "_headers", "_value", "_seen_at", "_deleted")
"""What row SQL may read of a record beside its fields.

`_key`, `_headers` and `_value` are VARCHAR or NULL. `_seen_at` TIMESTAMPTZ is when whoever sent the
record saw it (`source.SEEN_AT_HEADER`), else received_at; `_deleted` BOOLEAN is whether the record
says that its key is gone (`source.DELETED_HEADER`)."""

WEIGHT, CHANGED_IN = "_weight", "_epoch"
"""Columns of a changelog, INTEGER and BIGINT: see `Keyed`."""


class Column(msgspec.Struct, frozen=True):
    """A column of a table or view: `type` is a DuckDB type text that Delta can store."""

    name: str
    type: str


class Topic(msgspec.Struct, frozen=True):
    """A topic. `schema` None takes any JSON object and makes no table of its own."""

    name: str
    partitions: int
    schema: Schema | None = None
    id_field: str | None = None
    """JSON name of a string or integer field that is the client-chosen id of a record."""
    key_field: str | None = None
    """JSON name of a string or integer field that is the key of a record without another."""


class Route(msgspec.Struct, frozen=True):
    """A path under which one GET or POST is one record."""

    path: str
    """`/join_guild/{guild}`: parameters are one whole segment each."""
    topic: str
    fixed: dict[str, str]
    """Fields that the route sets; values may name path parameters in braces."""
    reply: str
    headers: bool = True
    """Whether request headers become fields, names as sent in title case (`User-Agent`)."""


class TableInput(msgspec.Struct, frozen=True):
    """How a topic's records become rows of a table."""

    topic: str
    sql: str
    """A SELECT, row by row, over a relation named as the topic; yields exactly the columns."""
    fields: tuple[str, ...]
    """The record's fields and record columns that `sql` reads; only these are decoded."""


class Keyed(msgspec.Struct, frozen=True):
    """How a keyed table finds the latest row of a key.

    Of two rows of one key the later one is that with the greater `version`, then the greater
    event_id, and of two with the same one, the first; without a version column, the one that stands
    later in the log. A NULL version is
    older than any other. A row whose `deleted` is true takes its key out: its version is kept, so
    that an older row that comes later does not bring the key back.

    A keyed table is stored twice. Its changelog `changes/<name>` is what epochs append to, with the
    net change of each key: `made` columns; `WEIGHT`, which is +1 for a row that now holds, -1 for
    one that no longer does, 0 for a deletion; and `CHANGED_IN`, the epoch, so that of all rows of a
    key the one of weight 0 or +1 with the greatest epoch is what holds. A row of weight -1 has the
    key, the version and event_id, and at least the columns that the views of the plan read; its
    other columns may be NULL. The table `tables/<name>`, one row a key, is made from the changelog
    and names its version.
    """

    key: tuple[str, ...]
    """Columns, none of them nested, that together name a row; NULL in one is an error."""
    version: str | None = None
    """Integer, TIMESTAMPTZ, DATE or VARCHAR column; None: the place in the log, which then must be
    one partition for all rows of a key."""
    deleted: str | None = None
    """BOOLEAN column that the row SQL makes and that is no column of the table."""


class Table(msgspec.Struct, frozen=True):
    """A table: append-only rows, or the latest row of each key.

    `columns` end with the system columns not selected before, and `KEY_COLUMN` if it is keyed.
    """

    name: str
    inputs: tuple[TableInput, ...]
    columns: tuple[Column, ...]
    retention_s: float | None = None
    """Rows whose received_at is older are taken out; None keeps all."""
    keyed: Keyed | None = None

    @property
    def made(self) -> tuple[Column, ...]:
        """What the row SQL yields: the columns, and the one that says that a key is deleted."""
        if self.keyed is None or self.keyed.deleted is None:
            return self.columns
        return (*self.columns, Column(self.keyed.deleted, "BOOLEAN"))

    @property
    def log_columns(self) -> tuple[Column, ...]:
        """Columns of what epochs append to: the table itself, or its changelog."""
        if self.keyed is None:
            return self.columns
        return (*self.made, Column(WEIGHT, "INTEGER"), Column(CHANGED_IN, "BIGINT"))

    @property
    def storage(self) -> str:
        """Storage name of what epochs append to."""
        return f"{'changes' if self.keyed else 'tables'}/{self.name}"


class Window(msgspec.Struct, frozen=True):
    """Windows [start, end) of `size_us`, one every `every_us`, counted from 1970-01-01 UTC."""

    on: str
    """A TIMESTAMPTZ column of the table."""
    size_us: int
    every_us: int
    lateness_us: int = 0
    """How long after its end a window counts as still open, for `watermark_passed`."""


StateKind = Literal["groups", "items", "smallest"]


class StatePart(msgspec.Struct, frozen=True, omit_defaults=True):
    """One relation of a view's state. A view has the part `groups` and any number of others.

    ========  ====================================================================
    kind      meaning
    ========  ====================================================================
    groups    one row a group key: counts, sums, minima, …
    items     one row a (group key, item): n; exact distinct, buckets, float bins
    smallest  one row a (group key, hash): the k smallest hashes a key
    ========  ====================================================================
    """

    name: str
    kind: StateKind
    columns: tuple[Column, ...]
    partial_sql: str
    """Over relation `rows` (the table's rows): the part's columns for these rows alone."""
    merge_sql: str
    """Over relation `parts` (several results of `partial_sql` or `merge_sql`, one after another):
    the same columns, merged. Any grouping and order of merges gives the same result."""
    retract_sql: str | None = None
    """Over relation `parts`: the same columns, every count and sum negated, so that merging it in
    takes those rows out again. Only of views over keyed tables, whose state is counts and sums."""


class View(msgspec.Struct, frozen=True):
    """A maintained aggregate of one table."""

    name: str
    table: str
    sql: str
    """What the user wrote, normalised; with `window`, over the table's rows once per window."""
    columns: tuple[Column, ...]
    key: tuple[str, ...]
    """The output columns that together are unique."""
    reads: tuple[str, ...]
    """Columns of the table that the partials read."""
    parts: tuple[StatePart, ...]
    final_sql: str
    """Over relations named as the parts: the view's columns; one row a key."""
    window: Window | None = None
    topic: str | None = None
    """Change topic to which changed rows are published, if any. No table reads it."""

    @property
    def fingerprint(self) -> str:
        """Return 16 hex digits that differ whenever the state of another build is of no use."""
        text = msgspec.json.encode((self.table, self.parts, self.final_sql, self.window))
        return hashlib.blake2b(text, digest_size=8).hexdigest()


class QueryParameter(msgspec.Struct, frozen=True):
    """A parameter of a named query: one of `choices` spliced as a name, or a typed value."""

    name: str
    type: Literal["choice", "string", "integer", "number", "boolean", "timestamp"]
    choices: tuple[str, ...] = ()
    default: str | None = None
    required: bool = True


class Query(msgspec.Struct, frozen=True):
    """A SELECT over tables and views under a path of its own."""

    path: str
    sql: str
    """With `{name}` for choices and `$name` for values."""
    parameters: tuple[QueryParameter, ...]
    reads: tuple[str, ...]
    """The tables and views that it reads."""
    columns: tuple[Column, ...] = ()


class Source(msgspec.Struct, frozen=True):
    """Something that pulls records into a topic."""

    name: str
    kind: str
    """A word of the registry: replay, …"""
    topic: str
    options: dict[str, str | int | float | bool | None]
    counts: str | None = None
    """Topic that gets the service's own count after each complete sweep (`source.Count`)."""


class Plan(msgspec.Struct, frozen=True):
    """Everything that a pipeline file declares, checked and compiled."""

    name: str
    topics: tuple[Topic, ...] = ()
    routes: tuple[Route, ...] = ()
    tables: tuple[Table, ...] = ()
    views: tuple[View, ...] = ()
    queries: tuple[Query, ...] = ()
    sources: tuple[Source, ...] = ()
    options: Options = Options()

    @property
    def fingerprint(self) -> str:
        """Return 16 hex digits of all that decides what becomes of a record."""
        text = msgspec.json.encode((self.topics, self.tables, self.views))
        return hashlib.blake2b(text, digest_size=8).hexdigest()

    def topic(self, name: str) -> Topic:
        """Return a topic by name; KeyError if there is none."""
        return next(t for t in self.topics if t.name == name)

    def table(self, name: str) -> Table:
        """Return a table by name; KeyError if there is none."""
        return next(t for t in self.tables if t.name == name)

    @property
    def change_topics(self) -> tuple[str, ...]:
        """Return the topics that views publish their changes to, once each."""
        return tuple(dict.fromkeys(v.topic for v in self.views if v.topic))

    def views_of(self, table: str) -> list[View]:
        """Return the views of a table."""
        return [v for v in self.views if v.table == table]


DEAD_LETTERS = "system/dead_letters"
KNOWN_IDS = "system/known_ids"
LEDGER = "system/ledger"
"""Names of the pipeline's own tables."""

_UTC = pa.timestamp("us", tz="UTC")

DEAD_LETTER_SCHEMA = pa.schema(
    [
        ("letter_id", pa.string()),
        ("topic", pa.string()),
        ("partition", pa.int32()),
        ("offset", pa.int64()),
        ("event_id", pa.string()),
        ("received_at", _UTC),
        ("failed_at", _UTC),
        ("stage", pa.string()),
        ("output", pa.string()),
        ("code", pa.string()),
        ("message", pa.string()),
        ("schema_fingerprint", pa.string()),
        ("attempt", pa.int32()),
        ("key", pa.binary()),
        ("headers", pa.string()),
        ("value", pa.binary()),
        ("pipeline", pa.string()),
    ]
)
"""A dead letter: `stage` is decode (the record never became one; `output` null) or row (one table,
`output`, failed). `letter_id` is made of topic, incarnation, partition, offset, stage and output:
the same failure has the same id however often it is met. `value` holds the bytes as sent."""

KNOWN_ID_SCHEMA = pa.schema(
    [
        ("topic", pa.string()),
        ("partition", pa.int32()),
        ("id", pa.binary(16)),
        ("clock_us", pa.int64()),
        ("offset", pa.int64()),
    ]
)
"""A client-chosen id kept within the horizon: `clock_us` is the partition's running maximum of
received_at when the record was kept, `offset` its position. A row whose id is 16 zero bytes says
that the clock was reset at `offset`: ids of the partition kept before it count no more."""
