"""Collectors behind a load balancer, an owner with a standby, servers: all on one log in Kafka.

The owner is stopped, killed and ended while a client sends. Each time the standby takes over, the
servers go on answering, and in the end every acknowledged event is there once.
"""

from __future__ import annotations

import json
import signal
import sys
import time
from pathlib import Path

import httpx2
import pytest
from deltalake import DeltaTable
from live import PIPELINE, SMALL, VIEWS, Run, processed, until
from machines import Balanced, Machines, owner_and_standby, state

from headrace.testing.checker import Acknowledged, Checker

TOLD = PIPELINE.replace("OPTIONS", SMALL).replace(
    'GROUP BY kind",\n)', 'GROUP BY kind",\n    publish_to="told",\n)'
)
ROLES = "collect,process,serve"


@pytest.fixture
def machines(tmp_path: Path, kafka) -> Machines:
    return Machines(tmp_path, kafka.bootstrap, TOLD)


def takes_over(run: Run, how: str, began_s: float) -> None:
    until(lambda: state(run) == "running", f"the standby takes over from who {how}")
    took_s = time.monotonic() - began_s
    sys.stdout.write(f"taken over from an owner that {how} in {took_s:.1f} s\n")


def by_kind(url: str) -> dict[str, int]:
    answer = httpx2.get(f"{url}/v1/views/by_kind", timeout=20)
    assert answer.status_code == 200, answer.text
    return {row["kind"]: row["n"] for row in answer.json()["rows"]}


def test_owners_that_stop_die_and_end(machines: Machines) -> None:
    listed = machines.folder / "acknowledged"
    with (
        machines.run("one", ROLES) as one,
        machines.run("two", ROLES) as two,
        machines.run("three", "serve") as reader,
    ):
        client = Balanced([one.url, two.url], listed)
        client.start()
        try:
            owner, standby = owner_and_standby([one, two])
            until(lambda: processed(machines.tables), "an epoch runs")

            stopped = owner.children()["process"]
            began_s = time.monotonic()
            stopped.send_signal(signal.SIGSTOP)
            takes_over(standby, "stopped", began_s)
            by_kind(reader.url)
            stopped.send_signal(signal.SIGCONT)
            owner, standby = owner_and_standby([one, two])
            assert stopped.is_running(), "an owner that is fenced stands by, and does not end"
            assert httpx2.get(f"{standby.url}/ready", timeout=20).status_code == 200

            began_s = time.monotonic()
            owner.kill_all()
            takes_over(standby, "was killed", began_s)
            by_kind(reader.url)
            again = Run(machines.folder, data=owner.data.name, port=owner.port, only=ROLES)
            with again:
                owner, standby = owner_and_standby([standby, again])
                began_s = time.monotonic()
                owner.process.terminate()
                takes_over(standby, "ended", began_s)
                client.finish()
                until(lambda: processed(machines.tables) == client.sent, "all is processed")
                good = sum(n % 10 != 0 for n in range(client.sent))
                until(lambda: sum(by_kind(reader.url).values()) == good, "all is published")
        finally:
            client.give_up()
    checker = Checker(machines.tables, "numbers", "number", VIEWS)
    acknowledged = Acknowledged(listed).read()
    assert acknowledged == list(range(client.sent))
    assert checker.check(acknowledged, range(client.sent)) == []
    check_told(machines)


def check_told(machines: Machines) -> None:
    """Check that the last record of each key of the change topic is the view's row."""
    last = {r["key"]: json.loads(r["value"]) for r in machines.records("told")}
    told = sorted((row["kind"], row["n"], row["total"]) for row in last.values())
    view = DeltaTable(machines.tables / "views" / "by_kind").to_pyarrow_table().to_pylist()
    assert told == sorted((row["kind"], row["n"], int(row["total"])) for row in view)
