"""Spark answers what docs/engines/spark.md and the game's notebook for it ask, in one session."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections import Counter, defaultdict

import msgspec
import nbformat
import pytest
from live_game import Sent, purchases, write_pipeline
from pages import blocks
from run_example import ROOT

from headrace.app.cluster import jars, spark
from headrace.testing.kit import PipelineKit

NOTEBOOK = ROOT / "examples" / "game" / "questions_spark.ipynb"
TURNS = 10
ANSWERS = ("newest", "asked", "hosts", "kingdoms", "partitions", "earlier")
ITEMS = {"purchase_sword": "sword", "buy_sword": "sword", "purchase_knife": "knife"}
SMALL = """
spark.master                       local[1]
spark.driver.extraJavaOptions      -XX:+UseSerialGC -XX:TieredStopAtLevel=1
spark.sql.shuffle.partitions       1
spark.databricks.delta.snapshotPartitions  1
"""
"""For a test alone: one core, and a Java that starts soon."""


@pytest.fixture(scope="module")
def conf(tmp_path_factory):
    """The page's settings, with jars that are there in place of packages to fetch."""
    reason = spark.missing()
    if reason:
        pytest.skip(reason)
    ((_, text),) = blocks("spark.md", "properties").items()
    there = ",".join(map(str, sorted(jars.jars("spark").glob("delta-*.jar"))))
    folder = tmp_path_factory.mktemp("conf")
    settings, changed = re.subn(r"(spark\.jars)\.packages\s+\S+", rf"\1 {there}", text)
    assert changed == 1
    (folder / "spark-defaults.conf").write_text(settings + SMALL)
    return folder


def program(folder):
    """Return the page's Python and SQL in its order, and the notebook's cells, as one program."""
    code, sql = blocks("spark.md", "python"), blocks("spark.md", "sql")
    assert set(sql) == set(ANSWERS)
    asked = "".join(f"told[{name!r}] = tuples(spark.sql({sql[name]!r}))\n" for name in ANSWERS)
    cells = [cell.source for cell in nbformat.read(NOTEBOOK, 4).cells if cell.cell_type == "code"]
    page = f"{code['tables']}\ntold = {{}}\n{asked}\n{code['files']}\ntold['by files'] = by_files\n"
    return "\n".join(
        [
            "import json, sys",
            "tuples = lambda frame: [list(row) for row in frame.collect()]",
            page.replace("/srv/game-data", str(folder)),
            *cells,
            "told['notebook'] = [tuples(frame) for frame in (bought, hosts, groups)]",
            "json.dump(told, open(sys.argv[1], 'w'))",
            "spark.stop()",
        ]
    )


@pytest.fixture(scope="module")
def events():
    return [event for turn in range(TURNS) for event in purchases(turn)]


@pytest.fixture(scope="module")
def sent():
    return Sent()


@pytest.fixture(scope="module")
def told(conf, sent, events, tmp_path_factory):
    folder = tmp_path_factory.mktemp("spark")
    with PipelineKit.of_file(write_pipeline(folder)) as kit:
        for turn in range(TURNS):
            for topic, records in sent.turn(turn).items():
                kit.send(topic, *records)
            kit.settle()
        kit.send("events", *events)
        kit.settle()
        (folder / "program.py").write_text(program(kit.folder))
        environment = {"SPARK_CONF_DIR": str(conf), "SPARK_LOCAL_IP": "127.0.0.1"}
        ended = subprocess.run(
            [sys.executable, folder / "program.py", folder / "told.json"],
            cwd=folder,
            env={**os.environ, **environment, "HEADRACE_DATA": str(kit.folder)},
            capture_output=True,
            text=True,
            timeout=280,
            check=False,
        )
    assert ended.returncode == 0, ended.stderr
    return msgspec.json.decode((folder / "told.json").read_bytes())


def listed(counts):
    return [[name, n] for name, n in sorted(counts.items())]


def test_the_page(told, sent):
    assert told["asked"] == listed(sent.by_type())
    by_host = sent.asked_by_host()
    assert told["hosts"] == [[h, len(a), len(set(a))] for h, a in sorted(by_host.items())]
    assert told["kingdoms"] == listed(sent.by_kingdom())
    assert told["newest"] == [[sent.by_type()["request_group"]]]
    assert told["earlier"] == [[sent.messages_until(3)]]
    assert sum(n for _, n in told["partitions"]) == told["by files"] == len(sent.messages)


def test_the_notebook(told, sent, events):
    bought, hosts, groups = told["notebook"]
    items = Counter((e["Host"], ITEMS[e["event_type"]]) for e in events if e["event_type"] in ITEMS)
    assert bought == [[*of, n] for of, n in sorted(items.items())]
    by = defaultdict(list)
    for event in events + sent.messages:
        by[event["event_type"]].append(event["Host"])
    assert hosts == [[act, len(of), len(set(of))] for act, of in sorted(by.items())]
    types = ("request_group", "accept_member", "decline_member")
    assert groups == [[len(by[act]) for act in types]]
