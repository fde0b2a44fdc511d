from __future__ import annotations

import itertools
import json
from pathlib import Path

import msgspec
import pytest

from headrace.model.clock import ManualClock
from headrace.model.errors import Invalid, Unavailable
from headrace.model.options import read_options
from headrace.model.source import BYTES_MAX
from headrace.sources.http import Network
from headrace.sources.idigbio import LIMIT_MAX, Idigbio, IdigbioOptions
from headrace.testing.services import services
from headrace.testing.source_suite import GUARANTEES, SWEEP_GUARANTEES

NETWORK = Network(ManualClock(), private=True)
"""One for all tests that need no clock of their own: reading the certificates takes its time."""
RECORDED = Path(__file__).resolve().parents[3] / "shared" / "data" / "idigbio"


@pytest.fixture(scope="module")
def standing():
    """Stand-ins whose records nobody changes."""
    with services(records={"idigbio": 160}) as running:
        yield running


@pytest.fixture
def changing():
    with services(records={"idigbio": 60}) as running:
        yield running


def idigbio(url, clock=None, **options):
    asked = {"contact": "x@example.org", "page_size": 50, **options}
    network = Network(clock, private=True) if clock else NETWORK
    return Idigbio(IdigbioOptions(url=url, **asked), network.clock, network)


def one_sweep(source, cursor=None):
    pages = []
    for page in source.open(cursor):
        pages.append(page)
        if page.sweep_done:
            break
    return pages


def records(pages):
    return [record for page in pages for record in page.records]


def keys(pages):
    return [record.key.decode() for record in records(pages)]


# --- the contract


@pytest.mark.parametrize("guarantee", GUARANTEES, ids=lambda g: g.__name__)
def test_one_sweep_keeps(guarantee, standing):
    guarantee(lambda: idigbio(standing.idigbio, follow=False))


@pytest.mark.parametrize("guarantee", SWEEP_GUARANTEES, ids=lambda g: g.__name__)
def test_following_keeps(guarantee, standing):
    guarantee(lambda: idigbio(standing.idigbio, full_every=1))


@pytest.mark.parametrize("guarantee", SWEEP_GUARANTEES, ids=lambda g: g.__name__)
def test_following_with_attribution_keeps(guarantee, standing):
    guarantee(lambda: idigbio(standing.idigbio, full_every=0, attribution=True))


# --- what is asked for


def test_everything_is_given_as_the_service_has_it(standing):
    truth = {r["uuid"]: r for r in standing.truth("idigbio")}
    given = records(one_sweep(idigbio(standing.idigbio)))
    assert [r.key.decode() for r in given] == sorted(truth)
    for record in given:
        value = json.loads(record.value)
        assert value["data"] == truth[value["uuid"]]["data"]


def test_the_filter_is_the_services_own(standing):
    source = idigbio(
        standing.idigbio, taxon="Mola mola", dataset="a, b", filter='{"hasImage": true}'
    )
    assert json.loads(source.filter()) == {
        "scientificname": "Mola mola",
        "recordset": ["a", "b"],
        "hasImage": True,
    }


def test_a_recordset_is_swept_alone(standing):
    wanted = next(iter(standing.truth("idigbio")))["indexTerms"]["recordset"]
    pages = one_sweep(idigbio(standing.idigbio, dataset=wanted))
    given = {json.loads(r.value)["indexTerms"]["recordset"] for r in records(pages)}
    assert given == {wanted}
    assert pages[-1].sweep.full


def test_attribution_is_added_without_contacts_and_without_a_change(standing):
    plain = records(one_sweep(idigbio(standing.idigbio)))
    cited = records(one_sweep(idigbio(standing.idigbio, attribution=True)))
    assert [r.digest for r in plain] == [r.digest for r in cited]
    for before, after in zip(plain, cited, strict=True):
        value = json.loads(after.value)
        attribution = value.pop("attribution")
        assert value == json.loads(before.value)
        assert attribution["uuid"] == value["indexTerms"]["recordset"]
        assert "contacts" not in attribution


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"filter": '{"uuid": "x"}'}, "filter must not set uuid"),
        ({"filter": '{"datemodified": "x", "family": "f"}'}, "filter must not set datemodified"),
        ({"filter": "family=f"}, "filter is no JSON object"),
        ({"filter": "[1]"}, "filter is no JSON object"),
        ({"page_size": LIMIT_MAX + 1}, "page_size must be at most 5000"),
    ],
)
def test_options_that_cannot_be_asked_for_are_refused(given, said):
    with pytest.raises(Invalid, match=said):
        read_options(IdigbioOptions, given, 'source "s"')


def test_a_limit_that_is_clamped_loses_nothing(standing):
    source = idigbio(standing.idigbio)
    whole = keys(one_sweep(source))
    asked = []
    post = source.service.post

    def clamped(path, body, *args, **kwargs):
        asked.append(body)
        return post(path, {**body, "limit": min(body["limit"], 7)}, *args, **kwargs)

    source.service.post = clamped
    assert keys(one_sweep(source)) == whole
    assert all("offset" not in body for body in asked)


