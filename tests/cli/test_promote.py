"""From the embedded log to Kafka: nothing twice, nothing lost, one side at every moment."""

from __future__ import annotations

import itertools
import threading
from contextlib import closing

import msgspec
import pytest
from click.testing import CliRunner

from headrace import Pipeline, Record
from headrace.app import deployment_file
from headrace.app.cli.promote import promote as verb
from headrace.app.deployment_file import Wanted, choose
from headrace.app.promote import MARK, promote
from headrace.app.site import open_site
from headrace.control.files import replace
from headrace.define.check import check
from headrace.model.batch import Batch
from headrace.model.clock import SystemClock
from headrace.model.deployment import Deployment, KafkaSettings, TableSettings
from headrace.model.errors import Invalid
from headrace.model.ids import client_id
from headrace.model.layout import Layout
from headrace.model.pipeline_options import Options
from headrace.process.loop import EpochProgress, Loop
from headrace.process.recover import recover
from headrace.runner.local import LocalRunner
from headrace.stage.engine import Engine

STEPS = ["anew.1", "anew.2", "promote.1", "promote.2", "promote.3", "promote.4"]
_PREFIXES = itertools.count()
CLOCK = SystemClock()


class Event(Record):
    n: int
    kind: str


def plan():
    pipeline = Pipeline("numbers")
    pipeline.topic("events", Event, partitions=3)
    pipeline.view("per_kind", "SELECT kind, count(*) AS n FROM events GROUP BY kind")
    return check(pipeline)


PLAN = plan()


@pytest.fixture
def layout(tmp_path):
    layout = Layout.at(tmp_path / "data")
    layout.run.mkdir(parents=True)
    replace(layout.plan, msgspec.json.encode(PLAN))
    return layout


@pytest.fixture
def chosen(kafka, tmp_path, request):
    """On Kafka, with the tables in another folder or where they are."""
    elsewhere = getattr(request, "param", True)
    tables = TableSettings(str(tmp_path / "far")) if elsewhere else TableSettings()
    prefix = f"promote-{CLOCK.secret(4).hex()}-"
    return Deployment(KafkaSettings(kafka.bootstrap, prefix), tables)


def send(layout, numbers):
    site = open_site(layout, CLOCK)
    with closing(site.collector_log(Options())) as log:
        log.create("events", 3)
        batch = Batch()
        for n in numbers:
            value = b'{"n": %d, "kind": "%s"}' % (n, b"odd" if n % 2 else b"even")
            chosen = client_id("test", "events", str(n))
            batch.add(value, received_at=CLOCK.now_us(), id=chosen)
        log.append("events", batch)


def process(layout):
    site = open_site(layout, CLOCK)
    tables = site.tables()
    with (
        closing(site.collector_log(Options())) as log,
        closing(LocalRunner(log, tables, CLOCK)) as runner,
    ):
        keys = layout.keys
        with closing(recover(PLAN, log, tables, runner, CLOCK, Engine(), keys)) as owner:
            Loop(owner, threading.Event(), EpochProgress(), drain=lambda: True).run()


def found(layout):
    """Return the numbers in the table, and what the view counts of them."""
    tables = open_site(layout, CLOCK).tables()
    rows = tables.read(tables.snapshot("tables/events")).column("n").to_pylist()
    view = tables.read(tables.snapshot("views/per_kind")).to_pylist()
    return sorted(rows), {row["kind"]: row["n"] for row in view}


def is_right(layout, total):
    return found(layout) == (list(range(total)), {"even": (total + 1) // 2, "odd": total // 2})


@pytest.mark.parametrize("chosen", [True, False], indirect=True, ids=["elsewhere", "in place"])
def test_counts_go_on(layout, chosen):
    send(layout, range(60))
    process(layout)
    send(layout, range(40, 90))  # not yet processed; some were sent before
    with closing(open_site(layout, CLOCK).collector_log(Options())) as log:
        log.put_if("source/s/cursor", 0, b"17")
    promote(layout, CLOCK, chosen)
    assert is_right(layout, 90)
    assert deployment_file.kept(layout) == chosen
    assert not (layout.root / MARK).exists()
    with closing(open_site(layout, CLOCK).reader()) as log:
        assert log.ends("events") == [0, 0, 0]
        assert log.get("source/s/cursor").value == b"17"
    send(layout, range(30, 120))  # clients that try again
    process(layout)
    assert is_right(layout, 120)


@pytest.mark.parametrize("step", STEPS)
def test_whenever_it_breaks_off_one_side_opens(layout, chosen, step, monkeypatch):
    send(layout, range(50))
    monkeypatch.setenv("HEADRACE_FAILPOINT", f"{step}=error")
    with pytest.raises(OSError, match="failpoint"):
        promote(layout, CLOCK, chosen)
    monkeypatch.delenv("HEADRACE_FAILPOINT")
    has_changed = step == "promote.4"
    assert (deployment_file.kept(layout) == chosen) == has_changed
    send(layout, range(70))
    process(layout)
    assert is_right(layout, 70)
    if has_changed:
        with pytest.raises(Invalid, match="already"):
            promote(layout, CLOCK, chosen)
    else:
        promote(layout, CLOCK, chosen)
    send(layout, range(20, 80))
    process(layout)
    assert is_right(layout, 80)


def test_there_is_no_way_back(layout, chosen):
    send(layout, range(3))
    promote(layout, CLOCK, chosen)
    with pytest.raises(Invalid) as refused:
        promote(layout, CLOCK, Deployment())
    assert refused.value.code == "promoted"
    assert choose(Wanted(), layout) == chosen  # without a file, where it was run last
    elsewhere = Wanted(tables=str(layout.root / "elsewhere"))
    assert expect(lambda: choose(elsewhere, layout)).code == "other_place"


def expect(act):
    with pytest.raises(Invalid) as refused:
        act()
    return refused.value


def test_a_place_that_is_not_empty_is_left_alone(layout, chosen, tmp_path):
    send(layout, range(3))
    other = Layout.at(tmp_path / "other")
    other.run.mkdir(parents=True)
    deployment_file.keep(other, chosen)
    send(other, range(5))
    with pytest.raises(Invalid, match="has records"):
        promote(layout, CLOCK, chosen)
    far = tmp_path / "far" / "tables" / "events"
    far.mkdir(parents=True)
    anew = msgspec.structs.replace(chosen.kafka, prefix=chosen.kafka.prefix + "more-")
    with pytest.raises(Invalid, match="some already"):
        promote(layout, CLOCK, msgspec.structs.replace(chosen, kafka=anew))
    assert far.exists()
    process(layout)
    assert is_right(layout, 3)


def test_the_verb_says_what_is_missing(layout, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    send(layout, range(1))
    answer = CliRunner().invoke(verb, ["--data", str(layout.root)])
    assert isinstance(answer.exception, Invalid)
    assert answer.exception.code == "no_cluster"
