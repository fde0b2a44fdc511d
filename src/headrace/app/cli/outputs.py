"""`headrace outputs`: tables and views that are stored but that no pipeline makes any more."""

from __future__ import annotations

import click

from headrace.app.cli import completing
from headrace.app.cli.options import data_option, json_option
from headrace.app.cli.printing import console, print_json, print_rows
from headrace.app.data_directory import open_tables, read_plan
from headrace.app.supervisor import held
from headrace.model.clock import SystemClock
from headrace.model.errors import Invalid
from headrace.model.layout import Layout
from headrace.model.plan import Plan

MADE = ("tables/", "changes/", "views/", "state/")


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
@click.argument("names", nargs=-1, required=True, shell_complete=completing.outputs)
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option("--made", is_flag=True, help="Also what the pipeline makes: it begins anew, empty.")
@data_option
def drop(names: tuple[str, ...], layout: Layout, *, yes: bool, made: bool) -> None:
    """Remove outputs that the pipeline no longer makes, with their files; nothing may be running.

    A view's name takes its state along, a keyed table's its changelog.
    """
    plan = read_plan(layout)
    storage = open_tables(layout, SystemClock())
    stored = [n for n in storage.names() if n.startswith(MADE)]
    kept = set() if made else wanted(plan)
    meant = [n for name in names for n in _meant(name, stored, plan.name, kept)]
    if not yes:
        click.confirm(f"Remove {', '.join(meant)} and all their rows?", abort=True, err=True)
    with held(layout):
        for name in meant:
            storage.drop(name)
            console().print(f"{name} is dropped")


def wanted(plan: Plan) -> set[str]:
    """Return the storage names of what a plan makes."""
    named = {f"tables/{t.name}" for t in plan.tables} | {f"views/{v.name}" for v in plan.views}
    named |= {t.storage for t in plan.tables}
    return named | {f"state/{v.name}-{v.fingerprint}" for v in plan.views}


def _meant(name: str, stored: list[str], pipeline: str, kept: set[str]) -> list[str]:
    """Return the stored outputs that a name stands for, but for those that are kept."""
    bare = name.rpartition("/")[2]
    found = [
        s
        for s in stored
        if s == name
        or ("/" not in name and s in (f"tables/{bare}", f"changes/{bare}", f"views/{bare}"))
        or (s.startswith("state/") and s[len("state/") :].rpartition("-")[0] == bare)
    ]
    if not found:
        raise Invalid(
            f"There is no output {name}",
            hint="`headrace outputs list` shows those there are",
            code="unknown_output",
        )
    left = [s for s in found if s not in kept]
    if not left:
        raise Invalid(
            f"The pipeline {pipeline} makes {name}",
            hint="--made drops it all the same: it begins anew with what comes from then on",
            code="output_in_use",
        )
    return left
