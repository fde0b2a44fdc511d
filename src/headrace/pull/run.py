"""Runs a pipeline's sources, each in a thread of its own."""

from __future__ import annotations

import threading
from collections.abc import Callable

from headrace.model import plan as plans
from headrace.model.clock import Clock
from headrace.model.source import Source
from headrace.pull.puller import Puller, PullLog, Report, SourceReport
from headrace.pull.records import Door

_JOIN_S = 0.05

OpenSource = Callable[[plans.Source, Clock], Source]
"""Makes a source of its declaration; `Invalid` if its options cannot be used."""


def run_pull(
    plan: plans.Plan,
    log: PullLog,
    clock: Clock,
    stop: threading.Event,
    open_source: OpenSource,
    report: Report = lambda _: None,
) -> list[SourceReport]:
    """Pull every source of a plan until all are done or `stop` is set; return how they fared.

    `report` is called with each change, by one thread at a time. A source whose options, files or
    answers cannot be used ends with an `error` in its report and the others go on. Raises `Fenced`
    if another owner pulls the same source, and what else makes going on unsafe; all are stopped by
    then. Before the first page, every source is made, so wrong options are `Invalid` at once.
    """
    reading, reporting = threading.Lock(), threading.Lock()

    def report_alone(changed: SourceReport) -> None:
        with reporting:
            report(changed)

    sources = [open_source(declared, clock) for declared in plan.sources]
    pulls = [
        Puller(declared, source, Door(declared, plan.topic(declared.topic), clock), log, reading)
        for declared, source in zip(plan.sources, sources, strict=True)
    ]
    halt = threading.Event()
    threads = [
        threading.Thread(
            target=p.run, args=(clock, halt, report_alone), name=f"source {p.report.name}"
        )
        for p in pulls
    ]
    for thread in threads:
        thread.start()
    while any(t.is_alive() for t in threads):
        if stop.is_set() or any(p.failure for p in pulls):
            break
        for thread in threads:
            thread.join(_JOIN_S)
    halt.set()
    for source in sources:
        source.close()
    for thread in threads:
        thread.join()
    for pull in pulls:
        if pull.failure is not None:
            raise pull.failure
    return [p.report for p in pulls]
