"""A source that gives the sweeps it was told, and its way into a real log, cut short anywhere."""

from __future__ import annotations

import json
import math
import threading
from pathlib import Path

from headrace.log.embedded import EmbeddedLog
from headrace.model.clock import ManualClock
from headrace.model.plan import Source, Topic
from headrace.model.source import Page, PulledRecord, Sweep
from headrace.pull.puller import Puller
from headrace.pull.records import Door
from headrace.pull.seen import Seen
from headrace.pull.state import read_state, state_key

TOPIC = Topic("t", 1, key_field="k")
COUNTS = Topic("counts", 1)
HOUR_US = 3_600_000_000


class Crash(BaseException):
    """The process ends here."""


class Scripted:
    """A service whose sweeps are given: dicts of key → version. Cursor: [sweep, page].

    A sweep is a dict, or a pair of one and whether it is full. The last page of the last sweep is
    done. `pages` are those that were asked for, by number, in order.
    """

    def __init__(self, *scripts, done=True, per_page=3):
        self.scripts = [s if isinstance(s, tuple) else (s, True) for s in scripts]
        self.done = done
        self.per_page = per_page
        self.pages = []
        self.counted = 0

    def open(self, cursor):
        number, page = json.loads(cursor) if cursor else (1, 0)
        for n in range(number, len(self.scripts) + 1):
            records, full = self.scripts[n - 1]
            keys = list(records)
            n_pages = max(1, math.ceil(len(keys) / self.per_page))
            for p in range(page, n_pages):
                self.pages.append((n, p))
                given = keys[p * self.per_page :][: self.per_page]
                last = p == n_pages - 1
                yield Page(
                    [self._record(key, records[key]) for key in given],
                    json.dumps([n + 1, 0] if last else [n, p + 1]).encode(),
                    done=last and n == len(self.scripts) and self.done,
                    progress=(p * self.per_page + len(given), len(keys)),
                    sweep=Sweep(n, n * HOUR_US, full),
                    sweep_done=last,
                )
            page = 0
        if self.done and number > len(self.scripts):
            last = self.scripts[-1]
            sweep = Sweep(len(self.scripts), len(self.scripts) * HOUR_US, last[1])
            yield Page((), cursor, done=True, sweep=sweep, sweep_done=True)

    def _record(self, key, version):
        return PulledRecord(
            json.dumps({"k": key, "v": version}).encode(),
            key=key.encode(),
            id=key,
            digest=b"%016d" % version,
        )

    def deletion(self, key):
        return json.dumps({"k": key.decode()}).encode()

    def count(self):
        self.counted += 1
        return 100 + self.counted, "everything"

    def close(self):
        pass


class Faulty:
    """A log, and an index beside it, that end the process before or after the n-th effect."""

    def __init__(self, log):
        self.log = log
        self.effects = 0
        self.crash_at = None
        self.fault = Crash()

    def effect(self, act):
        """Do something that lasts; the process may end right before or right after."""
        self._step()
        result = act()
        self._step()
        return result

    def _step(self):
        self.effects += 1
        if self.effects == self.crash_at:
            raise self.fault

    def append(self, *args):
        return self.effect(lambda: self.log.append(*args))

    def get(self, key):
        return self.log.get(key)

    def scan(self, prefix):
        return self.log.scan(prefix)


class Bench:
    """One source, its log and its index, that can be run again and again."""

    def __init__(self, folder: Path, *, counts=False):
        self.clock = ManualClock()
        self.folder = folder
        self.log = EmbeddedLog(folder / "log", self.clock)
        for topic in (TOPIC, COUNTS):
            self.log.create(topic.name, topic.partitions)
        self.declared = Source("s", "scripted", "t", {}, "counts" if counts else None)
        self.known = ()
        self.faulty = Faulty(self.log)
        self.reports = []

    @property
    def index(self):
        return self.folder / "sources" / "s.db"

    def run(self, source, crash_at=None, fault=None, stop=None):
        """Run a new process; return its report, or None if it crashed."""
        self.faulty.effects, self.faulty.crash_at = 0, crash_at
        self.faulty.fault = fault or Crash()
        counts = Door(self.declared, COUNTS, self.clock) if self.declared.counts else None
        puller = Puller(
            self.declared,
            source,
            Door(self.declared, TOPIC, self.clock),
            self.faulty,
            threading.Lock(),
            index=self.index,
            counts=counts,
            known_keys=lambda _: self.known,
        )
        write = Seen.write

        def seen_write(seen, *args):
            self.faulty.effect(lambda: write(seen, *args))

        Seen.write = seen_write
        try:
            puller.run(self.clock, stop or threading.Event(), self._keep)
        finally:
            Seen.write = write
        if isinstance(puller.failure, Crash):
            return None
        if puller.failure is not None:
            raise puller.failure
        assert puller.report.error == ""
        return puller.report

    def _keep(self, report):
        self.reports.append((report.sweep, report.sweep_records, report.deleted, report.notice))

    def records(self, topic="t"):
        """Return (key, value, deleted) of everything in the log, in order."""
        end = self.log.ends(topic)[0]
        found = []
        for batch in self.log.read(topic, 0, 0, end):
            for row in batch.to_pylist():
                headers = json.loads(row["headers"] or b"{}")
                deleted = headers.get("headrace-deleted") == "true"
                if deleted:
                    assert "headrace-seen-at" in headers
                found.append((row["key"], json.loads(row["value"]), deleted))
        return found

    def state(self):
        return read_state(self.log.get(state_key("s")))

    def close(self):
        self.log.close()


def folded(records):
    """Return what a keyed table would hold."""
    held = {}
    for key, value, deleted in records:
        if deleted:
            del held[key.decode()]  # of a key that is there: never twice
        else:
            assert held.get(key.decode()) != value["v"], "appended though unchanged"
            held[key.decode()] = value["v"]
    return held


def numbered(n, version=1):
    return {f"k{i:05}": version for i in range(n)}
