"""`headrace cluster`: a local Kafka of three brokers, to try things on."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import click

from headrace.app.cli.options import json_option
from headrace.app.cli.printing import console, print_json
from headrace.app.cluster.jars import cache_folder
from headrace.model.clock import SystemClock
from headrace.model.errors import Invalid

folder_option = click.option(
    "--folder", type=click.Path(path_type=Path, file_okay=False), default=None,
    help="Where the cluster keeps its data; by default in the user's cache.",
)  # fmt: skip


@click.group()
def cluster() -> None:
    """Run three Kafka brokers on this machine, as a trial; production uses its own.

    They listen on 127.0.0.1 alone. The first start downloads Kafka from Maven Central (43 MB) into
    the user's cache, which HEADRACE_CACHE names another place for. Java 17 or later is needed.
    """


@cluster.command()
@folder_option
def up(folder: Path | None) -> None:
    """Start the cluster, which keeps running, and print where it is."""
    brokers = _brokers()
    place = _place(folder)
    found = brokers.running(place) or brokers.up(place, SystemClock())
    console().print(f"Kafka is at {found.bootstrap}")


@cluster.command()
@folder_option
def down(folder: Path | None) -> None:
    """Stop the cluster; its data stays."""
    stopped = _brokers().down(_place(folder))
    console().print("the cluster is stopped" if stopped else "no cluster was running")


@cluster.command()
@folder_option
@json_option
def status(folder: Path | None, *, as_json: bool) -> None:
    """Say whether the cluster runs, where, and with which processes."""
    brokers = _brokers()
    place = _place(folder)
    found = brokers.running(place)
    pids = brokers.pids(place) if found else {}
    told = {
        "running": found is not None,
        "folder": str(place),
        "bootstrap": found.bootstrap if found else None,
        "pids": pids,
    }
    if as_json:
        print_json(told)
    elif found is None:
        console().print(f"no cluster runs in {place}")
    else:
        console().print(f"Kafka is at {found.bootstrap}")
        for name, pid in pids.items():
            console().print(f"{name}: process {pid}")


def _place(folder: Path | None) -> Path:
    return (folder or cache_folder() / "cluster").absolute()


def _brokers() -> ModuleType:
    """Return the module that runs brokers, which needs Kafka's client."""
    try:
        from headrace.app.cluster import brokers  # noqa: PLC0415 - an extra
    except ImportError as error:
        raise Invalid(
            "Kafka's client is not installed", hint="pip install 'headrace[kafka]'"
        ) from error
    return brokers
