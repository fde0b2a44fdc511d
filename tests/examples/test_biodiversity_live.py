"""The biodiversity pipeline as it runs: followed services change, and every count follows."""

from __future__ import annotations

from collections import Counter
from contextlib import closing

import httpx2
import pytest
from run_example import ROOT, Run, headrace, told, until

from headrace.app.pipeline_file import require_plan
from headrace.app.registry import options_at_run_time
from headrace.control.sources import Request, add
from headrace.log.embedded import EmbeddedLog
from headrace.model.clock import ManualClock
from headrace.model.errors import Invalid
from headrace.testing.services import services

PIPELINE = ROOT / "examples" / "biodiversity" / "pipeline.py"
KINDS = ("gbif", "obis", "idigbio")
RECORDS = 120


class Client:
    """Somebody with a token for everything."""

    def __init__(self, run):
        self.data = run.data
        token = headrace("tokens", "create", "--scope", "admin", "--data", run.data).strip()
        headers = {"authorization": f"Bearer {token}"}
        self.http = httpx2.Client(base_url=run.url, headers=headers, timeout=30)

    def rows(self, path, **params):
        answer = self.http.get(path, params=params)
        assert answer.status_code == 200, answer.text
        return answer.json()["rows"]

    def follow(self, kind, url):
        options = {"url": url, "requests_per_s": 200, "interval_s": 0.5, "full_every": 0}
        if kind != "idigbio":
            options["absences"] = "include"
        wanted = {"name": kind, "kind": kind, "topic": kind, "options": options}
        return self.http.post("/v1/sources", json={**wanted, "counts": "source_counts"})

    def records(self):
        return {r["source"]: r["records"] for r in self.rows("/count", by="source", absences=True)}


def given(running, kind):
    """Return the records that a service gives: OBIS keeps to itself what it dropped."""
    return [r for r in running.truth(kind) if not r.get("dropped")]


@pytest.fixture(scope="module")
def running():
    with services(records=RECORDS) as stand_ins:
        stand_ins.cache(0)
        yield stand_ins


@pytest.fixture(scope="module")
def client(running, tmp_path_factory):
    data = tmp_path_factory.mktemp("live") / "data"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HEADRACE_PRIVATE_ADDRESSES", "1")
        starting = Run(PIPELINE, data)
    with starting as run:
        client = Client(run)
        for kind in KINDS:
            assert client.follow(kind, getattr(running, kind)).status_code == 201
        expected = {kind: len(given(running, kind)) for kind in KINDS}
        until(client.records, lambda found: found == expected)
        yield client


def test_a_count_names_its_unit_and_its_taxonomy(client):
    by_kingdom = client.rows("/count", by="kingdom_normalised")
    assert {r["unit"] for r in by_kingdom} == {"occurrence records, present"}
    with_absences = client.rows("/count", by="kingdom_normalised", absences=True)
    assert {r["unit"] for r in with_absences} == {"occurrence records, present and absent"}
    present, all_of_them = (sum(r["records"] for r in rows) for rows in (by_kingdom, with_absences))
    assert present < all_of_them == sum(client.records().values())
    species = client.rows("/count/species")
    taxonomies = {r["taxonomy"] for r in species if r["unit"] == "distinct accepted species ids"}
    assert taxonomies == {"GBIF backbone", "WoRMS"}
    (union,) = [r for r in species if r["source"] is None and "name" in r["unit"]]
    assert union["taxonomy"] == "as each source has it, joined by name"


def test_sources_and_kingdoms_side_by_side_sum_to_the_total(client):
    for absences in (False, True):
        rows = client.rows("/count/kingdoms", absences=absences)
        cells = {(r["source"], r["kingdom_normalised"]): r["records"] for r in rows}
        by_source = client.rows("/count", by="source", absences=absences)
        assert {k: cells[k, None] for k in KINDS} == {r["source"]: r["records"] for r in by_source}
        parts = [n for (source, kingdom), n in cells.items() if source and kingdom]
        assert sum(parts) == cells[None, None] == sum(cells[k, None] for k in KINDS)
        assert len(cells) == len(rows)
        assert {r["taxonomy"] for r in rows} == {
            "kingdoms as each source has them, one name for each"
        }


def test_there_is_a_list_of_datasets_to_cite(client):
    rows = client.rows("/datasets")
    assert sum(r["records"] for r in rows) == sum(client.records().values())
    assert all(r["license"] for r in rows)


def test_linked_records_stand_beside_the_plain_count(client):
    rows = client.rows("/count/linked")
    assert {r["source"] for r in rows} == {*KINDS, None}
    assert all(0 < r["linked_records"] <= r["records"] for r in rows)
    # A view is published when its turn comes, this one perhaps after the counts.
    assert len(until(lambda: client.rows("/linked", limit=5), bool)) <= 5
    assert client.rows("/linked", limit=-1) == []


def test_each_source_publishes_its_counts(client):
    for kind in KINDS:
        topic = f"{kind}_query"
        answer = client.http.get(
            f"/v1/topics/{topic}/records", params={"partition": 0, "offset": 0}
        )
        assert answer.status_code == 200, answer.text
        assert answer.json()["records"], topic


def test_our_counts_are_reconciled_with_theirs(client, running):
    expected = {kind: len(given(running, kind)) for kind in KINDS}
    rows = until(
        lambda: client.rows("/reconciliation"),
        lambda found: {r["source"]: r["theirs"] for r in found} == expected,
    )
    for row in rows:
        assert row["difference"] == 0
        assert row["asked_at"]
        assert row["ours_as_of"]
    told_rows = {r["source"]: r for r in told("reconcile", "--data", client.data)}
    assert {s: r["theirs"] for s, r in told_rows.items()} == expected
    assert {r["difference"] for r in told_rows.values()} == {0}


def test_what_is_gone_or_identified_anew_leaves_its_counts(client, running):
    kingdoms = client.rows("/count", by="kingdom_normalised", absences=True)
    before, total = {r["kingdom_normalised"]: r["records"] for r in kingdoms}, client.records()
    gone = running.keys("gbif")[:10]
    running.remove("gbif", gone)
    records = {str(r["key"]): r for r in running.truth("gbif")}
    moved = next(k for k, r in records.items() if r.get("kingdom") == "Animalia")
    donor = next(k for k, r in records.items() if r.get("kingdom") == "Plantae")
    running.reidentify("gbif", moved, donor)
    until(client.records, lambda found: found["gbif"] == total["gbif"] - len(gone))

    def counted():
        rows = client.rows("/v1/tables/occurrences", id=moved, limit=1000)
        return [r for r in rows if r["source"] == "gbif"]

    (row,) = until(counted, lambda rows: rows and rows[0]["kingdom_normalised"] == "Plantae")
    assert row["source"] == "gbif"
    truth = Counter((r.get("kingdom") or "not given").capitalize() for r in given(running, "gbif"))
    query = (
        "SELECT kingdom_normalised AS k, count(*) AS n FROM occurrences"
        " WHERE source = 'gbif' GROUP BY k"
    )
    found = {r["k"].capitalize(): r["n"] for r in told("sql", "--data", client.data, query)}
    assert found == truth
    assert sum(before.values()) - sum(client.records().values()) == len(gone)


def test_a_private_address_is_refused_without_the_owners_switch(running, tmp_path):
    plan, clock = require_plan(PIPELINE), ManualClock()
    wanted = Request("gbif", "gbif", "gbif", {"url": running.gbif})
    with closing(EmbeddedLog(tmp_path, clock)) as log, pytest.raises(Invalid) as refused:
        add(plan, log, options_at_run_time, wanted, clock)
    assert refused.value.code == "loopback_address"
