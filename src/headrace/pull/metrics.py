"""What the pull role counts, for `/metrics`."""

from __future__ import annotations

from collections.abc import Sequence

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric

from headrace.control.progress import SourceProgress

METRICS_FILE = "metrics-pull.prom"
METRICS = {
    "headrace_source_records_total": "Records pulled and durable, by source",
    "headrace_source_pages_total": "Pages pulled and durable, by source",
    "headrace_source_remaining_records": "Records still to come, where known, by source",
    "headrace_source_state": "1 for the state that a source is in, by source and state",
}
"""Name → meaning of every metric of this role."""


def text(sources: Sequence[SourceProgress]) -> bytes:
    """Return the metrics in the Prometheus text format."""
    registry = CollectorRegistry()
    registry.register(_Families(sources))
    return generate_latest(registry)


class _Families:
    def __init__(self, sources: Sequence[SourceProgress]) -> None:
        self._sources = sources

    def collect(self) -> list[Metric]:
        """Return the metric families as they stand."""
        records, pages = (
            CounterMetricFamily(name, METRICS[f"{name}_total"], labels=["source"])
            for name in ("headrace_source_records", "headrace_source_pages")
        )
        remaining, state = (
            GaugeMetricFamily(name, METRICS[name], labels=labels)
            for name, labels in (
                ("headrace_source_remaining_records", ["source"]),
                ("headrace_source_state", ["source", "state"]),
            )
        )
        for source in self._sources:
            records.add_metric([source.name], source.records)
            pages.add_metric([source.name], source.pages)
            state.add_metric([source.name, source.state], 1)
            if source.remaining is not None:
                remaining.add_metric([source.name], source.remaining)
        return [records, pages, remaining, state]
