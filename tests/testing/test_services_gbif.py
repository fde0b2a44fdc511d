"""The stand-in of GBIF: the real service's limits, words and shapes."""

from __future__ import annotations

import base64
import csv
import io
import zipfile

import httpx2
import pytest

from headrace.model.clock import ManualClock
from headrace.testing.services import services

WALL = 700
USER = {"Authorization": "Basic " + base64.b64encode(b"me:secret").decode()}


@pytest.fixture(scope="module")
def running():
    with services(records={"gbif": 1000}, wall=WALL) as started:
        yield started


@pytest.fixture
def search(running):
    def ask(**parameters):
        return httpx2.get(running.gbif + "/occurrence/search", params=parameters)

    return ask


@pytest.fixture(scope="module")
def truth(running):
    return list(running.truth("gbif"))


def test_a_limit_is_clamped_without_a_word(search):
    page = search(limit=1000).json()
    assert (page["limit"], len(page["results"])) == (300, 300)
    assert search().json()["limit"] == 20


def test_pages_follow_one_another_newest_year_first(search, truth):
    found = []
    for offset in (0, 300, 600):
        page = search(limit=min(300, WALL - offset), offset=offset).json()
        assert (page["count"], page["offset"], page["endOfRecords"]) == (1000, offset, False)
        found += page["results"]
    assert found == truth[:WALL]
    years = [r.get("year", 0) for r in truth]
    assert years == sorted(years, reverse=True)


def test_behind_the_wall_there_are_only_plain_words(search):
    refused = search(limit=300, offset=401)
    assert refused.status_code == 400
    assert refused.headers["content-type"] == "text/plain"
    assert refused.text == "Max offset of 700 exceeded: 401 + 300"
    assert search(limit=300, offset=400).status_code == 200


def test_the_end_of_records_is_said(search):
    few = search(year="2020,2024", limit=300).json()
    assert few["count"] < 300
    assert few["endOfRecords"] is True
    nothing = search(limit=0).json()
    assert nothing["results"] == []
    assert nothing["count"] == 1000
    assert nothing["endOfRecords"] is False


@pytest.mark.parametrize(
    ("asked", "holds"),
    [
        ({"year": "1999"}, lambda r: r.get("year") == 1999),
        ({"year": "1990,2000"}, lambda r: 1990 <= r.get("year", 0) <= 2000),
        ({"year": "*,1950"}, lambda r: r.get("year", 9999) <= 1950),
        ({"year": ["1999", "2001"]}, lambda r: r.get("year") in {1999, 2001}),
        (
            {"month": "5", "country": "DK"},
            lambda r: (r.get("month"), r.get("countryCode")) == (5, "DK"),
        ),
        ({"occurrenceStatus": "absent"}, lambda r: r["occurrenceStatus"] == "ABSENT"),
        ({"license": "CC0_1_0"}, lambda r: "zero" in r["license"]),
        ({"basisOfRecord": "material_sample"}, lambda r: "SAMPLE" in r["basisOfRecord"]),
        ({"hasCoordinate": "false"}, lambda r: "decimalLatitude" not in r),
        ({"gadmLevel0Gid": "DNK"}, lambda r: "Denmark" in str(r.get("gadm"))),
        ({"kingdomKey": "0"}, lambda r: r.get("kingdom") == "incertae sedis"),
        (
            {"lastInterpreted": "2024-03,2024-04-02T23:00:00"},
            lambda r: "2024-03-01" <= r["lastInterpreted"] < "2024-04-03",
        ),
        ({"nobodyKnows": "this"}, lambda _: True),
    ],
)
def test_filters_mean_what_they_mean_at_the_service(search, truth, asked, holds):
    page = search(**asked, limit=300).json()
    expected = [r["key"] for r in truth if holds(r)]
    assert expected, "the filter must be tried on something"
    assert page["count"] == len(expected)
    assert [r["key"] for r in page["results"]] == expected[:300]


