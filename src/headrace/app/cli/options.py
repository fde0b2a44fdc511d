"""Options that several verbs share, so that they are the same everywhere."""

from __future__ import annotations

from pathlib import Path

import click

from headrace.model.layout import Layout

DATA_DEFAULT = "data"


def _layout(_: click.Context, __: click.Parameter, value: Path) -> Layout:
    return Layout.at(value)


data_option = click.option(
    "--data",
    "layout",
    type=click.Path(path_type=Path, file_okay=False),
    default=DATA_DEFAULT,
    envvar="HEADRACE_DATA",
    show_default=True,
    show_envvar=True,
    callback=_layout,
    help="The data directory.",
)

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON, for scripts.")

pipeline_argument = click.argument(
    "pipeline", type=click.Path(path_type=Path, dir_okay=False, exists=True)
)
