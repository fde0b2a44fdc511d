"""The stand-ins over recorded records: the shapes are those of the recorded answers."""

from __future__ import annotations

import gzip
from collections import Counter
from pathlib import Path

import httpx2
import msgspec
import pytest

from headrace.model.errors import Invalid
from headrace.testing.services import services

RECORDINGS = Path(__file__).resolve().parents[3] / "shared" / "data"
pytestmark = pytest.mark.skipif(
    not (RECORDINGS / "large").is_dir(), reason="the recordings are not at ../shared/data"
)


@pytest.fixture(scope="module")
def running():
    with services(data=RECORDINGS) as started:
        yield started


@pytest.fixture(scope="module", params=["recorded", "generated"])
def either(request, running):
    if request.param == "recorded":
        yield running
        return
    with services(records=200) as started:
        yield started


def bodies(pattern):
    found = [msgspec.json.decode(path.read_bytes()) for path in sorted(RECORDINGS.glob(pattern))]
    assert found
    return found


def versions(name):
    with gzip.open(RECORDINGS / "large" / name) as lines:
        return [msgspec.json.decode(line) for line in lines]


def test_a_page_of_gbif_has_the_members_of_a_recorded_one(either):
    page = httpx2.get(either.gbif + "/occurrence/search").json()
    recorded = bodies("gbif/search/*.json")
    assert all(set(page) == set(one) for one in recorded if "facets" in one)
    facets = httpx2.get(either.gbif + "/occurrence/search?facet=year&limit=0").json()["facets"]
    like = bodies("gbif/search/facet-year.json")[0]["facets"]
    assert set(facets[0]) == set(like[0])
    assert set(facets[0]["counts"][0]) == set(like[0]["counts"][0])


def test_a_generated_record_of_gbif_has_what_recorded_ones_always_have():
    recorded = [r for one in bodies("gbif/search/limit100-all.json") for r in one["results"]]
    always = set.intersection(*map(set, recorded))
    assert {"key", "kingdomKey", "lastInterpreted", "license", "gbifID"} <= always
    with services(records={"gbif": 200}) as running:
        missing = Counter(name for r in running.truth("gbif") for name in always - set(r))
    # A hundred records of one day have a date and a place; not every record of GBIF has.
    assert all(count < 50 for count in missing.values()), missing


def test_a_page_of_obis_has_the_members_of_a_recorded_one(either):
    page = httpx2.get(either.obis + "/occurrence").json()
    assert all(set(page) == set(one) - {"error"} for one in bodies("obis/search/*.json"))
    always = {"id", "dataset_id", "node_id", "scientificName", "aphiaID", "dropped", "absence"}
    assert all(always <= set(r) for r in page["results"])
    datasets = httpx2.get(either.obis + "/dataset").json()
    recorded = bodies("obis/dataset-lists/2025-05-30*.json")[0]
    assert set(datasets) == set(recorded)
    assert set(datasets["results"][0]) == set(recorded["results"][0])


def test_a_page_of_idigbio_has_the_members_of_a_recorded_one(either):
    page = httpx2.get(either.idigbio + "/search/records?limit=3").json()
    for recorded in bodies("idigbio/search/*.json"):
        assert set(page) == set(recorded)
        assert set(page["items"][0]) == set(recorded["items"][0])
        assert set(page["attribution"][0]) <= {k for a in recorded["attribution"] for k in a}
    key = page["items"][0]["uuid"]
    viewed = httpx2.get(f"{either.idigbio}/view/records/{key}").json()
    assert set(viewed) == set(bodies("idigbio/view/0006535c*.json")[0])


def test_the_errors_are_the_recorded_ones(either):
    refused = httpx2.get(either.gbif + "/occurrence/search?decimalLatitude=5-10")
    words = (RECORDINGS / "gbif/errors/400-occurrence-search-11.txt").read_text()
    assert (refused.status_code, refused.text) == (400, words)
    for path, name in (
        ("/search/records?limit=abc", "400-parameter-parse"),
        ('/search/records?fields=["scientificNam"]', "400-term-not-found"),
        ("/search/records?offset=100000", "500-result-window"),
        ("/view/records/none", "404-view"),
    ):
        answer = httpx2.get(either.idigbio + path)
        assert answer.json() == bodies(f"idigbio/derived-errors/{name}.json")[0]
        assert answer.status_code == int(name[:3])


def test_at_first_the_last_versions_are_served(running):
    latest = {v["record"]["key"]: v["record"] for v in versions("gbif-record-versions.ndjson.gz")}
    assert {r["key"]: r for r in running.truth("gbif")} == latest
    obis = {r["id"]: r for r in versions("obis-records.ndjson.gz")}
    assert {r["id"]: r for r in running.truth("obis")} == obis
    assert httpx2.get(running.gbif + "/occurrence/search?limit=0").json()["count"] == len(latest)


def test_the_records_can_be_moved_to_a_moment_and_through_their_versions():
    ordered = sorted(
        versions("idigbio-record-versions.ndjson.gz"),
        key=lambda v: v["item"]["indexTerms"]["datemodified"],
    )
    with services(data=RECORDINGS) as running:
        assert running.versions("idigbio") == len(ordered)
        for count in (0, len(ordered) // 2, len(ordered)):
            running.advance("idigbio", count)
            expected = {v["item"]["uuid"]: v["item"]["etag"] for v in ordered[:count]}
            assert {r["uuid"]: r["etag"] for r in running.truth("idigbio")} == expected
        moment = "2020-01-01T00:00:00Z"
        count = running.as_of("idigbio", moment)
        before = [v for v in ordered if v["item"]["indexTerms"]["datemodified"] < moment]
        assert count == len(before) > 0
        listed = httpx2.get(running.idigbio + "/search/records?limit=0").json()
        assert listed["itemCount"] == len({v["item"]["uuid"] for v in before})
        with pytest.raises(Invalid, match="not in an order of time"):
            running.as_of("obis", moment)


def test_a_folder_without_recordings_is_refused(tmp_path):
    with pytest.raises(Invalid, match="no recordings"), services(data=tmp_path):
        pass
