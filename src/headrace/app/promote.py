"""Takes a pipeline from the embedded log over to Kafka, and its tables to where they are to be.

What is in the tables stays, counts go on, and nothing is processed again. The data directory says
to which side it belongs; one atomic replacement of `deployment.json` is the whole change of sides,
so whenever this is killed exactly one side opens, and it opens right. There is no way back: the
embedded log would have to take offsets and state that others may be changing.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import closing

from headrace.app import deployment_file
from headrace.app.data_directory import find_plan
from headrace.app.restore import last_plan
from headrace.app.site import open_site, site_of
from headrace.app.supervisor import held
from headrace.control.files import replace
from headrace.model.clock import Clock
from headrace.model.deployment import Deployment
from headrace.model.errors import Fenced, Invalid, Unavailable
from headrace.model.failpoint import failpoint
from headrace.model.layout import Layout
from headrace.model.log import DELETED, Log, LogReader
from headrace.model.pipeline_options import Options
from headrace.model.plan import LEDGER, Plan
from headrace.model.site import Site
from headrace.process.handover import begin_anew
from headrace.process.loop import EpochProgress, Loop
from headrace.process.recover import recover
from headrace.runner.local import LocalRunner
from headrace.stage.engine import Engine
from headrace.tables.copy import copy_tables
from headrace.tables.delta import DeltaTables
from headrace.tables.storage import Storage

MARK = "promoting"
"""Name in the new storage, and file of the data directory, of a promotion under way: the same word
in both says that what lies there is its own unfinished copy, which nobody has opened."""
_LEASE = "/lease"


def promote(
    layout: Layout, clock: Clock, chosen: Deployment, say: Callable[[str], None] = lambda _: None
) -> None:
    """Take a data directory over to `chosen`, a deployment on Kafka. It must not be running.

    1. See that the new log and the new storage are there, empty, and keep their promises.
    2. Drain the log into the tables; carry the known ids over; make every topic anew, empty.
    3. Copy the tables, if they are to be elsewhere, and keyed state: cursors, tokens, sources.
    4. Say in the data directory where it belongs now. Until here the old side opens, from here on
       the new one.
    5. Take the mark away that an unfinished copy has.

    `Invalid` if the directory is on Kafka already, or the new place is not empty: nothing was done.
    """
    before = deployment_file.kept(layout) or Deployment()
    _check(before, chosen)
    with held(layout):
        old, new = open_site(layout, clock), site_of(layout, clock, chosen)
        with closing(new.log()) as log:
            # 1
            plan = _plan(layout, old)
            copies = before.tables.url.rstrip("/") != chosen.tables.url.rstrip("/")
            word = _word(layout, clock)
            _check_log(log, plan)
            if copies:
                _clear_target(_storage(new), word)
            # 2
            say("draining the log into the tables")
            state = _drained(layout, clock, old, plan)
            failpoint("promote.1")
            # 3
            if copies:
                say(f"copying the tables to {chosen.tables.url}")
                names = old.tables().names()
                size_bytes = copy_tables(_storage(old), _storage(new), names)
                say(f"copied {len(names)} tables, {size_bytes / 1e6:.1f} MB")
            failpoint("promote.2")
            _copy_state(state, log)
            for topic in plan.topics:
                log.create(topic.name, topic.partitions)
        failpoint("promote.3")
        # 4
        deployment_file.keep(layout, chosen)
        failpoint("promote.4")
        # 5
        if copies:
            _storage(new).delete(MARK)
        (layout.root / MARK).unlink(missing_ok=True)


def _check(before: Deployment, chosen: Deployment) -> None:
    if before.kafka is not None:
        raise Invalid(
            "This data directory is on Kafka already",
            hint="There is no way back to the embedded log, and none between clusters.",
            code="promoted",
        )
    if chosen.kafka is None:
        raise Invalid(
            "To promote is to take over to Kafka, and no cluster is named",
            hint="Name its brokers in headrace.toml, or by --kafka.",
            code="no_cluster",
        )


def _plan(layout: Layout, old: Site) -> Plan:
    snapshot = old.tables().snapshot(LEDGER)
    plan = last_plan(old.tables()) if snapshot and snapshot.files else find_plan(layout)
    if plan is None:
        raise Invalid(
            f"No pipeline has run on {layout.root}, so there is nothing to take over",
            hint="Run the pipeline with --config at once.",
            code="no_plan",
        )
    return plan


def _word(layout: Layout, clock: Clock) -> bytes:
    """Return the word of this promotion: the one that broke off, if one did."""
    path = layout.root / MARK
    if not path.exists():
        replace(path, clock.new_id().hex().encode())
    return path.read_bytes()


def _check_log(log: LogReader, plan: Plan) -> None:
    known = log.describe()
    for topic in plan.topics:
        if topic.name not in known:
            continue
        if known[topic.name].partitions != topic.partitions:
            raise Invalid(
                f"The topic {topic.name} is in Kafka with {known[topic.name].partitions} "
                f"partitions, and the pipeline has {topic.partitions}",
                hint="Delete it there, or give the pipeline a [kafka] prefix of its own.",
                code="topic_exists",
            )
        if log.ends(topic.name) != log.starts(topic.name):
            raise Invalid(
                f"The topic {topic.name} is in Kafka already, and has records",
                hint="They would be taken for this pipeline's: give it a [kafka] prefix.",
                code="topic_exists",
            )


def _clear_target(target: Storage, word: bytes) -> None:
    """Take the new storage for this promotion; what an unfinished one left there goes."""
    mark = target.read(MARK)
    folders = [f for f in target.folders("") if not f.startswith(".")]
    if mark is None and not folders:
        try:
            target.put_new(MARK, word, new_folder=True)
        except Fenced:
            mark = target.read(MARK)
        else:
            return
    if mark != word:
        raise Invalid(
            "Where the tables are to be there are some already",
            hint="Name an empty place.",
            code="not_empty",
        )
    for folder in folders:
        target.delete_folder(folder)


def _drained(layout: Layout, clock: Clock, old: Site, plan: Plan) -> dict[str, bytes]:
    """Bring everything into the tables and make the topics anew; return what state is kept."""
    tables = old.tables()
    with closing(old.collector_log(Options())) as log:
        for topic in plan.topics:
            log.create(topic.name, topic.partitions)
        with closing(LocalRunner(log, tables, clock)) as runner:
            owner = recover(plan, log, tables, runner, clock, Engine(), layout.keys, old.repair)
            with closing(owner):
                Loop(owner, threading.Event(), EpochProgress(), drain=lambda: True).run()
                begin_anew(owner)
        return {entry.key: entry.value for entry in log.scan("") if _is_kept(entry.key)}


def _is_kept(key: str) -> bool:
    return not (key.startswith(DELETED) or key.endswith(_LEASE))


def _copy_state(state: dict[str, bytes], log: Log) -> None:
    """Make the new log's keyed state what the old one's is; a copy that broke off goes on."""
    there = {entry.key: entry for entry in log.scan("")}
    for key, value in state.items():
        entry = there.get(key)
        if entry is not None and entry.value == value:
            continue
        try:
            log.put_if(key, entry.revision if entry else 0, value)
        except Fenced as e:
            raise Unavailable(
                f"Another process writes {key} in the new log",
                hint="Nothing may run there yet: stop it, and promote again.",
            ) from e


def _storage(site: Site) -> Storage:
    tables = site.tables()
    assert isinstance(tables, DeltaTables)
    return tables.storage
