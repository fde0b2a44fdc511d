"""The stand-in of iDigBio: the real service's limits, words and shapes."""

from __future__ import annotations

import json

import httpx2
import pytest

from headrace.testing.services import idigbio, services

RECORDS = 5_100


@pytest.fixture(scope="module")
def running():
    with services(records={"idigbio": RECORDS}) as started:
        yield started


@pytest.fixture(scope="module")
def truth(running):
    return list(running.truth("idigbio"))


@pytest.fixture
def search(running):
    def ask(**asked):
        return httpx2.post(running.idigbio + "/search/records", json=asked)

    return ask


def test_a_limit_is_clamped_without_a_word(search):
    page = search(limit=100_000, sort="uuid").json()
    assert len(page["items"]) == 5000
    assert page["itemCount"] == RECORDS
    assert len(search().json()["items"]) == 100


def test_past_the_wall_there_is_an_error_500(search):
    refused = search(limit=5000, offset=95_001, sort="uuid")
    assert refused.status_code == 500
    assert refused.json() == {"error": "Internal Server Error"}
    assert search(limit=5000, offset=95_000, sort="uuid").json()["items"] == []


def test_offsets_and_ranges_of_uuids_give_everything_once(search, truth):
    everything = [r["uuid"] for r in truth]
    by_offset = [
        item["uuid"]
        for offset in range(0, RECORDS, 5000)
        for item in search(limit=5000, offset=offset, sort="uuid").json()["items"]
    ]
    assert by_offset == everything == sorted(everything)
    by_range, rq = [], {}
    while items := search(rq=rq, limit=5000, sort="uuid").json()["items"]:
        by_range += [item["uuid"] for item in items]
        rq = {"uuid": {"type": "range", "gt": by_range[-1]}}
    assert by_range == everything


def test_get_and_post_ask_alike(running, search):
    rq = {"kingdom": "animalia"}
    asked = {"rq": json.dumps(rq), "sort": "uuid", "limit": "3"}
    got = httpx2.get(running.idigbio + "/search/records", params=asked)
    assert got.json() == search(rq=rq, sort="uuid", limit=3).json()


@pytest.mark.parametrize(
    ("rq", "holds"),
    [
        ({"kingdom": "Plantae"}, lambda t: t.get("kingdom") == "plantae"),
        ({"kingdom": {"type": "missing"}}, lambda t: "kingdom" not in t),
        ({"kingdom": {"type": "exists"}}, lambda t: "kingdom" in t),
        ({"countrycode": ["DNK", "jpn"]}, lambda t: t.get("countrycode") in {"dnk", "jpn"}),
        ({"genus": {"type": "prefix", "value": "Cor"}}, lambda t: t["genus"].startswith("cor")),
        (
            {"datemodified": {"type": "range", "gte": "2024-03-01", "lte": "2024-03-05"}},
            lambda t: "2024-03-01" <= t["datemodified"] < "2024-03-06",
        ),
        (
            {"datemodified": {"type": "range", "gt": "2024-03-01", "lt": "2024-03-05"}},
            lambda t: "2024-03-02" <= t["datemodified"] < "2024-03-05",
        ),
        (
            {"datemodified": {"type": "range", "gte": "2024-06-01T12:00:00.000001+00:00"}},
            lambda t: t["datemodified"] > "2024-06-01T12:00:00.000000",
        ),
    ],
)
def test_conditions_mean_what_they_mean_at_the_service(search, truth, rq, holds):
    expected = [r["uuid"] for r in truth if holds(r["indexTerms"])]
    assert 0 < len(expected) < len(truth)
    page = search(rq=rq, sort="uuid", limit=5000).json()
    assert [item["uuid"] for item in page["items"]] == expected[:5000]
    assert page["itemCount"] == len(expected)


def test_a_scientific_name_is_matched_by_its_words(search, truth):
    name = truth[0]["indexTerms"]["scientificname"]
    genus, epithet = name.split()
    for asked, holds in (
        (genus, lambda n: n.split()[0] == genus),
        (f"{epithet.upper()} {genus}", lambda n: n == name),
    ):
        found = search(rq={"scientificname": asked}).json()["itemCount"]
        assert found == sum(holds(r["indexTerms"]["scientificname"]) for r in truth)


def test_wrong_requests_are_refused_as_json(search):
    refused = search(rq={"scientificNam": "x"})
    assert refused.status_code == 400
    assert refused.json() == {
        "error": "Terms not found in index for type records",
        "name": "TermNotFoundError",
        "statusCode": 400,
        "terms": ["scientificNam"],
    }
    assert search(fields='["uuid').json()["parameter"] == "fields"
    number = search(limit="abc")
    assert number.status_code == 400
    assert number.json()["name"] == "ParameterParseError"
    assert search(rq={"geopoint": {"type": "exists"}}).status_code == 501


def test_fields_are_left_out_as_asked(search, truth):
    short = search(fields=["uuid", "kingdom"], limit=1, sort="uuid").json()["items"][0]
    assert short["data"] == {}
    assert set(short["indexTerms"]) <= {"uuid", "kingdom"}
    assert "etag" not in short
    bare = search(fields_exclude=["data"], limit=1, sort="uuid").json()["items"][0]
    assert bare == {**truth[0], "data": {}}


def test_an_answer_is_dated_and_attributed(search, truth):
    page = search(rq={"kingdom": "fungi"}, limit=0).json()
    fungi = [r for r in truth if r["indexTerms"].get("kingdom") == "fungi"]
    newest = max(r["indexTerms"]["datemodified"] for r in fungi)
    assert page["lastModified"][:19] == newest[:19]
    sets = {a["uuid"]: a["itemCount"] for a in page["attribution"]}
    assert sum(sets.values()) == len(fungi)
    assert set(sets) == {r["indexTerms"]["recordset"] for r in fungi}
    assert search(no_attribution=True, limit=0).json()["attribution"] == {}


def test_nothing_new_is_a_304_and_a_change_ends_it():
    with services(records={"idigbio": 30}) as running:
        url = running.idigbio + "/search/records?limit=0"
        first = httpx2.get(url)
        since = {"If-Modified-Since": first.headers["last-modified"]}
        unchanged = httpx2.get(url, headers=since)
        assert (unchanged.status_code, unchanged.content) == (304, b"")
        before = next(running.truth("idigbio"))
        data = {**before["data"], "dwc:sex": "female"}
        after = running.change("idigbio", before["uuid"], {"data": data})
        assert after["etag"] != before["etag"]
        assert after["indexTerms"]["datemodified"] > before["indexTerms"]["datemodified"]
        assert httpx2.get(url, headers=since).status_code == 200


def test_a_record_is_viewed_and_counts_are_summed(running, truth):
    viewed = httpx2.get(f"{running.idigbio}/view/records/{truth[0]['uuid']}").json()
    assert viewed == {**truth[0], "attribution": viewed["attribution"]}
    assert viewed["attribution"]["uuid"] == truth[0]["indexTerms"]["recordset"]
    missing = httpx2.get(f"{running.idigbio}/view/records/none")
    assert missing.status_code == 404
    assert missing.json() == {"error": "Not Found", "statusCode": 404, "status": 404}
    assert httpx2.get(running.idigbio + "/summary/count/records").json() == {"itemCount": RECORDS}
    assert idigbio.LIMIT_MAX == 5000