def test_pages_of_large_records_are_cut(changing):
    large = "x" * (BYTES_MAX // 3)
    for key in changing.keys("idigbio")[:7]:
        changing.change("idigbio", key, {"data": {"dwc:remarks": large}})
    pages = one_sweep(idigbio(changing.idigbio, page_size=60))
    assert len(pages) > 3
    assert keys(pages) == changing.keys("idigbio")
    for before, page in itertools.pairwise(pages[:-1]):
        rest = one_sweep(idigbio(changing.idigbio, page_size=60), before.cursor)
        assert rest[0].records[0].key == page.records[0].key


# --- changes and deletions


def test_changes_are_asked_for_by_date_with_an_overlap(changing):
    clock = ManualClock(changing.clock.now_us())
    source = idigbio(changing.idigbio, clock, overlap_s=600, interval_s=60)
    first = one_sweep(source)
    key = keys(first)[3]
    changing.change("idigbio", key, {"data": {"dwc:kingdom": "Fungi"}})
    second = one_sweep(source, first[-1].cursor)
    assert not second[0].sweep.full
    assert keys(second) == [key]
    assert changing.requests()[-2].body.count("datemodified") == 1


def test_where_nothing_was_modified_a_304_ends_the_sweep(changing):
    clock = ManualClock(changing.clock.now_us())
    source = idigbio(changing.idigbio, clock, overlap_s=0)
    first = one_sweep(source)
    changing.forget()
    second = one_sweep(source, first[-1].cursor)
    assert keys(second) == []
    assert [r.status for r in changing.requests()] == [304]


def test_what_is_gone_is_missing_from_a_full_sweep(changing):
    source = idigbio(changing.idigbio, full_every=0)
    first = one_sweep(source)
    gone = keys(first)[:2]
    changing.remove("idigbio", gone)
    second = one_sweep(source, first[-1].cursor)
    assert second[-1].sweep.full
    assert set(keys(first)) - set(keys(second)) == set(gone)


def test_a_deletion_says_the_uuid():
    source = idigbio("http://127.0.0.1:9")
    assert source.deletion(b'a"b') == b'{"uuid":"a\\"b"}'


# --- what goes wrong


@pytest.mark.parametrize(
    "fault",
    [
        {"kind": "status", "status": 500, "body": '{"error":"Internal Server Error"}'},
        {"kind": "status", "status": 502, "body": "<html><title>Bad Gateway</title></html>"},
        {"kind": "html"},
        {"kind": "not_json"},
        {"kind": "truncated"},
        {"kind": "cut"},
        {"kind": "reset"},
        {"kind": "error_in_200"},
        {"kind": "too_many_requests", "retry_after_s": 30},
        {"kind": "too_many_requests", "retry_after_s": 30, "as_date": True},
    ],
    ids=lambda f: "-".join(map(str, f.values()))[:30],
)
def test_a_failure_is_asked_again_and_loses_nothing(fault, changing):
    whole = keys(one_sweep(idigbio(changing.idigbio, page_size=20)))
    clock = ManualClock()
    changing.fail(service="idigbio", after=1, **fault)
    source = idigbio(changing.idigbio, clock, page_size=20, follow=False)
    pages = source.open(None)
    taken = [next(pages)]
    with pytest.raises(Unavailable) as failure:
        next(pages)
    clock.advance(failure.value.retry_after_s)
    rest = list(source.open(taken[-1].cursor))
    assert keys(taken) + keys(rest) == whole


def test_a_term_that_is_unknown_stops_the_source(changing):
    source = idigbio(changing.idigbio, filter='{"scientificNam": "x"}', follow=False)
    with pytest.raises(Invalid, match=r"Terms not found .*scientificNam") as refused:
        list(source.open(None))
    assert refused.value.code == "refused_by_service"


def test_a_service_that_gives_the_same_page_again_does_not_loop(changing):
    item = {"uuid": "a", "data": {}, "indexTerms": {}}
    body = json.dumps({"itemCount": 1, "items": [item], "attribution": []})
    changing.fail("error_in_200", body=body, requests=5)
    with pytest.raises(Unavailable, match="does not go on behind"):
        list(idigbio(changing.idigbio, follow=False).open(None))


# --- recorded answers


def recorded_searches():
    folders = ("search", "derived-from-es-mocks")
    found = sorted(p for name in folders for p in (RECORDED / name).glob("*.json"))
    return found or [None]


@pytest.mark.parametrize("path", recorded_searches(), ids=lambda p: getattr(p, "stem", "none"))
def test_a_recorded_answer_gives_its_records(path, changing):
    if path is None:
        pytest.skip("the recorded data is not beside the repository")
    body = path.read_bytes()
    items = msgspec.json.decode(body)["items"]
    changing.fail("error_in_200", body=body.decode())
    page = next(idigbio(changing.idigbio).open(None))
    assert keys([page]) == [i["uuid"] for i in items]
    assert [json.loads(r.value) for r in page.records] == items
