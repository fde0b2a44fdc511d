"""One pipeline file on either log and either runner: the same records end in the same tables.

Each run has its own number of partitions, its own cut into epochs and dies on the way. Compared are
tables, views, what views published, dead letters and the ledger's counts, positions left out, with
a run of the embedded log and the local runner in one epoch and without a crash. Nothing needs an
exception: which of two rows is first or last in a view goes by its time and its id, never by where
it stands, and in a keyed table without versions by the order of the key's one partition.
"""

from __future__ import annotations

import itertools
import re
import shutil
from collections.abc import Iterator
from typing import NamedTuple

import pytest

pytest.importorskip("pyspark", reason="pyspark is not installed: pip install 'headrace[spark]'")
if shutil.which("java") is None:
    pytest.skip("Spark and Kafka need Java", allow_module_level=True)

from combination import (
    PIPELINES,
    Deaths,
    cut_into,
    differences,
    embedded,
    filled,
    first_of,
    found_at,
    kafka_on,
    local,
    plan_of,
    sent_to,
    spark_on,
)
from inputs import BAD, LATE_S_MAX, RECORDS, size_bytes

from headrace.define.view_aggregates import AggregateCompiler
from headrace.model.plan import Plan
from headrace.model.runner import Epoch, KnownIds, Outcome, Runner
from headrace.runner import spark_session

pytestmark = pytest.mark.timeout(900)  # a minute at most, but engines and machine are shared


@pytest.fixture(scope="module")
def session():
    # More slots than there are: partitions are cut into several pieces.
    made = spark_session.begin("local[2]", {"spark.default.parallelism": "3"})
    yield made
    spark_session.end(made)


@pytest.fixture
def deaths(monkeypatch):
    return Deaths(monkeypatch)


@pytest.fixture
def opens(request):
    """How a test's logs are opened, by their names; only Kafka's needs the cluster."""
    return lambda log: embedded if log == "embedded" else kafka_on(request.getfixturevalue("kafka"))


@pytest.fixture
def runners(request):
    """How a test's runners are made, by their names; only Spark needs its session."""
    return lambda name: local if name == "local" else spark_on(request.getfixturevalue("session"))


class Case(NamedTuple):
    """A run; `dies_at` are the failpoints at which its owners end."""

    pipeline: str
    log: str
    runner: str
    partitions: int
    epochs: int
    dies_at: tuple[str, ...]


STEPS = (
    ("commit.2:2",),
    ("commit.3", "rollforward.2"),
    ("commit.4:3",),
    ("commit.5:2", "rollforward.1"),
    ("publish.2:2",),
    ("commit.6", "commit.3"),
    ("stage.2:3",),
)
COMBINATIONS = (
    ("embedded", "local", 1),
    ("embedded", "spark", 3),
    ("kafka", "local", 3),
    ("kafka", "spark", 1),
)
ALSO = (("embedded", "spark", 1), ("kafka", "spark", 3))
"""Of the pipeline of everything: on Spark a partition is cut into tasks however many there are."""


def cases() -> Iterator[Case]:
    steps = itertools.cycle(STEPS)
    for pipeline in PIPELINES:
        each = (*COMBINATIONS, *ALSO) if pipeline == "everything" else COMBINATIONS
        for i, combination in enumerate(each):
            yield Case(pipeline, *combination, epochs=2 + i % 2, dies_at=next(steps))


@pytest.mark.parametrize("case", list(cases()), ids=lambda c: "-".join(map(str, c[:4])))
def test_all_combinations_give_the_same(case, opens, runners, deaths, tmp_path):
    sent = sent_to(case.pipeline)
    plan = cut_into(plan_of(case.pipeline, case.partitions), size_bytes(sent), case.epochs)
    with filled(tmp_path, plan, sent, opens(case.log)) as site:
        deaths.left = list(case.dies_at)
        site.run(runners(case.runner))
        assert deaths.left == []
        found = found_at(site)
    assert site.lives == 1 + len(case.dies_at)
    assert found.epochs > 1
    assert differences(found, first_of(case.pipeline)) == {}


BOTH = ("local", "spark")


class Turns:
    """A runner that gives each epoch to the next of several."""

    def __init__(self, *runners: Runner) -> None:
        self._runners = runners
        self._turns = itertools.cycle(runners)

    def prepare(self, plan: Plan) -> None:
        for runner in self._runners:
            runner.prepare(plan)

    def run(self, epoch: Epoch, known: KnownIds) -> Outcome:
        return next(self._turns).run(epoch, known)

    def close(self) -> None:
        for runner in self._runners:
            runner.close()


