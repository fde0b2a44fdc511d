from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest

from headrace.model.clock import ManualClock
from headrace.model.errors import Invalid, Unavailable
from headrace.model.options import read_options
from headrace.sources.http import Network
from headrace.sources.obis import Obis, ObisOptions
from headrace.testing.services import services
from headrace.testing.source_suite import GUARANTEES, SWEEP_GUARANTEES

NETWORK = Network(ManualClock(), private=True)
"""One for all tests that need no clock of their own: reading the certificates takes its time."""
RECORDED = Path(__file__).resolve().parents[3] / "shared" / "data" / "obis"
RECORDS = 160


@pytest.fixture(scope="module")
def standing():
    """Stand-ins whose records nobody changes."""
    with services(records={"obis": RECORDS}) as running:
        yield running


@pytest.fixture
def changing():
    with services(records={"obis": 60}) as running:
        yield running


def obis(url, clock=None, **options):
    asked = {"contact": "x@example.org", "page_size": 50, **options}
    network = Network(clock, private=True) if clock else NETWORK
    return Obis(ObisOptions(url=url, **asked), network.clock, network)


def one_sweep(source, cursor=None):
    pages = []
    for page in source.open(cursor):
        pages.append(page)
        if page.sweep_done:
            break
    return pages


def keys(pages):
    return [record.key.decode() for page in pages for record in page.records]


# --- the contract


@pytest.mark.parametrize("guarantee", GUARANTEES, ids=lambda g: g.__name__)
def test_one_sweep_keeps(guarantee, standing):
    guarantee(lambda: obis(standing.obis, follow=False))


@pytest.mark.parametrize("guarantee", SWEEP_GUARANTEES, ids=lambda g: g.__name__)
def test_following_keeps(guarantee, standing):
    guarantee(lambda: obis(standing.obis, full_every=1))


@pytest.mark.parametrize("guarantee", SWEEP_GUARANTEES, ids=lambda g: g.__name__)
def test_following_with_full_sweeps_only_keeps(guarantee, standing):
    guarantee(lambda: obis(standing.obis, full_every=0, absences="include", dropped="include"))


# --- what is asked for


def test_what_is_hidden_is_given_when_asked_for(standing):
    truth = {r["id"]: r for r in standing.truth("obis")}
    hidden = {i for i, r in truth.items() if r.get("absence") or r.get("dropped")}
    assert hidden
    assert set(keys(one_sweep(obis(standing.obis)))) == set(truth) - hidden
    given = keys(one_sweep(obis(standing.obis, absences="include", dropped="include")))
    assert given == sorted(truth)
    only = keys(one_sweep(obis(standing.obis, absences="only", dropped="include")))
    assert set(only) == {i for i, r in truth.items() if r.get("absence")}


def test_records_are_the_services_own_bytes(standing):
    given = {r.key.decode(): r.value for p in one_sweep(obis(standing.obis)) for r in p.records}
    truth = {r["id"]: r for r in standing.truth("obis")}
    assert given
    assert all(json.loads(value) == truth[key] for key, value in given.items())


def test_a_taxon_is_asked_for_by_number_or_by_name(standing):
    source = obis(standing.obis, taxon="127405, 126436", dataset="d", filter="startdate=2020-01-01")
    assert source.filter() == ("startdate=2020-01-01&taxonid=127405%2C126436&datasetid=d")
    assert obis(standing.obis, taxon="Mola mola").filter() == "scientificname=Mola+mola"


def test_a_dataset_is_swept_alone(standing):
    dataset = next(iter(standing.truth("obis")))["dataset_id"]
    given = one_sweep(obis(standing.obis, dataset=dataset))
    values = [json.loads(r.value) for p in given for r in p.records]
    assert {v["dataset_id"] for v in values} == {dataset}
    assert given[-1].sweep.full


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"absences": "yes"}, "absences must be hide, include or only"),
        ({"dropped": "true"}, "dropped must be hide, include or only"),
        ({"filter": "size=5&after=x"}, "filter must not set after, size"),
        ({"page_size": 10_001}, "page_size must be at most 10000"),
    ],
)
def test_options_that_the_service_would_mistake_are_refused(given, said):
    with pytest.raises(Invalid, match=said):
        read_options(ObisOptions, given, 'source "s"')


# --- changes and deletions


def test_changes_are_read_from_the_datasets_that_were_updated(changing):
    clock = ManualClock(changing.clock.now_us())
    source = obis(changing.obis, clock, overlap_s=0, interval_s=3600)
    first = one_sweep(source)
    key = keys(first)[3]
    moved = changing.change("obis", key, {"country": "Elsewhere"})
    clock.set_now_us(changing.clock.now_us())
    second = one_sweep(source, first[-1].cursor)
    assert not second[0].sweep.full
    assert {json.loads(r.value)["dataset_id"] for p in second for r in p.records} == {
        moved["dataset_id"]
    }
    digests = {r.key: r.digest for p in first for r in p.records}
    changed = [r.key for p in second for r in p.records if digests[r.key] != r.digest]
    assert changed == [key.encode()]


def test_what_is_gone_is_missing_from_a_full_sweep(changing):
    clock = ManualClock()
    source = obis(changing.obis, clock, full_every=0)
    first = one_sweep(source)
    gone = keys(first)[:2]
    changing.remove("obis", gone)
    second = one_sweep(source, first[-1].cursor)
    assert second[-1].sweep.full
    assert set(keys(first)) - set(keys(second)) == set(gone)


