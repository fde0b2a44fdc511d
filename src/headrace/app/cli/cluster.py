"""`headrace cluster`: a local Kafka of three brokers, and a Spark, to try things on."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import click

from headrace.app.cli.options import json_option
from headrace.app.cli.printing import console, print_json
from headrace.app.cluster.jars import cache_folder
from headrace.model.clock import SystemClock
from headrace.model.errors import Invalid

if TYPE_CHECKING:
    from headrace.app.cluster.trial import Cluster

folder_option = click.option(
    "--folder", type=click.Path(path_type=Path, file_okay=False), default=None,
    help="Where the cluster keeps its data; by default in the user's cache.",
)  # fmt: skip


@click.group()
def cluster() -> None:
    """Run Kafka and Spark on this machine, as a trial; production uses its own.

    Three brokers, a master and two workers, which listen on 127.0.0.1 alone. The first start
    downloads Kafka and what Spark needs to read it (65 MB) from Maven Central into the user's
    cache, which HEADRACE_CACHE names another place for. Java 17 or later is needed, and for Spark
    `pip install 'headrace[spark]'`.
    """


@cluster.command()
@folder_option
@click.option(
    "--spark/--no-spark", "with_spark", default=None,
    help="Run Spark too; by default if pyspark is installed.",
)  # fmt: skip
def up(folder: Path | None, *, with_spark: bool | None) -> None:
    """Start the cluster, which keeps running, and print where it is.

    Of one that runs already, what is missing is started. The cluster's folder gets a headrace.toml,
    with which `headrace run` uses it.
    """
    trial = _trial()
    place = _place(folder)
    if with_spark is None:
        with_spark = trial.spark.missing() is None
    found = trial.up(place, SystemClock(), with_spark=with_spark)
    _print_addresses(found)
    console().print("To run a pipeline on it, in a data directory of its own:")
    console().print(f"  headrace run pipeline.py --config {place / trial.CONFIG} --data data-trial")
    if found.spark is not None:
        console().print("To read its topics and tables with PySpark:")
        console().print(f"  SPARK_CONF_DIR={trial.spark_conf(place)} pyspark")
    console().print("To stop it:")
    console().print("  headrace cluster down" + (f" --folder {place}" if folder else ""))


@cluster.command()
@folder_option
def down(folder: Path | None) -> None:
    """Stop the cluster; what its topics hold stays."""
    stopped = _trial().down(_place(folder))
    console().print("the cluster is stopped" if stopped else "no cluster was running")


@cluster.command()
@folder_option
@json_option
def status(folder: Path | None, *, as_json: bool) -> None:
    """Say whether the cluster runs, where, and with which processes."""
    trial = _trial()
    place = _place(folder)
    found = trial.running(place)
    pids = trial.pids(place) if found else {}
    if as_json:
        kafka, spark = (found.kafka, found.spark) if found else (None, None)
        told = {
            "running": found is not None,
            "folder": str(place),
            "bootstrap": kafka.bootstrap if kafka else None,
            "spark_master": spark.master if spark else None,
            "spark_page": spark.page if spark else None,
            "pids": pids,
        }
        print_json(told)
    elif found is None:
        console().print(f"no cluster runs in {place}")
    else:
        _print_addresses(found)
        for name, pid in pids.items():
            console().print(f"{name}: process {pid}")


def _print_addresses(found: Cluster) -> None:
    if found.kafka is not None:
        console().print(f"Kafka is at {found.kafka.bootstrap}")
    if found.spark is not None:
        console().print(f"Spark is at {found.spark.master}, its page at {found.spark.page}")


def _place(folder: Path | None) -> Path:
    return (folder or cache_folder() / "cluster").absolute()


def _trial() -> ModuleType:
    """Return the module that runs clusters, which needs Kafka's client."""
    try:
        from headrace.app.cluster import trial  # noqa: PLC0415 - an extra
    except ImportError as error:
        raise Invalid(
            "Kafka's client is not installed", hint="pip install 'headrace[kafka]'"
        ) from error
    return trial
