"""Read a view's SQL: one SELECT over one table, normalised, or refused with the reason.

Normalised means: no table qualifiers, every column under its quoted name as the table spells it, no
alias used in place of an expression, GROUP BY as explicit sets of keys.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import duckdb
import sqlglot
from sqlglot import exp

from headrace.define.types import quoted
from headrace.define.view_dialect import ViewDialect
from headrace.model.errors import Invalid
from headrace.model.plan import Column

NOT_MAINTAINABLE = "not_maintainable"
GROUPING_SETS_MAX = 64

_NOT_KEPT = {
    "distinct": ("SELECT DISTINCT", "group by the columns instead"),
    "order": ("ORDER BY", "a view has no order: sort in the query that reads it"),
    "limit": ("LIMIT", "a view holds every group: take the first rows in the query that reads it"),
    "offset": ("OFFSET", "a view holds every group: skip rows in the query that reads it"),
    "fetch": ("FETCH", "a view holds every group: take the first rows in the query that reads it"),
    "joins": ("a join", "make a table with the columns of both sides, and a view over it"),
    "laterals": ("LATERAL", "make a table with these columns, and a view over it"),
    "qualify": ("QUALIFY", "rank in the query that reads the view"),
    "windows": ("window functions", "rank in the query that reads the view"),
    "with_": ("WITH", "write one SELECT over the table"),
    "sample": ("a sample", "a view counts every row"),
    "pivots": ("PIVOT", "use aggregates with FILTER"),
    "into": ("INTO", "the view's name is given to pipeline.view"),
    "locks": ("FOR UPDATE", "leave it out"),
    "prewhere": ("PREWHERE", "use WHERE"),
}
_VOLATILE_BESIDE_THE_CATALOG = frozenset(
    [
        "current_date",
        "current_time",
        "current_timestamp",
        "current_localtime",
        "current_localtimestamp",
        "localtime",
        "localtimestamp",
        "current_user",
        "current_role",
        "session_user",
        "user",
        "current_catalog",
        "current_schema",
        "getenv",
        "ago",
        "pg_sleep",
    ]
)
_AGGREGATE_MACROS = frozenset(
    [
        "wavg",
        "weighted_avg",
        "geomean",
        "geometric_mean",
        "json_group_array",
        "json_group_object",
        "json_group_structure",
        "every",
    ]
)


@dataclass(frozen=True)
class ParsedView:
    """A view's SQL, normalised."""

    table: str
    items: tuple[tuple[str, exp.Expression], ...]
    """Output name and expression, in order."""
    where: exp.Expression | None
    having: exp.Expression | None
    keys: tuple[exp.Expression, ...]
    """Distinct expressions of GROUP BY."""
    sets: tuple[tuple[int, ...], ...] | None
    """Grouping sets as positions in `keys`; None if the SQL has no GROUP BY or a plain one."""

    @property
    def reads(self) -> frozenset[str]:
        """The table's columns that are read."""
        trees = [tree for _, tree in self.items]
        trees += [tree for tree in (self.where, self.having, *self.keys) if tree is not None]
        return frozenset(c.name for tree in trees for c in tree.find_all(exp.Column))

    def select(self, *, source: str, extra: Sequence[tuple[str, str]] = ()) -> str:
        """Return the whole SELECT over `source`, with `extra` (SQL, name) as further keys."""
        outputs = [f"{sql} AS {quoted(name)}" for sql, name in extra]
        outputs += [f"{text(tree)} AS {quoted(name)}" for name, tree in self.items]
        parts = [f"SELECT {', '.join(outputs)} FROM {source}"]
        if self.where is not None:
            parts.append(f"WHERE {text(self.where)}")
        parts.append(group_by([text(k) for k in self.keys], self.sets, [sql for sql, _ in extra]))
        if self.having is not None:
            parts.append(f"HAVING {text(self.having)}")
        return " ".join(part for part in parts if part)


