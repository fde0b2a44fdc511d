"""`Pipeline`: what a user declares, kept as declared with the place of each call.

Nothing is checked here, so that `check` can tell all faults at once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Literal

from headrace.define.problem import Place, here
from headrace.define.record import Record

Length = str | timedelta
"""A length of time: "1 minute", "250 ms", a timedelta."""

ParameterKind = Literal["string", "integer", "number", "boolean", "timestamp"]
Scalar = str | int | float | bool


@dataclass(frozen=True, eq=False)
class Topic:
    """A declared topic: the handle that routes, tables and sources are given."""

    place: Place
    name: str
    record: type[Record] | None
    partitions: int
    id: str | None
    key: str | None
    store: bool


@dataclass(frozen=True)
class Route:
    """A declared route."""

    place: Place
    path: str
    topic: Topic | str
    fixed: Mapping[str, str]
    reply: str
    headers: bool


@dataclass(frozen=True)
class Table:
    """A declared table."""

    place: Place
    name: str
    sql: str | Mapping[Topic | str, str]
    retention: Length | None = None
    key: tuple[str, ...] | None = None
    version: str | None = None
    deleted: str | None = None


@dataclass(frozen=True)
class Windows:
    """Windows of a view: `size` long, one every `every`, by the column `on`."""

    size: Length
    every: Length
    on: str
    lateness: Length


@dataclass(frozen=True)
class View:
    """A declared view."""

    place: Place
    name: str
    sql: str
    window: Windows | None
    publish_to: str | None


@dataclass(frozen=True)
class Parameter:
    """A parameter of a query: a kind of value or a list of names to choose from."""

    kind: ParameterKind | Sequence[str]
    default: Scalar | None
    required: bool


@dataclass(frozen=True)
class Query:
    """A declared query."""

    place: Place
    path: str
    sql: str
    params: Mapping[str, Parameter | ParameterKind | Sequence[str]]


@dataclass(frozen=True)
class Source:
    """A declared source."""

    place: Place
    name: str
    kind: str
    topic: Topic | str
    counts: Topic | str | None
    options: Mapping[str, Scalar | None]


class Pipeline:
    """A pipeline: topics, the doors into them, and the tables and views made of them.

    ::

        pipeline = Pipeline("game", every="250 ms")

    The options are those of `model.plan.Options`. One that is a number of seconds there is given as
    a length of time, without the `_s` at the end of its name: `every="250 ms"`.
    """

    def __init__(self, name: str, **options: Length | Scalar | None) -> None:
        """Declare a pipeline."""
        self.name = name
        self.place = here()
        self.options = options
        self.topics: list[Topic] = []
        self.routes: list[Route] = []
        self.tables: list[Table] = []
        self.views: list[View] = []
        self.queries: list[Query] = []
        self.sources: list[Source] = []

    def topic(
        self,
        name: str,
        record: type[Record] | None = None,
        *,
        partitions: int = 1,
        id: str | None = None,  # noqa: A002 - what users call it
        key: str | None = None,
        store: bool = True,
    ) -> Topic:
        """Declare a topic and return its handle.

        `record`: the class that its records must fit; None takes any JSON object. A topic with a
        record class has the table of its own name unless `store` is False. `id`: the field, by its
        JSON name, that names a record, so that a repeat within the horizon is dropped. `key`: the
        field that decides a record's partition.
        """
        made = Topic(here(), name, record, partitions, id, key, store)
        self.topics.append(made)
        return made

    def route(
        self,
        path: str,
        topic: Topic | str,
        fixed: Mapping[str, str] | None = None,
        *,
        reply: str = "OK\n",
        headers: bool = True,
    ) -> None:
        """Declare a path under which one GET or POST is one record of `topic`.

        `fixed` sets fields, by their JSON names; its values may hold the path's parameters in
        braces. `reply` is the answer's text. With `headers` the request's headers become fields,
        named in title case (`User-Agent`); credentials never do.
        """
        self.routes.append(Route(here(), path, topic, dict(fixed or {}), reply, headers))

    def table(
        self,
        name: str,
        sql: str | Mapping[Topic | str, str],
        *,
        key: str | Sequence[str] | None = None,
        version: str | None = None,
        deleted: str | None = None,
        retention: Length | None = None,
    ) -> None:
        """Declare a table: one SELECT over a topic, or one a topic, that works row by row.

        `retention`: how long rows are kept, by received_at; None keeps all.

        With `key`, a column or several, the table holds one row a key: the one with the greatest
        `version`, a column too, or without it the one that came last. `deleted` names a BOOLEAN
        column that every SELECT makes: a row in which it is true takes its key out of the table,
        which does not have that column itself.
        """
        declared = sql if isinstance(sql, str) else dict(sql)
        columns = (key,) if isinstance(key, str) else None if key is None else tuple(key)
        self.tables.append(Table(here(), name, declared, retention, columns, version, deleted))

    def view(
        self,
        name: str,
        sql: str,
        *,
        window: Windows | None = None,
        publish_to: str | None = None,
    ) -> None:
        """Declare a view: one SELECT with aggregates over a table, kept up to date.

        `window` counts by windows of time: see `tumbling` and `hopping`. `publish_to` names a topic
        that gets a record for each row that changed; the topic comes with the view, and several
        views may share one.
        """
        self.views.append(View(here(), name, sql, window, publish_to))

    def query(
        self,
        path: str,
        sql: str,
        *,
        params: Mapping[str, Parameter | ParameterKind | Sequence[str]] | None = None,
    ) -> None:
        """Declare a path that answers with the rows of a SELECT over tables and views.

        A parameter with a list of names stands in the SQL as `{name}` and is replaced by the one
        that the caller chooses; one with a kind of value ("string", "integer", …) stands as
        `$name`. See `param` for defaults.
        """
        self.queries.append(Query(here(), path, sql, dict(params or {})))

    def source(
        self,
        name: str,
        *,
        kind: str,
        topic: Topic | str,
        counts: Topic | str | None = None,
        **options: Scalar | None,
    ) -> None:
        """Declare something that pulls records into a topic; `options` are those of its kind.

        `counts` is the topic that gets the service's own count after each complete sweep.
        """
        self.sources.append(Source(here(), name, kind, topic, counts, options))


def param(
    kind: ParameterKind | Sequence[str], *, default: Scalar | None = None, required: bool = True
) -> Parameter:
    """Declare a query's parameter with a default, or one that may be left out (and is NULL)."""
    return Parameter(kind, default, required and default is None)


def tumbling(size: Length, *, on: str = "received_at", lateness: Length = "0 s") -> Windows:
    """Return windows side by side: each row is in one. `on` is the column of a row's time.

    `lateness` is how long after its end a window still counts as open; late rows are counted in
    any case.
    """
    return Windows(size, size, on, lateness)


def hopping(
    size: Length, *, every: Length, on: str = "received_at", lateness: Length = "0 s"
) -> Windows:
    """Return windows that overlap: one of `size` starts every `every`. See `tumbling`."""
    return Windows(size, every, on, lateness)
