"""Options that several verbs share, so that they are the same everywhere."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, cast

import click

from headrace.app.deployment_file import Wanted
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


Command = TypeVar("Command", bound=Callable[..., object])


def deployment_options(command: Command) -> Command:
    """Add the options that say where a pipeline runs; the command gets them as `wanted`."""
    places = (
        ("--config", "A file that says it: headrace.toml of the working folder, if there is one."),
        ("--kafka", "Brokers of the Kafka cluster that keeps the log, as host:port,…"),
        (
            "--tables",
            "Where the tables are: a folder, s3://bucket/prefix, hdfs://host:port/folder.",
        ),
        ("--spark", "Master of the Spark cluster that runs the epochs, as spark://host:port."),
    )

    @functools.wraps(command)
    def wrapped(
        *arguments: Any,  # noqa: ANN401 - the command's own
        config: Path | None,
        kafka: str | None,
        tables: str | None,
        spark: str | None,
        **more: Any,  # noqa: ANN401 - as above
    ) -> object:
        wanted = Wanted(config, kafka or None, tables or None, spark or None)
        return command(*arguments, wanted=wanted, **more)

    file = click.Path(path_type=Path, dir_okay=False, exists=True)
    for name, words in reversed(places):
        add = click.option(
            name,
            type=file if name == "--config" else str,
            envvar=f"HEADRACE_{name.removeprefix('--').upper()}",
            show_envvar=True,
            help=words,
        )
        wrapped = add(wrapped)
    return cast("Command", wrapped)


json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON, for scripts.")

pipeline_argument = click.argument(
    "pipeline", type=click.Path(path_type=Path, dir_okay=False, exists=True)
)
