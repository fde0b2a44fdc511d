"""`headrace reconcile`: what services say they have, beside what there is."""

from __future__ import annotations

import pytest
from run_example import free_port, headrace, told

from headrace.testing.services import services

PIPELINE = """
import os
from datetime import datetime

from headrace import Pipeline, Record


class Found(Record):
    id: str


class SourceCount(Record):
    source: str
    kind: str
    filter: str
    records: int
    asked_at: datetime


pipeline = Pipeline("reconciled", private_addresses=True)
found = pipeline.topic("found", Found, store=False)
alone = pipeline.topic("alone", Found, store=False)
counts = pipeline.topic("source_counts", SourceCount)
for name, topic, filter in (
    ("all", found, ""),
    ("late", found, "startdate=1990-01-01"),
    ("only", alone, ""),
):
    pipeline.source(
        name, kind="obis", topic=topic, counts=counts, url=os.environ["OBIS"], filter=filter,
        follow=False, requests_per_s=1000.0,
    )
pipeline.table(
    "occurrences",
    {t: f"SELECT '{t.name}' AS topic, id, _seen_at AS seen_at, _deleted AS gone FROM {t.name}"
     for t in (found, alone)},
    key=("topic", "id"), version="seen_at", deleted="gone",
)
"""


@pytest.fixture(scope="module")
def reconciled(tmp_path_factory):
    folder = tmp_path_factory.mktemp("reconcile")
    file, data = folder / "pipeline.py", folder / "data"
    file.write_text(PIPELINE)
    with services(records={"gbif": 1, "obis": 400, "idigbio": 1}) as running:
        env = {"OBIS": running.obis}
        headrace("run", file, "--data", data, "--port", free_port(), "--until-idle", env=env)
        hidden = [r for r in running.truth("obis") if r.get("dropped") or r.get("absence")]
        total = len(running.keys("obis")) - len(hidden)
    return data, total


def test_both_counts_stand_side_by_side_with_their_times(reconciled):
    data, total = reconciled
    rows = {row["source"]: row for row in told("reconcile", "--data", data)}
    assert set(rows) == {"all", "late", "only"}
    for row in rows.values():
        assert (row["kind"], row["table"], row["difference"]) == ("obis", "occurrences", 0)
        assert row["asked_at"] < row["counted_at"]
    assert rows["only"]["theirs"] == rows["only"]["ours"] == total
    assert rows["all"]["theirs"] == rows["all"]["ours"] == total


def test_of_several_sources_of_a_topic_each_counts_its_own(reconciled):
    data, total = reconciled
    rows = {row["source"]: row for row in told("reconcile", "--data", data)}
    assert 0 < rows["late"]["ours"] < total
    assert "1990" in rows["late"]["filter"]
    assert rows["late"]["filter"] != rows["all"]["filter"]


def test_people_see_a_table(reconciled):
    printed = headrace("reconcile", "--data", reconciled[0])
    for word in ("source", "theirs", "asked_at", "ours", "counted_at", "difference", "late"):
        assert word in printed


def test_a_pipeline_without_counts_says_what_to_do(tmp_path):
    file = tmp_path / "pipeline.py"
    file.write_text(PIPELINE.replace("counts=counts, ", ""))
    with services(records=20) as running:
        where = ("--data", tmp_path / "data", "--port", free_port(), "--until-idle")
        headrace("run", file, *where, env={"OBIS": running.obis})
    with pytest.raises(AssertionError, match="No source asks its service"):
        headrace("reconcile", "--data", tmp_path / "data")
