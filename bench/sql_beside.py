"""How much users' SQL delays an acknowledgement.

    python bench/sql_beside.py [--seconds 10] [--rounds 3] [--rate 200] [--quick]

Runs all roles as `headrace run` does. Single events are posted at a steady rate, in turn with
nothing beside and with clients that ask `POST /v1/sql` for the statements of
tests/serve/hostile_sql.py again and again: two for those that would compute or fill memory for
ever, so that every worker is always busy, and two for those that are refused. The ratio is of the
acknowledgement's time with them to that without.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fresh import POST, Client, running
from measure import Figures, Row, alternated, tell
from workload import events

ROOT = Path(__file__).resolve().parents[1]
CONNECTIONS = 4
TIMEOUT_S = 2
"""How long a statement may take: then it is stopped, and the next one asked for."""
ASKERS = 2
WARM_S = 3.0


async def post(port: int, count: int, rate: float) -> list[float]:
    """Post events at `rate` a second; return how long each acknowledgement took, seconds."""
    found: list[float] = []

    async def some(first: int, bodies: list[bytes]) -> None:
        client = await Client(port).open()
        for number, body in zip(itertools.count(first, CONNECTIONS), bodies, strict=False):
            await asyncio.sleep(max(0.0, began + number / rate - time.perf_counter()))
            posted = time.perf_counter()
            await client.call(f"{POST}content-length: {len(body)}\r\n\r\n".encode() + body)
            found.append(time.perf_counter() - posted)

    bodies = list(events(count))
    began = time.perf_counter()
    await asyncio.gather(*(some(n, bodies[n::CONNECTIONS]) for n in range(CONNECTIONS)))
    return found


def ask(port: int) -> None:
    """Ask for one statement after another until killed."""
    # Clients are elsewhere as a rule: what they compute is not to count.
    os.nice(19)
    sys.path.insert(0, str(ROOT / "tests" / "serve"))
    from hostile_sql import OUTSIDE, TOO_LARGE, UNENDING, WRITES  # noqa: PLC0415 - only here

    here = {"file": __file__, "other": __file__, "folder": str(ROOT)}
    refused = [sql.format(**here) for sql in [*OUTSIDE, *WRITES]]
    harmful = [sql.replace("FROM sales", "FROM events") for sql in [*UNENDING, *TOO_LARGE]]
    threads = [
        threading.Thread(target=lambda sqls=sqls: asyncio.run(ask_again(port, sqls)))
        for sqls in [refused, harmful] * ASKERS
    ]
    for thread in threads:
        thread.start()
    print("asking", flush=True)


async def ask_again(port: int, statements: list[str]) -> None:
    """Ask for each in turn, for ever."""
    for sql in itertools.cycle(statements):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        body = json.dumps({"sql": sql}).encode()
        head = f"POST /v1/sql?timeout={TIMEOUT_S} HTTP/1.1\r\nhost: localhost\r\n"
        head += f"content-type: application/json\r\ncontent-length: {len(body)}\r\n"
        writer.write(f"{head}connection: close\r\n\r\n".encode() + body)
        await reader.read()
        writer.close()


@contextmanager
def asked(port: int) -> Iterator[None]:
    """Have a process ask all the while."""
    command = [sys.executable, __file__, "--ask", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        process.stdout.readline()
        yield
    finally:
        process.kill()
        process.communicate()
        # What was under way may go on for so long.
        time.sleep(TIMEOUT_S + 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rate", type=float, default=200)
    parser.add_argument("--ask", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--quick", action="store_true", help="5 seconds")
    options = parser.parse_args()
    if options.ask:
        ask(options.ask)
        return
    if options.quick:
        options.seconds = 5
    load_before = round(os.getloadavg()[0], 2)
    with tempfile.TemporaryDirectory() as folder, running(Path(folder) / "data") as (port, _):

        def alone() -> Figures:
            took = asyncio.run(post(port, round(options.seconds * options.rate), options.rate))
            hundredths = statistics.quantiles(took, n=100)
            return {"p50 ms": hundredths[49] * 1000, "p99 ms": hundredths[98] * 1000}

        def beside() -> Figures:
            with asked(port):
                return alone()

        found = alternated({"nothing": alone, "hostile SQL": beside}, options.rounds)
    without = found["nothing"]
    rows: list[Row] = [
        {
            "beside": name,
            "p50 ratio": figures["p50 ms"] / without["p50 ms"],
            "p99 ratio": figures["p99 ms"] / without["p99 ms"],
            **figures,
        }
        for name, figures in found.items()
    ]
    tell(
        "sql_beside",
        rows,
        seconds=options.seconds,
        rounds=options.rounds,
        events_per_s=options.rate,
        asking=2 * ASKERS,
        load_before=load_before,
    )


if __name__ == "__main__":
    main()