def test_a_taxon_means_all_below_it_and_its_synonyms(search, truth):
    synonym = next(r for r in truth if r["taxonomicStatus"] == "SYNONYM")
    for level in ("kingdomKey", "familyKey", "acceptedTaxonKey", "taxonKey"):
        key = synonym[level]
        count = search(taxonKey=key, limit=0).json()["count"]
        assert count == sum(key in {r.get(k) for k in r if k.endswith("Key")} for r in truth)
    named = search(scientificName=synonym["species"], limit=300).json()
    assert synonym["key"] in {r["key"] for r in named["results"]}


def test_wrong_values_are_refused_in_plain_text(search):
    for asked, words in (
        ({"occurrenceStatus": "maybe"}, "Cannot parse maybe into a known OccurrenceStatus"),
        ({"decimalLatitude": "5-10"}, "Invalid decimal range: 5-10"),
    ):
        refused = search(**asked)
        assert (refused.status_code, refused.text) == (400, words)


def test_what_is_not_played_is_not_passed_over(search):
    assert search(q="whale").status_code == 501
    assert search(geometry="POLYGON((0 0,1 0,1 1,0 0))").status_code == 501


def test_facets_count_and_can_be_paged(search, truth):
    page = search(facet=["year", "datasetKey"], facetLimit=500, limit=0).json()
    years, datasets = page["facets"]
    assert (years["field"], datasets["field"]) == ("YEAR", "DATASET_KEY")
    assert sum(c["count"] for c in datasets["counts"]) == len(truth)
    assert sum(c["count"] for c in years["counts"]) == sum("year" in r for r in truth) < len(truth)
    counts = [c["count"] for c in years["counts"]]
    assert counts == sorted(counts, reverse=True)
    ten = search(facet="year", limit=0).json()["facets"][0]["counts"]
    assert ten == years["counts"][:10]
    some = search(facet="year", facetLimit=5, facetOffset=10, limit=0).json()["facets"][0]
    assert some["counts"] == years["counts"][10:15]


def test_counts_and_single_records(running, truth):
    count = httpx2.get(running.gbif + "/occurrence/count", params={"country": "DK"})
    assert int(count.text) == sum(r.get("countryCode") == "DK" for r in truth)
    key = truth[7]["key"]
    assert httpx2.get(f"{running.gbif}/occurrence/{key}").json() == truth[7]
    assert httpx2.get(f"{running.gbif}/occurrence/1").status_code == 404
    dataset = httpx2.get(f"{running.gbif}/dataset/{truth[7]['datasetKey']}").json()
    assert dataset["key"] == truth[7]["datasetKey"]
    assert httpx2.get(f"{running.gbif}/dataset/4").text == "Invalid UUID string: 4"


def test_predicates_can_ask_for_what_lacks_a_field(running, truth):
    def ask(predicate, **more):
        body = {"predicate": predicate, "limit": 300, "offset": 0, **more}
        return httpx2.post(running.gbif + "/occurrence/search/predicate", json=body).json()

    lacking = ask({"type": "isNull", "parameter": "YEAR"}, facets=["COUNTRY"], facetLimit=100)
    assert lacking["count"] == sum("year" not in r for r in truth)
    assert sum(c["count"] for c in lacking["facets"][0]["counts"]) == sum(
        "year" not in r and "countryCode" in r for r in truth
    )
    danish = {"type": "equals", "key": "COUNTRY", "value": "DK"}
    late = {"type": "greaterThan", "key": "YEAR", "value": "2000"}
    for predicate, holds in (
        ({"type": "and", "predicates": [danish, late]}, lambda d, y: d and y > 2000),
        ({"type": "or", "predicates": [danish, late]}, lambda d, y: d or y > 2000),
        ({"type": "not", "predicate": danish}, lambda d, _: not d),
        ({"type": "in", "key": "YEAR", "values": ["1999", "2001"]}, lambda _, y: y in {1999, 2001}),
        ({"type": "lessThanOrEquals", "key": "YEAR", "value": "1950"}, lambda _, y: 0 < y <= 1950),
        ({"type": "lessThan", "key": "YEAR", "value": "1950"}, lambda _, y: 0 < y < 1950),
    ):
        expected = sum(holds(r.get("countryCode") == "DK", r.get("year", 0)) for r in truth)
        assert expected
        assert ask(predicate)["count"] == expected


