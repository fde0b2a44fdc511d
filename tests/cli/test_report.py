"""Reports of data directories: with everything in them, with nothing, and while a run is alive."""

from __future__ import annotations

import csv
import fcntl
import json
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ET
from html.parser import HTMLParser
from pathlib import Path

import pyarrow as pa
import pytest

from headrace.app.cluster.ports import free_port
from headrace.app.report import scale
from headrace.app.report.parts import Chart, Series
from headrace.app.report.sar import COLUMNS
from headrace.app.report.svg import svg
from headrace.app.samples import SamplesTable
from headrace.app.site import EmbeddedSite
from headrace.model.clock import SystemClock
from headrace.model.errors import Unavailable
from headrace.model.samples import SAMPLE_SCHEMA
from headrace.tables.delta import DeltaTables

HEADRACE = Path(sys.executable).parent / "headrace"
NASTY = "<script>alert(1)</script>&\"'"
PIPELINE = """
from headrace import Pipeline, Record, tumbling

pipeline = Pipeline("birds", sample_every="0 s")


class Seen(Record):
    species: str
    dataset: str
    number: int


seen = pipeline.topic("seen", Seen)
pipeline.view(
    "by_minute", "SELECT species, sum(number) AS birds, count(*) AS n FROM seen GROUP BY species",
    window=tumbling("1 minute", on="received_at"),
)
pipeline.view("by_species", "SELECT species, count(*) AS n FROM seen GROUP BY species")
pipeline.view("cited", "SELECT dataset, count(*) AS n FROM seen GROUP BY dataset")
pipeline.source("archive", kind="replay", topic=seen, path="birds.ndjson")
"""
SECTIONS = [
    *("throughput", "freshness", "windows", "views", "machines", "dead-letters", "sources"),
    *("datasets", "totals"),
]


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """A folder in which a pipeline has run to its end, with samples of two nodes."""
    folder = tmp_path_factory.mktemp("ran")
    (folder / "pipeline.py").write_text(PIPELINE)
    records = [
        {"species": species, "dataset": f"d-{n % 2}", "number": n}
        for n in range(10)
        for species in ("Turdus merula", NASTY)
    ]
    lines = [*map(json.dumps, records), '{"species": 5}', json.dumps({"species": NASTY})]
    (folder / "birds.ndjson").write_text("\n".join(lines))
    run = [HEADRACE, "run", "pipeline.py", "--port", str(free_port()), "--until-idle"]
    subprocess.run(run, cwd=folder, check=True, timeout=120)
    _sample(folder / "data")
    return folder


def _sample(data):
    clock = SystemClock()
    node = SamplesTable(DeltaTables(data, clock), clock, keep_s=3600)
    now_us = clock.now_us()
    rows = [
        {
            "sampled_at": now_us - (60 - second) * 1_000_000,
            "node": name,
            "role": role,
            "pid": pid,
            "processes": 1,
            "threads": 4,
            "cpu_percent": float(second % 7),
            "memory_bytes": 100_000_000,
            "host_cpu_percent": 50.0,
            "host_memory_used_bytes": 1 << 30,
            "host_memory_bytes": 1 << 32,
            "epoch": 3 if role == "process" else None,
            "epoch_s": 0.25 if role == "process" else None,
            "freshness_s": 0.5 if role == "process" else None,
            "records": 10 * second if role == "process" else None,
            "behind": second if role == "process" else None,
        }
        for second in range(0, 60, 2)
        for name in ("one", NASTY)
        for pid, role in enumerate(("collect", "process", "supervisor"), 100)
    ]
    node.commit(node.stage(pa.Table.from_pylist(rows, schema=SAMPLE_SCHEMA)))


