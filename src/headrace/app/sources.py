"""The pull role: a pipeline's sources, opened through the registry, appending at the door."""

from __future__ import annotations

from functools import partial

import msgspec

from headrace.app.registry import open_source
from headrace.control.files import replace
from headrace.log.remote import RemoteLog
from headrace.model.errors import Invalid
from headrace.model.role import Role
from headrace.pull.puller import SourceReport
from headrace.pull.run import run_pull
from headrace.sources.http import Network

STATUS_FILE = "pull.json"


def run_role(role: Role) -> None:
    """Pull until every source is done or the role is told to stop.

    `Invalid` when a source ended without being done: its file or its options need mending.
    """
    log = RemoteLog(role.layout.log, role.layout.door)
    reports: dict[str, SourceReport] = {}

    def keep(report: SourceReport) -> None:
        reports[report.name] = report
        replace(role.layout.run / STATUS_FILE, msgspec.json.encode(list(reports.values())))

    opened = partial(open_source, network=Network(role.clock))
    role.ready()
    try:
        ended = run_pull(role.plan, log, role.clock, role.stop, opened, keep)
    finally:
        log.close()
    failed = [r for r in ended if r.error]
    if failed:
        raise Invalid("; ".join(f"source {r.name}: {r.error}" for r in failed), hint=failed[0].hint)
