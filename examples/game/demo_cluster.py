"""The game on Kafka and Spark: the same pipeline file, on a cluster that this script starts.

    make demo-cluster               until Ctrl-C
    make demo-cluster DEMO_EXIT=1   until the counts agree

Three brokers keep the log, a Spark master with two workers runs the epochs, and the tables are in a
temporary folder; all of it is stopped and removed in the end. With DEMO_EXIT=1 the last line is one
JSON object: events `sent` and `acknowledged`, `rows` of the topics' tables, and the `view` of
events by type. The status is 0 only if they agree.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx2
from rich.console import Console
from rich.table import Table

from headrace.app.cluster import trial
from headrace.app.cluster.ports import free_port
from headrace.model.clock import SystemClock
from headrace.model.errors import HeadraceError

PIPELINE = Path(__file__).resolve().parent / "pipeline.py"
HEADRACE = Path(sys.executable).parent / "headrace"
COMCAST, ATT = "user1.comcast.com", "user2.att.com"
EVENTS = {
    ("/", "default", COMCAST): 50,
    ("/purchase_a_sword", "purchase_sword", COMCAST): 200,
    ("/purchase_a_sword", "purchase_sword", ATT): 100,
    ("/purchase_a_knife", "purchase_knife", ATT): 120,
    ("/join_guild/red", "joined_guild:red", COMCAST): 80,
    ("/join_guild/blue", "joined_guild:blue", ATT): 60,
    ("/request_group", "request_group", COMCAST): 150,
    ("/request_group", "request_group", ATT): 50,
    ("/accept_member", "accept_member", ATT): 90,
}
"""Path, the type of event that it becomes, and the host asked for → how often it is requested."""
VIEWS = ("hosts_by_event", "hosts_by_message")
TOPICS = ("events", "MessageHistory")
CONNECTIONS = 8
POLL_S = 0.5
START_S_MAX, COUNTED_S_MAX, STOP_S_MAX = 120.0, 600.0, 60.0

CLOCK = SystemClock()
console = Console(highlight=False, soft_wrap=True)
Counts = dict[tuple[str, str], int]
"""Type of event and host → how many."""


class Failed(Exception):
    """The demonstration cannot go on."""


def main() -> int:
    """Run the demonstration; return the exit status."""
    ends = "--exit" in sys.argv[1:]
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with ExitStack() as stack:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="headrace-demo-")))
            config = stack.enter_context(cluster(folder / "cluster"))
            data = folder / "data"
            log = folder / "pipeline.log"
            url = stack.enter_context(started(config, data, log))
            acknowledged = send(url)
            began_s = CLOCK.monotonic_s()
            counts = settled(url, acknowledged)
            rows = rows_of(data)
            show(counts, acknowledged)
            passed_s = CLOCK.monotonic_s() - began_s
            console.print(f"{rows:,} rows; counted {passed_s:.1f} s after the last event was sent")
            if counts != acknowledged:
                console.print(f"[bold red]they differ[/]; {log.name} says:")
                console.print(log.read_text(errors="replace"), markup=False)
            if not ends:
                wait_for_interrupt(url, data)
    except (Failed, HeadraceError) as failure:
        console.print(f"[bold red]{failure}[/]")
        return 1
    except KeyboardInterrupt:
        return 130
    view: Counter[str] = Counter()
    for (event_type, _), n in counts.items():
        view[event_type] += n
    sent, answered = sum(EVENTS.values()), sum(acknowledged.values())
    told = {"sent": sent, "acknowledged": answered, "rows": rows, "view": view}
    if ends:
        sys.stdout.write(json.dumps(told) + "\n")
    return 0 if counts == acknowledged and sent == answered == rows else 1


@contextmanager
def cluster(folder: Path) -> Iterator[Path]:
    """Run brokers and Spark for the block; yield the file that tells a pipeline where they are."""
    console.print("starting three Kafka brokers, a Spark master and two workers")
    began_s = CLOCK.monotonic_s()
    try:
        found = trial.up(folder, CLOCK, with_spark=True, until_pid=os.getpid())
        assert found.kafka
        assert found.spark
        passed_s = CLOCK.monotonic_s() - began_s
        console.print(f"{passed_s:5.1f} s  Kafka is at {found.kafka.bootstrap}")
        console.print(f"         Spark is at {found.spark.master}, its page at {found.spark.page}")
        yield folder / trial.CONFIG
    finally:
        trial.down(folder)


@contextmanager
def started(config: Path, data: Path, log: Path) -> Iterator[str]:
    """Run the pipeline as a process of its own; yield where it is."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    command = [HEADRACE, "run", PIPELINE, "--config", config, "--data", data, "--port", port]
    command += ["--until-eof"]
    with log.open("wb") as file:
        running = subprocess.Popen(
            [str(word) for word in command],
            # Ends with this script, so that a killed one leaves nothing behind.
            stdin=subprocess.PIPE,
            stdout=file,
            stderr=subprocess.STDOUT,
            # Ctrl-C is for this script, which ends the others in their order.
            start_new_session=True,
        )
    try:
        wait_for(f"{url}/healthz", running, log)
        console.print(f"the pipeline runs at {url}")
        yield url
    finally:
        running.terminate()
        try:
            running.wait(STOP_S_MAX)
        except subprocess.TimeoutExpired:
            running.kill()
            running.wait()