def test_cached_answers_stay_as_they_were():
    clock = ManualClock()
    with services(records={"gbif": 50}, clock=clock) as running:
        running.cache(600)
        url = running.gbif + "/occurrence/search?limit=1"
        first = httpx2.get(url).json()
        running.remove("gbif", [str(first["results"][0]["key"])])
        clock.advance(599)
        again = httpx2.get(url)
        assert again.json() == first
        assert again.headers["age"] == "599"
        clock.advance(1)
        assert httpx2.get(url).json()["count"] == 49


def rows_of(archive):
    with zipfile.ZipFile(io.BytesIO(archive)) as zipped:
        meta = zipped.read("meta.xml").decode()
        text = io.StringIO(zipped.read("occurrence.txt").decode(), newline="\n")
    return meta, list(csv.DictReader(text, delimiter="\t", quoting=csv.QUOTE_NONE))


def test_a_download_is_asked_for_waited_for_and_fetched(running, truth):
    downloads = running.gbif + "/occurrence/download"
    asked = {"creator": "me", "format": "DWCA"}
    asked["predicate"] = {"type": "equals", "key": "COUNTRY", "value": "NZ"}
    assert httpx2.post(downloads + "/request", json=asked).status_code == 401
    made = httpx2.post(downloads + "/request", json=asked, headers=USER)
    assert made.status_code == 201
    key = made.text
    assert httpx2.get(f"{downloads}/request/{key}.zip").status_code == 404
    states = [httpx2.get(f"{downloads}/{key}").json() for _ in range(4)]
    assert [s["status"] for s in states] == ["PREPARING", "RUNNING", "SUCCEEDED", "SUCCEEDED"]
    moved = httpx2.get(states[-1]["downloadLink"])
    assert moved.status_code == 302
    archive = httpx2.get(moved.headers["location"]).content
    assert len(archive) == states[-1]["size"]
    rest = httpx2.get(moved.headers["location"], headers={"Range": "bytes=100-"})
    assert (rest.status_code, rest.content) == (206, archive[100:])
    meta, rows = rows_of(archive)
    assert "http://rs.tdwg.org/dwc/terms/Occurrence" in meta
    expected = {str(r["key"]): r for r in truth if r.get("countryCode") == "NZ"}
    assert {row["gbifID"] for row in rows} == set(expected)
    assert len(rows) == len(expected) == states[-1]["totalRecords"]
    for row in rows:
        record = expected[row["gbifID"]]
        assert row["scientificName"] == record["scientificName"]
        assert row["year"] == str(record.get("year", ""))
        assert row["license"] in {"CC_BY_NC_4_0", "CC_BY_4_0", "CC0_1_0"}


def test_too_many_downloads_are_refused_and_the_same_one_is_found_again(running):
    downloads = running.gbif + "/occurrence/download"
    other = {"Authorization": "Basic " + base64.b64encode(b"you:secret").decode()}

    def ask(year):
        predicate = {"type": "equals", "key": "YEAR", "value": str(year)}
        body = {"predicate": predicate, "format": "DWCA"}
        return httpx2.post(downloads + "/request", json=body, headers=other)

    keys = [ask(year).text for year in (1999, 2000, 2001)]
    assert len(set(keys)) == 3
    assert ask(2000).text == keys[1]
    refused = ask(2002)
    assert refused.status_code == 420
    assert "has too many simultaneous downloads; the limit is 3." in refused.text
    assert httpx2.delete(f"{downloads}/request/{keys[0]}", headers=other).status_code == 204
    assert httpx2.get(f"{downloads}/{keys[0]}").json()["status"] == "CANCELLED"
    assert ask(2002).status_code == 201
    assert httpx2.get(downloads + "/none").text == "Download was not found"
