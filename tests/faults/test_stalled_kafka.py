"""The collector while no broker answers and its clients go on sending: bounded, and it says so."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import psutil
import pytest
from live import Run, free_port, pipeline_text, until
from test_kafka_faults import stopped

from headrace.app.cluster import trial
from headrace.log.kafka import Kafka, KafkaLogReader
from headrace.model.clock import SystemClock

CROWD = Path(__file__).parent / "crowd.py"
IS_LONG = os.environ.get("HEADRACE_TEST_LONG") == "1"
BEFORE_S, STALL_S, AFTER_S = (10.0, 60.0, 15.0) if IS_LONG else (2.0, 14.0, 4.0)
LOADS = (
    # Connections, path, events of a body, bytes that each of them is longer.
    ("32", "/v1/topics/events", "1", "0"),
    ("16", "/v1/topics/events", "100", "100"),
    ("8", "/v1/topics/events", "4000", "1000"),
    ("8", "/v1/topics/events?wait=false", "1", "0"),
)
"""Alone and many together, small and large, and those that wait for no answer, all at once."""
BYTES_MAX = 300_000_000


@pytest.mark.slow
def test_the_collector_takes_little_memory_while_kafka_is_stalled(
    tmp_path: Path, kafka_alone: Path
) -> None:
    kafka = trial.running(kafka_alone).kafka
    assert kafka is not None
    prefix = f"stalled-{os.getpid()}-"
    (tmp_path / "pipeline.py").write_text(pipeline_text(""))
    (tmp_path / "headrace.toml").write_text(
        f'[kafka]\nbootstrap = "{kafka.bootstrap}"\nprefix = "{prefix}"\n'
    )
    with Run(tmp_path, port=free_port(), only="collect") as run:
        collector = run.children()["collect"]
        seconds = str(BEFORE_S + STALL_S + AFTER_S)
        crowds = [
            subprocess.Popen(
                [sys.executable, str(CROWD), str(run.port), seconds, *load],
                stdout=subprocess.PIPE,
                text=True,
            )
            for load in LOADS
        ]
        try:
            before = most_bytes(collector, BEFORE_S)
            with stopped(trial.pids(kafka_alone).values()):
                stalled = most_bytes(collector, STALL_S)
            after = most_bytes(collector, AFTER_S)
            answers = [json.loads(crowd.communicate(timeout=60)[0]) for crowd in crowds]
        finally:
            for crowd in crowds:
                crowd.kill()
                crowd.wait()
        figures = [f"{size / 1e6:.0f} MB" for size in (before, stalled, after)]
        sys.stdout.write(f"before, stalled, after: {', '.join(figures)}; answers: {answers}\n")
        assert run.children().get("collect") == collector, run.said()
        assert max(before, stalled, after) < BYTES_MAX
        # Those that wait for an answer are told after half a minute that there is none.
        assert all(answer.get("503") for answer in (answers if IS_LONG else answers[-1:]))
        # On a busy machine a large body may take longer than one is waited for.
        assert {status for answer in answers for status in answer} <= {"200", "202", "408", "503"}
    acknowledged = sum(
        answer.get("200", 0) * int(events)
        for answer, (_, _, events, _) in zip(answers, LOADS, strict=True)
    )
    reader = KafkaLogReader(Kafka(kafka.bootstrap, prefix=prefix), SystemClock())
    with closing(reader):
        until(lambda: sum(reader.ends("events")) >= acknowledged, "all that was acknowledged")


def most_bytes(process: psutil.Process, seconds: float) -> int:
    """Return the most memory that a process has within so many seconds."""
    clock, most = SystemClock(), 0
    end_s = clock.monotonic_s() + seconds
    while clock.monotonic_s() < end_s:
        most = max(most, process.memory_info().rss)
        clock.sleep(0.1)
    return most
