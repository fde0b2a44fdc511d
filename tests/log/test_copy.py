from __future__ import annotations

import threading
from contextlib import closing

from headrace.log.copy import copy_log
from headrace.log.embedded import EmbeddedLog
from headrace.log.verify import verify
from headrace.model.clock import SystemClock
from headrace.testing.log_place import read_values
from headrace.testing.log_worker import numbered


def test_a_copy_taken_under_load_is_a_log(tiny, tmp_path):
    stop = threading.Event()
    with closing(tiny.open()) as log:
        log.create("events", 1)

        def write():
            number = 0
            while not stop.is_set():
                log.append("events", numbered(number, number + 3))
                number += 3

        writer = threading.Thread(target=write)
        writer.start()
        try:
            for number in range(5):
                (before,) = log.ends("events")
                copy = tmp_path / f"copy-{number}"
                assert copy_log(tiny.directory, copy) == len(list(copy.glob("*.db")))
                assert verify(copy) == []
                with closing(EmbeddedLog(copy, SystemClock())) as copied:
                    found = read_values(copied, "events")
                    assert found == [b"%d" % value for value in range(len(found))]
                    assert len(found) >= before
        finally:
            stop.set()
            writer.join()
