"""Compile a view: its SQL split into partial, merge and final, so that it need never start over.

The parts of the state are made in `view_state.py`, each aggregate's in `view_aggregates.py`; here
the SELECT is taken apart and put together again over the state, and everything is bound by DuckDB
against empty relations, so that names and types are DuckDB's own.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import duckdb
import sqlglot
from sqlglot import exp

from headrace.define.types import open_duckdb, quoted, stored_type
from headrace.define.view_aggregates import AggregateCompiler, Call
from headrace.define.view_dialect import ViewDialect
from headrace.define.view_parse import (
    NOT_MAINTAINABLE,
    ParsedView,
    aggregate_names,
    function_name,
    parse_view,
    refuse,
    text,
)
from headrace.define.view_state import Key, StateBuilder
from headrace.define.view_types import FLOATS, is_nested, kept_type
from headrace.model.errors import Invalid
from headrace.model.plan import Column, View, Window

WINDOW_START, WINDOW_END, WATERMARK_PASSED = "window_start", "window_end", "watermark_passed"
"""Columns that a window adds to a view."""

_WATERMARK = "getvariable('watermark_us')"
"""What stands in `final_sql` for the watermark; not replaced, it is NULL and no window passed."""

_NOT_IN_NAMES = set(" ,;{}()\n\t=")
"""What Parquet and Delta readers do not take in a column's name."""


def compile_view(
    *,
    name: str,
    sql: str,
    tables: Mapping[str, Sequence[Column]],
    window: Window | None,
    keyed: Collection[str] = (),
) -> View:
    """Return the compiled view of one SELECT over one table.

    `tables` are the pipeline's tables by name, with all their columns, and `keyed` the names of
    those whose rows may be taken out again. Raises `Invalid`: with code
    not_maintainable for SQL that cannot be kept up to date with what arrives, others for SQL that
    is wrong.

    Every key of GROUP BY is an output column. With grouping sets rows are told apart by GROUPING(…)
    where a key may be NULL itself.
    """
    with open_duckdb() as con:
        parsed = parse_view(sql, tables, con)
        return _Compiler(con, name, parsed, tables[parsed.table], window).view(
            sql, retracts=parsed.table in keyed
        )


def plain_sql(view: View, relation: str | None = None) -> str:
    """Return the query that a view equals, over its table, without the state's help.

    `relation` is what to read instead of the table's name. The column watermark_passed is not in
    it, since no query over the rows alone gives it.
    """
    tree = sqlglot.parse_one(view.sql, dialect=ViewDialect)
    source = relation or quoted(view.table)
    if view.window:
        source = f"(SELECT * FROM {windowed(view.window, source)})"
    tree.args["from_"].set(
        "this", sqlglot.parse_one(f"FROM {source}", dialect=ViewDialect).args["from_"].this
    )
    return text(tree)


def final_sql(view: View, watermark_us: int | None = None) -> str:
    """Return a view's `final_sql` as of a watermark, microseconds; None: no window has passed."""
    return view.final_sql.replace(_WATERMARK, "NULL" if watermark_us is None else str(watermark_us))


