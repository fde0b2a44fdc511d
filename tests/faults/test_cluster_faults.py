"""The whole product on Kafka and Spark, under load, while both fail: I1 to I7 hold.

Clients number their events and send each batch until it is acknowledged, under one name. Meanwhile
leaders are killed and started again, all brokers are stopped, and an executor is lost in an epoch.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import httpx2
import psutil
import pytest
from kafka_place import KafkaPlace
from live import Client, Run, breaches, last_ledger_row, pipeline_text, processed, until
from test_kafka_faults import IS_LONG, KILL_EVERY_S, leader_of, stopped

from headrace.app.cluster import trial
from headrace.model.clock import SystemClock

KILLS, STOP_S = (12, 30.0) if IS_LONG else (1, 14.0)
CLIENTS = 4
FAR_APART = 10_000_000
"""Between the numbers of two clients."""
WAIT_S = 200.0
STEADY_S = 2.0
SILENT_S = 1.0
"""What a broker answered just before it was stopped is there by then."""
SMALL = """every="200 ms", table_files_max=8, commits_per_checkpoint=5, keep_commits="0 s",
    tidy_every="1 s\""""


class Patient(Client):
    """A client that soon asks again, and notes when it was acknowledged."""

    def __init__(self, url: str, listed: Path, first: int) -> None:
        super().__init__(url, listed, first, timeout_s=4.0)
        self.acknowledged_at_s: list[float] = []

    def send(self, http: httpx2.Client, numbers: range) -> bool:
        """See `Client`."""
        is_acknowledged = super().send(http, numbers)
        if is_acknowledged:
            self.acknowledged_at_s.append(time.monotonic())
        return is_acknowledged


class Load:
    """All clients together."""

    def __init__(self, run: Run) -> None:
        listed = run.data.parent / "acknowledged"
        self.clients = [Patient(run.url, listed, FAR_APART * n) for n in range(CLIENTS)]

    @property
    def sent(self) -> list[int]:
        return [n for client in self.clients for n in range(client.first, client.sent)]

    def rate(self, from_s: float, to_s: float) -> float:
        """Return how many batches a second were acknowledged."""
        times = itertools.chain(*(list(c.acknowledged_at_s) for c in self.clients))
        return sum(from_s <= at_s < to_s for at_s in times) / (to_s - from_s)

    def refused(self) -> list[httpx2.Response]:
        return [answer for client in self.clients for answer in client.refused]

    def wait_for(self, batches: int) -> None:
        """Return once every client has had so many more acknowledged."""
        before = [len(client.acknowledged_at_s) for client in self.clients]
        pairs = list(zip(self.clients, before, strict=True))
        until(
            lambda: all(len(c.acknowledged_at_s) >= n + batches for c, n in pairs),
            "events get through",
            WAIT_S,
        )

    def back_after_s(self, ended_s: float, rate: float) -> float:
        """Return how long after a fault's end half of the rate before was there again."""
        while time.monotonic() < ended_s + WAIT_S:
            now_s = time.monotonic()
            if self.rate(now_s - 1, now_s) >= rate / 2:
                return max(0.0, now_s - 1 - ended_s)
            time.sleep(0.05)
        pytest.fail("never half of the rate again")


@contextlib.contextmanager
def loading(run: Run) -> Iterator[Load]:
    load = Load(run)
    for client in load.clients:
        client.start()
    try:
        yield load
    finally:
        for client in load.clients:
            client.give_up()


def executors(run: Run, spark_folder: Path) -> list[psutil.Process]:
    """Return the executors of a run's Spark: others may have some at the same workers."""
    roles = run.children()["process"].children(recursive=True)
    drivers = [process for process in roles if process.name() == "java"]
    places = [
        f"CoarseGrainedScheduler@127.0.0.1:{connection.laddr.port}"
        for driver in drivers
        for connection in driver.net_connections("tcp")
        if connection.status == psutil.CONN_LISTEN
    ]
    found = []
    for name, pid in trial.pids(spark_folder).items():
        if name.startswith("worker"):
            for process in psutil.Process(pid).children():
                with contextlib.suppress(psutil.Error):  # it ended just now
                    words = " ".join(process.cmdline())
                    if any(f"{place} " in words for place in places):
                        found.append(process)
    return found


