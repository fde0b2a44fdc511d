"""A thousand listeners of a live view: how soon they hear of an event, and what that costs.

    python bench/listeners.py [--listeners 1000] [--few 10] [--seconds 60] [--rate 10] [--quick]

Runs all roles as `headrace run` does. Events are posted one at a time at a steady rate, and every
listener of `/v1/views/by_type/live` gets the view's page each time it is published. An event is
heard by a listener with the first page whose counts add up to it. The same is done before and after
with a few listeners, which is what the ratio compares with. Who posts and who listens are processes
beside the roles: their cost is not in theirs, but on the same machine.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import sys
import tempfile
import time
from array import array
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

from fresh import POST, Client, cpu_s, running
from measure import Figures, Row, medians, tell
from workload import events

VIEW = "/v1/views/by_type/live"
LISTEN = f"GET {VIEW} HTTP/1.1\r\nhost: localhost\r\naccept: text/event-stream\r\n\r\n".encode()
WARM_S, SETTLE_S = 3.0, 2.0
OPENING_AT_ONCE = 50
SAMPLE_S = 1.0
READS = 20
ROLES = ("collect", "serve")


class Pages:
    """How many events each page counts; every listener gets the same ones."""

    def __init__(self, before: int) -> None:
        """Leave out what was counted before."""
        self._before = before
        self._counts: dict[bytes, int] = {}

    def count(self, page: bytes) -> int:
        """Return how many events a page counts."""
        if page not in self._counts:
            self._counts[page] = sum(row["n"] for row in json.loads(page)["rows"])
        return self._counts[page] - self._before


class Listener(asyncio.Protocol):
    """One listener: takes its answer's chunks apart into events."""

    def __init__(self, pages: Pages) -> None:
        self._pages = pages
        self._rest = b""
        self.heard: list[tuple[float, int]] = []
        """When a page came, and how many events it counts."""
        self.opened = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Ask."""
        self.transport = transport
        transport.write(LISTEN)

    def data_received(self, data: bytes) -> None:
        """Take what came."""
        self._rest += data
        if not self.opened.done():
            head, found, self._rest = self._rest.partition(b"\r\n\r\n")
            if not found:
                self._rest = head
                return
            if not head.startswith(b"HTTP/1.1 200"):
                self.opened.set_exception(SystemExit(head.decode()))
                return
            self.opened.set_result(None)
        while b"\r\n" in self._rest:
            size, _, rest = self._rest.partition(b"\r\n")
            end = int(size, 16)
            if len(rest) < end + 2:
                return
            self._take(rest[:end])
            self._rest = rest[end + 2 :]

    def _take(self, chunk: bytes) -> None:
        for line in chunk.split(b"\n"):
            if line.startswith(b"data: "):
                self.heard.append((time.perf_counter(), self._pages.count(line[6:])))

    def delays_s(self, posted: list[float]) -> Iterator[float]:
        """Yield how long it took until each event was heard."""
        told = 0
        for at, count in self.heard:
            yield from (at - posted[i] for i in range(told, count))
            told = max(told, count)

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell whoever waits for it to open."""
        if not self.opened.done():
            self.opened.set_exception(SystemExit(f"a listener was not let in: {exc}"))


async def opened(port: int, pages: Pages, count: int) -> list[Listener]:
    """Return so many listeners that are let in."""
    loop, listeners = asyncio.get_running_loop(), []
    while len(listeners) < count:
        some = min(OPENING_AT_ONCE, count - len(listeners))
        made = [
            loop.create_connection(lambda: Listener(pages), "127.0.0.1", port) for _ in range(some)
        ]
        listeners += [listener for _, listener in await asyncio.gather(*made)]
        await asyncio.gather(*(listener.opened for listener in listeners))
    return listeners


async def post(port: int, count: int, rate: float) -> list[tuple[float, float]]:
    """Post events at `rate` a second; return when each was, and when it was acknowledged."""
    client, found = await Client(port).open(), []
    began = time.perf_counter()
    for number, body in enumerate(events(count)):
        await asyncio.sleep(max(0.0, began + number / rate - time.perf_counter()))
        posted = time.perf_counter()
        await client.call(f"{POST}content-length: {len(body)}\r\n\r\n".encode() + body)
        found.append((posted, time.perf_counter()))
    return found


