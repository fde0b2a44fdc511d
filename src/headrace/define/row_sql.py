"""Row SQL: one SELECT over a topic that makes at most one row of each record.

Checked on DuckDB's own tree, then rewritten: stars become the columns that they stand for, system
columns that were not selected are added, and what Delta cannot store is cast to what it can. The
result reads the same whatever other columns the relation has when it runs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from duckdb.sqltypes import DuckDBPyType

from headrace.define.binder import Binder, Node, SqlFault, is_session_word, position, walk
from headrace.define.problem import nearest
from headrace.define.types import needs_cast, quoted, record_columns, stored_type
from headrace.model.errors import Internal, Invalid
from headrace.model.plan import RECORD_COLUMNS, SYSTEM_COLUMNS, Column, Table, TableInput, Topic

Report = Callable[[SqlFault], None]
"""Takes one fault of the SQL; checking goes on."""

NOT_IN_NAMES = frozenset(" ,;{}()\n\t=")
"""Characters that no column of a Delta table may have in its name."""

_HIDDEN = frozenset(RECORD_COLUMNS) - frozenset(SYSTEM_COLUMNS)
_A_VIEW = "A table is made row by row; make a table of the rows and a view that aggregates it."
_NOT_ROWS = frozenset({"unnest", "unlist", "generate_subscripts"})

_CLAUSES = {
    "group_expressions": ("GROUP BY", _A_VIEW),
    "having": ("HAVING", _A_VIEW),
    "qualify": ("QUALIFY", _A_VIEW),
    "sample": ("a sample", "A table takes every record; filter with WHERE."),
}
_MODIFIERS = {
    "LIMIT_MODIFIER": ("LIMIT", "Limit in the query that reads the table."),
    "LIMIT_PERCENT_MODIFIER": ("LIMIT", "Limit in the query that reads the table."),
    "ORDER_MODIFIER": ("ORDER BY", "A table has no order; sort in the query that reads it."),
    "DISTINCT_MODIFIER": ("DISTINCT", "Repeated records are dropped by their id; see topic(id=)."),
}
_RELATIONS = {
    "JOIN": ("a join", "Give the table one SELECT a topic: {topic: sql, …}."),
    "SUBQUERY": ("a subquery in FROM", "Write its expressions into the one SELECT."),
    "TABLE_FUNCTION": ("a table function", "Read FROM the topic."),
    "PIVOT": ("PIVOT", "Make a table of the rows and pivot where it is read."),
    "EMPTY": ("no FROM", "Read FROM the topic."),
    "EXPRESSION_LIST": ("VALUES", "Read FROM the topic."),
    "SHOW_REF": ("DESCRIBE", "Read FROM the topic."),
}


@dataclass
class RowSelect:
    """A checked SELECT over one topic: its tree, its output columns, and what it reads."""

    topic: str
    tree: Node
    outputs: list[tuple[str, DuckDBPyType]]
    reads: set[str] = field(default_factory=set)

    @property
    def columns(self) -> tuple[Column, ...]:
        """The output columns with the types that are stored."""
        return tuple(Column(name, stored_type(kind)) for name, kind in self.outputs)


class RowCompiler:
    """Compiles row SQL over the topics of one pipeline."""

    def __init__(self, binder: Binder, topics: Mapping[str, Topic]) -> None:
        self._binder = binder
        self._topics = topics

    def select(self, sql: str, topic: str | None, report: Report) -> RowSelect | None:
        """Return a table's SELECT over `topic` (None: what its FROM says), or None with faults."""
        faults: list[SqlFault] = []
        try:
            tree = self._binder.parse(sql)
            faults += _clause_faults(tree)
            name = self._topic_of(tree, topic)
            found = self._checked(tree, name, faults)
        except SqlFault as refused:
            faults.append(refused)
            found = None
        for fault in faults:
            report(fault)
        return None if faults else found

    def _topic_of(self, tree: Node, topic: str | None) -> str:
        """Return the topic that the SELECT reads; `SqlFault` if it reads anything else."""
        source = tree.get("from_table", {"type": "EMPTY"})
        if tree["type"] != "SELECT_NODE" or source["type"] != "BASE_TABLE":
            what, hint = _RELATIONS.get(
                source["type"] if tree["type"] == "SELECT_NODE" else "UNION",
                ("a set operation", "Give the table one SELECT a topic: {topic: sql, …}."),
            )
            raise _not_rows(what, hint, source)
        name: str = source["table_name"]
        if "schema_name" in source or name not in self._topics:
            raise SqlFault(
                f"There is no topic {name!r} to make rows from",
                hint=nearest(name, self._topics),
                code="unknown_topic",
                position=position(source),
            )
        if topic is not None and name != topic:
            raise SqlFault(
                f"This SELECT stands for the topic {topic!r} and reads {name!r}",
                hint=f"Write FROM {quoted(topic)}.",
                code="wrong_topic",
                position=position(source),
            )
        if "column_name_alias" in source:
            raise _not_rows("column names after the topic's alias", "Name them with AS.", source)
        return name

    def _checked(self, tree: Node, topic: str, faults: list[SqlFault]) -> RowSelect | None:
        columns = record_columns(self._topics[topic].schema)
        relation = tree["from_table"].get("alias", topic)
        names = _Names(columns, relation, self._topics[topic], tree)
        # The tree as written is looked at, as positions in the text are lost with its stars.
        faults += self._call_faults(tree, columns)
        faults += names.faults()
        if faults:
            return None
        tree["select_list"] = [e for item in tree["select_list"] for e in names.expanded(item)]
        self._binder.put(topic, columns)
        outputs = self._binder.describe(self._binder.text(tree))
        faults += _output_faults(tree["select_list"], outputs)
        return RowSelect(topic, tree, outputs, names.reads())

    def _call_faults(self, tree: Node, columns: Mapping[str, str]) -> Iterator[SqlFault]:
        known = {name.lower() for name in columns}
        for node in walk(tree):
            kind, name = node.get("class"), node.get("function_name", "")
            if kind == "SUBQUERY":
                yield _not_rows("a subquery", "A record is looked at alone.", node)
            elif kind == "WINDOW":
                yield _not_rows(f"the window function {name}", _A_VIEW, node)
            elif kind == "FUNCTION" and name.lower() in _NOT_ROWS:
                hint = "Keep the list in a column and unnest it where the table is read."
                yield _not_rows(f"{name}()", hint, node)
            elif kind == "FUNCTION" and self._binder.function(name) == "aggregate":
                yield _not_rows(f"the aggregate {name.removesuffix('_star')}", _A_VIEW, node)
            elif kind == "FUNCTION" and self._binder.function(name) == "volatile":
                yield _volatile(f"{name}()", node)
            elif is_session_word(node) and node["column_names"][0].lower() not in known:
                yield _volatile(node["column_names"][0], node)

    def input(self, select: RowSelect, table: Table) -> TableInput:
        """Return a table's input that yields exactly the columns that it makes, in that order.

        A record without a key fails there, and no other with it.
        """
        columns, keyed = table.made, table.keyed
        kinds = dict(select.outputs)
        alias = select.tree["from_table"].get("alias", select.topic)
        missing = [c.name for c in columns if c.name not in kinds]
        items = [*select.tree["select_list"], *(_column(name, relation=alias) for name in missing)]
        order = [*kinds, *missing]
        if keyed:
            items = [
                self._never_null(item, name) if name in keyed.key else item
                for item, name in zip(items, order, strict=True)
            ]
        if keyed and keyed.deleted and not self._is_read(keyed.deleted, select):
            # Last, where the table has it: SQL without another SELECT around it is quicker to
            # search for the records that it fails on.
            at = order.index(keyed.deleted)
            items.append(items.pop(at))
            order.append(order.pop(at))
        inner = self._binder.text({**select.tree, "select_list": items})
        casts = {name for name, kind in select.outputs if needs_cast(kind)}
        sql = inner
        if casts or order != [c.name for c in columns]:
            outer = ", ".join(
                f"CAST({quoted(c.name)} AS {c.type}) AS {quoted(c.name)}"
                if c.name in casts
                else quoted(c.name)
                for c in columns
            )
            sql = f"SELECT {outer} FROM ({inner}) AS rows_made"
        fields = select.reads | set(missing)
        self._prove(select.topic, sql, fields, columns)
        relation = record_columns(self._topics[select.topic].schema)
        return TableInput(select.topic, sql, tuple(n for n in relation if n in fields))

    def _never_null(self, item: Node, name: str) -> Node:
        """Return an item that fails where it would be NULL; `error` only runs for such a record."""
        message = f"The key column {name} is NULL, and a row without its key has no place"
        told = message.replace("'", "''")
        tree = self._binder.parse(f"SELECT coalesce(NULL, error('{told}'))")
        made: Node = tree["select_list"][0]
        bare = {key: value for key, value in item.items() if key != "alias"}
        return {**made, "alias": name, "children": [bare, made["children"][1]]}

    def _is_read(self, output: str, select: RowSelect) -> bool:
        """Return whether another item of the SELECT may read an output by its name."""
        fields = {name.lower() for name in record_columns(self._topics[select.topic].schema)}
        read = {ref["column_names"][0].lower() for ref in _refs(select.tree["select_list"])}
        return output.lower() in read - fields

    def _prove(self, topic: str, sql: str, fields: set[str], columns: Sequence[Column]) -> None:
        """Bind the compiled SQL against the fields that it is said to read, and no others."""
        relation = record_columns(self._topics[topic].schema)
        self._binder.put(topic, {n: kind for n, kind in relation.items() if n in fields})
        found = [Column(name, stored_type(k)) for name, k in self._binder.describe(sql)]
        if found != list(columns):
            raise Internal(f"Compiled row SQL yields {found}, not {list(columns)}: {sql}")