def group_by(
    keys: Sequence[str], sets: Sequence[Sequence[int]] | None, extra: Sequence[str] = ()
) -> str:
    """Return a GROUP BY clause over key expressions, `extra` being part of every set."""
    if sets is None:
        everything = [*keys, *extra]
        return f"GROUP BY {', '.join(everything)}" if everything else ""
    each = (", ".join([*(keys[i] for i in one), *extra]) for one in sets)
    return f"GROUP BY GROUPING SETS ({', '.join(f'({one})' for one in each)})"


def text(tree: exp.Expression) -> str:
    """Return DuckDB's text of an expression."""
    return str(tree.sql(dialect=ViewDialect))


def refuse(what: str, hint: str) -> Invalid:
    """Return the error for SQL that no view can be kept up to date with."""
    return Invalid(f"A view cannot be maintained with {what}", hint=hint, code=NOT_MAINTAINABLE)


def parse_view(
    sql: str, tables: Mapping[str, Sequence[Column]], catalog: duckdb.DuckDBPyConnection
) -> ParsedView:
    """Return a view's SQL normalised; `Invalid` names what cannot be maintained, and why.

    `catalog` is any DuckDB connection: it is asked what functions there are.
    """
    select = _one_select(sql)
    table = _refuse_clauses(select, tables)
    _refuse_inside(select)
    _refuse_volatile(sql, catalog)
    columns = {c.name.lower(): c.name for c in tables[table]}
    alias = select.args["from_"].this.alias_or_name
    for column in list(select.find_all(exp.Column)):
        _resolve(column, columns, {table.lower(), alias.lower()})
    return _Normaliser(select, columns, aggregate_names(catalog)).parsed(table)


def aggregate_names(catalog: duckdb.DuckDBPyConnection) -> frozenset[str]:
    """Return the names of all aggregate functions that DuckDB knows, in lower case."""
    rows = catalog.execute(
        "SELECT DISTINCT function_name FROM duckdb_functions() WHERE function_type = 'aggregate'"
    ).fetchall()
    return frozenset(name for (name,) in rows) | _AGGREGATE_MACROS


def function_name(node: exp.Expression) -> str:
    """Return the lower-case name under which DuckDB knows a function, "" for what is none."""
    if isinstance(node, exp.Anonymous):
        return str(node.name).lower()
    if isinstance(node, exp.Func):
        return text(node).partition("(")[0].lower()
    return ""


def _one_select(sql: str) -> exp.Select:
    try:
        statements = sqlglot.parse(sql, dialect=ViewDialect)
    except sqlglot.errors.SqlglotError as error:
        first = re.sub(r"\x1b\[\d*m", "", str(error)).strip().splitlines()[0]
        raise Invalid(
            f"A view's SQL does not parse: {first}",
            hint="write one SELECT … FROM a table … GROUP BY …, in DuckDB's dialect",
            code="sql_syntax",
        ) from error
    if len(statements) != 1 or statements[0] is None:
        raise Invalid(
            "A view is exactly one statement", hint="declare a view for each SELECT", code="sql"
        )
    (select,) = statements
    if isinstance(select, exp.SetOperation):
        raise refuse("UNION, INTERSECT or EXCEPT", "make one table of both, and a view over it")
    if not isinstance(select, exp.Select):
        raise Invalid(
            "A view is a SELECT", hint="write SELECT … FROM a table … GROUP BY …", code="sql"
        )
    return select


def _refuse_clauses(select: exp.Select, tables: Mapping[str, Sequence[Column]]) -> str:
    for argument, (what, hint) in _NOT_KEPT.items():
        if select.args.get(argument):
            raise refuse(what, hint)
    source = select.args.get("from_")
    relation = source.this if source is not None else None
    if isinstance(relation, exp.Subquery):
        raise refuse("a subquery", "make a table of it with pipeline.table, and a view over that")
    if not isinstance(relation, exp.Table) or not isinstance(relation.this, exp.Identifier):
        raise refuse("anything but one table in FROM", f"tables: {', '.join(tables) or 'none'}")
    for argument in ("joins", "pivots", "sample", "laterals"):
        if relation.args.get(argument):
            raise refuse(*_NOT_KEPT[argument])
    names = {name.lower(): name for name in tables}
    name = names.get(relation.name.lower())
    if name is None or relation.db or relation.catalog:
        raise Invalid(
            f"A view reads {text(relation)}, which is no table of the pipeline",
            hint=f"tables: {', '.join(sorted(tables)) or 'none'}",
            code="unknown_table",
        )
    return name


