"""`headrace topics`: what topics a log has; create and delete them by hand."""

from __future__ import annotations

import click

from headrace.app.cli import completing
from headrace.app.cli.options import data_option, json_option
from headrace.app.cli.printing import console, print_json, print_rows
from headrace.app.cli.tail import check_topic
from headrace.app.data_directory import find_plan, reading_log, writing_log
from headrace.model.clock import SystemClock
from headrace.model.errors import Invalid
from headrace.model.layout import Layout

PARTITIONS_MAX = 1024


@click.group()
def topics() -> None:
    """List, describe, create and delete topics.

    A run creates its pipeline's topics itself; by hand it is for topics that no pipeline declares.
    """


@topics.command("list")
@data_option
@json_option
def list_topics(layout: Layout, *, as_json: bool) -> None:
    """List topics with their partitions and the records that the log still keeps."""
    with reading_log(layout) as log:
        found = [
            {
                "topic": name,
                "partitions": info.partitions,
                "kept": sum(log.ends(name)) - sum(log.starts(name)),
                "appended": sum(log.ends(name)),
            }
            for name, info in sorted(log.describe().items())
        ]
    if as_json:
        print_json(found)
    else:
        print_rows(("topic", "partitions", "kept", "appended"), [list(t.values()) for t in found])


@topics.command()
@click.argument("topic", shell_complete=completing.topics)
@data_option
@json_option
def describe(topic: str, layout: Layout, *, as_json: bool) -> None:
    """Show a topic's incarnation and, for each partition, the offsets that it keeps."""
    with reading_log(layout) as log:
        check_topic(log, topic)
        info, starts, ends = log.describe()[topic], log.starts(topic), log.ends(topic)
    partitions = [
        {"partition": number, "start": start, "end": end}
        for number, (start, end) in enumerate(zip(starts, ends, strict=True))
    ]
    if as_json:
        print_json({"topic": topic, "incarnation": info.incarnation, "partitions": partitions})
        return
    console().print(f"{topic}, incarnation {info.incarnation}")
    print_rows(("partition", "start", "end"), [list(p.values()) for p in partitions])


@topics.command()
@click.argument("topic", shell_complete=completing.topics)
@click.option(
    "--partitions", type=click.IntRange(1, PARTITIONS_MAX), default=3, show_default=True,
    help="Into how many parts its records are spread.",
)  # fmt: skip
@data_option
def create(topic: str, partitions: int, layout: Layout) -> None:
    """Create a topic; nothing happens if it is there with as many partitions."""
    with writing_log(layout, SystemClock()) as log:
        log.create(topic, partitions)
    console().print(f"{topic} has {partitions} partition{'s' if partitions > 1 else ''}")


@topics.command()
@click.argument("topic", shell_complete=completing.topics)
@click.option("--yes", is_flag=True, help="Do not ask.")
@data_option
def delete(topic: str, layout: Layout, *, yes: bool) -> None:
    """Delete a topic and the records that the log keeps of it; tables stay as they are."""
    plan = find_plan(layout)
    if plan is not None and topic in {*(t.name for t in plan.topics), *plan.change_topics}:
        raise Invalid(
            f"The pipeline {plan.name} declares topic {topic}",
            hint="take it out of the pipeline and run that once; then delete it",
            code="topic_in_use",
        )
    with reading_log(layout) as log:
        check_topic(log, topic)
    if not yes:
        click.confirm(f"Delete topic {topic} and its records?", abort=True, err=True)
    with writing_log(layout, SystemClock()) as writer:
        writer.delete(topic)
    console().print(f"{topic} is deleted")
