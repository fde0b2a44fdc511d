"""Kill -9 of `pull` while it sweeps a stand-in of iDigBio, and a stand-in that is unwell.

Shown of the log and of the keyed table that is made of it: no record is missing, none is there that
was not given, none twice. Shown by the stand-in's report: at most one page a kill was asked for
again, never more than one request at once, never more than the allowed rate.
"""

from __future__ import annotations

import contextlib
import json
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from deltalake import DeltaTable
from live import Run, drain, until

from headrace.log.embedded import EmbeddedLogReader
from headrace.pull.state import SourceState, read_state, state_key
from headrace.testing.services import Services, services

SEED = 20_261_122
RECORDS = 20_000
KILLS = 30
REQUESTS_PER_S = 25
SERVICE = "idigbio"
PIPELINE = """from headrace import Pipeline, Record

pipeline = Pipeline(
    "specimens", every="100 ms", segment_bytes_max=4_000_000, private_addresses=True
)


class Specimen(Record):
    uuid: str
    etag: str | None = None


class Count(Record):
    records: int


pipeline.topic("specimens", Specimen, partitions=PARTITIONS, store=False)
pipeline.topic("counts", Count)
pipeline.table(
    "held",
    "SELECT uuid, etag, _seen_at AS seen_at, _deleted AS gone FROM specimens",
    key="uuid",
    version="seen_at",
    deleted="gone",
)
pipeline.source(
    "museum", kind="idigbio", topic="specimens", counts="counts", url="URL",
    contact="test@example.org", requests_per_s=REQUESTS_PER_S, page_size=PAGE_SIZE,
    full_every=0, interval_s=INTERVAL_S,
)
"""


def write_pipeline(
    folder: Path, url: str, page_size: int, interval_s: float = 3600.0, partitions: int = 1
) -> None:
    text = PIPELINE.replace("URL", url).replace("REQUESTS_PER_S", str(REQUESTS_PER_S))
    text = text.replace("INTERVAL_S", str(interval_s)).replace("PARTITIONS", str(partitions))
    (folder / "pipeline.py").write_text(text.replace("PAGE_SIZE", str(page_size)))


@contextlib.contextmanager
def reading(folder: Path) -> Iterator[EmbeddedLogReader]:
    with contextlib.closing(EmbeddedLogReader(folder / "data" / "log")) as log:
        yield log


def state_of(folder: Path) -> SourceState:
    with reading(folder) as log:
        return read_state(log.get(state_key("museum")))


def logged(folder: Path, topic: str = "specimens") -> list[tuple[str, dict, bool]]:
    """Return (key, value, whether deleted) of each record in the log; those of a key in order."""
    found = []
    with reading(folder) as log:
        for partition, end in enumerate(log.ends(topic)):
            at = 0
            while at < end:
                for batch in log.read(topic, partition, at, end):
                    for row in batch.to_pylist():
                        headers = json.loads(row["headers"] or b"{}")
                        key = (row["key"] or b"").decode()
                        gone = headers.get("headrace-deleted") == "true"
                        found.append((key, json.loads(row["value"]), gone))
                        at = row["offset"] + 1
    return found


def is_complete(folder: Path, sweep: int) -> bool:
    state = state_of(folder)
    return (
        state.sweep is not None
        and state.sweep.number >= sweep
        and state.sweep.ended
        and state.deleting is None
        and not state.counting
    )


@contextlib.contextmanager
def pulling(folder: Path) -> Iterator[subprocess.Popen]:
    """Run the role by itself, beside a collector; it is killed at the end.

    The supervisor would pause longer and longer before it began the role again.
    """
    words = [sys.executable, "-m", "headrace.app.role", "pull", "--data", folder / "data"]
    with (folder / "said-pull").open("ab") as said:
        role = subprocess.Popen(words, stderr=said)
    try:
        yield role
    finally:
        role.kill()
        role.wait()


def kill_a_pull(folder: Path, running: Services, chance: random.Random) -> None:
    """Kill a role a moment after it has asked for something."""
    asked = len(running.requests())
    with pulling(folder) as role:
        until(lambda: len(running.requests()) > asked, "a page is asked for")
        time.sleep(chance.uniform(0, 0.25))
        assert role.poll() is None, (folder / "said-pull").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("partitions", [1, 3])
def test_kills_during_sweeps_lose_and_repeat_nothing(tmp_path: Path, partitions: int) -> None:
    chance = random.Random(SEED + partitions)
    with services(records={SERVICE: RECORDS}) as running:
        write_pipeline(tmp_path, running.idigbio, page_size=100, partitions=partitions)
        with Run(tmp_path, only="collect"):
            for _ in range(KILLS):
                kill_a_pull(tmp_path, running, chance)
            assert not is_complete(tmp_path, 1), "make the sweep longer: it ended before"
        with Run(tmp_path):
            until(lambda: is_complete(tmp_path, 1), "the sweep completes", 120)
        drain_sources_off(tmp_path)
        check_polite(running, repeated_max=KILLS)
        truth = {r["uuid"]: r for r in running.truth(SERVICE)}
    records = logged(tmp_path)
    assert Counter(key for key, *_ in records) == dict.fromkeys(truth, 1)
    assert {key: value for key, value, _ in records} == truth
    assert not any(gone for *_, gone in records)
    assert held(tmp_path) == sorted(truth)
    assert [count["records"] for _, count, _ in logged(tmp_path, "counts")] == [RECORDS]


