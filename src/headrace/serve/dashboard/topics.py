"""Topics: how many records they hold, how far they are read, and their records, searched."""

from __future__ import annotations

import asyncio
import heapq
import threading
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import urlencode

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from headrace.model.clock import Clock
from headrace.model.errors import HeadraceError, Invalid
from headrace.model.log import LogReader
from headrace.model.plan import Plan
from headrace.serve.arguments import Arguments
from headrace.serve.dashboard import epochs
from headrace.serve.dashboard.epochs import Epochs
from headrace.serve.dashboard.page import ROOT, Shell
from headrace.serve.freshness import Ledger, Row

SHOWN = 50
"""Records of a page."""
CHUNK_MIN, CHUNK = 16, 500
"""Records of a partition that are read at a time, newest first: a few, and then ever more …"""
CHUNK_BYTES = 8 << 20
"""… up to about so many bytes, since all are held in memory and a record may be megabytes."""
SCANNED_MAX = 20_000
"""Records that one search looks at; it goes on where it stopped."""
VALUE_CHARACTERS_MAX = 20_000
INDENTED_CHARACTERS_MAX = 5 * VALUE_CHARACTERS_MAX
"""What is nested deep would be almost all indentation: 17 MB of 20 kB."""


class PartitionState(msgspec.Struct, frozen=True):
    """One partition: what the log holds and up to where it is in the tables."""

    number: int
    start: int
    end: int
    processed: int | None
    """None of a topic that no table reads."""

    @property
    def lag(self) -> int | None:
        """How many records no table contains yet."""
        return None if self.processed is None else max(0, self.end - self.processed)


class TopicState(msgspec.Struct, frozen=True):
    """One topic."""

    name: str
    partitions: Sequence[PartitionState]
    per_s: float
    """Records a second over the last minute."""
    is_changes: bool
    """Whether views publish to it."""

    @property
    def records(self) -> int:
        """How many records were ever appended."""
        return sum(p.end for p in self.partitions)

    @property
    def lag(self) -> int | None:
        """How many records no table contains yet; None if none is to."""
        lags = [p.lag for p in self.partitions if p.lag is not None]
        return sum(lags) if lags else None


class Record(msgspec.Struct, frozen=True):
    """A record of a topic, as it is shown."""

    partition: int
    offset: int
    received_at_us: int
    id: str
    key: str | None
    headers: str
    value: str
    """Text, indented if it is JSON; bytes that are none as hexadecimal."""
    line: str
    """The same on one line."""


class Found(msgspec.Struct, frozen=True):
    """A page of records, and where the next one begins."""

    records: Sequence[Record]
    scanned: int
    before: Mapping[int, int]
    """Partition → the offset up to which is to be searched next; empty at the beginning."""