class _Names:
    """The names that one SELECT uses, resolved against its relation."""

    def __init__(self, columns: Mapping[str, str], relation: str, topic: Topic, tree: Node) -> None:
        self._columns = {name.lower(): name for name in columns}
        self._relation = relation
        self._topic = topic
        self._tree = tree
        self._stars = [n for n in tree["select_list"] if _is_star(n)]
        self._made = {n["alias"].lower() for n in tree["select_list"] if "alias" in n}
        for node in walk(tree):
            if node.get("class") == "LAMBDA":
                self._made |= {n["column_names"][0].lower() for n in _refs(node["lhs"])}

    def reads(self) -> set[str]:
        """Return every column that the SELECT, its stars expanded, may read."""
        found = (self._column(node) for node in _refs(self._tree))
        return {name for name in found if name}

    def faults(self) -> Iterator[SqlFault]:
        """Yield a fault for each name that stands for nothing."""
        for node in _refs(self._tree):
            name = self._unknown(node)
            if name is not None:
                yield self._no_column(name, node)
        for node in (n for n in walk(self._tree) if n.get("class") == "STAR"):
            if not any(node is star for star in self._stars) or not self._is_own(node):
                hint = "Name the columns, or write * with EXCLUDE, REPLACE or RENAME."
                yield SqlFault(
                    "This star stands for columns that are not known before it runs",
                    hint=hint,
                    code="unknown_column",
                    position=position(node),
                )
            for name in _star_names(node):
                if name.lower() not in self._columns:
                    yield self._no_column(name, node)

    def expanded(self, item: Node) -> Iterator[Node]:
        """Yield what stands for an item of the select list: itself, or a star's columns."""
        if not _is_star(item):
            yield item
            return
        excluded = {name.lower() for name in item.get("exclude_list", ())}
        replaced = {e["key"].lower(): e["value"] for e in item.get("replace_list", ())}
        renamed = {e["key"]["column"].lower(): e["value"] for e in item.get("rename_list", ())}
        for folded, name in self._columns.items():
            if name in _HIDDEN or folded in excluded:
                continue
            if folded in replaced:
                yield {**replaced[folded], "alias": name}
            else:
                yield _column(name, relation=self._relation, alias=renamed.get(folded, name))

    def _is_own(self, star: Node) -> bool:
        relation: str = star.get("relation_name", self._relation)
        return relation.lower() == self._relation.lower()

    def _column(self, node: Node) -> str | None:
        """Return the relation's column that a reference reads, if it reads one."""
        names = [name.lower() for name in node["column_names"]]
        if len(names) > 1 and names[0] == self._relation.lower() and names[1] in self._columns:
            return self._columns[names[1]]
        return self._columns.get(names[0])

    def _unknown(self, node: Node) -> str | None:
        """Return the name in a reference that stands for nothing, if one does."""
        names = node["column_names"]
        if self._column(node) or names[0].lower() in self._made or is_session_word(node):
            return None
        inner = len(names) > 1 and names[0].lower() == self._relation.lower()
        return str(names[1] if inner else names[0])

    def _no_column(self, name: str, node: Node) -> SqlFault:
        hint = nearest(name, [c for c in self._columns.values() if c not in _HIDDEN])
        if self._topic.schema is None:
            hint = "The topic has no record type: read _value with JSON functions, or give it one."
        return SqlFault(
            f"The topic {self._topic.name!r} has no column {name!r}",
            hint=hint,
            code="unknown_column",
            position=position(node),
        )


