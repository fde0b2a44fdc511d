"""Records that change, over HTTP and from Python; the stand-ins as a process of their own."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections import Counter

import httpx2
import pytest

from headrace.model.errors import Invalid
from headrace.testing.services import services

SERVICES = ("gbif", "obis", "idigbio")


@pytest.fixture
def running():
    with services(records=60) as started:
        yield started


def key_of(record):
    return str(record.get("key") or record.get("uuid") or record["id"])


def records(running, service):
    return {key_of(r): r for r in running.truth(service)}


@pytest.mark.parametrize("service", SERVICES)
def test_records_are_removed_added_and_changed(running, service):
    before = records(running, service)
    gone, changed, *_ = before
    running.remove(service, [gone])
    new = running.add(service, count=5)
    running.change(service, changed, {"note": "seen again"})
    after = records(running, service)
    assert set(after) == set(before) - {gone} | set(new)
    assert len(new) == 5
    assert after[changed]["note"] == "seen again"
    unchanged = set(before) - {gone, changed}
    assert all(after[key] == before[key] for key in unchanged)


@pytest.mark.parametrize("service", SERVICES)
def test_a_record_that_is_put_back_is_the_one_that_was_there(running, service):
    key, record = next(iter(records(running, service).items()))
    running.remove(service, [key])
    assert running.add(service, records=[record]) == [key]
    assert records(running, service)[key] == record


@pytest.mark.parametrize(
    ("service", "name", "marks"),
    [
        ("gbif", lambda r: r["scientificName"], lambda r: r["lastInterpreted"]),
        ("obis", lambda r: r["scientificName"], None),
        ("idigbio", lambda r: r["indexTerms"]["scientificname"], lambda r: r["etag"]),
    ],
)
def test_a_record_is_identified_anew(running, service, name, marks):
    before = records(running, service)
    key, *_, donor = before
    if name(before[key]) == name(before[donor]):
        donor = next(k for k in before if name(before[k]) != name(before[key]))
    now = running.reidentify(service, key, donor)
    assert name(now) == name(before[donor]) != name(before[key])
    assert records(running, service)[key] == now
    if marks:
        assert marks(now) != marks(before[key])
    again = running.reidentify(service, key)
    assert name(again) != name(now)


def test_a_change_is_seen_by_who_asks_next(running):
    url = running.gbif + "/occurrence/search?limit=300"
    first = httpx2.get(url).json()
    keys = [str(r["key"]) for r in first["results"]]
    running.remove("gbif", keys[:2])
    running.change("gbif", keys[5], {"countryCode": "FR"})
    assert httpx2.get(url).json()["count"] == first["count"] - 2
    french = httpx2.get(url + "&country=FR").json()["results"]
    assert [str(r["key"]) for r in french] == [keys[5]]


def test_what_is_not_there_is_refused(running):
    for wrong in (
        lambda: running.change("gbif", "1", {}),
        lambda: running.remove("obis", ["none"]),
        lambda: list(running.truth("worms")),
        lambda: running.advance("gbif", 3),
        lambda: running.as_of("gbif", "yesterday"),
    ):
        with pytest.raises(Invalid):
            wrong()


def test_generated_records_depend_on_their_seed_alone():
    with services(records=30, seed=1) as one, services(records=30, seed=1) as same:
        for service in SERVICES:
            assert list(one.truth(service)) == list(same.truth(service))
    with services(records=30, seed=2) as other:
        assert not set(other.keys("obis")) & set(one.keys("obis"))


def test_generated_records_have_what_real_ones_have():
    with services(records=3000) as running:
        gbif, obis, idigbio = (list(running.truth(s)) for s in SERVICES)
    assert {r["taxonomicStatus"] for r in gbif} >= {"ACCEPTED", "SYNONYM", "DOUBTFUL"}
    assert Counter(r["occurrenceStatus"] for r in gbif)["ABSENT"] > 50
    for field in ("year", "countryCode", "decimalLatitude", "species"):
        assert 50 < sum(field not in r for r in gbif) < 1500
    unplaced = [r for r in gbif if r["taxonKey"] == 0]
    assert {r.get("kingdom") for r in unplaced} == {None, "incertae sedis"}
    assert "Biota incertae sedis" in {r["kingdom"] for r in obis}
    assert any(r["taxonKey"] != r.get("acceptedTaxonKey", r["taxonKey"]) for r in gbif)
    assert sum(r["absence"] for r in obis) > 50
    assert sum(r["dropped"] for r in obis) > 10
    given = {r["data"].get("dwc:kingdom") for r in idigbio}
    assert given >= {"Animalia", "ANIMALIA", "animalia", None}
    species = (
        {r["species"] for r in gbif if "species" in r},
        {r["species"] for r in obis if "species" in r},
        {r["indexTerms"]["scientificname"].capitalize() for r in idigbio},
    )
    assert set.intersection(*species)
    assert len(set.union(*species)) < sum(map(len, species))


def test_everything_can_be_said_over_http(running):
    def post(what, **said):
        return httpx2.post(f"{running.url}/control/{what}", json=said)

    def get(what, **asked):
        return httpx2.get(f"{running.url}/control/{what}", params=asked)

    assert post("fail", kind="status", service="gbif", status=503).status_code == 200
    assert httpx2.get(running.gbif + "/occurrence/search").status_code == 503
    post("fail", kind="status", seconds=100)
    post("heal")
    assert httpx2.get(running.gbif + "/occurrence/search").status_code == 200
    key = get("keys", service="gbif").json()["result"][0]
    assert post("change", service="gbif", key=key, fields={"note": 1}).json()["result"]["note"] == 1
    assert post("remove", service="gbif", keys=[key]).status_code == 200
    assert len(post("add", service="gbif", count=2).json()["result"]) == 2
    lines = get("truth", service="gbif").text.splitlines()
    assert list(map(json.loads, lines)) == list(running.truth("gbif"))
    report = get("report").json()["result"]
    assert report["services"]["gbif"]["statuses"] == {"200": 1, "503": 1}
    assert len(get("requests").json()["result"]) == 2
    post("forget")
    assert get("requests").json()["result"] == []


def test_what_is_said_wrongly_is_refused(running):
    control = running.url + "/control/"
    for refused in (
        httpx2.post(control + "fail", json={"kind": "explode"}),
        httpx2.post(control + "fail", content=b"{"),
        httpx2.post(control + "remove", json={"service": "gbif"}),
        httpx2.post(control + "advance", json={"service": "gbif", "versions": 1}),
        httpx2.get(control + "truth", params={"service": "worms"}),
    ):
        assert refused.status_code == 400
        assert refused.json()["error"]
    assert httpx2.get(control + "nothing").status_code == 404
    assert httpx2.get(running.url + "/other").status_code == 404


def test_nothing_is_left_when_the_context_ends():
    with services(records=5) as running:
        client = httpx2.Client()
        client.get(running.gbif + "/occurrence/search")
    with pytest.raises(httpx2.TransportError):
        client.get(running.gbif + "/occurrence/search")
    client.close()


def test_they_run_by_themselves_and_stop_when_told():
    command = [sys.executable, "-m", "headrace.testing.services", "--records", "7", "--seed", "3"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        url = process.stdout.readline().strip()
        found = httpx2.get(url + "/gbif/v1/occurrence/search").json()
        assert found["count"] == 7
        with services(records=7, seed=3) as here:
            assert found["results"] == list(here.truth("gbif"))
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0
    finally:
        process.kill()
        process.communicate()