class Page(HTMLParser):
    """What a page holds."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.asks, self.sections, self.words = [], [], [], []
        self.feed(text)
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        named = dict(attributes)
        self.asks += [named[a] for a in ("src", "href", "action", "srcset") if a in named]
        if tag == "section":
            self.sections.append(named["id"])

    def handle_data(self, data):
        self.words.append(data)


def made(headrace, data, *words, out="report.html"):
    ended = headrace("report", "--data", data, "--out", out, *words)
    assert ended.status == 0, ended.err
    return Page(Path(out).read_text(encoding="utf-8"))


def test_a_page_needs_nothing_else_and_runs_nothing(ran, headrace):
    page = made(headrace, ran / "data")
    assert page.sections == SECTIONS
    assert "script" not in page.tags
    assert all(asked.startswith(("#", "data:")) for asked in page.asks)
    # It came through as text: in views, in dead letters, and as a node's name.
    assert page.text.count(NASTY) > 3


def test_what_a_page_tells(ran, headrace):
    page = made(headrace, ran / "data")
    for words in (
        "not running",
        "by_minute: birds",
        "Turdus merula",
        "cited dataset n d-0 10 d-1 10",
        "invalid_record",
        "archive",
        "CPU of each role, one",
        f"Memory of each role, {NASTY}",
        "Records processed, by topic",
        "The accounts close",
        "system/samples",
    ):
        assert words in page.text
    assert "could not be read" not in page.text
    assert page.tags.count("svg") > 10


def test_samples_as_csv_and_plots_as_png(ran, headrace):
    made(headrace, ran / "data", "--csv", "samples.csv", "--png", "plots")
    with Path("samples.csv").open(encoding="utf-8", newline="") as file:
        header, *rows = csv.reader(file)
    assert tuple(header) == COLUMNS
    assert len(rows) == 180
    assert {row[1] for row in rows} == {"one", NASTY}
    first = dict(zip(header, rows[0], strict=True))
    assert (first["kbmemused"], first["%memused"], first["threads"]) == ("97656", "2.33", "4")
    plots = sorted(Path("plots").iterdir())
    assert len(plots) > 5
    assert all(plot.read_bytes().startswith(b"\x89PNG") for plot in plots)


def test_only_the_time_that_is_asked_for(ran, headrace):
    made(headrace, ran / "data", "--csv", "all.csv")
    made(headrace, ran / "data", "--csv", "some.csv", "--since", "20s")
    lengths = [Path(name).read_text().count("\n") - 1 for name in ("all.csv", "some.csv")]
    assert lengths[0] == 180
    assert 0 < lengths[1] <= 66
    refused = headrace("report", "--data", ran / "data", "--since", "yesterday")
    assert refused.status == 1
    assert "no" in refused.err


def test_json_says_which_files(ran, headrace):
    ended = headrace("report", "--data", ran / "data", "--json")
    assert ended.json() == {"files": ["report.html"]}


def test_without_matplotlib_it_says_what_to_do(ran, headrace, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    ended = headrace("report", "--data", ran / "data", "--png", "plots")
    assert ended.status == 1
    assert "headrace[report]" in ended.err
    made(headrace, ran / "data")


def test_of_a_directory_in_which_nothing_ran(headrace, tmp_path):
    (tmp_path / "data" / "log").mkdir(parents=True)
    page = made(headrace, tmp_path / "data")
    assert page.sections == SECTIONS
    assert "No pipeline yet" in page.text
    assert "could not be read" not in page.text
    assert headrace("report", "--data", tmp_path / "elsewhere").status == 1
    assert headrace("report", "--data", tmp_path / "data", "--out", "no/such/place").status == 1


def test_of_a_run_that_is_alive(ran, headrace, tmp_path):
    shutil.copytree(ran / "data", tmp_path / "data")
    with (tmp_path / "data" / "run" / "headrace.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        page = made(headrace, tmp_path / "data")
    assert "not running" not in page.text


def test_a_log_that_is_away_costs_its_sections_alone(ran, headrace, monkeypatch):
    def away(self):
        raise Unavailable("Kafka is away", hint="Start it.")

    monkeypatch.setattr(EmbeddedSite, "reading", away)
    page = made(headrace, ran / "data")
    assert page.text.count("This could not be read: Kafka is away") == 3
    assert "Turdus merula" in page.text


@pytest.mark.parametrize("highest", [0.001, 0.3, 1, 7, 99, 100, 101, 12_345, 1e12])
def test_ticks_of_values_are_few_and_reach_the_highest(highest):
    ticks = scale.value_ticks(highest)
    assert ticks[0] == 0
    assert ticks[-1] >= highest * (1 - 1e-9)
    assert ticks[-2] < highest
    assert 2 <= len(ticks) <= 8
    texts = [scale.value_text(t, "/s") for t in ticks]
    assert len(set(texts)) == len(texts)


@pytest.mark.parametrize("span_s", [1, 59, 600, 7_200, 86_400, 7 * 86_400, 400 * 86_400, 4e9])
def test_ticks_of_time_are_few_and_within(span_s):
    begin_us = 1_795_356_000_123_456
    end_us = begin_us + round(span_s * 1e6)
    ticks = scale.time_ticks(begin_us, end_us, 6)
    assert len(ticks) <= 7
    assert all(begin_us <= us <= end_us for us, _ in ticks)


def test_a_picture_is_well_formed_whatever_it_shows():
    points = ((0, 1.0), (1_000_000, None), (2_000_000, 5.0), (3_000_000, float("0")))
    for bar_us in (0, 1_000_000):
        series = tuple(Series(f"{NASTY}{n}", points) for n in range(3))
        picture = ET.fromstring(svg(Chart(NASTY, "s", series, 0, 3_000_000, bar_us)))
        assert NASTY in picture.get("aria-label")
    assert ET.fromstring(svg(Chart("none", "%", (), 0, 1))) is not None