def _is_star(node: Node) -> bool:
    """Return whether an item is a plain star, with or without EXCLUDE, REPLACE and RENAME."""
    return node.get("class") == "STAR" and not node.get("columns") and "expr" not in node


def _star_names(star: Node) -> Iterator[str]:
    yield from star.get("exclude_list", ())
    yield from (entry["key"] for entry in star.get("replace_list", ()))
    yield from (entry["key"]["column"] for entry in star.get("rename_list", ()))


def _refs(tree: object) -> Iterator[Node]:
    return (node for node in walk(tree) if node.get("class") == "COLUMN_REF")


def _column(name: str, *, relation: str, alias: str | None = None) -> Node:
    return {
        "class": "COLUMN_REF",
        "type": "COLUMN_REF",
        "alias": alias or name,
        "column_names": [relation, name],
    }


def _not_rows(what: str, hint: str, node: Node) -> SqlFault:
    message = f"A table is made row by row, so its SELECT cannot have {what}"
    if what == "no FROM":
        message = "A table's SELECT must say which topic it reads"
    return SqlFault(message, hint=hint, code="not_row_by_row", position=position(node))


def _volatile(what: str, node: Node) -> SqlFault:
    return SqlFault(
        f"{what} gives another result each time, but a row made again must be the same",
        hint="Use received_at for the time and event_id for a unique name: they stay.",
        code="not_deterministic",
        position=position(node),
    )


