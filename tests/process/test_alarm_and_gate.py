from __future__ import annotations

import threading
from pathlib import Path

from headrace.model.clock import ManualClock
from headrace.model.runner import TopicCount
from headrace.process.alarm import DeadLetterAlarm
from headrace.process.gate import Gate


def test_alarm_wants_a_thousand_records_and_more_than_half_dead() -> None:
    clock = ManualClock()
    alarm = DeadLetterAlarm(clock)
    assert alarm.see({"a": TopicCount(read=999, dead=999)}) == ""
    assert "of the 1000 records" in alarm.see({"a": TopicCount(read=1, decoded=1)})
    clock.advance(61)
    assert alarm.see({"a": TopicCount(read=2000, decoded=1000, dead=1000)}) == ""


def test_a_backup_is_alone_and_does_not_starve(tmp_path: Path) -> None:
    gate = Gate(tmp_path)
    order: list[str] = []
    inside = threading.Event()

    def turns() -> None:
        for _ in range(200):
            with gate.turn():
                order.append("begin")
                inside.set()
                order.append("end")

    thread = threading.Thread(target=turns)
    thread.start()
    inside.wait()
    with gate.quiet():
        seen = len(order)
        assert seen % 2 == 0
        thread.join(0.05)
        assert len(order) == seen
    thread.join()
    assert len(order) == 400