def lose_an_executor(run: Run, spark_folder: Path) -> None:
    """Kill an executor that an epoch waits for."""
    until(lambda: executors(run, spark_folder), "there is an executor", WAIT_S)
    (executor, *_) = executors(run, spark_folder)
    executor.suspend()

    def waits() -> bool:
        at = processed(run.data)
        time.sleep(STEADY_S)
        return processed(run.data) == at

    try:
        until(waits, "an epoch waits for it", WAIT_S)
    finally:
        executor.kill()
    at = processed(run.data)
    until(lambda: processed(run.data) > at, "the epoch is done by others", WAIT_S)


def kill_leaders(folder: Path, place: KafkaPlace, load: Load) -> None:
    """Kill who leads a partition of the topic, again and again, each time with another leader."""
    for _ in range(KILLS):
        began_s = time.monotonic()
        rate = load.rate(began_s - STEADY_S, began_s)
        pid = trial.pids(folder)[leader_of(place, "events")]
        os.kill(pid, signal.SIGKILL)
        # The keeper starts it again once all its threads have ended, and it was waited for.
        until(lambda pid=pid: not psutil.pid_exists(pid), "it is gone")
        trial.start_missing(folder, SystemClock())
        ended_s = time.monotonic()
        time.sleep(max(0.0, began_s + KILL_EVERY_S - ended_s))
        now_s = time.monotonic()
        say(f"a leader killed: {rate:.0f} batches/s, then {load.rate(began_s, now_s):.0f}")


def stop_all(folder: Path, load: Load) -> None:
    """Stop all brokers, and see that meanwhile nothing is acknowledged and clients are told so."""
    load.wait_for(10)
    began_s = time.monotonic()
    rate = load.rate(began_s - STEADY_S, began_s)
    with stopped(trial.pids(folder).values()):
        before = len(load.refused())
        time.sleep(STOP_S)
        ended_s = time.monotonic()
        refused = load.refused()[before:]
    assert load.rate(began_s + SILENT_S, ended_s) == 0
    assert {answer.status_code for answer in refused} == {503}
    back_s = load.back_after_s(ended_s, rate)
    codes = dict(Counter(answer.json()["error"]["code"] for answer in refused))
    say(f"all stopped: refused {codes}; half of {rate:.0f} batches/s {back_s:.1f} s afterwards")


def say(text: str) -> None:
    sys.stdout.write(f"{text}\n")


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_what_was_acknowledged_is_there_once_whatever_fails(
    tmp_path: Path, kafka_alone: Path, spark_folder: Path
) -> None:
    place = KafkaPlace(trial.running(kafka_alone).kafka)
    kafka = place.kafka
    (tmp_path / "pipeline.py").write_text(pipeline_text(SMALL))
    config = f'[kafka]\nbootstrap = "{kafka.bootstrap}"\nprefix = "{kafka.prefix}"\n'
    on_spark = (spark_folder / trial.CONFIG).read_text()
    (tmp_path / "headrace.toml").write_text(config + on_spark)

    def is_all_done(reader, sent: int) -> bool:
        row = last_ledger_row(run.data)
        ends = {f"events/{p}": end for p, end in enumerate(reader.ends("events"))}
        return processed(run.data) == sent and row is not None and row.offsets == ends

    try:
        with Run(tmp_path) as run, loading(run) as load, contextlib.closing(place.reader()) as log:
            collector = run.children()["collect"]
            until(lambda: processed(run.data), "an epoch", WAIT_S)
            lose_an_executor(run, spark_folder)
            kill_leaders(kafka_alone, place, load)
            stop_all(kafka_alone, load)
            load.wait_for(20)
            for client in load.clients:
                client.finish()
            sent = load.sent
            until(lambda: is_all_done(log, len(sent)), "all is in the tables", WAIT_S)
            assert run.children().get("collect") == collector, run.said()
            said = run.said()
        refused = load.refused()
        assert all(int(answer.headers["retry-after"]) >= 1 for answer in refused)
        assert {answer.status_code for answer in refused} == {503}
        assert breaches(run.data, sent, log=place.reader()) == []
        totals = last_ledger_row(run.data).topic_totals["events"]
        say(f"{len(sent)} sent and acknowledged, {len(refused)} answers 503, {totals}; {said}")
    finally:
        place.wipe()
