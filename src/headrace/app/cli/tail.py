"""`headrace tail`: a topic's records as JSON lines."""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from typing import Any

import click
import msgspec
import pyarrow as pa

from headrace.app.cli.options import data_option
from headrace.app.cli.printing import id_text
from headrace.app.data_directory import reading_log
from headrace.model.batch import is_client_chosen
from headrace.model.clock import SystemClock, rfc3339
from headrace.model.errors import Invalid
from headrace.model.layout import Layout
from headrace.model.log import LogReader

POLL_S = 0.2
_MICROSECONDS = pa.int64()


@click.command()
@click.argument("topic")
@click.option(
    "--from",
    "begin",
    type=click.Choice(["beginning", "end"]),
    default="end",
    show_default=True,
    help="Where to begin.",
)
@click.option("--exit", "ends", is_flag=True, help="End at the topic's present end.")
@click.option("--count", type=click.IntRange(min=1), help="End after so many records.")
@click.option("--meta", is_flag=True, help="Print where each record is, its id and its key too.")
@data_option
def tail(
    topic: str, begin: str, *, ends: bool, count: int | None, meta: bool, layout: Layout
) -> None:
    """Print a topic's records as JSON lines, and follow it.

    A record that is no JSON is printed as a JSON string. Records of several partitions come in the
    order in which they were received.
    """
    clock = SystemClock()
    left = count
    with reading_log(layout) as log:
        check_topic(log, topic)
        at = log.starts(topic) if begin == "beginning" else log.ends(topic)
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
