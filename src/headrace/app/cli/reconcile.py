"""`headrace reconcile`: our counts beside those of the services themselves."""

from __future__ import annotations

import click
import msgspec

from headrace.app.cli.options import data_option, json_option
from headrace.app.cli.printing import print_json, print_rows
from headrace.app.data_directory import read_plan, reading_log
from headrace.app.reconcile import Reconciled
from headrace.app.reconcile import reconcile as reconciled
from headrace.model.clock import SystemClock
from headrace.model.layout import Layout

SHOWN = ("source", "table", "filter", "theirs", "asked_at", "ours", "counted_at", "difference")


@click.command()
@data_option
@json_option
def reconcile(layout: Layout, *, as_json: bool) -> None:
    """Compare what each source's service says it has with the rows there are of it.

    The service is asked after each complete sweep of a source that has a topic of counts. Nothing
    is asked now, so both times are shown.
    """
    plan = read_plan(layout)
    with reading_log(layout) as log:
        found: list[Reconciled] = reconciled(plan, layout, log, SystemClock())
    rows = [msgspec.to_builtins(one) for one in found]
    if as_json:
        print_json(rows)
    else:
        print_rows(SHOWN, [[row[name] for name in SHOWN] for row in rows])
