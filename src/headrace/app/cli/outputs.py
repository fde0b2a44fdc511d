"""`headrace outputs`: tables and views that are stored but that no pipeline makes any more."""

from __future__ import annotations

import click

from headrace.app.cli.options import data_option, json_option
from headrace.app.cli.printing import console, print_json, print_rows
from headrace.app.data_directory import open_tables, read_plan
from headrace.app.supervisor import held
from headrace.model.clock import SystemClock
from headrace.model.errors import Invalid
from headrace.model.layout import Layout
from headrace.model.plan import Plan

MADE = ("tables/", "views/", "state/")


@click.group()
def outputs() -> None:
    """What the pipeline makes, and what is left of what it made before.

    A table or view that is taken out of a pipeline stays until it is dropped here.
    """


@outputs.command("list")
@data_option
@json_option
def list_outputs(layout: Layout, *, as_json: bool) -> None:
    """List stored outputs and whether the pipeline still makes them."""
    plan = read_plan(layout)
    found = [
        {"output": name, "made": name in wanted(plan)}
        for name in open_tables(layout, SystemClock()).names()
        if name.startswith(MADE)
    ]
    if as_json:
        print_json(found)
        return
    rows = [(o["output"], "made" if o["made"] else "left over: drop it") for o in found]
    print_rows(("output", "state"), rows)


@outputs.command()
@click.argument("names", nargs=-1, required=True)
@click.option("--yes", is_flag=True, help="Do not ask.")
@data_option
def drop(names: tuple[str, ...], layout: Layout, *, yes: bool) -> None:
    """Remove outputs that the pipeline no longer makes, with their files; nothing may be running.

    A view's name takes its state along.
    """
    plan = read_plan(layout)
    storage = open_tables(layout, SystemClock())
    stored = [n for n in storage.names() if n.startswith(MADE)]
    meant = [n for name in names for n in _meant(name, stored, plan)]
    if not yes:
        click.confirm(f"Remove {', '.join(meant)} and all their rows?", abort=True, err=True)
    with held(layout):
        for name in meant:
            storage.drop(name)
            console().print(f"{name} is dropped")


def wanted(plan: Plan) -> set[str]:
    """Return the storage names of what a plan makes."""
    named = {f"tables/{t.name}" for t in plan.tables} | {f"views/{v.name}" for v in plan.views}
    return named | {f"state/{v.name}-{v.fingerprint}" for v in plan.views}


def _meant(name: str, stored: list[str], plan: Plan) -> list[str]:
    bare = name.rpartition("/")[2]
    found = [
        s
        for s in stored
        if s == name
        or ("/" not in name and s in (f"tables/{bare}", f"views/{bare}"))
        or (s.startswith("state/") and s[len("state/") :].rpartition("-")[0] == bare)
    ]
    if not found:
        raise Invalid(
            f"There is no output {name}",
            hint="`headrace outputs list` shows those there are",
            code="unknown_output",
        )
    left = [s for s in found if s not in wanted(plan)]
    if not left:
        raise Invalid(
            f"The pipeline {plan.name} makes {name}",
            hint="take it out of the pipeline and run that once; then drop it",
            code="output_in_use",
        )
    return left
