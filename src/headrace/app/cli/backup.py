"""`headrace backup` and `headrace restore`."""

from __future__ import annotations

from pathlib import Path

import click

from headrace.app.cli.options import data_option
from headrace.app.cli.printing import console
from headrace.app.data_directory import require
from headrace.app.restore import restore as restore_backup
from headrace.app.supervisor import held
from headrace.model.clock import SystemClock
from headrace.model.layout import Layout
from headrace.process.backup import backup as take_backup


@click.command()
@click.argument("target", type=click.Path(path_type=Path))
@data_option
def backup(target: Path, layout: Layout) -> None:
    """Copy a data directory to TARGET, a new folder, while a run goes on or without one.

    Commits wait meanwhile; events are still taken and acknowledged. Once it is done, it is durable.
    """
    require(layout)
    console().print(f"The backup is complete: {take_backup(layout, target)}")


@click.command()
@click.argument("source", type=click.Path(path_type=Path, exists=True, file_okay=False))
@data_option
def restore(source: Path, layout: Layout) -> None:
    """Make a data directory of the backup SOURCE, at --data, which must be new or empty.

    What the backup's log holds is brought into the tables first. Records that come afterwards have
    offsets of a new incarnation: those after the backup were given out once already.
    """
    epoch = restore_backup(source, layout, SystemClock())
    with held(layout):
        console().print(f"{layout.root} is restored up to epoch {epoch}")