def wait_for(url: str, running: subprocess.Popen[bytes], log: Path) -> None:
    """Return once a process answers; `Failed` with its own words if it does not."""
    deadline_s = CLOCK.monotonic_s() + START_S_MAX
    while running.poll() is None and CLOCK.monotonic_s() < deadline_s:
        with suppress(httpx2.TransportError):
            if httpx2.get(url, timeout=5).is_success:
                return
        CLOCK.sleep(0.1)
    raise Failed(f"{url} does not answer: {log.read_text(errors='replace')}")


def send(url: str) -> Counts:
    """Send every event; return how many were acknowledged."""
    acts = [act for act, n in EVENTS.items() for _ in range(n)]
    began_s = CLOCK.monotonic_s()
    with httpx2.Client(base_url=url, timeout=30) as client, ThreadPoolExecutor(CONNECTIONS) as pool:

        def act(one: tuple[str, str, str]) -> tuple[str, str] | None:
            path, event_type, host = one
            answer = client.get(path, headers={"Host": host})
            return (event_type, host) if answer.status_code == httpx2.codes.OK else None

        found = Counter(done for done in pool.map(act, acts) if done)
    passed_s = CLOCK.monotonic_s() - began_s
    console.print(f"{found.total()} of {len(acts)} events were acknowledged in {passed_s:.1f} s")
    return dict(found)


def settled(url: str, acknowledged: Counts) -> Counts:
    """Return the counts once they equal what was acknowledged, or when that took too long."""
    deadline_s = CLOCK.monotonic_s() + COUNTED_S_MAX
    while True:
        counts = counted(url)
        if counts == acknowledged or CLOCK.monotonic_s() > deadline_s:
            return counts
        CLOCK.sleep(POLL_S)


def counted(url: str) -> Counts:
    """Return what the views say now."""
    found: Counts = {}
    for view in VIEWS:
        answer = httpx2.get(f"{url}/v1/views/{view}", timeout=30)
        rows = answer.json()["rows"] if answer.is_success else []
        found |= {(row["event_type"], row["host"]): row["n"] for row in rows}
    return found


def rows_of(data: Path) -> int:
    """Return how many rows the topics' own tables have."""
    command = [str(HEADRACE), "tables", "--json", "--data", str(data)]
    told: list[dict[str, Any]] = json.loads(subprocess.check_output(command))
    return sum(t["rows"] for t in told if t["name"] in {f"tables/{topic}" for topic in TOPICS})


def show(counts: Counts, acknowledged: Counts) -> None:
    """Print every count with what was acknowledged beside it."""
    table = Table(box=None)
    for column, justify in (("event", "left"), ("host", "left")):
        table.add_column(column, justify=justify)
    for column in ("acknowledged", "counted"):
        table.add_column(column, justify="right")
    for kind in dict.fromkeys([*acknowledged, *counts]):
        table.add_row(*kind, str(acknowledged.get(kind, 0)), str(counts.get(kind, 0)))
    console.print(table)


def wait_for_interrupt(url: str, data: Path) -> None:
    """Say what may be tried, and wait until Ctrl-C."""
    console.print(f"  curl {url}/purchase_a_sword")
    console.print(f"  curl '{url}/count?by=item'", markup=False)
    console.print(f"  headrace status --data {data}")
    console.print("it goes on until Ctrl-C")
    with suppress(KeyboardInterrupt):
        signal.pause()


if __name__ == "__main__":
    sys.exit(main())
