"""`headrace run` and `headrace demo`: a pipeline, all its roles, on this machine."""

from __future__ import annotations

import dataclasses
import sys
import tempfile
from pathlib import Path

import click
import msgspec

from headrace.app.cli.options import (
    data_option,
    deployment_options,
    http_options,
    pipeline_argument,
)
from headrace.app.cli.printing import print_rows
from headrace.app.cluster.ports import free_port
from headrace.app.demo import Demo
from headrace.app.deployment_file import Wanted, choose
from headrace.app.pipeline_file import require_plan
from headrace.app.running import end_with_input, run_pipeline
from headrace.app.supervisor import ROLES_IN_ORDER, Address
from headrace.collect.door import refuse_taken_port
from headrace.model.clock import SystemClock
from headrace.model.errors import Invalid
from headrace.model.layout import Layout

PORT = 8080


def _roles(_: click.Context, __: click.Parameter, value: str | None) -> tuple[str, ...]:
    return tuple(filter(None, value.split(","))) if value else ROLES_IN_ORDER


@click.command()
@pipeline_argument
@data_option
@click.option("--host", default="127.0.0.1", show_default=True, help="The address to listen on.")
@click.option("--port", type=click.IntRange(1, 65535), default=PORT, show_default=True,
              help="The port to listen on.")  # fmt: skip
@deployment_options
@http_options
@click.option("--only", "roles", callback=_roles,
              help="Some roles alone, by comma: collect,process,serve,pull.")  # fmt: skip
@click.option("--insecure-bind", is_flag=True,
              help="Listen where other machines reach it, without a certificate.")  # fmt: skip
@click.option("--tokens", "with_tokens", is_flag=True,
              help="Ask for a token on every path, as the option tokens=True does.")  # fmt: skip
@click.option("--until-idle", is_flag=True,
              help="End when the sources are read and everything is committed.")  # fmt: skip
@click.option("--until-eof", is_flag=True,
              help="End when standard input does: with who holds its other end.")  # fmt: skip
def run(
    pipeline: Path,
    layout: Layout,
    host: str,
    port: int,
    wanted: Wanted,
    roles: tuple[str, ...],
    *,
    insecure_bind: bool,
    with_tokens: bool,
    until_idle: bool,
    until_eof: bool,
) -> None:
    """Run a pipeline until it is interrupted: take events, fill tables and views, answer queries.

    What was acknowledged is durable whenever the run ends, and the next one goes on from there.
    """
    plan, address = require_plan(pipeline), Address(host, port)
    if with_tokens:
        asking = dataclasses.replace(plan.options, tokens=True)
        plan = msgspec.structs.replace(plan, options=asking)
    if until_eof:
        end_with_input()
    deployment = choose(wanted, layout)
    scheme = "https" if deployment.http.is_tls else "http"
    shown = f"[{host}]" if ":" in host else host
    run_pipeline(
        plan,
        layout,
        SystemClock(),
        address,
        deployment=deployment,
        only=roles,
        until_idle=until_idle,
        insecure_bind=insecure_bind,
        say=_say,
        ready=lambda: _say(f"{plan.name} runs at {scheme}://{shown}:{port}"),
    )


@click.command()
@click.option("--port", type=click.IntRange(1, 65535),
              help=f"The port to listen on; without, {PORT} or one that is free.")  # fmt: skip
@click.option("--exit", "ends", is_flag=True, help="End once the counts agree.")
def demo(port: int | None, *, ends: bool) -> None:
    """Run the game pipeline in a temporary folder, send it events, and print the counts.

    Status 0 if what was counted equals what was acknowledged.
    """
    with tempfile.TemporaryDirectory(prefix="headrace-demo-") as folder:
        layout = Layout.at(Path(folder) / "data")
        address = Address("127.0.0.1", port or _any_port())
        Demo(layout, SystemClock(), address, _show).run(_say, ends=ends)


def _any_port() -> int:
    try:
        refuse_taken_port("127.0.0.1", PORT)
    except Invalid:
        return free_port()
    return PORT


def _show(counts: list[tuple[str, int, int]]) -> None:
    total = ("all", sum(n for _, n, _ in counts), sum(n for *_, n in counts))
    print_rows(("path", "acknowledged", "counted"), [*counts, total])


def _say(line: str) -> None:
    sys.stderr.write(f"headrace: {line}\n")
    sys.stderr.flush()
