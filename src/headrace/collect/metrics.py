"""Figures of the door: counted as plain integers, told in Prometheus's text form."""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections.abc import Callable, Iterator
from pathlib import Path

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)

from headrace.control.files import replace
from headrace.model.clock import Clock

_BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)
_WRITE_EVERY_S = 1.0


class DoorMetrics:
    """Counters of the hot path. Written on the event loop, read on any thread."""

    def __init__(self, topics: list[str]) -> None:
        self.accepted = dict.fromkeys(topics, 0)
        self.dead = dict.fromkeys(topics, 0)
        self.statuses: dict[int, int] = {}
        self._buckets = [0] * (len(_BUCKETS_S) + 1)
        self._seconds = 0.0

    def count(self, topic: str, records: int, dead: int) -> None:
        """Count the records of a request that was answered."""
        self.accepted[topic] += records - dead
        if dead:
            self.dead[topic] += dead

    def observe(self, status: int, seconds: float) -> None:
        """Count a request."""
        self.statuses[status] = self.statuses.get(status, 0) + 1
        self._buckets[bisect_left(_BUCKETS_S, seconds)] += 1
        self._seconds += seconds

    def families(self) -> Iterator[Metric]:
        """Yield everything that was counted."""
        records = CounterMetricFamily(
            "headrace_records", "Records that the door answered for.", labels=["topic", "outcome"]
        )
        for outcome, counts in (("accepted", self.accepted), ("dead", self.dead)):
            for topic, n in counts.items():
                records.add_metric([topic, outcome], n)
        yield records
        requests = CounterMetricFamily("headrace_requests", "Requests answered.", labels=["status"])
        for status, n in dict(self.statuses).items():
            requests.add_metric([str(status)], n)
        yield requests
        yield self._histogram()

    def _histogram(self) -> HistogramMetricFamily:
        seconds = HistogramMetricFamily(
            "headrace_request_seconds", "From a request's head to its answer."
        )
        total = 0
        cumulated: list[tuple[str, float]] = []
        for bound, n in zip([*map(str, _BUCKETS_S), "+Inf"], self._buckets, strict=True):
            total += n
            cumulated.append((bound, total))
        seconds.add_metric([], cumulated, self._seconds)
        return seconds


class Families:
    """What prometheus_client asks for: metrics made when they are read."""

    def __init__(
        self, metrics: DoorMetrics, gauges: Callable[[], dict[str, tuple[str, float]]]
    ) -> None:
        """`gauges` returns name → (help, value) of what is counted elsewhere."""
        self._metrics = metrics
        self._gauges = gauges

    def collect(self) -> Iterator[Metric]:
        """See `prometheus_client.registry.Collector`."""
        yield from self._metrics.families()
        for name, (told, value) in self._gauges().items():
            yield GaugeMetricFamily(name, told, value=value)


class MetricsFile:
    """Writes a registry to a file once a second, whole, so that another role can serve it."""

    def __init__(self, path: Path, families: Families, clock: Clock) -> None:
        self._path = path
        self._clock = clock
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(families)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="metrics", daemon=True)

    def start(self) -> None:
        """Begin to write."""
        self._thread.start()

    def close(self) -> None:
        """Write a last time and end."""
        self._stop.set()
        self._thread.join()
        self.write()

    def write(self) -> None:
        """Write the file now."""
        replace(self._path, generate_latest(self._registry))

    def _run(self) -> None:
        while not self._clock.wait(self._stop, _WRITE_EVERY_S):
            self.write()