def test_a_sweep_that_gave_less_than_the_service_counts_is_not_full(changing):
    source = obis(changing.obis, full_every=5)
    pages = source.open(None)
    taken = [next(pages)]
    # Comes in below where the sweep is by now, so this sweep does not see it.
    below = dict(next(iter(changing.truth("obis")))) | {
        "id": "00000000-0000-0000-0000-000000000000"
    }
    changing.add("obis", records=[below | {"absence": False, "dropped": False}])
    for page in pages:
        taken.append(page)
        if page.sweep_done:
            break
    assert taken[0].sweep.full
    assert not taken[-1].sweep.full
    again = next(pages)
    assert (again.sweep.number, again.sweep.full) == (2, True), "it is read whole again"
    assert again.records[0].key == b"00000000-0000-0000-0000-000000000000"


# --- what goes wrong


def fails(source, cursor=None):
    with pytest.raises((Unavailable, Invalid)) as failure:
        list(source.open(cursor))
    return failure.value


@pytest.mark.parametrize(
    "fault",
    [
        {"kind": "status", "status": 500},
        {"kind": "html"},
        {"kind": "not_json"},
        {"kind": "truncated"},
        {"kind": "cut"},
        {"kind": "reset"},
        {"kind": "error_in_200"},
        {"kind": "error_in_200", "body": '{"total":0,"results":[],"error":"shard failed"}'},
        {"kind": "error_in_200", "body": '{"total":9,"results":[],"error":["shard failed"]}'},
        {"kind": "error_in_200", "body": "{}"},
        {"kind": "error_in_200", "body": '{"total":1,"results":[7]}'},
        {"kind": "too_many_requests", "retry_after_s": 30},
    ],
    ids=lambda f: f.get("body", f["kind"]),
)
def test_a_failure_is_asked_again_and_loses_nothing(fault, changing):
    whole = keys(one_sweep(obis(changing.obis, page_size=20)))
    clock = ManualClock()
    changing.fail(service="obis", after=1, **fault)
    source = obis(changing.obis, clock, page_size=20, follow=False)
    pages = source.open(None)
    taken = [next(pages)]
    with pytest.raises(Unavailable) as failure:
        next(pages)
    clock.advance(failure.value.retry_after_s)
    assert keys(taken + list(source.open(taken[-1].cursor))) == whole


def test_a_name_that_is_unknown_stops_the_source(changing):
    changing.fail(
        "error_in_200", body='{"total":0,"results":[],"error":["NAME_NOT_FOUND"]}', requests=2
    )
    assert fails(obis(changing.obis, taxon="Moal moal", follow=False)).code == "unknown_taxon"
    with pytest.raises(Invalid, match="does not know the name"):
        obis(changing.obis, taxon="Moal moal").count()


def test_one_unknown_name_beside_known_ones_takes_nothing_for_gone(changing):
    record = next(iter(changing.truth("obis")))
    body = json.dumps({"total": 1, "results": [record], "error": ["NAME_NOT_FOUND"]})
    changing.fail("error_in_200", body=body)
    pages = one_sweep(obis(changing.obis, follow=False))
    assert keys(pages)[0] == record["id"]
    assert not pages[-1].sweep.full


def test_a_name_that_is_forgotten_during_a_sweep_takes_nothing_for_gone(changing):
    lost = '{"total":0,"results":[],"error":["NAME_NOT_FOUND"]}'
    source = obis(changing.obis, page_size=20, follow=False)
    changing.fail("error_in_200", body=lost, after=1, requests=1)
    pages = one_sweep(source)
    assert len(keys(pages)) == 20
    assert not pages[-1].sweep.full


def test_a_service_that_gives_the_same_page_again_does_not_loop(changing):
    record = next(iter(changing.truth("obis")))
    body = json.dumps({"total": 1, "results": [record]})
    changing.fail("error_in_200", body=body, requests=5)
    with pytest.raises(Unavailable, match="does not go on behind"):
        list(obis(changing.obis, follow=False).open(None))


# --- recorded answers


def recorded_searches():
    found = sorted((RECORDED / "search").glob("*.json"))
    return found or [None]


@pytest.mark.parametrize("path", recorded_searches(), ids=lambda p: getattr(p, "stem", "none"))
def test_a_recorded_answer_gives_its_records(path, changing):
    if path is None:
        pytest.skip("the recorded data is not beside the repository")
    body = path.read_bytes()
    results = msgspec.json.decode(body)["results"]
    changing.fail("error_in_200", body=body.decode())
    changing.fail("error_in_200", body='{"total":0,"results":[]}', requests=1)
    page = next(obis(changing.obis).open(None))
    assert keys([page]) == [r["id"] for r in results]
    assert [json.loads(r.value) for r in page.records] == results


def test_recorded_lists_of_datasets_are_read(changing):
    lists = sorted((RECORDED / "dataset-lists").glob("*.json"))
    if not lists:
        pytest.skip("the recorded data is not beside the repository")
    for path in lists:
        body = path.read_text()
        since_us = 1_700_000_000_000_000
        changing.fail("error_in_200", body=body, path="/dataset", requests=1)
        updated = {
            d["id"] for d in json.loads(body)["results"] if d["updated"] >= "2023-11-14T22:13:20"
        }
        assert set(obis(changing.obis)._updated(since_us)) == updated
