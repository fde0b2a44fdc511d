"""A wall clock that jumps: nothing is lost or doubled, and time windows still pass."""

from __future__ import annotations

from pathlib import Path

import pytest
from live import pipeline_text

from headrace.model.clock import ManualClock
from headrace.testing.kit import PipelineKit

HOUR_S = 3600
YEAR_2038_US = 2_147_483_648 * 1_000_000
WINDOW = """
from headrace import tumbling
pipeline.view(
    "by_minute", "SELECT count(*) AS n FROM numbers", window=tumbling("1 minute", on="received_at")
)
"""
PER_STEP = 40


@pytest.fixture
def kit(tmp_path: Path):
    (tmp_path / "pipeline.py").write_text(pipeline_text('every="20 ms"') + WINDOW)
    with PipelineKit.of_file(tmp_path / "pipeline.py", ManualClock()) as kit:
        yield kit


def send(kit: PipelineKit, first: int) -> None:
    kit.send(
        "events", *({"number": n, "kind": f"k{n % 5}"} for n in range(first, first + PER_STEP))
    )


def jump(kit: PipelineKit, seconds: float) -> None:
    kit.clock.set_now_us(kit.clock.now_us() + round(seconds * 1_000_000))


@pytest.mark.parametrize(
    "jumps_s",
    [
        [HOUR_S, HOUR_S],
        [-HOUR_S, -HOUR_S],
        [HOUR_S, -HOUR_S, HOUR_S, -2 * HOUR_S],
        [-HOUR_S, 3 * HOUR_S],
    ],
)
def test_an_hour_forth_and_back(kit: PipelineKit, jumps_s: list[float]) -> None:
    sent = 0
    for jump_s in [0, *jumps_s]:
        jump(kit, jump_s)
        send(kit, sent)
        kit.settle()
        sent += PER_STEP
    check(kit, sent)


def test_past_2038(kit: PipelineKit) -> None:
    kit.clock.set_now_us(YEAR_2038_US - 1_000_000)
    send(kit, 0)
    kit.settle()
    kit.advance(2)
    send(kit, PER_STEP)
    check(kit, 2 * PER_STEP)
    assert kit.table("numbers").num_rows == 2 * PER_STEP


def test_back_from_2038(kit: PipelineKit) -> None:
    send(kit, 0)
    now_us = kit.clock.now_us()
    kit.clock.set_now_us(YEAR_2038_US)
    send(kit, PER_STEP)
    kit.settle()
    kit.clock.set_now_us(now_us)
    send(kit, 2 * PER_STEP)
    check(kit, 3 * PER_STEP)


def check(kit: PipelineKit, sent: int) -> None:
    assert sorted(row["number"] for row in kit.rows("numbers", "number")) == list(range(sent))
    assert sum(row["n"] for row in kit.rows("by_kind", "n")) == sent
    assert sum(row["n"] for row in kit.rows("by_minute", "n")) == sent
    assert kit.rows("dead_letters") == []
