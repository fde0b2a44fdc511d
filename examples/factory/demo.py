"""The factory on this machine: a plant, the pipeline, and its rows as they are committed.

    make demo-factory               until Ctrl-C
    make demo-factory DEMO_EXIT=1   until all that the plant has sent is in the tables
    python examples/factory/demo.py [--exit] [--seconds 60] [--kills 2] [--data FOLDER]

The plant streams for so many seconds, an hour of it, and its server is killed and started again so
often meanwhile. With DEMO_EXIT=1 the last line is one JSON object: objects `sent` and `rows` by
topic, whether these are equal (`same`) and each machine's in order (`in_order`), how many `epochs`
there were, the most records that one took and might take. The status is 0 only if all of it holds.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, Self

from data import write
from rich.console import Console
from stream_server import read

import headrace
from headrace.app.cluster.ports import free_port
from headrace.model.clock import SystemClock

HERE = Path(__file__).resolve().parent
HEADRACE = Path(sys.executable).parent / "headrace"
MINUTES = 60
"""What the plant streams, by its own clock."""
RECORDS_MAX = 480
"""Of an epoch: less than come in ten seconds at the default pace, so that it is reached."""
SHOWN_ROWS = 6
POLL_S = 0.5
START_S_MAX, SETTLE_S_MAX, STOP_S_MAX = 60.0, 180.0, 30.0

CLOCK = SystemClock()
console = Console(highlight=False, soft_wrap=True)
Objects = dict[str, list[dict[str, Any]]]


class Failed(Exception):
    """The demonstration cannot go on."""


def main() -> int:
    """Run the demonstration; return the exit status."""
    options = arguments()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="headrace-demo-")))
        data = options.data or folder / "data"
        write(folder / "plant", minutes=MINUTES)
        sent = read(folder / "plant")
        plant = Plant(folder / "plant", MINUTES * 60 / options.seconds)
        try:
            stack.enter_context(plant)
            stack.enter_context(pipeline(plant.url, data, folder / "pipeline.log"))
            printing = stack.enter_context(process(tail(data, sent), None))
            follow(plant, options.seconds, options.kills)
            settle(printing)
            told = compare(data, sent)
            console.print(f"all that the plant has sent is in {told['epochs']} epochs")
            if not options.exit:
                wait_for_interrupt()
        except Failed as failure:
            console.print(f"[bold red]{failure}[/]")
            return 1
        except KeyboardInterrupt:
            return 130
    if options.exit:
        print(json.dumps(told))
    holds = told["same"] and told["in_order"] and told["most"] <= told["may_take"]
    return 0 if holds else 1


def arguments() -> argparse.Namespace:
    """Return what the command line says."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--exit", action="store_true", help="end when all is in the tables")
    parser.add_argument("--seconds", type=float, default=60.0, help="how long the plant streams")
    parser.add_argument("--kills", type=int, default=2, help="how often its server is killed")
    parser.add_argument("--data", type=Path, help="a data directory that stays")
    return parser.parse_args()


class Plant:
    """The stream server, as a process that may be killed."""

    def __init__(self, files: Path, speed: float) -> None:
        """Stream files so many times faster than their times."""
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        self._command = [sys.executable, str(HERE / "stream_server.py"), str(files)]
        self._command += ["--port", str(port), "--speed", str(speed)]
        self._running: subprocess.Popen[str] | None = None

    def __enter__(self) -> Self:
        """Start it; it listens when this returns."""
        self._running = subprocess.Popen(self._command, stdout=subprocess.PIPE, text=True)
        if self._running.stdout is None or not self._running.stdout.readline():
            raise Failed("The stream server did not start")
        return self

    def __exit__(self, *_: object) -> None:
        """Kill it, as a power cut would."""
        if self._running is not None:
            self._running.kill()
            self._running.communicate()