def windowed(window: Window, relation: str) -> str:
    """Return a relation of rows, once per window, with window_start and window_end.

    A row belongs to each [start, start + size) with start a multiple of `every` from 1970 UTC. A
    row without a time belongs to none.
    """
    per_row = -(-window.size_us // window.every_us)
    every, on = window.every_us, quoted(window.on)
    index = f", unnest(range({per_row})) AS __i" if per_row > 1 else ", 0 AS __i"
    rows = f"SELECT *, epoch_us({on}) AS __us{index} FROM {relation} WHERE isfinite({on})"
    latest = f"__us - ((__us % {every}) + {every}) % {every}"
    starts = f"SELECT *, {latest} - {every} * __i AS __start FROM ({rows})"
    return (
        f"(SELECT * EXCLUDE (__us, __i, __start), make_timestamptz(__start) AS {WINDOW_START}, "
        f"make_timestamptz(__start + {window.size_us}) AS {WINDOW_END} FROM ({starts}) "
        f"WHERE __start + {window.size_us} > __us)"
    )


class _Compiler:
    def __init__(
        self,
        con: duckdb.DuckDBPyConnection,
        name: str,
        parsed: ParsedView,
        columns: Sequence[Column],
        window: Window | None,
    ) -> None:
        self._con = con
        self._name = name
        self.parsed = parsed
        self._columns = {c.name: c.type for c in columns}
        self._window = window
        self._aggregates = aggregate_names(con)
        self._types: dict[str, str] = {}

    def view(self, sql: str, *, retracts: bool) -> View:
        parsed, window = self.parsed, self._window
        self._make_relations()
        self._describe(sql)
        self._check_names()
        self._check_window()
        keys = [self._key(i, tree) for i, tree in enumerate(parsed.keys)]
        start = Key("w", WINDOW_START, "TIMESTAMPTZ", "TIMESTAMPTZ") if window else None
        state = StateBuilder(
            keys=keys,
            sets=parsed.sets,
            window=start,
            source=windowed(window, "rows") if window else "rows",
            where=text(parsed.where) if parsed.where is not None else None,
            retracts=retracts,
        )
        compiler = AggregateCompiler(state, self._type_of, tuple(self._columns))
        rewrite = _Rewriter(self, state, compiler, keys).rewritten
        outputs = [(name, rewrite(tree)) for name, tree in parsed.items]
        having = rewrite(parsed.having) if parsed.having is not None else None
        if window and not retracts:
            # The last column of the groups, whatever else asks for the same: see `ViewState`.
            latest = f"max(CAST({state.input(quoted(window.on))} AS TIMESTAMPTZ))"
            state.group(latest, "max({})", "TIMESTAMPTZ")
        parts = state.parts()
        for part in parts:
            types = ", ".join(f"{c.name} {c.type}" for c in part.columns)
            self._con.execute(f"CREATE TABLE {part.name} ({types})")
        columns, final = self._final(state, outputs, having)
        reads = parsed.reads | compiler.reads | ({window.on} if window else set())
        return View(
            name=self._name,
            table=parsed.table,
            sql=self._normal_sql(),
            columns=columns,
            key=self._output_key(),
            reads=tuple(c for c in self._columns if c in reads) or tuple(self._columns)[:1],
            parts=parts,
            final_sql=final,
            window=window,
        )

    def _make_relations(self) -> None:
        types = ", ".join(f"{quoted(n)} {t}" for n, t in self._columns.items())
        for relation in (quoted(self.parsed.table), '"rows"'):
            self._con.execute(f"CREATE OR REPLACE TABLE {relation} ({types})")

    def _describe(self, sql: str) -> list[tuple[str, str]]:
        try:
            relation = self._con.sql(sql)
        except duckdb.Error as error:
            raise _sql_error(error) from error
        pairs = zip(relation.columns, relation.types, strict=True)
        return [(name, str(kind)) for name, kind in pairs]

    def _type_of(self, sql: str) -> str:
        if sql not in self._types:
            ((_, self._types[sql]),) = self._describe(f"SELECT {sql} AS x FROM rows")
        return self._types[sql]

    def _check_names(self) -> None:
        added = [WINDOW_START, WINDOW_END, WATERMARK_PASSED] if self._window else []
        seen = {name.lower() for name in added}
        for name, tree in self.parsed.items:
            if not name or _NOT_IN_NAMES & set(name):
                raise Invalid(
                    f"The output column {name or text(tree)} has no name that can be stored",
                    hint=f"name it: {text(tree)} AS n",
                    code="column_name",
                )
            if name.lower() in seen:
                raise Invalid(
                    f"Two output columns are named {name}",
                    hint="give one of them another name with AS",
                    code="column_name",
                )
            seen.add(name.lower())

    def _check_window(self) -> None:
        window = self._window
        if window is None:
            return
        if self._columns.get(window.on) not in {"TIMESTAMPTZ", "TIMESTAMP WITH TIME ZONE"}:
            times = [n for n, t in self._columns.items() if t.startswith("TIMESTAMP")]
            raise Invalid(
                f"A window is on {window.on}, which is no timestamp of the table",
                hint=f"timestamps of {self.parsed.table}: {', '.join(times) or 'none'}",
                code="window",
            )
        if window.size_us <= 0 or window.every_us <= 0:
            raise Invalid("A window's size and step are longer than nothing", code="window")
        taken = {WINDOW_START, WINDOW_END} & {n.lower() for n in self._columns}
        if taken:
            raise Invalid(
                f"The table has a column {min(taken)}, which the window adds",
                hint="select it under another name in the table's SQL",
                code="window",
            )

    def _key(self, position: int, tree: exp.Expression) -> Key:
        sql = text(tree)
        original = self._type_of(sql)
        kept = kept_type(original)
        if kept is None or is_nested(original):
            raise refuse(f"groups by {sql}, which is {original}", f"CAST it: {sql}::VARCHAR AS key")
        if original in FLOATS:
            sql = f"CASE WHEN {sql} = 0 THEN 0 ELSE {sql} END"
        elif kept != original:
            sql = f"CAST({sql} AS {kept})"
        return Key(f"k{position}", sql, kept, original)

    def call(self, node: exp.Expression) -> Call | None:
        """Return the aggregate that an expression is, None if it is something else."""
        sql, order, where = text(node), None, None
        if isinstance(node, exp.Filter):
            where = text(node.expression.this)
            node = node.this
        if isinstance(node, exp.WithinGroup):
            order = node.expression
            node = node.this
        if isinstance(node, exp.IgnoreNulls):
            node = node.this
        name = function_name(node)
        if name not in self._aggregates:
            return None
        arguments, distinct, inner = _arguments(node)
        order = order or inner
        fractions: tuple[float, ...] | None = None
        many = False
        if (
            "quantile" in name
            and len(arguments) + bool(isinstance(node.parent, exp.WithinGroup)) > 1
        ):
            fractions, many = self._fractions(arguments.pop())
            if order is not None:
                arguments = [order.expressions[0].this]
                order = None
        return Call(
            name=name,
            sql=sql,
            arguments=tuple(text(a) for a in arguments),
            fractions=fractions,
            many=many,
            distinct=distinct,
            order=_order(order),
            where=where,
            type=self._type_of(sql),
        )

    def _fractions(self, tree: exp.Expression) -> tuple[tuple[float, ...], bool]:
        if tree.find(exp.Column):
            raise refuse(
                "a quantile whose place is no constant", "write it: quantile_cont(x, 0.95)"
            )
        ((value,),) = self._con.execute(f"SELECT {text(tree)}").fetchall()
        many = isinstance(value, list)
        return tuple(float(v) for v in (value if many else [value])), many

    def _final(
        self, state: StateBuilder, outputs: Sequence[tuple[str, str]], having: str | None
    ) -> tuple[tuple[Column, ...], str]:
        selected = list(outputs)
        if self._window:
            size = self._window.size_us
            end = f"epoch_us(w) + {size}"
            due = f"{end} + {self._window.lateness_us}"
            passed = f"coalesce({due} <= CAST({_WATERMARK} AS BIGINT), false)"
            selected[:0] = [(WINDOW_START, "w"), (WINDOW_END, f"make_timestamptz({end})")]
            selected.append((WATERMARK_PASSED, passed))
        columns = []
        for name, sql in selected:
            relation = self._con.sql(f"SELECT {sql} AS x FROM {state.final_source()}")
            columns.append(Column(name, stored_type(relation.types[0])))
        casts = [
            f"CAST({sql} AS {column.type}) AS {quoted(column.name)}"
            for (_, sql), column in zip(selected, columns, strict=True)
        ]
        where = f" WHERE {having}" if having else ""
        final = f"SELECT {', '.join(casts)} FROM {state.final_source()}{where}"
        self._describe(final)
        for part in state.parts():
            self._describe(part.partial_sql)
            for sql in filter(None, [part.merge_sql, part.retract_sql]):
                self._describe(sql.replace(" FROM parts", f" FROM {part.name}"))
        return tuple(columns), final

    def _output_key(self) -> tuple[str, ...]:
        names = [WINDOW_START, WINDOW_END] if self._window else []
        for tree in self.parsed.keys:
            found = [name for name, item in self.parsed.items if item == tree]
            if not found:
                raise Invalid(
                    f"The view groups by {text(tree)} but does not select it",
                    hint="add it to the SELECT: a view has one row a key, and shows the key",
                    code="key_not_selected",
                )
            names.append(found[0])
        if self.parsed.sets is not None:
            names += [
                name
                for name, item in self.parsed.items
                if function_name(item) in {"grouping", "grouping_id"}
            ]
        return tuple(names)

    def _normal_sql(self) -> str:
        extra = [(name, name) for name in (WINDOW_START, WINDOW_END)] if self._window else []
        return self.parsed.select(source=quoted(self.parsed.table), extra=extra)


class _Rewriter:
    """Puts an output expression over the final relation instead of the table's rows."""

    def __init__(
        self,
        compiler: _Compiler,
        state: StateBuilder,
        aggregates: AggregateCompiler,
        keys: Sequence[Key],
    ) -> None:
        self._compiler = compiler
        self._state = state
        self._aggregates = aggregates
        self._keys = keys
        self._trees = list(compiler.parsed.keys)

    def rewritten(self, tree: exp.Expression) -> str:
        """Return SQL over the final relation; a column that is not grouped by is refused."""
        done = tree.copy().transform(self._put)
        for column in done.find_all(exp.Column):
            if column.this.quoted:
                raise Invalid(
                    f"The column {column.name} is neither grouped by nor inside an aggregate",
                    hint=f"GROUP BY {column.name}, or take first({column.name})",
                    code=NOT_MAINTAINABLE,
                )
        return text(done)

    def _put(self, node: exp.Expression) -> exp.Expression:
        if node in self._trees:
            return _parsed(self._keys[self._trees.index(node)].value)
        if function_name(node) in {"grouping", "grouping_id"}:
            return _parsed(self._state.grouping([self._trees.index(a) for a in node.expressions]))
        call = self._compiler.call(node)
        return exp.column(self._aggregates.value(call)) if call else node


def _parsed(sql: str) -> exp.Expression:
    return sqlglot.parse_one(sql, dialect=ViewDialect)


def _arguments(node: exp.Expression) -> tuple[list[exp.Expression], bool, exp.Order | None]:
    """Return the arguments of an aggregate in order, whether DISTINCT, and its ORDER BY."""
    if isinstance(node, exp.Anonymous):
        found = list(node.expressions)
    else:
        named = (node.args.get(key) for key in ("this", "expression", "quantile", "count"))
        found = [a for a in named if isinstance(a, exp.Expression)]
        found += node.args.get("expressions") or []
    order = None
    distinct = False
    result: list[exp.Expression] = []
    for argument in found:
        inner = argument
        if isinstance(inner, exp.Order):
            order, inner = inner, inner.this
        if isinstance(inner, exp.Distinct):
            distinct = True
            result += inner.expressions
        elif not isinstance(inner, exp.Star):
            result.append(inner)
    return result, distinct, order


def _order(order: exp.Order | None) -> tuple[str, bool] | None:
    if order is None:
        return None
    if len(order.expressions) != 1:
        raise refuse("ORDER BY several expressions in an aggregate", "order by one of them")
    (ordered,) = order.expressions
    if ordered.args.get("nulls_first"):
        raise refuse("NULLS FIRST in an aggregate", "leave it out: NULLs come last")
    return text(ordered.this), bool(ordered.args.get("desc"))


def _sql_error(error: duckdb.Error) -> Invalid:
    lines = str(error).strip().splitlines()
    message = lines[0].partition("Error: ")[2] or lines[0]
    hint = next((line.strip() for line in lines[1:] if "andidate" in line), "")
    return Invalid(f"The view's SQL is wrong: {message}", hint=hint, code="sql")