def _refuse_inside(select: exp.Select) -> None:
    for node in select.walk():
        if isinstance(node, exp.Window):
            raise refuse("window functions", "rank or compare in the query that reads the view")
        if isinstance(node, exp.Subquery | exp.Exists) or (
            isinstance(node, exp.Select) and node is not select
        ):
            raise refuse("a subquery", "make a table of it with pipeline.table")
        if isinstance(node, exp.Unnest | exp.Explode) or function_name(node) == "unnest":
            raise refuse("UNNEST", "unnest in the SELECT of a table, and make the view over it")
        if isinstance(node, exp.Star) and not isinstance(node.parent, exp.Count):
            raise refuse("*", "name the columns to group by")
        if isinstance(node, exp.Placeholder | exp.Parameter):
            raise refuse("a parameter", "write the value; parameters belong in pipeline.query")


def _refuse_volatile(sql: str, catalog: duckdb.DuckDBPyConnection) -> None:
    (tree,) = catalog.execute("SELECT json_serialize_sql(?::VARCHAR)", [sql]).fetchone() or ("{}",)
    rows = catalog.execute(
        "SELECT DISTINCT function_name FROM duckdb_functions() WHERE stability <> 'CONSISTENT'"
    ).fetchall()
    volatile = {name for (name,) in rows} | _VOLATILE_BESIDE_THE_CATALOG
    for name, arguments in _calls(json.loads(tree)):
        if name in volatile or (name == "age" and arguments == 1):
            raise refuse(
                f"{name}, which gives another value each time",
                "use a column of the row, such as received_at",
            )


def _calls(tree: object) -> Iterator[tuple[str, int]]:
    """Yield the name and number of arguments of each call in DuckDB's own syntax tree."""
    if isinstance(tree, list):
        for item in tree:
            yield from _calls(item)
    elif isinstance(tree, dict):
        if "function_name" in tree:
            yield str(tree["function_name"]).lower(), len(tree.get("arguments") or ())
        elif tree.get("class") == "COLUMN_REF" and len(tree["column_names"]) == 1:
            name = tree["column_names"][0].lower()
            if name.startswith(("current_", "local", "session_")):
                yield name, 0
        for item in tree.values():
            yield from _calls(item)


def _resolve(column: exp.Column, columns: Mapping[str, str], qualifiers: set[str]) -> None:
    """Spell a column as its table does; `properties.host` becomes a field of a column."""
    names = [part.name for part in column.parts]
    if len(names) > 1 and names[0].lower() in qualifiers and names[0].lower() not in columns:
        names = names[1:]
    name = columns.get(names[0].lower(), names[0])
    tree: exp.Expression = exp.column(exp.to_identifier(name, quoted=True))
    for field in names[1:]:
        tree = exp.Dot(this=tree, expression=exp.to_identifier(field, quoted=True))
    column.replace(tree)


