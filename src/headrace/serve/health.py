"""Whether this server is well (`/healthz`) and whether the pipeline behind it is (`/ready`)."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence

import msgspec

from headrace.model.clock import Clock
from headrace.model.layout import Layout
from headrace.model.plan import LEDGER
from headrace.serve.query import Session
from headrace.serve.relations import Snapshots, literal, path_of

HEARTBEAT = "process.json"
"""File of the run folder that the process role replaces every second."""
HEARTBEAT_AGE_S_MAX = 15.0
CONNECT_S_MAX = 2.0
QUERY_S_MAX = 2.0


def query_health(session: Session, snapshots: Snapshots) -> dict[str, object]:
    """Query the ledger's newest file; whatever fails raises."""
    snapshot = snapshots.newest(LEDGER)
    if snapshot is None or not snapshot.files:
        session.select("SELECT 0 AS epoch")
        return {"healthy": True, "epoch": 0}
    newest = snapshot.files[-1]
    session.fetch(snapshot, [newest])
    file = literal(path_of(snapshot, newest))
    answer = session.select(f"SELECT max(epoch) AS epoch FROM read_parquet([{file}])")
    return {"healthy": True, "epoch": answer.column("epoch")[0].as_py()}


async def readiness(layout: Layout, clock: Clock, waits_for: Sequence[str]) -> dict[str, str]:
    """Return each check with `ok` or what is wrong.

    `waits_for` names the roles that are to run beside it in the same data directory; what others do
    elsewhere does not count.
    """
    checks = {"data": _data(layout)}
    if "collect" in waits_for:
        checks["collect"] = await _door(layout)
    if "process" in waits_for:
        checks["process"] = _heartbeat(layout, clock)
    return checks


def _data(layout: Layout) -> str:
    if not os.access(layout.root, os.R_OK | os.X_OK):
        return "the data directory cannot be read"
    return "ok"


async def _door(layout: Layout) -> str:
    try:
        async with asyncio.timeout(CONNECT_S_MAX):
            _, writer = await asyncio.open_unix_connection(layout.door)
    except (OSError, TimeoutError):
        return "the collector does not answer at its socket"
    writer.close()
    return "ok"


def _heartbeat(layout: Layout, clock: Clock) -> str:
    try:
        status = msgspec.json.decode((layout.run / HEARTBEAT).read_bytes(), type=Heartbeat)
    except (OSError, msgspec.MsgspecError):
        return "the process role has not reported yet"
    age_s = (clock.now_us() - status.at_us) / 1e6
    if age_s > HEARTBEAT_AGE_S_MAX:
        return f"the process role has not reported for {age_s:.0f} s"
    if status.at_risk:
        return status.at_risk
    # A standby is well: another process owns the pipeline.
    is_well = status.state in {"running", "standby"}
    return "ok" if is_well else f"the process role says {status.state}"


class Heartbeat(msgspec.Struct, frozen=True):
    """The part of the process role's status that readiness needs."""

    at_us: int
    state: str
    at_risk: str = ""
