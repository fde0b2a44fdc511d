"""How the pipeline is: its roles and what they use, its epochs, its files."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.compute as pc
from starlette.requests import Request
from starlette.responses import Response

from headrace.model.clock import Clock
from headrace.model.layout import Layout
from headrace.model.plan import LEDGER
from headrace.model.samples import SAMPLES
from headrace.model.tables import Snapshot
from headrace.serve import health
from headrace.serve.arguments import Arguments
from headrace.serve.dashboard import epochs
from headrace.serve.dashboard.epochs import HISTORY_S, Epochs
from headrace.serve.dashboard.page import Shell
from headrace.serve.reading import Reading, Readings
from headrace.serve.relations import Catalog, Snapshots

EPOCHS_SHOWN = 20
STALE_US = 60_000_000
"""A process that was not sampled for so long has ended."""


class Process(msgspec.Struct, frozen=True):
    """The part of the process role's status that is shown."""

    state: str = ""
    pid: int = 0
    behind: int = 0
    epoch_s: float = 0.0
    alarm: str = ""
    waiting_for: str = ""
    at_risk: str = ""


class Used(msgspec.Struct, frozen=True):
    """What a role used last."""

    node: str
    role: str
    pid: int
    cpu_percent: float
    memory_bytes: int


class Stored(msgspec.Struct, frozen=True):
    """Files of a table, and of the log that names them."""

    name: str
    rows: int
    files: int
    size_bytes: int
    version: int


class HealthPage:
    """The handler."""

    def __init__(
        self,
        shell: Shell,
        readings: Readings,
        epochs_: Epochs,
        layout: Layout,
        clock: Clock,
        waits_for: Sequence[str],
    ) -> None:
        """`waits_for` names the roles that are to run beside; see `health.readiness`."""
        self._shell = shell
        self._readings = readings
        self._epochs = epochs_
        self._layout = layout
        self._clock = clock
        self._waits_for = waits_for

    async def page(self, request: Request) -> Response:
        """Answer the page as things stand."""
        Arguments(request.query_params.multi_items()).finish()
        checks = await health.readiness(self._layout, self._clock, self._waits_for)
        found = await self._readings.read(Catalog.all, self._found)
        return self._shell.page("health.html", "Health", request, checks=checks, every_s=5, **found)

    def _found(self, reading: Reading) -> dict[str, Any]:
        now_us = self._clock.now_us()
        snapshots = self._readings.catalog.snapshots
        latest = self._epochs.latest()
        samples = _samples(snapshots, now_us - HISTORY_S * 1_000_000)
        return {
            "process": _process(self._layout),
            "used": _used(samples, now_us),
            "charts": {
                "Throughput": epochs.throughput(latest, now_us),
                "Freshness": epochs.freshness(latest, now_us),
                "CPU": _over_time(samples, "cpu_percent", 1.0, " %"),
                "Memory": _over_time(samples, "memory_bytes", 1e6, " MB"),
            },
            "epochs": latest[: -EPOCHS_SHOWN - 1 : -1],
            "stored": [
                *(_stored(r.storage, r.snapshot) for r in reading.relations),
                _stored(LEDGER, snapshots.newest(LEDGER)),
                _stored(SAMPLES, snapshots.newest(SAMPLES)),
            ],
        }


def _process(layout: Layout) -> Process:
    try:
        return msgspec.json.decode((layout.run / health.HEARTBEAT).read_bytes(), type=Process)
    except (OSError, msgspec.MsgspecError):
        return Process()


def _samples(snapshots: Snapshots, since_us: int) -> pa.Table | None:
    """Return the samples since a moment, in the order in which they were taken."""
    snapshot = snapshots.newest(SAMPLES)
    if snapshot is None or not snapshot.files:
        return None
    files = [f for f in snapshot.files if _may_hold(f.stats, since_us)]
    if not files:
        return None
    table = snapshots.reader.read(snapshot, files)
    since = pa.scalar(since_us, pa.timestamp("us", tz="UTC"))
    return table.filter(pc.greater_equal(table.column("sampled_at"), since)).sort_by("sampled_at")


def _used(samples: pa.Table | None, now_us: int) -> list[Used]:
    """Return what each role used when it was sampled last, unless it has ended."""
    if samples is None:
        return []
    last: dict[tuple[str, str], tuple[int, Used]] = {}
    names = ("node", "role", "pid", "cpu_percent", "memory_bytes")
    times = samples.column("sampled_at").cast(pa.int64()).to_pylist()
    for at_us, row in zip(times, samples.select(list(names)).to_pylist(), strict=True):
        last[row["node"], row["role"]] = (at_us, Used(**row))
    return [used for at_us, used in last.values() if now_us - at_us < STALE_US]


def _over_time(
    samples: pa.Table | None, column: str, per: float, unit: str
) -> Mapping[str, object]:
    """Return a column of the samples against time, a line for each role of each node."""
    if samples is None or not samples.num_rows:
        return {"x": [], "series": [], "unit": unit}
    rows = samples.select(["sampled_at", "node", "role", column]).to_pylist()
    nodes = {row["node"] for row in rows}
    width_s = HISTORY_S // epochs.BUCKETS
    lines: dict[str, dict[int, float]] = {}
    for row in rows:
        name = row["role"] if len(nodes) == 1 else f"{row['role']} at {row['node']}"
        at = int(row["sampled_at"].timestamp()) // width_s * width_s
        held = lines.setdefault(name, {})
        held[at] = max(held.get(at, 0.0), row[column] / per)
    x = sorted({at for line in lines.values() for at in line})
    series = [{"name": name, "y": [lines[name].get(at) for at in x]} for name in sorted(lines)]
    return {"x": x, "series": series, "unit": unit}


def _may_hold(stats: str | None, since_us: int) -> bool:
    """Return whether a file may have samples since a moment; one that does not say may."""
    newest = msgspec.json.decode(stats).get("maxValues", {}).get("sampled_at") if stats else None
    if newest is None:
        return True
    moment: dt.datetime = msgspec.convert(newest, type=dt.datetime)
    return moment.timestamp() * 1e6 >= since_us


def _stored(name: str, snapshot: Snapshot | None) -> Stored:
    files = snapshot.files if snapshot is not None else ()
    return Stored(
        name=name,
        rows=sum(f.rows for f in files),
        files=len(files),
        size_bytes=sum(f.size_bytes for f in files),
        version=-1 if snapshot is None else snapshot.version,
    )
