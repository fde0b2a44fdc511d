"""Reading topics back: what there is, and the records of a partition as they were sent."""

from __future__ import annotations

import asyncio
import base64
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from typing import Any
from urllib.parse import parse_qs

import msgspec
import pyarrow as pa

from headrace.collect.exchange import JSON, Request, Response, answer_json
from headrace.model.errors import Invalid
from headrace.model.log import LogReader
from headrace.model.plan import Plan, Topic

_LIMIT_DEFAULT = 100
_LIMIT_MAX = 1_000
_ANSWER_BYTES_MAX = 1 << 20
"""An answer ends after the record with which its values pass this."""

_RAW = msgspec.json.Decoder(msgspec.Raw)

OpenReader = Callable[[], AbstractContextManager[LogReader]]


class Readback:
    """Answers the reading half of `/v1/topics`, on one thread of its own."""

    def __init__(self, open_reader: OpenReader, plan: Plan) -> None:
        self._open = open_reader
        self._plan = plan
        self._thread = ThreadPoolExecutor(1, "collect-read")

    def close(self) -> None:
        """Release the thread."""
        self._thread.shutdown()

    async def topics(self, request: Request, client: str) -> Response:  # noqa: ARG002 - a handler
        """Answer `GET /v1/topics`."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._list)

    async def records(self, topic: str, request: Request, client: str) -> Response:  # noqa: ARG002
        """Answer `GET /v1/topics/{topic}/records?partition=&offset=&limit=`."""
        asked = parse_qs(request.query, keep_blank_values=True)
        partition = _number(asked, "partition", 0)
        offset = _number(asked, "offset", None)
        limit = _number(asked, "limit", _LIMIT_DEFAULT)
        if not 1 <= limit <= _LIMIT_MAX:
            raise _bad_parameter("limit", f"1 to {_LIMIT_MAX}")
        return await asyncio.get_running_loop().run_in_executor(
            self._thread, self._read, topic, partition, offset, limit
        )

    def _list(self) -> Response:
        with self._open() as log:
            known = log.describe()
            topics = [
                {
                    "name": topic.name,
                    "partitions": topic.partitions,
                    "record": topic.schema.name if topic.schema else None,
                    "starts": log.starts(topic.name),
                    "ends": log.ends(topic.name),
                }
                for topic in (*self._plan.topics, *map(_change_topic, self._plan.change_topics))
                if topic.name in known
            ]
        return answer_json({"topics": topics})

    def _read(self, topic: str, partition: int, offset: int | None, limit: int) -> Response:
        with self._open() as log:
            starts, ends = log.starts(topic), log.ends(topic)
            if partition >= len(ends):
                raise _bad_parameter("partition", f"0 to {len(ends) - 1}")
            first = starts[partition] if offset is None else offset
            end = min(first + limit, ends[partition])
            told: list[tuple[int, bytes]] = []
            if first < end:
                batches = log.read(topic, partition, first, end, bytes_max=_ANSWER_BYTES_MAX)
                told = list(_told(batches, limit))
        head = msgspec.json.encode(
            {
                "topic": topic,
                "partition": partition,
                "start": starts[partition],
                "end": ends[partition],
                "next": told[-1][0] if told else first,
            }
        )
        return Response(
            200, [JSON], head[:-1] + b',"records":[' + b",".join([r for _, r in told]) + b"]}"
        )


def _change_topic(name: str) -> Topic:
    return Topic(name, 1)


def _told(batches: Iterator[pa.RecordBatch], limit: int) -> Iterator[tuple[int, bytes]]:
    """Yield (offset after it, record as JSON), within the bounds of an answer."""
    size_bytes = 0
    for batch in batches:
        for row in batch.slice(0, limit).to_pylist():
            yield row["offset"] + 1, _record(row)
            limit -= 1
            size_bytes += len(row["value"])
            if limit == 0 or size_bytes > _ANSWER_BYTES_MAX:
                return


def _record(row: dict[str, Any]) -> bytes:
    told = {
        "offset": row["offset"],
        "received_at": row["received_at"],
        "id": str(uuid.UUID(bytes=row["id"])),
        "key": row["key"].decode("utf-8", "replace") if row["key"] is not None else None,
        "headers": msgspec.Raw(row["headers"] or b"{}"),
        **_value(row["value"]),
    }
    return msgspec.json.encode(told)


def _value(value: bytes) -> dict[str, object]:
    """Return the value as the JSON it is, or its bytes if it cannot stand in an answer."""
    try:
        value.decode()
        return {"value": _RAW.decode(value)}
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return {"value_base64": base64.b64encode(value).decode()}


def _number(asked: dict[str, list[str]], name: str, default: Any) -> Any:  # noqa: ANN401
    text = asked.get(name, [""])[0]
    if not text:
        return default
    if not (text.isascii() and text.isdigit()) or len(text) > len(str(2**63)):
        raise _bad_parameter(name, "a whole number from 0")
    return int(text)


def _bad_parameter(name: str, wanted: str) -> Invalid:
    return Invalid(f"{name} has to be {wanted}", hint="", code="invalid_parameter")
