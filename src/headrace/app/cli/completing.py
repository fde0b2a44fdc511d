"""Names that a shell completes: of the plan that ran last in the data directory."""

from __future__ import annotations

import os
from collections.abc import Iterable

import click
from click.shell_completion import CompletionItem

from headrace.app.cli.options import DATA_DEFAULT
from headrace.app.data_directory import find_plan
from headrace.model.errors import HeadraceError
from headrace.model.layout import Layout
from headrace.model.plan import Plan


def topics(context: click.Context, _: click.Parameter, begun: str) -> list[CompletionItem]:
    """Return the topics whose names begin so."""
    plan = _plan(context)
    if plan is None:
        return []
    return _items([*(t.name for t in plan.topics), *plan.change_topics], begun)


def outputs(context: click.Context, _: click.Parameter, begun: str) -> list[CompletionItem]:
    """Return the tables and views whose names begin so."""
    plan = _plan(context)
    if plan is None:
        return []
    return _items([*(t.name for t in plan.tables), *(v.name for v in plan.views)], begun)


def _items(names: Iterable[str], begun: str) -> list[CompletionItem]:
    return [CompletionItem(name) for name in names if name.startswith(begun)]


def _plan(context: click.Context) -> Plan | None:
    """Return the plan; None if there is none, because nobody is there to be told of errors."""
    named = os.environ.get("HEADRACE_DATA") or DATA_DEFAULT
    layout: Layout = context.params.get("layout") or Layout.at(named)
    try:
        return find_plan(layout)
    except (HeadraceError, OSError):
        return None
