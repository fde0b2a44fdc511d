"""The state of a view under construction: its parts, and what the final query takes from them.

Every part reads one *base*, made from the table's rows: the group keys (`k0`, …, and `w`, the start
of the window), and the row expressions that aggregates need (`x0`, …). `g` says which keys a
grouping set leaves out, as GROUPING(k0, k1, …) does. All names in a state are made here and need no
quotes.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from headrace.define.view_parse import group_by
from headrace.model.plan import Column, StatePart

_BASE = "{base}"
ROWS = "a0"
"""Column of `groups` with the number of a group's rows, of a view whose rows may be taken out."""
_KEY = re.compile(r"k\d+|w|g")
"""Names of the columns that every part begins with."""
_DERIVED = re.compile(r"\bv\d+\b")


@dataclass(frozen=True)
class Key:
    """A group key as the state keeps it."""

    name: str
    sql: str
    """Over the table's rows, in the kept type."""
    type: str
    original_type: str

    @property
    def value(self) -> str:
        """SQL of the key in the type that DuckDB gave it."""
        return (
            self.name
            if self.type == self.original_type
            else f"CAST({self.name} AS {self.original_type})"
        )


@dataclass(frozen=True)
class _Group:
    name: str
    type: str
    partial: str
    merge: str


@dataclass
class _Part:
    part: StatePart
    values: list[str]
    """What the final query takes of it, each `expression AS name`."""
    source: str
    """What those expressions are taken over; the part itself, or a query of it."""


def merge_key(part: StatePart) -> tuple[str, ...]:
    """Return columns of a part such that rows which differ in them are never merged; may be none.

    Rows that agree in all of them may go into one state row or into several.
    """
    if part.kind == "items":
        return tuple(column.name for column in part.columns[:-1])
    return tuple(c.name for c in part.columns if _KEY.fullmatch(c.name))


