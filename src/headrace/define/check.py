"""Check a pipeline and compile it to a `Plan`: every fault at once, offline, before anything runs.

Order: topics, routes, tables, views, queries, sources. What depends on something that is at fault
is not judged for it again, so one mistake makes one problem.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import msgspec

from headrace.define import pipeline as declared
from headrace.define.binder import Binder, SqlFault, walk
from headrace.define.duration import seconds
from headrace.define.keyed import compile_keyed
from headrace.define.load import load
from headrace.define.paths import HOLE, check_overlaps, check_path
from headrace.define.problem import Faults, Place, Problem, inside, nearest
from headrace.define.query_sql import compile_query
from headrace.define.record import Record
from headrace.define.routes import compile_route
from headrace.define.row_sql import RowCompiler, RowSelect, difference, table_columns
from headrace.define.settings import compile_options, compile_window
from headrace.define.shape import schema_of
from headrace.define.types import quoted
from headrace.define.view_sql import compile_view
from headrace.model import plan as plans
from headrace.model.errors import Invalid
from headrace.model.options import read_options
from headrace.model.schema import Field

__all__ = ["check", "check_file", "load"]

PARTITIONS_MAX = 1_024
_RELATION = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,99}")
_TOPIC = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}")
_PIPELINE = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,63}")


def check(
    pipeline: declared.Pipeline | list[Problem], sources: Mapping[str, type] | None = None
) -> plans.Plan | list[Problem]:
    """Return the plan of a pipeline, or every problem that it has, by file and line.

    `pipeline` is what `load` returned: problems are handed on. `sources` are the kinds of source
    and their option classes (see `model/options.py`): a kind that is not there is a problem. None
    leaves kinds and options to whoever opens the sources.
    """
    if not isinstance(pipeline, declared.Pipeline):
        return pipeline
    binder = Binder()
    try:
        return _Check(pipeline, sources, binder).result()
    finally:
        binder.close()


def check_file(
    path: Path | str, sources: Mapping[str, type] | None = None
) -> plans.Plan | list[Problem]:
    """Load a pipeline file and check it; see `load` and `check`."""
    return check(load(path), sources)


class _Check:
    """One check of one pipeline."""

    def __init__(
        self, pipeline: declared.Pipeline, sources: Mapping[str, type] | None, binder: Binder
    ) -> None:
        self._pipeline = pipeline
        self._kinds = sources
        self._binder = binder
        self._faults = Faults()
        self._topics: dict[str, plans.Topic] = {}
        self._tables: dict[str, plans.Table] = {}
        self._views: dict[str, plans.View] = {}
        self._broken: set[str] = set()
        """Names of what was declared and is at fault: who reads it is not judged."""
        self._read: set[str] = set()
        """Names of the topics that some table reads."""

    def result(self) -> plans.Plan | list[Problem]:
        """Return the plan or the problems."""
        pipeline = self._pipeline
        if not _PIPELINE.fullmatch(pipeline.name):
            self._bad_name(pipeline.place, "pipeline", pipeline.name)
        self._check_duplicates()
        for topic in pipeline.topics:
            self._topic(topic)
        rows = RowCompiler(self._binder, self._topics)
        for topic in pipeline.topics:
            self._own_table(topic, rows)
        for table in pipeline.tables:
            self._table(table, rows)
        self._check_readers()
        for view in pipeline.views:
            self._view(view)
        routes = [r for route in pipeline.routes if (r := self._route(route))]
        queries = [q for query in pipeline.queries if (q := self._query(query))]
        self._check_paths()
        sources = [s for source in pipeline.sources if (s := self._source(source))]
        options = compile_options(pipeline.options, pipeline.place, self._faults)
        if self._faults.problems or options is None:
            return sorted(self._faults.problems, key=lambda p: (p.file, p.line))
        return plans.Plan(
            pipeline.name,
            tuple(self._topics.values()),
            tuple(routes),
            tuple(self._tables.values()),
            tuple(self._views.values()),
            tuple(queries),
            tuple(sources),
            options,
        )

    # Names

    def _check_duplicates(self) -> None:
        pipeline = self._pipeline
        stored = {t.name: t.place for t in pipeline.topics if t.record is not None and t.store}
        groups = {
            "topic": [(t.name, t.place) for t in pipeline.topics],
            "table or view": [
                *stored.items(),
                *((t.name, t.place) for t in pipeline.tables),
                *((v.name, v.place) for v in pipeline.views),
            ],
            "source": [(s.name, s.place) for s in pipeline.sources],
        }
        for what, things in groups.items():
            seen: dict[str, Place] = {}
            for name, place in things:
                first = seen.setdefault(name.lower(), place)
                if first is not place:
                    self._faults.add(
                        place,
                        f"There already is a {what} named {name!r}, on line {first.line}",
                        hint="Upper and lower case count as the same, and a topic with a record "
                        "class has the table of its own name unless store=False.",
                        code="duplicate_name",
                    )

    def _bad_name(self, place: Place, what: str, name: object) -> None:
        more = " . and -" if what == "topic" else ""
        self._faults.add(
            place,
            f"{name!r} is no name for a {what}",
            hint=f"Use letters, digits and _{more}, at most 100, and begin with a letter.",
            code="bad_name",
        )

    # Topics

    def _topic(self, topic: declared.Topic) -> None:
        before = len(self._faults.problems)
        place = topic.place
        if not _TOPIC.fullmatch(topic.name):
            self._bad_name(place, "topic", topic.name)
        elif topic.record is not None and topic.store and not _RELATION.fullmatch(topic.name):
            self._faults.add(
                place,
                f"The topic {topic.name!r} cannot have a table of its own name",
                hint="Name it with letters, digits and _, or give store=False and declare a table.",
                code="bad_name",
            )
        if not 1 <= topic.partitions <= PARTITIONS_MAX:
            self._faults.add(
                place,
                f"A topic has 1 to {PARTITIONS_MAX} partitions, not {topic.partitions}",
                code="bad_partitions",
            )
        schema = None
        if isinstance(topic.record, type) and issubclass(topic.record, Record):
            schema = schema_of(topic.record, self._faults)
        elif topic.record is not None:
            self._faults.add(
                place,
                f"The topic {topic.name!r} is given {topic.record!r}, which is no Record class",
                hint="Declare class Event(Record): … and pass Event.",
                code="bad_record",
            )
        fields = schema.fields if schema else None
        ids = [self._json_name(topic, what, fields) for what in ("id", "key")]
        if len(self._faults.problems) > before:
            self._broken.add(topic.name)
        else:
            made = plans.Topic(topic.name, topic.partitions, schema, ids[0], ids[1])
            self._topics.setdefault(topic.name, made)

    def _json_name(
        self, topic: declared.Topic, option: str, fields: Sequence[Field] | None
    ) -> str | None:
        """Return the JSON name of the field that an option of a topic names."""
        name: str | None = getattr(topic, option)
        if name is None or fields is None:
            return name
        found = next((f for f in fields if name in (f.alias, f.name)), None)
        if found is None:
            self._faults.add(
                topic.place,
                f"{option}={name!r} names no field of {topic.name!r}",
                hint=nearest(name, [f.alias for f in fields]),
                code="unknown_field",
            )
        elif found.type.kind not in {"string", "integer"}:
            self._faults.add(
                topic.place,
                f"{option}={name!r} is a {found.type.kind}, but must be a string or an integer",
                code="bad_field",
            )
        return found.alias if found else None

    def _topic_named(self, place: Place, given: declared.Topic | str) -> plans.Topic | None:
        name = given.name if isinstance(given, declared.Topic) else given
        if name in self._topics:
            return self._topics[name]
        if name not in self._broken:
            self._faults.add(
                place,
                f"There is no topic {name!r}",
                hint=nearest(name, self._topics) or "Declare it with pipeline.topic.",
                code="unknown_topic",
            )
        return None

    # Tables

    def _own_table(self, topic: declared.Topic, rows: RowCompiler) -> None:
        if topic.record is None or not topic.store or topic.name in self._broken:
            return
        sql = f"SELECT * FROM {quoted(topic.name)}"
        self._table(declared.Table(topic.place, topic.name, {topic: sql}), rows)

    def _table(self, table: declared.Table, rows: RowCompiler) -> None:
        before = len(self._faults.problems)
        if not _RELATION.fullmatch(table.name):
            self._bad_name(table.place, "table", table.name)
        retention = None
        if table.retention is not None:
            with self._faults.collect(table.place):
                retention = seconds(table.retention)
        selects = [s for s in self._selects(table, rows) if s is not None]
        for other in selects[1:]:
            fault = difference(selects[0], other)
            if fault is not None:
                self._faults.add(table.place, fault.message, hint=fault.hint, code=fault.code)
        if len(self._faults.problems) > before or table.name in self._broken or not selects:
            self._broken.add(table.name)
            return
        made = plans.Table(table.name, (), table_columns(selects[0]), retention)
        if table.key is not None or table.version is not None or table.deleted is not None:
            keyed = compile_keyed(table, selects, self._topics, self._faults)
            if keyed is None:
                self._broken.add(table.name)
                return
            made = keyed
        inputs = tuple(rows.input(select, made) for select in selects)
        self._tables.setdefault(table.name, msgspec.structs.replace(made, inputs=inputs))

    def _selects(self, table: declared.Table, rows: RowCompiler) -> Iterator[RowSelect | None]:
        if isinstance(table.sql, str):
            yield self._select(table, table.sql, None, rows)
            return
        if not table.sql:
            self._faults.add(
                table.place,
                f"The table {table.name!r} has no SELECT",
                hint="Give it one SELECT a topic: {topic: sql}.",
                code="bad_sql",
            )
        for given, sql in table.sql.items():
            topic = self._topic_named(table.place, given)
            if topic is not None:
                yield self._select(table, sql, topic.name, rows)
            else:
                self._broken.add(table.name)

    def _select(
        self, table: declared.Table, sql: str, topic: str | None, rows: RowCompiler
    ) -> RowSelect | None:
        reads = self._relations(sql)
        self._read |= reads
        if reads & self._broken:
            self._broken.add(table.name)
            return None

        def report(fault: SqlFault) -> None:
            place = inside(table.place, sql, fault.position)
            self._faults.add(place, fault.message, hint=fault.hint, code=fault.code)

        return rows.select(sql, topic, report)

    def _relations(self, sql: str) -> set[str]:
        """Return the names of the relations that SQL reads; none if it does not parse."""
        try:
            tree = self._binder.parse(sql)
        except SqlFault:
            return set()
        return {str(n["table_name"]) for n in walk(tree) if n.get("type") == "BASE_TABLE"}

    def _check_readers(self) -> None:
        if self._faults.problems:
            return  # a table at fault may be the reader that is missed
        for topic in self._pipeline.topics:
            if topic.name not in self._read:
                self._faults.add(
                    topic.place,
                    f"No table reads the topic {topic.name!r}, so nothing comes of its records",
                    hint="Declare a table over it, or give it a record class without store=False.",
                    code="unread_topic",
                )

    # Views

    def _view(self, view: declared.View) -> None:
        before = len(self._faults.problems)
        if not _RELATION.fullmatch(view.name):
            self._bad_name(view.place, "view", view.name)
        window = None
        if view.window is not None:
            with self._faults.collect(view.place):
                window = compile_window(view.window)
        if view.publish_to is not None:
            self._change_topic(view.place, view.publish_to)
        tables = {name: table.columns for name, table in self._tables.items()}
        keyed = {name for name, table in self._tables.items() if table.keyed}
        reads = self._relations(view.sql)
        unknown = sorted(r for r in reads if r not in tables)
        if reads & self._broken:
            self._broken.add(view.name)
            return
        if unknown:
            self._unknown_table(view, unknown[0])
        elif len(self._faults.problems) == before:
            with self._faults.collect(inside(view.place, view.sql)):
                made = compile_view(
                    name=view.name, sql=view.sql, tables=tables, window=window, keyed=keyed
                )
                made = msgspec.structs.replace(made, topic=view.publish_to)
                self._views.setdefault(view.name, made)
        if len(self._faults.problems) > before:
            self._broken.add(view.name)

    def _change_topic(self, place: Place, name: object) -> None:
        given = name.name if isinstance(name, declared.Topic) else name
        if not isinstance(given, str) or not _TOPIC.fullmatch(given):
            self._bad_name(place, "topic", given)
        elif given.lower() in {t.name.lower() for t in self._pipeline.topics}:
            self._faults.add(
                place,
                f"publish_to={given!r} is a topic that takes records from outside",
                hint="A topic of changes comes with the view and takes nothing else: give it a "
                f"name of its own, such as {given + '_query'!r}, and do not declare it.",
                code="bad_change_topic",
            )

    def _unknown_table(self, view: declared.View, name: str) -> None:
        hint = nearest(name, self._tables)
        if name in self._topics:
            hint = f"{name!r} is a topic without a table: declare one and read that."
        elif name in self._views:
            hint = f"{name!r} is a view, and a view reads a table: read the table that it reads."
        self._faults.add(
            inside(view.place, view.sql, max(view.sql.find(name), 0)),
            f"There is no table {name!r}",
            hint=hint,
            code="unknown_relation",
        )

    # Paths

    def _route(self, route: declared.Route) -> plans.Route | None:
        topic = self._topic_named(route.place, route.topic)
        return compile_route(route, topic, self._faults)

    def _query(self, query: declared.Query) -> plans.Query | None:
        with self._faults.collect(query.place):
            check_path(query.path)
        if HOLE.search(query.path):
            self._faults.add(
                query.place,
                f"The query's path {query.path!r} has a parameter",
                hint="Parameters of a query come after the ?: declare them in params.",
                code="bad_path",
            )
        relations = {n: t.columns for n, t in self._tables.items()}
        relations |= {n: v.columns for n, v in self._views.items()}
        if self._relations(HOLE.sub("NULL", query.sql)) & self._broken:
            return None
        for topic in self._topics:
            self._binder.drop(topic)
        for name, columns in relations.items():
            self._binder.put(name, {c.name: c.type for c in columns})
        try:
            return compile_query(query, relations, self._binder)
        except SqlFault as fault:
            place = inside(query.place, query.sql, fault.position)
            self._faults.add(place, fault.message, hint=fault.hint, code=fault.code)
        except Invalid as fault:
            self._faults.add(query.place, fault.message, hint=fault.hint, code=fault.code)
        return None

    def _check_paths(self) -> None:
        ways = [(r.place, r.path) for r in self._pipeline.routes]
        ways += [(q.place, q.path) for q in self._pipeline.queries]
        check_overlaps(ways, self._faults)

    # Sources

    def _source(self, source: declared.Source) -> plans.Source | None:
        topic = self._topic_named(source.place, source.topic)
        if not _TOPIC.fullmatch(source.name):
            self._bad_name(source.place, "source", source.name)
        if self._kinds is not None and source.kind not in self._kinds:
            self._faults.add(
                source.place,
                f"There is no source of kind {source.kind!r}",
                hint=nearest(source.kind, self._kinds),
                code="unknown_source_kind",
            )
        elif self._kinds is not None:
            with self._faults.collect(source.place):
                read_options(self._kinds[source.kind], source.options, f'source "{source.name}"')
        counts = self._topic_named(source.place, source.counts) if source.counts else None
        if topic is None or (source.counts and counts is None):
            return None
        name = counts.name if counts else None
        return plans.Source(source.name, source.kind, topic.name, dict(source.options), name)
