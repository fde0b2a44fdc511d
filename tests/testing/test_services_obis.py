"""The stand-in of OBIS: the real service's limits, words and shapes."""

from __future__ import annotations

import httpx2
import pytest

from headrace.testing.services import services


@pytest.fixture(scope="module")
def running():
    with services(records={"obis": 11_500}) as started:
        yield started


@pytest.fixture(scope="module")
def truth(running):
    return list(running.truth("obis"))


@pytest.fixture
def search(running):
    def ask(**parameters):
        return httpx2.get(running.obis + "/occurrence", params=parameters)

    return ask


def test_a_page_has_at_most_ten_thousand(search):
    assert len(search(size=10_000).json()["results"]) == 10_000
    assert search(size=10_001).status_code == 400
    assert len(search().json()["results"]) == 10


def test_paging_after_the_last_id_gives_everything_once(search, truth):
    shown = [r["id"] for r in truth if not r["absence"] and not r["dropped"]]
    found, after = [], "-1"
    while page := search(size=5000, after=after).json()["results"]:
        found += [r["id"] for r in page]
        after = found[-1]
    assert found == shown == sorted(shown)
    assert search(size=0).json() == {"total": len(shown), "results": []}


@pytest.mark.parametrize("hidden", ["absence", "dropped"])
def test_what_is_hidden_is_shown_if_asked_for(search, truth, hidden):
    other = {"absence": "dropped", "dropped": "absence"}[hidden]
    among = [r for r in truth if not r[other]]
    assert search(**{hidden: "include"}).json()["total"] == len(among)
    assert search(**{hidden: "true"}).json()["total"] == sum(r[hidden] for r in among) > 0
    assert search().json()["total"] == sum(not r[hidden] for r in among)


def test_filters_mean_what_they_mean_at_the_service(search, truth):
    shown = [r for r in truth if not r["absence"] and not r["dropped"]]
    one = next(r for r in shown if "species" in r and "date_year" in r)
    for asked, holds in (
        ({"taxonid": one["familyid"]}, lambda r: r.get("family") == one["family"]),
        ({"taxonid": one["aphiaID"]}, lambda r: r["aphiaID"] == one["aphiaID"]),
        ({"scientificname": one["genus"]}, lambda r: r.get("genus") == one["genus"]),
        ({"datasetid": one["dataset_id"]}, lambda r: r["dataset_id"] == one["dataset_id"]),
        ({"startdate": "2010-01-01"}, lambda r: r.get("eventDate", "") >= "2010-01-01"),
        ({"enddate": "1980-12-31"}, lambda r: "0" < r.get("eventDate", "") <= "1980-12-31"),
    ):
        expected = [r["id"] for r in shown if holds(r)]
        page = search(**asked, size=10_000).json()
        assert [r["id"] for r in page["results"]] == expected, asked
        assert 0 < len(expected) < len(shown)
    fields = search(fields="id,kingdom", size=1).json()["results"][0]
    assert set(fields) == {"id", "kingdom"}


def test_a_name_that_is_not_known_is_an_error_inside_a_200(search, truth):
    genus = next(r["genus"] for r in truth if "genus" in r)
    both = search(scientificname=f"{genus},Nemo")
    assert both.status_code == 200
    assert list(both.json()) == ["total", "results", "error"]
    assert both.json()["error"] == ["NAME_NOT_FOUND"]
    assert both.json()["total"] == search(scientificname=genus).json()["total"] > 0
    assert "error" not in search(scientificname=genus).json()


def test_what_is_not_played_is_not_passed_over(search):
    assert search(geometry="POLYGON((0 0,1 0,1 1,0 0))").status_code == 501


def test_single_records_and_etags(running, truth):
    url = f"{running.obis}/occurrence/{truth[3]['id']}"
    found = httpx2.get(url)
    assert found.json() == {"total": 1, "results": [truth[3]]}
    again = httpx2.get(url, headers={"If-None-Match": found.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    assert httpx2.get(running.obis + "/occurrence/none").json() == {"total": 0, "results": []}


def test_datasets_say_when_they_were_updated():
    with services(records={"obis": 200}) as running:
        before = {d["id"]: d for d in httpx2.get(running.obis + "/dataset").json()["results"]}
        changed, removed = (r for r, _ in zip(running.truth("obis"), range(2), strict=False))
        running.change("obis", changed["id"], {"sex": "f"})
        running.remove("obis", [removed["id"]])
        after = {d["id"]: d for d in httpx2.get(running.obis + "/dataset").json()["results"]}
        updated = {k for k in after if after[k]["updated"] > before[k]["updated"]}
        assert updated == {changed["dataset_id"], removed["dataset_id"]}
        one = httpx2.get(f"{running.obis}/dataset/{changed['dataset_id']}").json()
        assert one["results"][0]["updated"] == after[changed["dataset_id"]]["updated"]
