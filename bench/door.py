"""Durable acknowledgements of the HTTP door, against the same server answering without a log.

    python bench/door.py [--seconds 3] [--rounds 3] [--data DIR]

Starts both servers itself, alternates between them and prints the medians: one JSON event a POST,
NDJSON of 100 events a POST, one event a GET of a route. 64 connections, load by wrk on loopback.
"""

from __future__ import annotations

import argparse
import json
import re
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
from contextlib import contextmanager
from pathlib import Path

import uvloop
from granian.constants import HTTPModes, Interfaces
from granian.server.embed import Server
from measure import Row, tell

from headrace.app.cluster.ports import free_port
from headrace.app.site import open_site
from headrace.collect.run import run_collect
from headrace.model.clock import SystemClock
from headrace.model.layout import Layout
from headrace.model.plan import Plan, Route, Topic
from headrace.model.schema import Field, Schema, Type

CONNECTIONS = 64
TOPIC = "/v1/topics/events"
EVENT = '{"event_type":"purchase_sword","Host":"shop-1","User-Agent":"load/1","price":1250}'
LINES = 100


def optional(name: str, alias: str, kind: str) -> Field:
    return Field(name, alias, Type(kind), nullable=True, required=False)


PLAN = Plan(
    "bench",
    topics=(
        Topic(
            "events",
            3,
            Schema(
                "GameEvent",
                (
                    Field("event_type", "event_type", Type("string")),
                    optional("host", "Host", "string"),
                    optional("user_agent", "User-Agent", "string"),
                    optional("price", "price", "integer"),
                ),
            ),
        ),
    ),
    routes=(Route("/purchase_a_sword", "events", {"event_type": "purchase_sword"}, "Bought!\n"),),
)
CASES = {
    "one event a POST": ("POST", TOPIC, "application/json", EVENT, 1),
    "NDJSON of 100": ("POST", TOPIC, "application/x-ndjson", "\n".join([EVENT] * LINES), LINES),
    "one event a GET": ("GET", "/purchase_a_sword", "", "", 1),
}
WRK_SCRIPT = """
wrk.method = "%s"
wrk.body = %s
if "%s" ~= "" then wrk.headers["Content-Type"] = "%s" end
"""


async def answer_at_once(scope: object, protocol) -> None:  # noqa: ARG001
    await protocol()
    protocol.response_bytes(200, [("content-type", "application/json")], b'{"accepted":1}')


def serve_bare(port: int) -> None:
    async def run() -> None:
        server = Server(
            answer_at_once,
            port=port,
            interface=Interfaces.RSGI,
            http=HTTPModes.http1,
            websockets=False,
            log_enabled=False,
        )
        await server.serve()

    uvloop.run(run())


def serve_door(port: int, data: str) -> None:
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    run_collect(
        PLAN,
        open_site(Layout.at(data), SystemClock()),
        SystemClock(),
        host="127.0.0.1",
        port=port,
        stop=stop,
        ready=lambda: None,
    )


@contextmanager
def server(kind: str, data: str):
    """Run a server in a process of its own; yield its port."""
    port = free_port()
    command = [sys.executable, __file__, "--serve", kind, "--port", str(port), "--data", data]
    process = subprocess.Popen(command)
    try:
        wait_until_open(port, process)
        yield port
    finally:
        process.terminate()
        try:
            process.wait(12)
        except subprocess.TimeoutExpired:
            process.kill()


def wait_until_open(port: int, process: subprocess.Popen) -> None:
    for _ in range(600):
        if process.poll() is not None:
            raise SystemExit(f"the server ended with status {process.returncode}")
        try:
            socket.create_connection(("127.0.0.1", port)).close()
        except OSError:
            threading.Event().wait(0.05)
        else:
            return
    raise SystemExit("the server did not open its port")


def load(port: int, case: str, seconds: float, script: Path) -> tuple[float, float]:
    """Return events a second and p99 in milliseconds."""
    method, path, content_type, body, events = CASES[case]
    script.write_text(WRK_SCRIPT % (method, json.dumps(body), content_type, content_type))
    command = ["wrk", "-t1", f"-c{CONNECTIONS}", f"-d{seconds:g}s", "--latency", "-s", str(script)]
    said = subprocess.run(
        [*command, f"http://127.0.0.1:{port}{path}"], capture_output=True, text=True, check=True
    ).stdout
    if re.search(r"Non-2xx|Socket errors", said):
        raise SystemExit(said)
    rate = float(re.search(r"Requests/sec:\s+([\d.]+)", said)[1])
    p99, unit = re.search(r"99%\s+([\d.]+)(us|ms|s)", said).groups()
    return rate * events, float(p99) * {"us": 0.001, "ms": 1, "s": 1000}[unit]


def measure(options: argparse.Namespace) -> dict[str, dict[str, float]]:
    found: dict[str, dict[str, list[float]]] = {case: {} for case in CASES}
    with tempfile.TemporaryDirectory(dir=options.data) as folder:
        script = Path(folder) / "load.lua"
        data = str(Path(folder) / "data")
        with server("bare", data) as bare, server("door", data) as door:
            for round_ in range(options.rounds + 1):
                for case, figures in found.items():
                    for name, port in (("bare", bare), ("door", door)):
                        # The first round warms both up and is not counted.
                        rate, p99 = load(port, case, options.seconds if round_ else 1, script)
                        if round_:
                            figures.setdefault(name, []).append(rate)
                            figures.setdefault(f"{name}_p99_ms", []).append(p99)
    return {
        case: {name: statistics.median(values) for name, values in figures.items()}
        for case, figures in found.items()
    }


def rows_of(found: dict[str, dict[str, float]]) -> list[Row]:
    return [
        {
            "request": case,
            "ratio": f["door"] / f["bare"],
            "door events/s": f["door"],
            "bare events/s": f["bare"],
            "p99 ms": f["door_p99_ms"],
            "bare p99 ms": f["bare_p99_ms"],
        }
        for case, f in found.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=3)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--data", default=None)
    parser.add_argument("--serve", choices=["bare", "door"])
    parser.add_argument("--port", type=int)
    parser.add_argument("--quick", action="store_true", help="1 second, 3 rounds")
    options = parser.parse_args()
    if options.quick:
        options.seconds = 1
    if options.serve == "bare":
        serve_bare(options.port)
    elif options.serve == "door":
        serve_door(options.port, options.data)
    else:
        tell(
            "door",
            rows_of(measure(options)),
            connections=CONNECTIONS,
            seconds=options.seconds,
            rounds=options.rounds,
        )


if __name__ == "__main__":
    main()