@contextmanager
def pipeline(plant: str, data: Path, log: Path) -> Iterator[None]:
    """Run the pipeline, with no more records in an epoch than the demonstration wants."""
    command = [HEADRACE, "run", HERE / "pipeline.py", "--data", data, "--port", free_port()]
    more = {"HEADRACE_PLANT": plant, "HEADRACE_RECORDS_MAX": str(RECORDS_MAX)}
    with process([*command, "--until-eof"], log, **more) as running:
        deadline_s = CLOCK.monotonic_s() + START_S_MAX
        while "factory runs at" not in log.read_text():
            if running.poll() is not None or CLOCK.monotonic_s() > deadline_s:
                raise Failed(f"the pipeline did not start: {log.read_text()}")
            CLOCK.sleep(POLL_S)
        console.print(log.read_text().strip())
        yield


@contextmanager
def process(
    command: list[Any], log: Path | None, **environment: str
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a process until the end of the block; without a log it prints where this one does."""
    with ExitStack() as stack:
        running = subprocess.Popen(
            [str(word) for word in command],
            env={**os.environ, **environment},
            # Ends with this script, so that a killed one leaves nothing behind.
            stdin=subprocess.PIPE,
            stdout=stack.enter_context(log.open("wb")) if log else None,
            stderr=subprocess.STDOUT if log else None,
            # Ctrl-C is for this script, which ends the others in their order.
            start_new_session=True,
        )
        try:
            yield running
        finally:
            running.terminate()
            try:
                running.wait(STOP_S_MAX)
            except subprocess.TimeoutExpired:
                running.kill()
                running.wait()


def follow(plant: Plant, seconds: float, kills: int) -> None:
    """Let the plant stream; kill its server now and then, and start it again at once."""
    for _ in range(kills):
        CLOCK.sleep(seconds / (kills + 1))
        plant.__exit__()
        console.print("[bold]the stream server is killed, and starts again[/]")
        plant.__enter__()
    CLOCK.sleep(seconds / (kills + 1))


def tail(data: Path, sent: Objects) -> list[Any]:
    """Return the command that prints rows as they are committed, until all are there."""
    command = [HEADRACE, "tail", "--data", data, "--table", "happenings", "--from", "beginning"]
    command += ["--columns", "happened_at,machine,what,amount,received_at"]
    return [*command, "--rows", SHOWN_ROWS, "--count", sum(map(len, sent.values()))]


def settle(printing: subprocess.Popen[bytes]) -> None:
    """Return once as many rows are printed as objects were sent."""
    try:
        status = printing.wait(SETTLE_S_MAX)
    except subprocess.TimeoutExpired as e:
        raise Failed("The rows did not come") from e
    if status:
        raise Failed("The rows could not be followed")


def compare(data: Path, sent: Objects) -> dict[str, Any]:
    """Hold the tables against what was sent."""
    told: dict[str, Any] = {"sent": {name: len(objects) for name, objects in sent.items()}}
    told |= {"rows": {}, "same": True, "in_order": True}
    with headrace.open(data) as opened:
        for name, objects in sent.items():
            columns = ", ".join(f'"{c}"' for c in objects[0])
            order = "ORDER BY _partition, _offset"
            rows = opened.sql(f"SELECT {columns} FROM {name} {order}").arrow().to_pylist()
            told["rows"][name] = len(rows)
            told["same"] &= counted(rows) == counted(objects)
            for machine in {o["machine"] for o in objects}:
                times = [row["time"] for row in rows if row["machine"] == machine]
                told["in_order"] &= times == sorted(times)
        epochs = opened.sql("SELECT body FROM ledger").arrow().to_pylist()
    taken = [sum(t["read"] for t in json.loads(e["body"])["topics"].values()) for e in epochs]
    told |= {"epochs": sum(map(bool, taken)), "most": max(taken), "may_take": RECORDS_MAX}
    return told


def counted(rows: list[dict[str, Any]]) -> Counter[str]:
    """Return how often each row is there."""
    return Counter(json.dumps(row, sort_keys=True) for row in rows)


def wait_for_interrupt() -> None:
    """Wait until Ctrl-C."""
    console.print("it goes on until Ctrl-C")
    with suppress(KeyboardInterrupt):
        signal.pause()


if __name__ == "__main__":
    sys.exit(main())