async def posted_beside(port: int, count: int, rate: float) -> list[tuple[float, float]]:
    """Have another process do `post`: the clock is the machine's."""
    command = [sys.executable, __file__, "--post", str(port), str(count), str(rate)]
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    told, _ = await process.communicate()
    if process.returncode:
        raise SystemExit("events were not posted")
    return json.loads(told)


async def watch(roles: dict[str, int], most_mb: dict[str, float]) -> None:
    """Note the most memory that each role holds."""
    while True:
        for role in ROLES:
            most_mb[role] = max(most_mb.get(role, 0.0), held_mb(roles[role]))
        await asyncio.sleep(SAMPLE_S)


def held_mb(process: int) -> float:
    """Return what a process holds in memory now."""
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmRSS")).split()[1]) / 1024


async def counted(port: int) -> int:
    """Return how many events the view counts by now."""
    client = await Client(port).open()
    told = await client.call(b"GET /v1/views/by_type HTTP/1.1\r\nhost: localhost\r\n\r\n")
    return sum(row["n"] for row in json.loads(told)["rows"])


async def read_s(port: int) -> float:
    """Return how long it takes to connect and read the view once, seconds."""
    began = time.perf_counter()
    await counted(port)
    return time.perf_counter() - began


async def measure(
    port: int, roles: dict[str, int], listeners: int, events: int, rate: float
) -> Figures:
    """Return the figures of so many listeners while events are posted."""
    all_ = await opened(port, Pages(await counted(port)), listeners)
    most_mb: dict[str, float] = {}
    watching = asyncio.ensure_future(watch(roles, most_mb))
    before, since = {role: cpu_s(roles[role]) for role in ROLES}, time.perf_counter()
    times = await posted_beside(port, events, rate)
    spent_s = time.perf_counter() - since
    cores = {f"{role} cores": (cpu_s(roles[role]) - before[role]) / spent_s for role in ROLES}
    await asyncio.sleep(SETTLE_S)
    reads_s = [await read_s(port) for _ in range(READS)]
    watching.cancel()
    for listener in all_:
        listener.transport.close()
    await asyncio.sleep(SETTLE_S)
    posted = [at for at, _ in times]
    delays = array("d", chain.from_iterable(listener.delays_s(posted) for listener in all_))
    hundredths = statistics.quantiles(delays, n=100)
    acknowledged = statistics.quantiles([b - a for a, b in times], n=100)
    return {
        "p50 ms": hundredths[49] * 1000,
        "p99 ms": hundredths[98] * 1000,
        "heard": len(delays) / (events * listeners),
        "messages each": statistics.median([len(listener.heard) for listener in all_]),
        "least": min(len(listener.heard) for listener in all_),
        "ack p50 ms": acknowledged[49] * 1000,
        "ack p99 ms": acknowledged[98] * 1000,
        "read p50 ms": statistics.median(reads_s) * 1000,
        **cores,
        **{f"{role} MB": most_mb[role] for role in ROLES},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--listeners", type=int, default=1_000)
    parser.add_argument("--few", type=int, default=10)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--rate", type=float, default=10)
    parser.add_argument("--post", nargs=3, help=argparse.SUPPRESS)
    parser.add_argument("--quick", action="store_true", help="15 seconds")
    options = parser.parse_args()
    if options.quick:
        options.seconds = 15
    if options.post:
        port, count, rate = options.post
        print(json.dumps(asyncio.run(post(int(port), int(count), float(rate)))))
        return
    count = round(options.seconds * options.rate)
    load_before = round(os.getloadavg()[0], 2)
    with tempfile.TemporaryDirectory() as folder, running(Path(folder) / "data") as (port, roles):

        def run(listeners: int, events: int) -> Figures:
            return asyncio.run(measure(port, roles, listeners, events, options.rate))

        run(options.few, round(WARM_S * options.rate))
        before = run(options.few, count // 3)
        many = run(options.listeners, count)
        few = medians([before, run(options.few, count // 3)])
    rows: list[Row] = [
        {"listeners": f"{n:,}", "ratio": found["p99 ms"] / few["p99 ms"], **found}
        for n, found in ((options.few, few), (options.listeners, many))
    ]
    tell(
        "listeners",
        rows,
        seconds=options.seconds,
        events_per_s=options.rate,
        every_ms=250,
        load_before=load_before,
    )


if __name__ == "__main__":
    main()
