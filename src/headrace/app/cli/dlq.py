"""`headrace dlq`: the records that could not become rows, and what to do about them."""

from __future__ import annotations

from typing import Any, get_args

import click
import pyarrow as pa

from headrace.app.cli.options import data_option, json_option
from headrace.app.cli.printing import console, print_json, print_rows
from headrace.app.data_directory import open_tables, reading_log, writing_log
from headrace.control import dead_letters
from headrace.model.clock import SystemClock
from headrace.model.errors import Invalid
from headrace.model.layout import Layout
from headrace.model.letters import Status

SHOWN = ("letter_id", "status", "topic", "output", "code", "message", "failed_at")
STATUSES = (*get_args(Status), "all")

ids_argument = click.argument("letter_ids", nargs=-1)
all_option = click.option("--all", "every", is_flag=True, help="Every open letter that is listed.")
topic_option = click.option("--topic", help="Only letters of this topic.")
output_option = click.option("--output", help="Only letters of this table.")
code_option = click.option("--code", help="Only letters with this error code.")


@click.group()
def dlq() -> None:
    """Dead letters: list them, show one, replay or discard them."""


@dlq.command("list")
@topic_option
@output_option
@code_option
@click.option("--status", type=click.Choice(STATUSES), default="open", show_default=True,
              help="What was done about them.")  # fmt: skip
@click.option("--limit", type=click.IntRange(min=1), default=50, show_default=True,
              help="How many at most, newest first.")  # fmt: skip
@data_option
@json_option
def list_letters(
    topic: str | None,
    output: str | None,
    code: str | None,
    status: str,
    limit: int,
    layout: Layout,
    *,
    as_json: bool,
) -> None:
    """List dead letters, newest failure first."""
    wanted = None if status == "all" else status
    found = _letters(layout, topic=topic, output=output, code=code, status=wanted)
    rows = found.slice(0, limit).to_pylist()
    if as_json:
        print_json(rows)
        return
    print_rows(SHOWN, [[row[name] for name in SHOWN] for row in rows])
    if found.num_rows > limit:
        console().print(f"{found.num_rows - limit} more; --limit shows them")


@dlq.command()
@click.argument("letter_id")
@data_option
@json_option
def show(letter_id: str, layout: Layout, *, as_json: bool) -> None:
    """Show all that is known of one dead letter, with the bytes as they were sent."""
    rows = [r for r in _letters(layout, status=None).to_pylist() if r["letter_id"] == letter_id]
    if not rows:
        raise Invalid(
            f"There is no dead letter {letter_id}",
            hint="`headrace dlq list --status all` shows those there are",
            code="unknown_letter",
        )
    if as_json:
        print_json(rows[0])
    else:
        print_rows(("field", "value"), rows[0].items())


@dlq.command()
@ids_argument
@all_option
@topic_option
@output_option
@code_option
@data_option
@json_option
def replay(layout: Layout, *, as_json: bool, **which: Any) -> None:  # noqa: ANN401 - see _chosen
    """Append the records of letters again, once: to their topic, or to the one table that failed.

    A second replay of the same letter is refused.
    """
    ids = _chosen(layout, **which)
    clock = SystemClock()
    with writing_log(layout, clock) as log:
        done = dead_letters.replay(log, open_tables(layout, clock), ids, clock)
    _say("replayed", done, as_json=as_json)


@dlq.command()
@ids_argument
@all_option
@topic_option
@output_option
@code_option
@click.option("--why", default="", help="The reason, kept with the act.")
@data_option
@json_option
def discard(layout: Layout, why: str, *, as_json: bool, **which: Any) -> None:  # noqa: ANN401 - see _chosen
    """Record that nothing will be done about letters; their bytes stay."""
    ids = _chosen(layout, **which)
    clock = SystemClock()
    with writing_log(layout, clock) as log:
        done = dead_letters.discard(log, open_tables(layout, clock), ids, clock, why)
    _say("discarded", done, as_json=as_json)


def _letters(layout: Layout, **filters: Any) -> pa.Table:  # noqa: ANN401 - as list_letters takes them
    with reading_log(layout) as log:
        return dead_letters.list_letters(open_tables(layout, SystemClock()), log, **filters)


def _chosen(
    layout: Layout,
    letter_ids: tuple[str, ...],
    *,
    every: bool,
    topic: str | None,
    output: str | None,
    code: str | None,
) -> list[str]:
    """Return the letters meant: those named, or all open ones that fit the filters."""
    if bool(letter_ids) == every:
        msg = "Name letters by their ids, or say --all"
        raise Invalid(msg, hint="`headrace dlq list` shows the ids")
    if letter_ids:
        return list(letter_ids)
    open_letters = _letters(layout, topic=topic, output=output, code=code, status="open")
    return [str(i) for i in open_letters.column("letter_id").to_pylist()]


def _say(act: str, ids: list[str], *, as_json: bool) -> None:
    if as_json:
        print_json({act: ids})
    else:
        console().print(f"{len(ids)} dead letters {act}")