@pytest.mark.parametrize(
    ("log", "begins", "goes_on"), [("embedded", "local", "spark"), ("kafka", "spark", "local")]
)
def test_either_runner_goes_on_with_the_tables_of_the_other(
    log, begins, goes_on, opens, runners, tmp_path
):
    sent = sent_to("everything")
    plan = cut_into(plan_of("everything", 3), size_bytes(sent), 2)
    with filled(tmp_path, plan, sent, opens(log)) as site:
        site.begin(runners(begins))
        site.run(runners(goes_on))
        assert differences(found_at(site), first_of("everything")) == {}


@pytest.mark.parametrize("log", ["embedded", "kafka"])
def test_the_runners_take_turns_within_a_run(log, opens, runners, deaths, tmp_path):
    sent = sent_to("everything")
    plan = cut_into(plan_of("everything", 3), size_bytes(sent), 4)
    with filled(tmp_path, plan, sent, opens(log)) as site:
        deaths.left = ["commit.4:9"]
        site.run(lambda *it: Turns(*(runners(name)(*it) for name in BOTH)))
        found = found_at(site)
    assert found.epochs > len(BOTH)
    assert differences(found, first_of("everything")) == {}


@pytest.mark.parametrize(
    ("log", "runner"), [("embedded", "spark"), ("kafka", "local"), ("kafka", "spark")]
)
def test_the_same_repeats_are_found_where_the_partitions_are_the_same(
    log, runner, opens, runners, tmp_path
):
    """Doors' clocks leap and names change keys: then a record's fate hangs on its partition."""
    sent = sent_to("everything", leaps=True)
    plan = cut_into(plan_of("everything", 3), size_bytes(sent), 2)
    with filled(tmp_path, plan, sent, opens(log)) as site:
        site.run(runners(runner))
        found = found_at(site)
    first = first_of("everything", leaps=True)
    assert differences(found, first) == {}
    assert first.counts["topic events"] != first_of("everything").counts["topic events"]


NEVER = {"source_counts": {"duplicates"}}
"""What becomes of no record of a topic: no client names what a service counts."""


def test_every_pipeline_has_input_and_every_fate_is_in_it():
    assert set(PIPELINES) == set(RECORDS)
    for name in PIPELINES:
        found = first_of(name)
        for topic in plan_of(name, 1).topics:
            count = found.counts[f"topic {topic.name}"]
            fates = {"decoded", "dead", "duplicates"} - NEVER.get(topic.name, set())
            assert {fate for fate in fates if count[fate]} == fates, (name, topic.name, count)
        assert all(rows for rows in (found.tables | found.views).values()), name
    counts = first_of("everything").counts["table casts"]
    assert all(counts[fate] for fate in ("rows", "failed", "filtered")), counts


@pytest.mark.parametrize("name", PIPELINES)
def test_some_names_come_back_within_the_horizon_and_some_past_it(name):
    horizon_s = plan_of(name, 1).options.horizon_s
    kept: dict[tuple[bytes, bool], int] = {}
    gaps_s = []
    for call in sent_to(name):
        records = call.records
        for id_, value, at_us in zip(records.ids, records.values, records.received_at, strict=True):
            named = (id_, value in BAD)
            gap_s = (at_us - kept.setdefault(named, at_us)) / 1_000_000
            gaps_s.append(gap_s)
            if gap_s > horizon_s:
                kept[named] = at_us
    assert any(gap_s > horizon_s for gap_s in gaps_s)
    assert any(0 < gap_s < horizon_s for gap_s in gaps_s)
    # Nothing is so near that a clock which is a minute ahead in one partition would decide it.
    assert all(abs(gap_s - horizon_s) > LATE_S_MAX for gap_s in gaps_s)


def test_every_aggregate_is_in_the_matrix():
    text = PIPELINES["everything"].read_text()
    by_compiler: dict[object, list[str]] = {}
    for name, compiler in AggregateCompiler(None, None, ())._compilers().items():
        by_compiler.setdefault(compiler, []).append(name)
    names = [n for n in by_compiler.values() if not any(re.search(rf"\b{x}\(", text) for x in n)]
    assert names == []