class Topics:
    """What the log says of topics; safe to use from many threads, which take turns."""

    def __init__(self, plan: Plan, log: LogReader, ledger: Ledger, epochs_: Epochs) -> None:
        """`log` is used here alone."""
        self._plan = plan
        self._log = log
        self._ledger = ledger
        self._epochs = epochs_
        self._lock = threading.Lock()

    def states(self, now_us: int) -> list[TopicState]:
        """Return every topic of the plan, and those to which views publish."""
        last = self._ledger.last()
        latest = self._epochs.latest()
        with self._lock:
            known = self._log.describe()
            names = (*(t.name for t in self._plan.topics), *self._plan.change_topics)
            return [
                TopicState(
                    name=name,
                    partitions=self._partitions(name, last),
                    per_s=epochs.rate_per_s(latest, now_us, name),
                    is_changes=name in self._plan.change_topics,
                )
                for name in names
                if name in known
            ]

    def _partitions(self, name: str, last: Row) -> list[PartitionState]:
        starts, ends = self._log.starts(name), self._log.ends(name)
        is_read = name not in self._plan.change_topics
        return [
            PartitionState(n, start, end, last.offsets.get(f"{name}/{n}", 0) if is_read else None)
            for n, (start, end) in enumerate(zip(starts, ends, strict=True))
        ]

    def search(
        self,
        topic: str,
        is_wanted: Callable[[Mapping[str, Any]], bool],
        partition: int | None,
        before: Mapping[int, int],
    ) -> Found:
        """Return the newest records that are wanted, before some offsets or the ends.

        Partitions are merged by the time of receipt. At most `SCANNED_MAX` records are looked at.
        """
        with self._lock:
            starts, ends = self._log.starts(topic), self._log.ends(topic)
            chosen = [partition] if partition is not None else range(len(ends))
            at = {n: min(before.get(n, ends[n]), ends[n]) for n in chosen if n < len(ends)}
            newest_first = heapq.merge(
                *(self._backwards(topic, n, starts[n], end) for n, end in at.items()),
                key=lambda row: -row["received_at"].timestamp(),
            )
            found: list[Record] = []
            scanned = 0
            for row in newest_first:
                scanned += 1
                at[row["partition"]] = row["offset"]
                if is_wanted(row):
                    found.append(_record(row))
                if len(found) == SHOWN or scanned == SCANNED_MAX:
                    break
            is_more = any(end > starts[n] for n, end in at.items())
        return Found(found, scanned, at if is_more else {})

    def _backwards(
        self, topic: str, partition: int, start: int, end: int
    ) -> Iterator[dict[str, Any]]:
        """Yield a partition's records from `end` down to `start`."""
        wanted = CHUNK_MIN
        while end > start:
            first = max(start, end - wanted)
            rows: list[dict[str, Any]] = []
            at = first
            while at < end:
                size = len(rows)
                for batch in self._log.read(topic, partition, at, end):
                    rows += batch.to_pylist()
                if len(rows) == size:
                    break
                at = rows[-1]["offset"] + 1
            for row in reversed(rows):
                yield {**row, "partition": partition}
            is_small = 2 * sum(len(row["value"]) for row in rows) <= CHUNK_BYTES
            wanted = min(CHUNK, 2 * wanted) if is_small else max(1, wanted // 2)
            end = first


class TopicPages:
    """The handlers."""

    def __init__(self, shell: Shell, topics: Topics, clock: Clock) -> None:
        self._shell = shell
        self._topics = topics
        self._clock = clock

    async def listed(self, request: Request) -> Response:
        """Show every topic."""
        Arguments(request.query_params.multi_items()).finish()
        states = await asyncio.to_thread(self._topics.states, self._clock.now_us())
        return self._shell.page("topics.html", "Topics", request, topics=states, every_s=2)

    async def one(self, request: Request) -> Response:
        """Show a topic's partitions, and its newest records or those that are looked for."""
        name = request.path_params["topic"]
        arguments = Arguments(request.query_params.multi_items())
        text, key = arguments.take("text") or "", arguments.take("key") or ""
        partition, before = _partition(arguments), _before(arguments.take("before") or "")
        arguments.finish()
        states = await asyncio.to_thread(self._topics.states, self._clock.now_us())
        topic = next((t for t in states if t.name == name), None)
        if topic is None:
            hint = f"There are: {', '.join(t.name for t in states)}."
            raise HeadraceError(f"There is no topic {name!r}", hint=hint, code="not_found")
        found = await asyncio.to_thread(
            self._topics.search, name, _wanted(text, key), partition, before
        )
        asked = {"text": text, "key": key, "partition": "" if partition is None else partition}
        older = ",".join(f"{n}:{offset}" for n, offset in found.before.items())
        return self._shell.page(
            "topic.html",
            name,
            request,
            topic=topic,
            found=found,
            asked=asked,
            is_first=not before,
            is_search=bool(text or key),
            older=f"{ROOT}topics/{name}?{urlencode({**asked, 'before': older})}" if older else "",
        )


def _wanted(text: str, key: str) -> Callable[[Mapping[str, Any]], bool]:
    sought, sought_key = text.encode().lower(), key.encode()

    def is_wanted(row: Mapping[str, Any]) -> bool:
        if sought_key and row["key"] != sought_key:
            return False
        return not sought or sought in row["value"].lower() or sought in (row["key"] or b"").lower()

    return is_wanted


def _partition(arguments: Arguments) -> int | None:
    text = arguments.take("partition") or ""
    if not text:
        return None
    if not (text.isascii() and text.isdigit()):
        raise Invalid("partition has to be a whole number from 0", code="invalid_parameter")
    return int(text[:9])


def _before(text: str) -> dict[int, int]:
    before: dict[int, int] = {}
    for part in text.split(",") if text else ():
        number, _, offset = part.partition(":")
        if not (part.isascii() and number.isdigit() and offset.isdigit()):
            raise Invalid(
                "before has to name partitions and offsets",
                hint="0:100,1:90",
                code="invalid_parameter",
            )
        before[int(number[:9])] = int(offset[:19])
    return before


def _record(row: Mapping[str, Any]) -> Record:
    line = text_of_bytes(row["value"])
    return Record(
        partition=row["partition"],
        offset=row["offset"],
        received_at_us=round(row["received_at"].timestamp() * 1_000_000),
        id=str(uuid.UUID(bytes=row["id"])),
        key=None if row["key"] is None else row["key"].decode("utf-8", "replace"),
        headers=indented(text_of_bytes(row["headers"] or b"")),
        value=indented(line),
        line=line,
    )


def text_of_bytes(value: bytes) -> str:
    """Return a value as text; bytes that are none as hexadecimal."""
    cut = value[:VALUE_CHARACTERS_MAX]
    rest = f" … {len(value) - len(cut):,} bytes more" if len(value) > len(cut) else ""
    try:
        return value.decode()[:VALUE_CHARACTERS_MAX] + rest
    except UnicodeDecodeError:
        return cut.hex(" ") + rest


def indented(text: str) -> str:
    """Return a text, over several lines if it is JSON; its values stand as they were written."""
    try:
        lines = msgspec.json.format(text, indent=2)
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        return text
    return lines if len(lines) <= INDENTED_CHARACTERS_MAX else text
