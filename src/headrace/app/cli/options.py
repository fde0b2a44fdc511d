"""Options that several verbs share, so that they are the same everywhere."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, cast

import click

from headrace.app.deployment_file import PORT_MAX, Wanted
from headrace.define.duration import seconds
from headrace.model.deployment import HttpSettings
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


def _seconds(_: click.Context, __: click.Parameter, value: str | None) -> int:
    return int(seconds(value)) if value else 0


_HTTP: tuple[tuple[str, str, object, str, dict[str, Any]], ...] = (
    ("--tls-cert", "tls_cert", "", "The certificate, a PEM file: the port then speaks TLS.", {}),
    ("--tls-key", "tls_key", "", "The certificate's private key, a PEM file.", {}),
    ("--redirect-port", "redirect_port", 0,
     "A second port, which sends those who ask by http to https.",
     {"type": click.IntRange(0, PORT_MAX)}),
    ("--hsts", "hsts_s", None,
     'How long browsers are to ask by https alone, such as "365 days".', {"callback": _seconds}),
    ("--trusted-proxy", "trusted_proxies", (),
     "A proxy that is believed who its clients are, by address or network.", {"multiple": True}),
    ("--host-name", "host_names", (),
     "A name by which readers may ask where no tokens are asked for.", {"multiple": True}),
)  # fmt: skip


def http_options(command: Command) -> Command:
    """Add the options that say how the public port is reached, to what `wanted` says.

    It stands below `deployment_options`.
    """

    @functools.wraps(command)
    def wrapped(
        *arguments: Any,  # noqa: ANN401 - the command's own
        wanted: Wanted,
        **more: Any,  # noqa: ANN401 - as above
    ) -> object:
        http = HttpSettings(**{field: more.pop(field) for _, field, *_ in _HTTP})
        return command(*arguments, wanted=dataclasses.replace(wanted, http=http), **more)

    for name, field, default, words, how in reversed(_HTTP):
        variable = f"HEADRACE_{name.removeprefix('--').replace('-', '_').upper()}"
        add = click.option(
            name, field, default=default, envvar=variable, show_envvar=True, help=words, **how
        )
        wrapped = add(wrapped)
    return cast("Command", wrapped)


json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON, for scripts.")

pipeline_argument = click.argument(
    "pipeline", type=click.Path(path_type=Path, dir_okay=False, exists=True)
)
