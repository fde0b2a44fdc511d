"""How long after a POST is sent its event is counted in an answer of the API.

    python bench/fresh.py [--seconds 10] [--rate 1000] [--rounds 3] [--quick]

Runs all roles as `headrace run` does, sends single events at a steady rate and asks for a view's
rows again and again on another connection. The n-th event sent is counted by the first answer
whose counts add up to n. What that is compared with is the epoch interval. The load and the
questions come from one process beside the roles; their cost is not in the roles' figures.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from measure import Figures, medians, tell
from workload import VIEWS, events, make_plan

from headrace.app.cluster.ports import free_port

CONNECTIONS = 16
ASK_EVERY_S = 0.01
SETTLE_S = 30.0
WARM_S = 3.0
VIEW = "/v1/views/by_type"
POST = "POST /v1/topics/events HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
TICKS = os.sysconf("SC_CLK_TCK")


class Client:
    """One HTTP/1.1 connection that is kept open."""

    def __init__(self, port: int) -> None:
        self._port = port

    async def open(self) -> Client:
        """Connect."""
        self._reader, self._writer = await asyncio.open_connection("127.0.0.1", self._port)
        return self

    async def call(self, request: bytes) -> bytes:
        """Send a request; return the body of its answer, which has to be 200."""
        self._writer.write(request)
        head = await self._reader.readuntil(b"\r\n\r\n")
        length = next(
            int(line.split(b":")[1])
            for line in head.lower().split(b"\r\n")
            if line.startswith(b"content-length:")
        )
        body = await self._reader.readexactly(length)
        if not head.startswith(b"HTTP/1.1 200"):
            raise SystemExit((head + body).decode())
        return body


async def send(clients: list[Client], bodies: list[bytes], rate: float, sent: list[float]) -> None:
    """Send events at `rate` a second, noting when; a connection that is busy is not waited for."""
    free = asyncio.Queue[Client]()
    for client in clients:
        free.put_nowait(client)

    async def one(client: Client, body: bytes) -> None:
        await client.call(f"{POST}content-length: {len(body)}\r\n\r\n".encode() + body)
        free.put_nowait(client)

    began = time.perf_counter()
    tasks = set()
    for i, body in enumerate(bodies):
        wait_s = began + i / rate - time.perf_counter()
        if wait_s > 0.001:
            await asyncio.sleep(wait_s)
        client = await free.get()
        sent.append(time.perf_counter())
        task = asyncio.ensure_future(one(client, body))
        tasks.add(task)
        task.add_done_callback(tasks.discard)
    await asyncio.gather(*tasks)


async def watch(client: Client, before: int, count: int, seen: list[float]) -> None:
    """Note for every event when it was first counted."""
    question = f"GET {VIEW} HTTP/1.1\r\nhost: localhost\r\n\r\n".encode()
    deadline = time.perf_counter() + SETTLE_S + count / 100
    while len(seen) < count:
        counted = await counts(client, question) - before
        now = time.perf_counter()
        seen.extend([now] * (counted - len(seen)))
        if now > deadline:
            raise SystemExit(f"{len(seen)} of {count} events were counted in time")
        await asyncio.sleep(ASK_EVERY_S)


async def counts(client: Client, question: bytes) -> int:
    """Return the sum of the view's counts."""
    told = json.loads(await client.call(question))
    return sum(row["n"] for row in told["rows"])


async def measure(port: int, bodies: list[bytes], rate: float) -> list[float]:
    """Return how long each event took to be counted, seconds."""
    clients = [await Client(port).open() for _ in range(CONNECTIONS)]
    asker = await Client(port).open()
    question = f"GET {VIEW} HTTP/1.1\r\nhost: localhost\r\n\r\n".encode()
    before = await counts(asker, question)
    sent: list[float] = []
    seen: list[float] = []
    await asyncio.gather(send(clients, bodies, rate, sent), watch(asker, before, len(bodies), seen))
    return [b - a for a, b in zip(sent, seen, strict=True)]


@contextmanager
def running(folder: Path) -> Iterator[tuple[int, dict[str, int]]]:
    """Run the pipeline; yield its port and each role's process id."""
    port = free_port()
    command = [str(Path(sys.executable).with_name("headrace")), "run"]
    command += [str(Path(__file__).with_name("workload.py"))]
    command += ["--data", str(folder), "--port", str(port)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        for line in process.stderr:
            if "runs at" in line:
                break
        else:
            raise SystemExit("headrace did not start")
        yield port, roles_of(process.pid)
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(15)
        process.stderr.close()


def roles_of(supervisor: int) -> dict[str, int]:
    """Return role → process id."""
    children = Path(f"/proc/{supervisor}/task/{supervisor}/children").read_text().split()
    found = {}
    for child in children:
        words = Path(f"/proc/{child}/cmdline").read_text().split("\0")
        found[words[words.index("headrace.app.role") + 1]] = int(child)
    return found


def cpu_s(process: int) -> float:
    """Return the seconds that a process has computed so far."""
    told = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(told[11]) + int(told[12])) / TICKS


def cores(roles: dict[str, int], before: Figures, since: float) -> Figures:
    """Return the part of a core that each role took."""
    took_s = time.perf_counter() - since
    return {f"{name} cores": (cpu_s(pid) - before[name]) / took_s for name, pid in roles.items()}


def round_(port: int, roles: dict[str, int], bodies: list[bytes], rate: float) -> Figures:
    """Return the figures of one run of the load."""
    before, since = {name: cpu_s(pid) for name, pid in roles.items()}, time.perf_counter()
    delays = asyncio.run(measure(port, bodies, rate))
    hundredths = statistics.quantiles(delays, n=100)
    return {
        "p50_ms": hundredths[49] * 1000,
        "p99_ms": hundredths[98] * 1000,
        **cores(roles, before, since),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--rate", type=float, default=1_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="5 seconds")
    options = parser.parse_args()
    if options.quick:
        options.seconds = 5
    count = round(options.seconds * options.rate)
    every_ms = make_plan(VIEWS).options.every_s * 1000
    with tempfile.TemporaryDirectory() as folder, running(Path(folder) / "data") as (port, roles):
        bodies = list(events(count))
        asyncio.run(measure(port, bodies[: round(WARM_S * options.rate)], options.rate))
        found = medians([round_(port, roles, bodies, options.rate) for _ in range(options.rounds)])
        time.sleep(1)
        before, since = {name: cpu_s(pid) for name, pid in roles.items()}, time.perf_counter()
        time.sleep(5)
        idle = cores(roles, before, since)
    loaded = {
        "load": f"{options.rate:,.0f} events/s",
        "ratio": found["p99_ms"] / every_ms,
        "every ms": every_ms,
        "p50 ms": found.pop("p50_ms"),
        "p99 ms": found.pop("p99_ms"),
        **found,
    }
    nothing = {"load": "none", **dict.fromkeys(["ratio", "every ms", "p50 ms", "p99 ms"], "")}
    tell(
        "fresh",
        [loaded, {**nothing, **idle}],
        seconds=options.seconds,
        rate=options.rate,
        rounds=options.rounds,
    )


if __name__ == "__main__":
    main()
