"""Two machines that pull one source of a pipeline into a log in Kafka, one of them at a time.

Each has a data directory, and in it an index of what the source has given. The one that pulls is
killed or ends within a sweep, and the other goes on: nothing is lost, nothing is there twice, and
an index that is from before the other's turn is not believed.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import msgspec
import pytest
from deltalake import DeltaTable
from live import Run, until
from machines import Machines

from headrace.pull.state import SourceState, read_state, state_key
from headrace.testing.services import Services, services

SERVICE = "idigbio"
RECORDS = 1_000
PIPELINE = """from headrace import Pipeline, Record

pipeline = Pipeline("specimens", every="100 ms", private_addresses=True)


class Specimen(Record):
    uuid: str
    etag: str | None = None


pipeline.topic("specimens", Specimen, partitions=3, store=False)
pipeline.table(
    "held",
    "SELECT uuid, etag, _seen_at AS seen_at, _deleted AS gone FROM specimens",
    key="uuid",
    version="seen_at",
    deleted="gone",
)
pipeline.source(
    "museum", kind="idigbio", topic="specimens", url="URL", contact="test@example.org",
    requests_per_s=20, page_size=20, full_every=0, interval_s=0,
)
"""


@pytest.fixture
def running():
    with services(records={SERVICE: RECORDS}) as made:
        yield made


@pytest.fixture
def machines(tmp_path: Path, kafka, running: Services) -> Machines:
    return Machines(tmp_path, kafka.bootstrap, PIPELINE.replace("URL", running.idigbio))


def state_of(machines: Machines) -> SourceState:
    with machines.log() as log:
        return read_state(log.get(state_key("museum")))


def pulls(run: Run) -> bool:
    """Return whether a machine has the source now."""
    assert run.process.poll() is None, run.said()
    try:
        told = msgspec.json.decode((run.data / "run" / "pull.json").read_bytes())
    except FileNotFoundError:
        return False
    return [s["state"] for s in told] in (["running"], ["waiting"])


def within_a_sweep(machines: Machines, number: int) -> bool:
    sweep = state_of(machines).sweep
    return sweep is not None and sweep.number >= number and 5 <= sweep.pages <= 25


def held(machines: Machines) -> dict[str, str]:
    rows = DeltaTable(machines.tables / "tables" / "held").to_pyarrow_table().to_pylist()
    return {row["uuid"]: row["etag"] for row in rows}


def truth(running: Services) -> dict[str, str]:
    return {r["uuid"]: r["etag"] for r in running.truth(SERVICE)}


def change(running: Services, word: str) -> None:
    """Have the service change some records and remove others."""
    keys = running.keys(SERVICE)
    running.remove(SERVICE, keys[:10])
    for key in keys[10:20]:
        running.change(SERVICE, key, {"etag": word})


def test_each_goes_on_where_the_other_ended(machines: Machines, running: Services) -> None:
    with (
        machines.run("tables", "collect,process"),
        machines.run("one", "pull") as one,
        machines.run("two", "pull") as two,
    ):
        until(lambda: within_a_sweep(machines, 1), "a sweep is under way")
        first, second = (one, two) if pulls(one) else (two, one)
        assert not pulls(second)
        first.kill_all()
        until(lambda: pulls(second), "the other takes over")
        keys = truth(running)
        until(lambda: within_a_sweep(machines, 2), "the first sweep ends")
        assert given_first(machines) == dict.fromkeys(keys, 1)
        change(running, "while the second pulls")
        with machines.run(first.data.name, "pull") as again:
            # Its index is from before the second's turn, with pages that were changed since.
            sweep = state_of(machines).sweep.number + 1
            until(lambda: within_a_sweep(machines, sweep), "a later sweep is under way")
            second.process.terminate()
            until(lambda: pulls(again), "the first takes over")
            change(running, "while the first pulls")
            sweep = state_of(machines).sweep.number
            until(lambda: held(machines) == truth(running), "the table is what the service has")
            assert state_of(machines).sweep.number >= sweep
    assert running.report().polite, running.report()


def given_first(machines: Machines) -> Counter[str]:
    """Return how often each record is among those that were received first, a sweep's worth."""
    found = sorted(machines.records("specimens"), key=lambda record: record["received_at"])
    return Counter(json.loads(record["value"])["uuid"] for record in found[:RECORDS])
