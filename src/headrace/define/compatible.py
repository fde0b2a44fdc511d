"""Whether a plan can go on with the tables that are there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from headrace.define.problem import Problem
from headrace.model.plan import Column, Plan


def compatible(plan: Plan, existing: Mapping[str, Sequence[Column]]) -> list[Problem]:
    """Return why a plan cannot go on with existing tables; empty if it can.

    `existing` are the tables' columns by table name, `events` for `tables/events`. A table may be
    new and may get columns, which are NULL in its older rows. A column that changed its type or is
    gone is refused, as is nothing else: a table that the plan does not name is left alone.
    """
    problems = []
    for table in plan.tables:
        wanted = {c.name: c.type for c in table.columns}
        folded = {name.lower(): name for name in wanted}
        for column in existing.get(table.name, ()):
            now = wanted.get(column.name)
            if now == column.type:
                continue
            other = folded.get(column.name.lower())
            if now is not None:
                message = f"was {column.type} and would become {now}"
                hint = f"CAST it to {column.type}, or keep both: select the new one under its own"
                hint += f" name. To begin anew: headrace outputs drop {table.name}"
            elif other is not None:
                message = f"would change its case to {other!r}"
                hint = f'Select it AS "{column.name}".'
            else:
                message = "is no longer selected"
                hint = f"Select it, or a NULL of its type: CAST(NULL AS {column.type}) AS "
                hint += f'"{column.name}". To begin anew: headrace outputs drop {table.name}'
            text = f"The table {table.name!r} cannot go on: its column {column.name!r} {message}"
            problems.append(Problem(f"tables/{table.name}", 1, text, hint, "incompatible_table"))
    return problems
