"""A pipeline under load goes from the embedded log to Kafka and Spark; its clients try again."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from live import VIEWS, Run, drain, headrace, last_ledger_row, pipeline_text, sending, until

from headrace.model.clock import SystemClock
from headrace.testing.checker import Acknowledged, Checker

EVENTS = 100_000
BATCH = 500
ON_KAFKA = """
[kafka]
bootstrap = "BOOTSTRAP"
prefix = "PREFIX"
"""
ON_SPARK = """
[spark]
master = "local[2]"
"""


def test_every_acknowledged_event_is_there_once(tmp_path: Path, kafka) -> None:
    if shutil.which("java") is None:
        pytest.skip("Spark needs Java")
    (tmp_path / "pipeline.py").write_text(pipeline_text('every="200 ms"'))
    prefix = f"promotion-{SystemClock().secret(4).hex()}-"
    config = ON_KAFKA.replace("BOOTSTRAP", kafka.bootstrap).replace("PREFIX", prefix) + ON_SPARK
    with Run(tmp_path) as run, sending(run, batch=BATCH) as client:
        until(lambda: client.sent > EVENTS // 3, "a third is sent")
        (tmp_path / "headrace.toml").write_text(config)
        # The run is ended, and the client tries again and again until there is another.
        headrace(tmp_path, "promote", "--data", "data", "--stop")
        at_promotion = client.sent
        with Run(tmp_path, port=run.port):
            until(lambda: client.sent > EVENTS, "all is sent", 240)
            client.finish()
    drain(tmp_path)
    numbers = Acknowledged(tmp_path / "acknowledged").read()
    assert set(numbers) == set(range(client.sent))
    assert 0 < at_promotion < client.sent
    checker = Checker(tmp_path / "data", "numbers", "number", VIEWS)
    assert checker.check(numbers, range(client.sent)) == []
    row = last_ledger_row(tmp_path / "data")
    totals = row.topic_totals["events"]
    assert totals.decoded + totals.dead == client.sent
    assert sum(row.offsets.values()) >= client.sent - at_promotion - BATCH