class _Normaliser:
    """Puts expressions in place of aliases and ordinals, and spreads GROUP BY out into sets."""

    def __init__(
        self, select: exp.Select, columns: Mapping[str, str], aggregates: frozenset[str]
    ) -> None:
        self._select = select
        self._columns = set(columns.values())
        self._aggregates = aggregates
        self._aliases: dict[str, exp.Expression] = {}
        self._items: list[tuple[str, exp.Expression]] = []
        self._keys: list[exp.Expression] = []

    def parsed(self, table: str) -> ParsedView:
        for item in self._select.expressions:
            named = isinstance(item, exp.Alias | exp.Column | exp.Dot)
            name = item.alias_or_name if named else ""
            tree = self._expanded(item.unalias(), self._is_column)
            self._items.append((name, tree))
            if isinstance(item, exp.Alias):
                self._aliases.setdefault(name.lower(), tree)
        where = self._clause("where", self._is_column)
        sets = self._grouping()
        having = self._clause("having", self._is_key_column)
        return ParsedView(table, tuple(self._items), where, having, tuple(self._keys), sets)

    def _clause(self, name: str, is_column: Callable[[str], bool]) -> exp.Expression | None:
        clause = self._select.args.get(name)
        return self._expanded(clause.this, is_column) if clause is not None else None

    def _is_column(self, name: str) -> bool:
        return name in self._columns

    def _is_key_column(self, name: str) -> bool:
        """In HAVING an alias wins over a column that is not grouped by."""
        keys = {c.name for key in self._keys for c in key.find_all(exp.Column)}
        return name in self._columns and (name in keys or name.lower() not in self._aliases)

    def _expanded(self, tree: exp.Expression, is_column: Callable[[str], bool]) -> exp.Expression:
        def put(node: exp.Expression) -> exp.Expression:
            if isinstance(node, exp.Column) and not is_column(node.name):
                found = self._aliases.get(node.name.lower())
                return exp.paren(found.copy()) if found is not None else node
            return node

        return tree.copy().transform(put).unnest()

    def _grouping(self) -> tuple[tuple[int, ...], ...] | None:
        group = self._select.args.get("group")
        if group is None:
            return None
        if group.args.get("all"):
            for _, tree in self._items:
                if not self.has_aggregate(tree) and tree.find(exp.Column):
                    self._key(tree)
            return None
        choices = [self._sets(element) for element in group.expressions]
        sets = [tuple(dict.fromkeys(itertools.chain(*one))) for one in itertools.product(*choices)]
        if all(len(choice) == 1 for choice in choices) and not any(
            isinstance(e, exp.GroupingSets) for e in group.expressions
        ):
            return None
        self._check_sets(sets)
        return tuple(sets)

    def _check_sets(self, sets: list[tuple[int, ...]]) -> None:
        if len(sets) > GROUPING_SETS_MAX:
            raise refuse(
                f"{len(sets)} grouping sets (at most {GROUPING_SETS_MAX})",
                "declare views for some of them",
            )
        if len({frozenset(one) for one in sets}) < len(sets):
            raise refuse(
                "the same grouping set twice", "each would give the same rows: name it once"
            )

    def _sets(self, element: exp.Expression) -> list[tuple[int, ...]]:
        """Return the sets that one element of GROUP BY stands for; several are multiplied."""
        if isinstance(element, exp.GroupingSets):
            return [one for member in element.expressions for one in self._sets(member)]
        if isinstance(element, exp.Rollup):
            members = [self._sets(member)[0] for member in element.expressions]
            return [tuple(itertools.chain(*members[:n])) for n in range(len(members), -1, -1)]
        if isinstance(element, exp.Cube):
            members = [self._sets(member)[0] for member in element.expressions]
            return [
                tuple(itertools.chain(*some))
                for n in range(len(members), -1, -1)
                for some in itertools.combinations(members, n)
            ]
        if isinstance(element, exp.Tuple):
            return [tuple(self._key(self._named(member)) for member in element.expressions)]
        if isinstance(element, exp.Paren):
            return self._sets(element.this)
        return [(self._key(self._named(element)),)]

    def _named(self, element: exp.Expression) -> exp.Expression:
        """Return the expression that an element of GROUP BY names by position or alias."""
        if isinstance(element, exp.Literal) and element.is_int:
            position = int(element.this)
            if not 1 <= position <= len(self._items):
                raise Invalid(
                    f"GROUP BY {position}: there are {len(self._items)} output columns",
                    hint="positions count from 1",
                    code="sql",
                )
            return self._items[position - 1][1]
        return self._expanded(element, self._is_column)

    def _key(self, tree: exp.Expression) -> int:
        tree = tree.unnest()
        if self.has_aggregate(tree):
            raise Invalid(
                f"GROUP BY {text(tree)} is an aggregate",
                hint="group by columns of the row",
                code="sql",
            )
        if tree not in self._keys:
            self._keys.append(tree)
        return self._keys.index(tree)

    def has_aggregate(self, tree: exp.Expression) -> bool:
        return any(function_name(node) in self._aggregates for node in tree.walk())
