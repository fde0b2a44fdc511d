"""`headrace tail`: a topic's records as JSON lines, or a table's rows as they are committed."""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from typing import Any

import click
import msgspec
import pyarrow as pa

from headrace.app.cli import completing
from headrace.app.cli.options import data_option
from headrace.app.cli.printing import id_text
from headrace.app.cli.tail_table import POLL_S, ROWS_SHOWN, Wanted, tail_table
from headrace.app.data_directory import reading_log
from headrace.model.batch import is_client_chosen
from headrace.model.clock import Clock, SystemClock, rfc3339
from headrace.model.errors import Invalid
from headrace.model.layout import Layout
from headrace.model.log import LogReader

_MICROSECONDS = pa.int64()


def _names(_: click.Context, __: click.Parameter, value: str | None) -> tuple[str, ...]:
    return tuple(filter(None, value.split(","))) if value else ()


@click.command()
@click.argument("topic", required=False, shell_complete=completing.topics)
@click.option(
    "--table",
    "name",
    shell_complete=completing.outputs,
    help="Print new rows of this table or view instead.",
)
@click.option(
    "--from",
    "begin",
    type=click.Choice(["beginning", "end"]),
    default="end",
    show_default=True,
    help="Where to begin.",
)
@click.option("--exit", "ends", is_flag=True, help="End at the present end.")
@click.option("--count", type=click.IntRange(min=1), help="End after so many records or rows.")
@click.option("--meta", is_flag=True, help="Print where each record is, its id and its key too.")
@click.option("--rows", "rows_shown", type=click.IntRange(min=1), default=ROWS_SHOWN,
              show_default=True, help="Of a table: rows of a version to show.")  # fmt: skip
@click.option("--columns", callback=_names, help="Of a table: which columns to print, by comma.")
@data_option
@click.option("--json", "as_json", is_flag=True,
              help="Of a table: print all rows, as JSON lines, as records are.")  # fmt: skip
def tail(
    topic: str | None,
    name: str | None,
    begin: str,
    *,
    ends: bool,
    count: int | None,
    meta: bool,
    rows_shown: int,
    columns: tuple[str, ...],
    layout: Layout,
    as_json: bool,
) -> None:
    """Print a topic's records as JSON lines, and follow it.

    A record that is no JSON is printed as a JSON string. Records of several partitions come in the
    order in which they were received.

    With --table the rows of a table or view are printed as they are committed, version by version.
    Of views and of tables with a key these are the rows that are new or changed.
    """
    if (topic is None) == (name is None) or (name is not None and meta):
        raise click.UsageError("name either a topic, with --meta or not, or a table by --table")
    clock, from_beginning = SystemClock(), begin == "beginning"
    if name is not None:
        wanted = Wanted(name, from_beginning, ends, count, rows_shown, columns, as_json)
        tail_table(layout, clock, wanted)
    elif topic is not None:
        _tail_topic(
            layout, clock, topic, count, from_beginning=from_beginning, ends=ends, meta=meta
        )


def _tail_topic(
    layout: Layout,
    clock: Clock,
    topic: str,
    count: int | None,
    *,
    from_beginning: bool,
    ends: bool,
    meta: bool,
) -> None:
    left = count
    with reading_log(layout) as log:
        check_topic(log, topic)
        at = log.starts(topic) if from_beginning else log.ends(topic)
        while True:
            for record in _records(log, topic, at, log.ends(topic)):
                at[record["partition"]] = record["offset"] + 1
                click.echo(_with_meta(topic, record) if meta else as_line(record["value"]))
                if left is not None:
                    left -= 1
                if left == 0:
                    return
            if ends:
                return
            clock.sleep(POLL_S)


def check_topic(log: LogReader, topic: str) -> None:
    """Return if a log has a topic, else raise `Invalid`."""
    known = log.describe()
    if topic not in known:
        raise Invalid(
            f"There is no topic {topic}",
            hint=f"topics here: {', '.join(sorted(known)) or 'none yet'}",
            code="unknown_topic",
        )


def as_line(value: bytes) -> bytes:
    """Return a record's value as one line of JSON; as it was sent if it is one already."""
    try:
        msgspec.json.decode(value)
        return value if b"\n" not in value else msgspec.json.format(value, indent=-1)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return msgspec.json.encode(value.decode("utf-8", "backslashreplace"))


def _with_meta(topic: str, record: dict[str, Any]) -> bytes:
    identifier, key = record["id"], record["key"]
    return msgspec.json.encode(
        {
            "topic": topic,
            "partition": record["partition"],
            "offset": record["offset"],
            "received_at": rfc3339(record["received_at"]),
            "event_id": id_text(identifier),
            "client_chosen": is_client_chosen(identifier),
            "key": None if key is None else key.decode("utf-8", "backslashreplace"),
            "headers": msgspec.Raw(as_line(record["headers"] or b"{}")),
            "value": msgspec.Raw(as_line(record["value"])),
        }
    )


def _records(
    log: LogReader, topic: str, start: list[int], end: list[int]
) -> Iterator[dict[str, Any]]:
    """Yield the records of every partition between offsets, merged by when they were received."""
    partitions = [
        _partition(log, topic, partition, *bounds)
        for partition, bounds in enumerate(zip(start, end, strict=True))
    ]
    return heapq.merge(*partitions, key=lambda r: (r["received_at"], r["partition"], r["offset"]))


def _partition(
    log: LogReader, topic: str, partition: int, start: int, end: int
) -> Iterator[dict[str, Any]]:
    at = start
    while at < end:
        before = at
        for batch in log.read(topic, partition, at, end, bytes_max=1 << 20):
            column = batch.schema.get_field_index("received_at")
            stamps = batch.column(column).cast(_MICROSECONDS)
            for record in batch.set_column(column, "received_at", stamps).to_pylist():
                at = record["offset"] + 1
                yield {"partition": partition, **record}
        if at == before:
            return
