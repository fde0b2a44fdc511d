"""Whether a plan can go on with the tables that are there."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from headrace.define.keyed import read_mark
from headrace.define.problem import Problem
from headrace.model.plan import Column, Keyed, Plan, Table

_CHANGES = "changes/"
_CODE = "incompatible_table"


def compatible(
    plan: Plan,
    existing: Mapping[str, Sequence[Column]],
    marks: Mapping[str, str] | None = None,
) -> list[Problem]:
    """Return why a plan cannot go on with existing tables; empty if it can.

    `existing` are the tables' columns by name, `events` for `tables/events` and `changes/events`
    for the changelog of a keyed one. `marks` are the words that changelogs carry (`mark_of`), by
    the table's name. A table may be new and may get columns, which are NULL in its older rows. A
    column that changed its type or is gone is refused, and another key, version or column of
    deletions than before; a table that the plan does not name is left alone.
    """
    problems = []
    for table in plan.tables:
        mark = (marks or {}).get(table.name)
        fault = _keyed_fault(table, existing, read_mark(mark) if mark else None)
        faults = [fault] if fault else _column_faults(table, existing)
        for message, hint in faults:
            text = f"The table {table.name!r} cannot go on: {message}"
            problems.append(Problem(table.storage, 1, text, hint, _CODE))
    return problems


def _keyed_fault(
    table: Table, existing: Mapping[str, Sequence[Column]], was: Keyed | None
) -> tuple[str, str] | None:
    """Return message and hint if a table was not keyed as it now is."""
    anew = f"Give the table another name, or begin anew: headrace outputs drop --made {table.name}"
    had_changes = _CHANGES + table.name in existing
    if table.keyed is None:
        gone = "it had a key and would have none"
        return (gone, f"Give it its key again. {anew}") if had_changes else None
    if not had_changes:
        new = f"its rows are kept by no key and would be by {', '.join(table.keyed.key)}"
        return (new, anew) if table.name in existing else None
    if was is None or was == table.keyed:
        return None
    changed = [
        f"its {what} was {_words(before)} and would become {_words(now)}"
        for what, before, now in (
            ("key", was.key, table.keyed.key),
            ("version", was.version, table.keyed.version),
            ("column of deletions", was.deleted, table.keyed.deleted),
        )
        if before != now
    ]
    return "; ".join(changed), f"Leave it as it was. {anew}"


def _words(columns: tuple[str, ...] | str | None) -> str:
    return ", ".join(columns) if isinstance(columns, tuple) else columns or "none"


def _column_faults(
    table: Table, existing: Mapping[str, Sequence[Column]]
) -> Iterator[tuple[str, str]]:
    """Yield message and hint of each column that is not what it was."""
    wanted = {c.name: c.type for c in table.log_columns}
    folded = {name.lower(): name for name in wanted}
    for column in existing.get(table.storage.removeprefix("tables/"), ()):
        now = wanted.get(column.name)
        if now == column.type:
            continue
        other = folded.get(column.name.lower())
        if now is not None:
            message = f"was {column.type} and would become {now}"
            hint = f"CAST it to {column.type}, or keep both: select the new one under its own"
            hint += f" name. To begin anew: headrace outputs drop --made {table.name}"
        elif other is not None:
            message = f"would change its case to {other!r}"
            hint = f'Select it AS "{column.name}".'
        else:
            message = "is no longer selected"
            hint = f"Select it, or a NULL of its type: CAST(NULL AS {column.type}) AS "
            hint += f'"{column.name}". To begin anew: headrace outputs drop --made {table.name}'
        yield f"its column {column.name!r} {message}", hint