class StateBuilder:
    """Collects the parts of one view."""

    def __init__(
        self,
        *,
        keys: Sequence[Key],
        sets: Sequence[Sequence[int]] | None,
        window: Key | None,
        source: str,
        where: str | None,
        retracts: bool = False,
    ) -> None:
        """`source` is the relation of the table's rows, once per window; `where` filters it.

        `retracts` says whether rows may be taken out again.
        """
        self.retracts = retracts
        self._keys = keys
        self._sets = sets
        self._window = window
        self._source = source
        self._where = where
        self._inputs: dict[str, str] = {}
        self._groups: dict[str, _Group] = {}
        self._parts: dict[str, _Part] = {}
        self._derived: dict[str, str] = {}
        if retracts:
            self.group("count(*)", "coalesce(sum({}), 0)", "BIGINT")

    @property
    def key_columns(self) -> tuple[Column, ...]:
        """Columns that every part begins with."""
        keys = [Column(k.name, k.type) for k in self._all_keys]
        return (*keys, Column("g", "BIGINT")) if self._sets is not None else tuple(keys)

    @property
    def _all_keys(self) -> list[Key]:
        return [*self._keys, *([self._window] if self._window else [])]

    @property
    def _key_names(self) -> list[str]:
        return [c.name for c in self.key_columns]

    def grouping(self, positions: Sequence[int]) -> str:
        """Return what GROUPING gives for keys by position, the first one's bit being highest."""
        if self._sets is None:
            return "CAST(0 AS BIGINT)"
        last = len(self._keys) - 1
        bits = [
            f"(((g >> {last - p}) & 1) << {len(positions) - 1 - i})"
            for i, p in enumerate(positions)
        ]
        return f"CAST({' + '.join(bits)} AS BIGINT)"

    def input(self, sql: str) -> str:
        """Return the base column that holds a row expression."""
        return self._inputs.setdefault(sql, f"x{len(self._inputs)}")

    def group(self, partial: str, merge: str, type_text: str) -> str:
        """Add a column to `groups`; `merge` has {0} where the column's name belongs."""
        found = self._groups.get(partial)
        if found is None:
            name = f"a{len(self._groups)}"
            found = _Group(name, type_text, partial, merge.format(name))
            self._groups[partial] = found
        return found.name

    def total(self, partial: str, type_text: str) -> str:
        """Add a column of sums to `groups`.

        It is NULL until there is something to add up, and 0 where rows may be taken out again.
        """
        if self.retracts:
            return self.group(f"coalesce({partial}, 0)", "coalesce(sum({}), 0)", type_text)
        return self.group(partial, "sum({})", type_text)

    def counted(
        self, prefix: str, item: Column, item_sql: str, count: Column, count_sql: str, where: str
    ) -> str:
        """Add a part with one row an item and return its name; the same one is not added twice.

        `item_sql` makes the item of a base row that satisfies `where`; `count_sql` aggregates base
        rows of one item, `{item}` being its column, and is summed up later.
        """
        identity = f"{prefix} {item_sql} {where}"
        if identity in self._parts:
            return self._parts[identity].part.name
        name, item_name = self._names(prefix, item)
        count_name = f"{name}_{count.name}"
        made = f"CAST({count_sql.format(item=item_name)} AS {count.type}) AS {count_name}"
        summed = f"CAST(sum({count_name}) AS {count.type}) AS {count_name}"
        part = StatePart(
            name,
            "items",
            (*self.key_columns, Column(item_name, item.type), Column(count_name, count.type)),
            self._select([item_name, made], _rows_with(item_sql, item_name, where), [item_name]),
            self._merge([item_name, summed], [item_name], sums=[count_name]),
            self._negated([item_name], [count_name]),
        )
        self._parts[identity] = _Part(part, [], name)
        return name

    def smallest(self, prefix: str, item: Column, item_sql: str, where: str, k: int) -> str:
        """Add a part that keeps the `k` smallest distinct items a key, and return its name."""
        identity = f"{prefix} {item_sql} {where}"
        if identity in self._parts:
            return self._parts[identity].part.name
        name, item_name = self._names(prefix, item)
        rows = _rows_with(item_sql, item_name, where)
        new, old = (
            self._select([item_name], rows, [item_name]),
            self._merge([item_name], [item_name]),
        )
        part = StatePart(
            name,
            "smallest",
            (*self.key_columns, Column(item_name, item.type)),
            self._smallest_of(new, item_name, k),
            self._smallest_of(old, item_name, k),
        )
        self._parts[identity] = _Part(part, [], name)
        return name

    def _smallest_of(self, distinct: str, item: str, k: int) -> str:
        """Return the `k` smallest items a key of a query that has each of them once.

        Only keys with more are cut: DuckDB's min(x, k) takes memory for k items from the start,
        which a million keys with a few items each cannot have.
        """
        taken = f"unnest(min({item}, {k})) AS {item}"
        if not self._key_names:
            return f"SELECT {taken} FROM ({distinct})"
        keys = ", ".join(self._key_names)
        same = " AND ".join(
            f"items.{key} IS NOT DISTINCT FROM over_full.{key}" for key in self._key_names
        )
        return (
            f"WITH items AS MATERIALIZED ({distinct}), "
            f"over_full AS (SELECT {keys} FROM items GROUP BY {keys} HAVING count(*) > {k}) "
            f"SELECT {keys}, {item} FROM items ANTI JOIN over_full ON {same} UNION ALL "
            f"SELECT {keys}, {taken} FROM items SEMI JOIN over_full ON {same} GROUP BY {keys}"
        )

    def _names(self, prefix: str, item: Column) -> tuple[str, str]:
        number = 1 + sum(p.part.name.startswith(prefix) for p in self._parts.values())
        return f"{prefix}{number}", f"{prefix}{number}_{item.name}"

    def take(self, part: str, sql: str, source: str | None = None) -> str:
        """Return a column of the final relation: an aggregate of a part's items, one a key.

        `source` replaces the part by a query of it; all values of one part share it.
        """
        holder = next(p for p in self._parts.values() if p.part.name == part)
        holder.source = source or holder.source
        for i, value in enumerate(holder.values):
            if value == sql:
                return f"{part}_v{i}"
        holder.values.append(sql)
        return f"{part}_v{len(holder.values) - 1}"

    def derive(self, sql: str) -> str:
        """Return a column of the final relation computed from group columns and others before."""
        return self._derived.setdefault(sql, f"v{len(self._derived)}")

    def parts(self) -> tuple[StatePart, ...]:
        """Return all parts, `groups` first; their SQL is complete."""
        if not self.key_columns:
            # A part has columns, and this one row, whatever else the view asks for.
            self.group("count(*)", "coalesce(sum({}), 0)", "BIGINT")
        base = self._base()
        names = [g.name for g in self._groups.values()]
        columns = (*self.key_columns, *(Column(g.name, g.type) for g in self._groups.values()))
        partial = [f"CAST({g.partial} AS {g.type}) AS {g.name}" for g in self._groups.values()]
        merge = [f"CAST({g.merge} AS {g.type}) AS {g.name}" for g in self._groups.values()]
        groups = StatePart(
            "groups",
            "groups",
            columns,
            self._select(partial, base, []),
            self._merge(merge, [], sums=names, rows=self._with_grand_total()),
            self._negated([], names),
        )
        others = [p.part for p in self._parts.values()]
        return (
            groups,
            *(
                msgspec.structs.replace(p, partial_sql=p.partial_sql.replace(_BASE, base))
                for p in others
            ),
        )

    def final_source(self) -> str:
        """Return the relation that the final SELECT reads: keys, group columns, values, derived."""
        joins, names = [], ["groups.*"]
        for holder in self._parts.values():
            name = holder.part.name
            values = [f"{sql} AS {name}_v{i}" for i, sql in enumerate(holder.values)]
            by = f" GROUP BY {', '.join(self._key_names)}" if self._key_names else ""
            inner = f"SELECT {', '.join([*self._key_names, *values])} FROM {holder.source}{by}"
            on = " AND ".join(
                f"groups.{k} IS NOT DISTINCT FROM j_{name}.{k}" for k in self._key_names
            )
            joins.append(f" LEFT JOIN ({inner}) AS j_{name} ON {on or 'true'}")
            names += [f"j_{name}.{name}_v{i}" for i in range(len(values))]
        joined = f"SELECT {', '.join(names)} FROM {self._standing_groups()}{''.join(joins)}"
        return self._with_derived(f"({joined})")

    def _with_derived(self, relation: str) -> str:
        """Add the derived columns, each in a SELECT over those that it needs.

        An alias used in the same SELECT would be computed again wherever it stands.
        """
        level: dict[str, int] = {}
        steps: list[list[str]] = []
        for sql, name in self._derived.items():
            needs = [level[found] for found in _DERIVED.findall(sql) if found in level]
            level[name] = max(needs, default=-1) + 1
            if level[name] == len(steps):
                steps.append([])
            steps[level[name]].append(f"{sql} AS {name}")
        for step in steps:
            relation = f"(SELECT *, {', '.join(step)} FROM {relation})"
        return relation

    def _base(self) -> str:
        columns = [f"{k.sql} AS {k.name}" for k in self._all_keys]
        columns += [f"{sql} AS {name}" for sql, name in self._inputs.items()]
        where = f" WHERE {self._where}" if self._where else ""
        return f"(SELECT {', '.join(columns) or '1 AS one'} FROM {self._source}{where})"

    def _select(self, outputs: Sequence[str], rows: str, by: Sequence[str]) -> str:
        names = [k.name for k in self._all_keys]
        if self._sets is not None:
            grouped = [k.name for k in self._keys]
            names.append(
                f"CAST(GROUPING({', '.join(grouped)}) AS BIGINT) AS g"
                if grouped
                else "CAST(0 AS BIGINT) AS g"
            )
        extra = [*([self._window.name] if self._window else []), *by]
        clause = group_by([k.name for k in self._keys], self._sets, extra)
        return f"SELECT {', '.join([*names, *outputs])} FROM {rows} {clause}".rstrip()

    def _merge(
        self,
        outputs: Sequence[str],
        by: Sequence[str],
        *,
        sums: Sequence[str] = (),
        rows: str = "parts",
    ) -> str:
        """Return the merge of a part; where rows are taken out, what adds up to nothing goes too.

        Nothing is what merging it in adds, so the order of merges still makes no difference.
        """
        names = [*self._key_names, *by]
        clause = f" GROUP BY {', '.join(names)}" if names else ""
        if names and sums and self.retracts:
            kept = [f"sum({name}) <> 0" for name in sums]
            kept += [self._grand_total()] if self._has_grand_total and not by else []
            clause += f" HAVING {' OR '.join(kept)}"
        selected = ", ".join([*self._key_names, *outputs])
        return f"SELECT {selected} FROM {rows}{clause}"

    def _negated(self, by: Sequence[str], sums: Sequence[str]) -> str | None:
        """Return what takes the rows of a part out again, if the table's rows may be."""
        if not self.retracts:
            return None
        outputs = [*self._key_names, *by, *(f"-{name} AS {name}" for name in sums)]
        return f"SELECT {', '.join(outputs)} FROM parts"

    def _standing_groups(self) -> str:
        """Return the groups that have rows, and the one that stands without any."""
        if not self.retracts or not self._key_names:
            return "groups"
        kept = [f"{ROWS} > 0", *([self._grand_total()] if self._has_grand_total else [])]
        return f"(SELECT * FROM groups WHERE {' OR '.join(kept)}) AS groups"

    @property
    def _has_grand_total(self) -> bool:
        return self._sets is not None and not self._window and not all(self._sets)

    def _grand_total(self) -> str:
        """Return the condition that a group is that of the set without keys."""
        return f"g = {(1 << len(self._keys)) - 1}"

    def _with_grand_total(self) -> str:
        """Return the partial groups, and a neutral one for the set without keys, if there is one.

        SQL gives that set its row over an empty table too.
        """
        if not self._has_grand_total:
            return "parts"
        mask = (1 << len(self._keys)) - 1
        values = [*(["NULL"] * len(self._keys)), str(mask), *(["NULL"] * len(self._groups))]
        return f"(SELECT * FROM parts UNION ALL SELECT {', '.join(values)})"


def _rows_with(item_sql: str, item_name: str, where: str) -> str:
    return f"(SELECT *, {item_sql} AS {item_name} FROM {_BASE} WHERE {where})"
