"""`headrace produce`: append records from a file or standard input."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import click

from headrace.app.cli import completing
from headrace.app.cli.options import data_option, json_option
from headrace.app.cli.printing import console, print_json
from headrace.app.cli.tail import check_topic
from headrace.app.data_directory import find_plan, reading_log, writing_log
from headrace.model.batch import UNMARKED
from headrace.model.clock import SystemClock
from headrace.model.layout import Layout
from headrace.model.plan import Source, Topic
from headrace.model.source import Page, PulledRecord
from headrace.pull.records import Door
from headrace.sources.documents import documents
from headrace.sources.paths import name_at, parse_path

RECORDS_A_BATCH = 1_000


@click.command()
@click.argument("topic", shell_complete=completing.topics)
@click.argument("file", type=click.Path(path_type=Path, allow_dash=True, exists=True), default="-")
@click.option("--id", "id_path", default="", help="Key path of a record's own id.")
@click.option("--key", "key_path", default="", help="Key path of a record's key.")
@data_option
@json_option
def produce(
    topic: str, file: Path, id_path: str, key_path: str, layout: Layout, *, as_json: bool
) -> None:
    """Append records to TOPIC: the lines of FILE, or of standard input without one or with `-`.

    A file may be NDJSON or a JSON array, plain or gzip. Each batch is durable when it is counted;
    while a run is alive on the data directory it goes through that run's door. A record that is
    not valid for its topic is appended all the same and becomes a dead letter.
    """
    clock = SystemClock()
    with reading_log(layout) as reader:
        check_topic(reader, topic)
    door = Door(Source("produce", "command", topic, {}), _topic(layout, topic), clock)
    names, keys = parse_path(id_path), parse_path(key_path)
    appended = valid = 0
    with writing_log(layout, clock) as log:
        for values in _batches(_values(file)):
            records = [_record(value, names, keys) for value in values]
            batch = door.batch(Page(records, b""))
            log.append(topic, batch)
            appended += len(batch)
            valid += len(batch) - batch.marks.count(UNMARKED)
    if as_json:
        print_json({"topic": topic, "appended": appended, "invalid": appended - valid})
        return
    bad = f"; {appended - valid} not valid, to be dead letters" if appended > valid else ""
    console().print(f"{appended} record{'' if appended == 1 else 's'} appended to {topic}{bad}")


def _topic(layout: Layout, name: str) -> Topic:
    """Return the topic as the pipeline declares it, else as one that takes any JSON object."""
    plan = find_plan(layout)
    declared = [t for t in plan.topics if t.name == name] if plan else []
    return declared[0] if declared else Topic(name, 1)


def _values(file: Path) -> Iterator[bytes]:
    if str(file) != "-":
        return documents(file)
    return (line for raw in sys.stdin.buffer if (line := raw.strip()))


def _batches(values: Iterable[bytes]) -> Iterator[list[bytes]]:
    taken = iter(values)
    while batch := list(itertools.islice(taken, RECORDS_A_BATCH)):
        yield batch


def _record(value: bytes, names: tuple[str, ...], keys: tuple[str, ...]) -> PulledRecord:
    key = name_at(value, keys) if keys else None
    return PulledRecord(
        value=value,
        key=None if key is None else key.encode("utf-8", "surrogatepass"),
        id=name_at(value, names) if names else None,
    )
