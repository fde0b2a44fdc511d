"""`headrace sources`: what is pulled and how far it is; add, pause, resume and remove."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import click
import msgspec
from rich.console import Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from headrace.app.cli.options import data_option, json_option
from headrace.app.cli.printing import console, print_json, visible
from headrace.app.data_directory import read_plan, reading_log, writing_log
from headrace.app.registry import options_at_run_time
from headrace.control import sources as control
from headrace.control.progress import Listed, list_sources, read_progress
from headrace.model.clock import Clock, SystemClock
from headrace.model.errors import Invalid
from headrace.model.layout import Layout
from headrace.model.log import Log
from headrace.model.options import Scalar, declared
from headrace.model.plan import Plan

WATCH_EVERY_S = 1.0
_COLUMNS = ("source", "state", "sweep", "pages", "records", "rate", "remaining", "ETA", "goes on")
_MINUTE_S, _HOUR_S, _DAY_S = 60, 3600, 86_400
_COLOURS = {"running": "green", "done": "green", "failed": "bold red", "waiting": "yellow"}

name_argument = click.argument("name")


@click.group()
def sources() -> None:
    """Sources of records: list them with their progress, add, pause, resume, remove.

    What is changed holds over restarts; a run that is alive follows within two seconds.
    """


@sources.command("list")
@click.option("--watch", is_flag=True, help="Go on until interrupted, once a second.")
@data_option
@json_option
def list_all(layout: Layout, *, watch: bool, as_json: bool) -> None:
    """List the sources of the pipeline file and those added, with their progress."""
    plan, clock = read_plan(layout), SystemClock()

    def found() -> list[Listed]:
        with reading_log(layout) as log:
            return list_sources(plan, log, read_progress(layout.run, clock))

    if as_json:
        print_json(msgspec.to_builtins(found()))
        while watch:
            clock.sleep(WATCH_EVERY_S)
            print_json(msgspec.to_builtins(found()))
    elif watch:
        now = shown(found(), clock.now_us())
        with Live(now, console=console(), auto_refresh=False) as live:
            while True:
                clock.sleep(WATCH_EVERY_S)
                live.update(shown(found(), clock.now_us()), refresh=True)
    else:
        console().print(shown(found(), clock.now_us()))


@sources.command()
@name_argument
@click.option("--kind", required=True, help="What it is: gbif, obis, idigbio.")
@click.option("--topic", required=True, help="The topic that it fills.")
@click.option("--counts", help="The topic that gets the service's own counts.")
@click.argument("options", nargs=-1, metavar="[OPTION=VALUE]...")
@data_option
@json_option
def add(
    name: str,
    layout: Layout,
    *,
    kind: str,
    topic: str,
    counts: str | None,
    options: tuple[str, ...],
    as_json: bool,
) -> None:
    """Add the source NAME; its kind's options are written as page_size=100.

    Only where the pipeline file says add_sources=True.
    """
    plan, clock = read_plan(layout), SystemClock()
    given = read_given(options_at_run_time(kind), options)
    wanted = control.Request(name, kind, topic, given, counts)
    with writing_log(layout, clock) as log:
        made = control.add(plan, log, options_at_run_time, wanted, clock)
    _say(f"{name} is added", msgspec.to_builtins(made), as_json=as_json)


@sources.command()
@name_argument
@data_option
@json_option
def pause(name: str, layout: Layout, *, as_json: bool) -> None:
    """Have the source NAME wait until it is resumed."""
    _change(layout, name, control.pause)
    _say(f"{name} is paused", {"paused": name}, as_json=as_json)


@sources.command()
@name_argument
@data_option
@json_option
def resume(name: str, layout: Layout, *, as_json: bool) -> None:
    """Have the source NAME go on, also one that had ended with an error."""
    _change(layout, name, control.resume)
    _say(f"{name} is resumed", {"resumed": name}, as_json=as_json)


@sources.command()
@name_argument
@data_option
@json_option
def remove(name: str, layout: Layout, *, as_json: bool) -> None:
    """Forget the source NAME, which was added, and how far it came; what it collected stays."""
    plan = read_plan(layout)
    with writing_log(layout, SystemClock()) as log:
        control.remove(plan, log, name)
    _say(f"{name} is removed", {"removed": name}, as_json=as_json)


def read_given(kind: type, words: Sequence[str]) -> dict[str, Scalar]:
    """Return options written as NAME=VALUE, each as its kind declares it; `Invalid` if none."""
    types = {d.name: d.type for d in declared(kind)}
    given: dict[str, Scalar] = {}
    for word in words:
        name, sign, text = word.partition("=")
        if not sign:
            raise Invalid(f"{word!r} is no option", hint="Write NAME=VALUE, as page_size=100.")
        given[name] = _value(name, text, types.get(name, "str"))
    return given


def _value(name: str, text: str, type_: str) -> Scalar:
    """Return a text as the first of its types that takes it: `int or str` is a number if it can."""
    readers: dict[str, Callable[[str], Scalar]] = {"int": int, "float": float, "bool": _boolean}
    for word in type_.split(" or "):
        try:
            return readers.get(word, str)(text)
        except ValueError:
            continue
    raise Invalid(f"Option {name} must be {type_}, not {text!r}", code="invalid_options")


def _boolean(text: str) -> bool:
    if text not in ("true", "false"):
        raise ValueError(text)
    return text == "true"


def _change(layout: Layout, name: str, act: Callable[[Plan, Log, str, Clock], None]) -> None:
    plan, clock = read_plan(layout), SystemClock()
    with writing_log(layout, clock) as log:
        act(plan, log, name, clock)


def _say(sentence: str, value: object, *, as_json: bool) -> None:
    if as_json:
        print_json(value)
    else:
        console().print(visible(sentence), markup=False)


def shown(found: Sequence[Listed], now_us: int) -> Group:
    """Return the sources as a table, and below it what people should know of some."""
    table = Table(box=None, header_style="bold")
    for position, column in enumerate(_COLUMNS):
        table.add_column(column, justify="right" if position > 1 else "left", overflow="fold")
    for source in found:
        table.add_row(
            Text(source.name),
            Text(source.state, style=_COLOURS.get(source.state, "default")),
            _number(source.sweep),
            _number(source.pages),
            _number(source.records),
            "" if source.records_per_s is None else f"{source.records_per_s:,.1f}/s",
            _number(source.remaining),
            "" if source.eta_s is None else duration(source.eta_s),
            _goes_on(source, now_us),
        )
    said = [
        Text(visible(f"{source.name}: {what}"))
        for source in found
        for what in (source.error, source.hint, source.waiting_for, source.notice)
        if what
    ]
    return Group(table, *said)


def _goes_on(source: Listed, now_us: int) -> str:
    if source.goes_on_at_us is None or source.state not in ("waiting", "resting"):
        return ""
    return f"in {duration(max(0.0, (source.goes_on_at_us - now_us) / 1_000_000))}"


def _number(value: int | None) -> str:
    return "" if value is None else f"{value:,}"


def duration(seconds: float) -> str:
    """Return a time to wait in its two largest units."""
    whole = round(seconds)
    if whole < _MINUTE_S:
        return f"{whole} s"
    if whole < _HOUR_S:
        return f"{whole // _MINUTE_S} min {whole % _MINUTE_S} s"
    if whole < _DAY_S:
        return f"{whole // _HOUR_S} h {whole % _HOUR_S // _MINUTE_S} min"
    return f"{whole // _DAY_S} d {whole % _DAY_S // _HOUR_S} h"
