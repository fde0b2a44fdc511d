"""`headrace promote`: from one machine's log to Kafka, with all that was counted."""

from __future__ import annotations

import signal

import click

from headrace.app.cli.options import data_option, deployment_options
from headrace.app.cli.printing import console
from headrace.app.data_directory import require
from headrace.app.deployment_file import Wanted, kept, wish
from headrace.app.promote import promote as take_over
from headrace.app.supervisor import ask_to_stop
from headrace.model.clock import SystemClock
from headrace.model.deployment import Deployment
from headrace.model.layout import Layout

STOP_S_MAX = 30.0


@click.command()
@data_option
@deployment_options
@click.option("--stop", is_flag=True, help="End the run that is alive on the data directory first.")
def promote(layout: Layout, wanted: Wanted, *, stop: bool) -> None:
    """Take a pipeline over from the embedded log to Kafka; what was counted stays counted.

    The log is drained into the tables, these are copied to where they are to be, and from then on
    the data directory belongs to the new place: run it again as before. Meanwhile nothing is taken
    in, so clients are to try again; what they send again under the same id is counted once. Killed
    at any moment, exactly one side opens; run it again. There is no way back.
    """
    require(layout)
    clock = SystemClock()
    chosen = wish(wanted, kept(layout) or Deployment())
    if stop:
        ask_to_stop(layout, clock, signal.SIGTERM, STOP_S_MAX)
    out = console()
    take_over(layout, clock, chosen, out.print)
    out.print(f"{layout.root} is on Kafka from now on: headrace run PIPELINE --data {layout.root}")