def _clause_faults(tree: Node) -> Iterator[SqlFault]:
    if tree["type"] != "SELECT_NODE":
        return
    for key, (what, hint) in _CLAUSES.items():
        if key in tree:
            yield _not_rows(what, hint, next(walk(tree[key]), tree))
    if tree.get("aggregate_handling") == "FORCE_AGGREGATES":
        yield _not_rows("GROUP BY ALL", _A_VIEW, tree)
    if tree.get("cte_map"):
        yield _not_rows("WITH", "Write its expressions into the one SELECT.", tree)
    if "sample" in tree.get("from_table", {}):
        yield _not_rows(*_CLAUSES["sample"], tree["from_table"])
    for modifier in tree.get("modifiers", ()):
        what, hint = _MODIFIERS.get(modifier["type"], (modifier["type"], ""))
        inner = next((n for n in walk(modifier) if "query_location" in n), tree)
        yield _not_rows(what, hint, inner)


def _output_faults(
    items: Sequence[Node], outputs: Sequence[tuple[str, DuckDBPyType]]
) -> Iterator[SqlFault]:
    """Yield what is wrong with the names and types of a table's columns."""
    seen: set[str] = set()
    system = {name.lower(): name for name in SYSTEM_COLUMNS}
    for item, (name, kind) in zip(items, outputs, strict=True):
        at = position(item)
        if NOT_IN_NAMES & set(name) or not name:
            yield SqlFault(
                f"{name!r} cannot be the name of a column",
                hint="Give the expression a name of letters, digits, _ and -: expression AS name.",
                code="bad_column_name",
                position=at,
            )
        if name.lower() in seen:
            yield SqlFault(
                f"Two columns have the name {name!r}",
                hint="Rename one with AS; upper and lower case count as the same.",
                code="duplicate_column",
                position=at,
            )
        seen.add(name.lower())
        own = system.get(name.lower())
        if own and (name != own or item.get("column_names", [""])[-1].lower() != own):
            yield SqlFault(
                f"{name!r} is the name of a column that every table has",
                hint="Give the expression another name with AS.",
                code="reserved_column",
                position=at,
            )
        try:
            stored_type(kind)
        except Invalid as error:
            yield SqlFault(
                f"Column {name!r}: {error.message}",
                hint=error.hint,
                code=error.code,
                position=at,
            )


def table_columns(select: RowSelect, added: Sequence[str] = SYSTEM_COLUMNS) -> tuple[Column, ...]:
    """Return a table's columns: what is selected, then the `added` ones that were not."""
    from_relation = record_columns(None)
    chosen = {name for name, _ in select.outputs}
    missing = [n for n in added if n not in chosen]
    return (*select.columns, *(Column(n, from_relation[n]) for n in missing))


def difference(one: RowSelect, other: RowSelect) -> SqlFault | None:
    """Return how the columns of two SELECTs for one table differ, if they do."""
    here = {c.name: c.type for c in table_columns(one)}
    there = {c.name: c.type for c in table_columns(other)}
    parts = [f"{n!r} is missing" for n in here if n not in there]
    parts += [f"{n!r} is one too many" for n in there if n not in here]
    parts += [
        f"{n!r} is {there[n]}, not {here[n]}" for n in here if n in there and here[n] != there[n]
    ]
    if not parts:
        return None
    return SqlFault(
        f"The rows from {other.topic!r} do not fit those from {one.topic!r}: {'; '.join(parts)}",
        hint="Give every topic's SELECT the same columns, with AS and CAST.",
        code="different_columns",
    )
