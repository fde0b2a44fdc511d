"""What the process role says of itself: one JSON file and one metrics file, each second.

`run/process.json` is for `headrace status` and readiness; `run/metrics-process.prom` is merged into
`/metrics` by the serve role. Both are replaced whole by rename, so a reader never sees half.
"""

from __future__ import annotations

import os
from pathlib import Path

import msgspec
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from headrace.control.files import replace
from headrace.model.clock import Clock
from headrace.process.ledger import LedgerRow
from headrace.process.loop import EpochProgress

STATUS_FILE = "process.json"
METRICS_FILE = "metrics-process.prom"

METRICS = {
    "headrace_epochs_total": "Epochs run since the role started",
    "headrace_epoch_seconds_total": "Seconds spent in epochs since the role started",
    "headrace_epoch_last_seconds": "Duration of the last epoch",
    "headrace_behind_records": "Records in the log that no table contains yet",
    "headrace_records_processed_total": "Records since the pipeline began, by topic and outcome",
    "headrace_rows_total": "Rows since the pipeline began, by table and outcome",
    "headrace_table_files": "Data files of a table",
    "headrace_owner": "1 while this process owns the pipeline; 0 while it begins or stands by",
    "headrace_retention_alarm": "1 while Kafka is to delete, or has, what no table contains yet",
    "headrace_dead_letter_alarm": "1 while more than half of a minute's records die",
}
"""Name → meaning of every metric of this role."""


class Status(msgspec.Struct):
    """The JSON file."""

    at_us: int
    pid: int
    state: str
    """`beginning`, `running`, `standby` while another process owns the pipeline, or `stopped`."""
    epoch: int
    behind: int
    epoch_s: float
    freshness_s: float | None
    """Of the newest epoch that read records; see `freshness_s_of`."""
    alarm: str
    restarts: int
    waiting_for: str
    at_risk: str
    """What the log is about to delete, or has, before tables contain it; empty: nothing."""
    offsets: dict[str, int]
    topics: dict[str, dict[str, int]]
    tables: dict[str, dict[str, int]]


def status_of(progress: EpochProgress, last: LedgerRow | None, clock: Clock, state: str) -> Status:
    """Return the role's status as a value."""
    to_dict = msgspec.structs.asdict
    return Status(
        at_us=clock.now_us(),
        pid=os.getpid(),
        state=state,
        epoch=last.epoch if last else 0,
        behind=progress.behind,
        epoch_s=progress.epoch_s,
        freshness_s=freshness_s_of(last) if last else None,
        alarm=progress.alarm,
        restarts=progress.restarts,
        waiting_for=progress.waiting_for,
        at_risk=progress.at_risk,
        offsets=last.offsets if last else {},
        topics={k: to_dict(v) for k, v in last.topic_totals.items()} if last else {},
        tables={k: to_dict(v) for k, v in last.table_totals.items()} if last else {},
    )


def freshness_s_of(row: LedgerRow) -> float | None:
    """Return how long the last record that an epoch read had been received when it was committed.

    Of several partitions it is the longest; None if the epoch read none.
    """
    received_us = [row.clocks[p] for p in row.read_from if p in row.clocks]
    return max(0, row.committed_at_us - min(received_us)) / 1e6 if received_us else None


def write(directory: Path, status: Status, progress: EpochProgress) -> None:
    """Replace both files in `directory`."""
    replace(directory / STATUS_FILE, msgspec.json.encode(status))
    registry = CollectorRegistry()
    registry.register(_Metrics(status, progress))
    replace(directory / METRICS_FILE, generate_latest(registry))


class _Metrics:
    def __init__(self, status: Status, progress: EpochProgress) -> None:
        self._status = status
        self._progress = progress

    def collect(self) -> list[Metric]:
        """Return the metric families as they stand."""
        status, progress = self._status, self._progress
        records = _family("headrace_records_processed", ["topic", "outcome"])
        for topic, counts in status.topics.items():
            for outcome, n in counts.items():
                records.add_metric([topic, outcome], n)
        rows = _family("headrace_rows", ["table", "outcome"])
        for table, counts in status.tables.items():
            for outcome, n in counts.items():
                rows.add_metric([table, outcome], n)
        files = _gauge("headrace_table_files", None, ["table"])
        for table, n in progress.files.items():
            files.add_metric([table], n)
        epochs = _family("headrace_epochs")
        epochs.add_metric([], progress.epochs)
        seconds = _family("headrace_epoch_seconds")
        seconds.add_metric([], progress.epoch_seconds_sum)
        return [
            epochs,
            seconds,
            _gauge("headrace_epoch_last_seconds", progress.epoch_s),
            _gauge("headrace_behind_records", progress.behind),
            _gauge("headrace_owner", float(status.state == "running")),
            _gauge("headrace_retention_alarm", float(bool(progress.at_risk))),
            _gauge("headrace_dead_letter_alarm", float(bool(progress.alarm))),
            records,
            rows,
            files,
        ]


def _family(name: str, labels: list[str] | None = None) -> CounterMetricFamily:
    return CounterMetricFamily(name, METRICS[name + "_total"], labels=labels or [])


def _gauge(name: str, value: float | None, labels: list[str] | None = None) -> GaugeMetricFamily:
    return GaugeMetricFamily(name, METRICS[name], value=value, labels=labels)