def check_polite(running: Services, repeated_max: int) -> None:
    report = running.report()
    of = report.services[SERVICE]
    assert report.polite, report
    assert of.most_in_a_second <= REQUESTS_PER_S + 1
    # A count of the records is asked for twice a sweep: to believe it, and to tell it.
    assert sum(n for what, n in of.repeated.items() if '"sort"' in what) <= repeated_max


def held(folder: Path) -> list[str]:
    """Return the keys of the keyed table, by a third-party reader."""
    rows = DeltaTable(folder / "data" / "tables" / "held").to_pyarrow_table(columns=["uuid"])
    return sorted(rows.column("uuid").to_pylist())


@pytest.mark.slow
@pytest.mark.parametrize("partitions", [1, 3])
def test_kills_while_changes_and_deletions_are_found(tmp_path: Path, partitions: int) -> None:
    chance = random.Random(SEED)
    with services(records={SERVICE: 3_000}) as running:
        write_pipeline(tmp_path, running.idigbio, 100, interval_s=0, partitions=partitions)
        with Run(tmp_path, only="collect"):
            for version in range(KILLS):
                running.remove(SERVICE, chance.sample(running.keys(SERVICE), 40))
                for key in chance.sample(running.keys(SERVICE), 40):
                    running.change(SERVICE, key, {"etag": f"version {version}"})
                kill_a_pull(tmp_path, running, chance)
        with Run(tmp_path):
            # The first sweep that begins from here on sees nothing change.
            sweep = state_of(tmp_path).sweep.number + 1
            until(lambda: is_complete(tmp_path, sweep), "the sweeps complete", 120)
        drain_sources_off(tmp_path)
        check_polite(running, repeated_max=10**9)
        truth = {r["uuid"]: r for r in running.truth(SERVICE)}
    now: dict[str, dict] = {}
    for key, value, gone in logged(tmp_path):
        if gone:
            del now[key]  # of a key that is there: none goes twice
        else:
            assert now.get(key) != value, "appended though unchanged"
            now[key] = value
    assert now == truth
    assert held(tmp_path) == sorted(truth)


def drain_sources_off(folder: Path) -> None:
    """Have everything in tables, without another sweep."""
    text = (folder / "pipeline.py").read_text()
    (folder / "pipeline.py").write_text(text[: text.index("pipeline.source(")])
    drain(folder)


@pytest.mark.parametrize("partitions", [1, 3])
def test_a_sweep_completes_though_the_service_is_unwell(tmp_path: Path, partitions: int) -> None:
    with services(records={SERVICE: 2_000}) as running:
        running.fail("too_many_requests", after=3, requests=3, retry_after_s=1)
        running.fail("status", status=500, after=8, requests=2)
        running.fail("truncated", after=10, requests=2)
        running.fail("cut", after=12, requests=1)
        running.fail("html", after=13, requests=1)
        running.fail("reset", after=14, requests=1)
        write_pipeline(tmp_path, running.idigbio, page_size=100, partitions=partitions)
        with Run(tmp_path):
            until(lambda: is_complete(tmp_path, 1), "the sweep completes", 120)
        check_polite(running, repeated_max=0)
        faults = running.report().services[SERVICE].faults
    assert set(faults) == {"too_many_requests", "status", "truncated", "cut", "html", "reset"}
    check_all_is_logged(tmp_path, running)


@pytest.mark.slow
def test_a_sweep_completes_though_it_was_to_wait_for_a_minute(tmp_path: Path) -> None:
    with services(records={SERVICE: 2_000}) as running:
        write_pipeline(tmp_path, running.idigbio, page_size=100, partitions=3)
        # Two waits of half a minute fill it, and do not make the pauses after it long.
        running.fail("too_many_requests", path="search", seconds=60, retry_after_s=30)
        running.fail("status", path="search", status=500, requests=2)
        running.fail("truncated", path="search", requests=1)
        with Run(tmp_path):
            until(lambda: is_complete(tmp_path, 1), "the sweep completes", 240)
        check_polite(running, repeated_max=0)
        asked = [e for e in running.requests() if e.service == SERVICE]
    refused = [e for e in asked if e.fault == "too_many_requests"]
    others = [e.fault for e in asked if e.fault not in {None, "too_many_requests"}]
    assert others == ["status", "status", "truncated"]
    after = next(e for e in asked if e.at_s > refused[-1].at_s)
    assert after.at_s - refused[0].at_s >= 60
    assert len(refused) <= 3
    check_all_is_logged(tmp_path, running)


def check_all_is_logged(folder: Path, running: Services) -> None:
    """Check that the log has each of the service's records once."""
    truth = {r["uuid"]: r for r in running.truth(SERVICE)}
    records = logged(folder)
    assert len(records) == len(truth)
    assert {key: value for key, value, _ in records} == truth
