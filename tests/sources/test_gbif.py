from __future__ import annotations

import json
from pathlib import Path

import pytest

from headrace.model.clock import ManualClock
from headrace.model.errors import Invalid, Unavailable
from headrace.model.options import read_options
from headrace.sources.gbif import Gbif, GbifOptions
from headrace.sources.http import Answer, Network
from headrace.testing.services import services
from headrace.testing.source_suite import GUARANTEES, SWEEP_GUARANTEES

RECORDED = Path(__file__).resolve().parents[3] / "shared" / "data" / "gbif"
RECORDS = 70
WALL = 25
DAY_US = 86_400_000_000


@pytest.fixture(scope="module")
def standing():
    """A stand-in whose records nobody changes, and that pages through all of them."""
    with services(records={"gbif": RECORDS}) as running:
        yield running


@pytest.fixture(scope="module")
def walled():
    """A stand-in whose records nobody changes, and that pages through few of them."""
    with services(records={"gbif": RECORDS}, wall=WALL) as running:
        yield running


@pytest.fixture
def changing():
    with services(records={"gbif": 90}) as running:
        yield running


CLOCK = ManualClock()
NETWORK = Network(CLOCK, private=True)
"""Shared by most tests: making one reads all certificates."""


def gbif(url, clock=None, wall=None, **options):
    asked = {"contact": "x@example.org", "page_size": 10, "requests_per_s": 1000.0, **options}
    network = NETWORK if clock is None else Network(clock, private=True)
    beside = {} if wall is None else {"wall": wall}
    return Gbif(GbifOptions(url=url, **asked), clock or CLOCK, network, **beside)


def one_sweep(source, cursor=None):
    pages = []
    for page in source.open(cursor):
        pages.append(page)
        if page.sweep_done:
            break
    return pages


def keys(pages):
    return [record.key.decode() for page in pages for record in page.records]


def present(stand_in):
    return {str(r["key"]) for r in stand_in.truth("gbif") if r["occurrenceStatus"] == "PRESENT"}


def queries(stand_in):
    """Return the parts of each search that the stand-in was asked for."""
    return [e.target for e in stand_in.requests() if "/occurrence/search" in e.target]


# --- the contract


@pytest.mark.parametrize("guarantee", GUARANTEES, ids=lambda g: g.__name__)
def test_one_sweep_keeps(guarantee, standing):
    guarantee(lambda: gbif(standing.gbif, follow=False))


@pytest.mark.parametrize("guarantee", GUARANTEES, ids=lambda g: g.__name__)
def test_one_sweep_in_slices_keeps(guarantee, walled):
    guarantee(lambda: gbif(walled.gbif, wall=WALL, follow=False))


@pytest.mark.parametrize("guarantee", SWEEP_GUARANTEES, ids=lambda g: g.__name__)
def test_following_keeps(guarantee, standing):
    guarantee(lambda: gbif(standing.gbif, full_every=1))


@pytest.mark.parametrize("guarantee", SWEEP_GUARANTEES, ids=lambda g: g.__name__)
def test_following_in_slices_keeps(guarantee, walled):
    guarantee(lambda: gbif(walled.gbif, wall=WALL, full_every=1, absences="include"))


# --- what is asked for


def test_absences_are_given_when_asked_for(standing):
    truth = {str(r["key"]) for r in standing.truth("gbif")}
    shown = present(standing)
    assert set(keys(one_sweep(gbif(standing.gbif)))) == shown != truth
    assert set(keys(one_sweep(gbif(standing.gbif, absences="include")))) == truth
    assert set(keys(one_sweep(gbif(standing.gbif, absences="only")))) == truth - shown


def test_records_are_the_services_own_bytes(standing):
    given = {r.key.decode(): r.value for p in one_sweep(gbif(standing.gbif)) for r in p.records}
    truth = {str(r["key"]): r for r in standing.truth("gbif")}
    assert given
    assert all(json.loads(value) == truth[key] for key, value in given.items())


def test_a_filter_is_said_as_the_service_takes_it(standing):
    source = gbif(
        standing.gbif,
        taxon="212, 6",
        country="DK",
        year="1990,2000",
        filter="?basisOfRecord=HUMAN_OBSERVATION&BASIS_OF_RECORD=OCCURRENCE",
    )
    assert source.filter() == (
        "basisOfRecord=HUMAN_OBSERVATION&basisOfRecord=OCCURRENCE&country=DK"
        "&occurrenceStatus=PRESENT&taxonKey=212&taxonKey=6&year=1990,2000"
    )
    standing.forget()
    assert source.count()[1] == source.filter()
    (asked,) = queries(standing)
    assert asked.endswith("taxonKey=212&taxonKey=6&year=1990%2C2000&limit=0&offset=0")


def test_a_dataset_is_swept_alone(standing):
    dataset = next(iter(standing.truth("gbif")))["datasetKey"]
    given = one_sweep(gbif(standing.gbif, dataset=dataset))
    values = [json.loads(r.value) for p in given for r in p.records]
    assert {v["datasetKey"] for v in values} == {dataset}
    assert given[-1].sweep.full


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"absences": "yes"}, "absences must be hide, include or only"),
        ({"mode": "bulk"}, "mode must be search or download"),
        ({"filter": "limit=5"}, "limit says how to answer"),
        ({"filter": "FACET_LIMIT=5"}, "FACET_LIMIT says how to answer"),
        ({"filter": "year=1999", "year": "2000"}, "year has an option of its own"),
        ({"filter": "birds"}, "no query string"),
        ({"filter": "lastInterpreted=2024"}, "by which sweeps of changes are made"),
        ({"filter": "q=owl", "mode": "download", "follow": False}, "downloads cannot be made of"),
        ({"page_size": 301}, "page_size must be at most 300"),
    ],
)
def test_unusable_options_are_refused(given, said):
    with pytest.raises(Invalid, match=said):
        read_options(GbifOptions, given, 'source "birds"')


def test_last_interpreted_may_be_asked_for_where_no_sweep_does():
    read_options(GbifOptions, {"filter": "lastInterpreted=2024", "full_every": 0}, "source")


# --- following


def test_what_changes_without_meaning_does_not_change_the_digest(standing):
    record = dict(next(iter(standing.truth("gbif"))))
    later = record | dict.fromkeys(("lastInterpreted", "lastCrawled", "lastParsed"), "2030-01-01")
    later |= {"crawlId": 77_777, "isInCluster": True}
    found = [r.digest for r in scripted(page([record, later, later | {"year": 1700}]))]
    assert found[0] == found[1] != found[2]


def test_a_sweep_of_changes_asks_by_the_day(changing):
    clock = ManualClock(now_us=1_767_225_600_000_000)  # 2026-01-01
    source = gbif(changing.gbif, clock, full_every=1, overlap_s=86_400.0, interval_s=3600.0)
    first = one_sweep(source)
    key = keys(first)[0]
    changing.change("gbif", key, {"locality": "Elsewhere"})
    changing.forget()
    second = one_sweep(source, first[-1].cursor)
    assert not second[-1].sweep.full
    # The stand-in stamps with the time of the machine, which is after 2025.
    assert all("lastInterpreted=2025-12-31%2C%2A" in q for q in queries(changing))
    assert keys(second) == [key]


def test_what_is_gone_is_not_given_by_the_next_full_sweep(changing):
    source = gbif(changing.gbif, full_every=0)
    first = one_sweep(source)
    gone = keys(first)[3]
    changing.remove("gbif", [gone])
    second = one_sweep(source, first[-1].cursor)
    assert second[-1].sweep.full
    assert set(keys(first)) - set(keys(second)) == {gone}


def test_a_slice_to_which_a_record_came_is_read_again(changing):
    source = gbif(changing.gbif)
    pages = source.open(None)
    taken = [next(pages)]
    changing.add("gbif", records=[dict(next(iter(changing.truth("gbif")))) | early(changing)])
    for page_ in pages:
        taken.append(page_)
        if page_.sweep_done:
            break
    # Nothing of what had been there all the time was missed: it was read again until it was clean.
    assert present(changing) <= set(keys(taken))
    assert taken[-1].sweep.full


def early(stand_in):
    """Return what puts a record before all others in the order of the search."""
    return {"key": 1, "year": 2999, "month": 1, "occurrenceStatus": "PRESENT"}


def test_seen_is_when_the_service_made_a_reply_that_was_cached():
    at_us = 1_767_225_600_000_000
    (record,) = scripted(page([{"key": 7}]), headers={"age": "30"}, asked_at_us=at_us)
    assert record.seen_at_us == at_us - 30_000_000


# --- what services do


@pytest.mark.parametrize("words", [b"", b'["bulk, please"]'])
def test_too_many_requests_is_waited_for(words, changing):
    changing.fail("too_many_requests", service="gbif", retry_after_s=3, body=words.decode())
    with pytest.raises(Unavailable) as asked:
        gbif(changing.gbif, ManualClock()).count()
    assert asked.value.retry_after_s == 3


def test_a_refusal_is_told_in_the_services_words(changing):
    with pytest.raises(Invalid, match="Invalid integer range: later"):
        gbif(changing.gbif, filter="month=later").count()


@pytest.mark.parametrize("fault", ["html", "cut", "truncated", "not_json", "reset"])
def test_what_is_no_answer_is_asked_again(fault, changing):
    source = gbif(changing.gbif)
    first = next(source.open(None))
    changing.fail(fault, service="gbif")
    with pytest.raises(Unavailable):
        next(source.open(first.cursor))
    assert set(keys([first, *one_sweep(source, first.cursor)])) == present(changing)


def test_fewer_records_than_asked_for_are_gone_on_from(changing):
    asked = []

    def short(query, limit, offset):
        asked.append(offset)
        return body([{"key": n} for n in range(offset, min(offset + 4, 10))], 10, offset + 4 >= 10)

    given = keys([p for p in sweep_of(short) if p.records])
    assert given == [str(n) for n in range(10)]
    assert asked == [0, 4, 8, 0]


def test_the_wall_is_met_but_not_passed():
    asked = []

    def walled_page(query, limit, offset):
        asked.append((offset, limit))
        assert offset + limit <= 25
        rest = list(range(offset, min(offset + limit, 25)))
        return body([{"key": n} for n in rest], 25, offset + limit > 25)

    pages = sweep_of(walled_page, wall=25)
    assert asked == [(0, 10), (10, 10), (20, 5), (0, 0)]
    assert pages[-1].sweep.full


def test_an_empty_page_in_the_middle_is_asked_again():
    with pytest.raises(Unavailable, match="an empty page at 0 of 10"):
        sweep_of(lambda query, limit, offset: body([], 10, False))


def test_what_cannot_be_cut_is_refused_with_a_way_out():
    def one_value(query, limit, offset):
        return body([{"key": 1}], 30, False)

    with pytest.raises(Invalid) as refused:
        sweep_of(one_value, wall=25)
    assert refused.value.code == "slice_too_large"
    assert 'mode="download"' in refused.value.hint


def test_a_sweep_that_gave_fewer_than_are_counted_is_not_full():
    def one_missing(query, limit, offset):
        return body([{"key": n} for n in range(offset, min(offset + limit, 9))], 10, True)

    pages = sweep_of(one_missing)
    assert set(keys(pages)) == {str(n) for n in range(9)}
    assert not pages[-1].sweep.full


DATASET = "50c9509d-22c7-4a22-a47d-8c48425ef4a7"


@pytest.mark.parametrize("without", [15, 40], ids=["one slice", "cut again"])
def test_records_without_the_field_are_asked_for_by_a_predicate(without):
    with services(records={"gbif": 0}, wall=WALL) as running:
        made = [
            {"key": n, "datasetKey": DATASET, "basisOfRecord": "OCCURRENCE"}
            | ({} if n < without else {"year": 1990 + n % 3})
            | ({} if n % 7 == 0 else {"month": n % 5 + 1})
            | {"occurrenceStatus": "PRESENT"}
            for n in range(60)
        ]
        running.add("gbif", records=made)
        given = one_sweep(gbif(running.gbif, wall=WALL))
        asked = [json.loads(e.body) for e in running.requests() if e.method == "POST"]
    assert sorted(map(int, keys(given))) == list(range(60))
    assert given[-1].sweep.full
    assert asked
    for said in asked:
        assert {"type": "isNull", "parameter": "YEAR"} in said["predicate"]["predicates"]
    assert any("facets" in said for said in asked) is (without > WALL)


def test_a_long_query_is_sent_as_a_predicate(changing):
    polygon = "POLYGON((" + ",".join(f"{n / 100:.2f} {n / 200:.2f}" for n in range(400)) + "))"
    source = gbif(changing.gbif, filter=f"geometry={polygon}&q=owl")
    sent = []

    class Posted:
        def post(self, path, body):
            sent.append((path, body))
            return answer(page([]))

    source.service = Posted()
    assert source.count()[0] == 0
    ((path, asked),) = sent
    assert path == "/occurrence/search/predicate"
    assert asked["q"] == "owl"
    assert {"type": "within", "geometry": polygon} in asked["predicate"]["predicates"]


# --- recordings


@pytest.mark.parametrize(
    "path", sorted((RECORDED / "search").glob("*.json")), ids=lambda path: path.stem
)
def test_recorded_answers_are_read(path):
    recorded = path.read_bytes()
    truth = json.loads(recorded)
    found = scripted(recorded)
    assert [r.key for r in found] == [str(r["key"]).encode() for r in truth["results"]]
    assert [json.loads(r.value) for r in found] == truth["results"]
    assert len({r.digest for r in found}) == len(found)


def test_recordings_are_there():
    if not RECORDED.is_dir():
        pytest.skip("the recordings are not at ../shared/data/gbif")
    assert list((RECORDED / "search").glob("*.json"))


@pytest.mark.parametrize("key", [7, "7"])
def test_a_key_is_text_whether_it_is_one_or_not(key):
    (record,) = scripted(page([{"key": key}]))
    assert record.key == b"7"
    assert gbif("http://127.0.0.1:1").deletion(record.key) == b'{"key":"7"}'


def test_a_recorded_facet_is_read():
    if not RECORDED.is_dir():
        pytest.skip("the recordings are not at ../shared/data/gbif")
    source = gbif("http://127.0.0.1:1")
    source.service = Replies((RECORDED / "search" / "facet-year.json").read_bytes())
    found = source.facet(source._query, "year")
    assert found.counts["2003"] == 11_843_571
    assert found.records == sum(found.counts.values())


class Replies:
    """A service that says one thing."""

    def __init__(self, body, headers=None, asked_at_us=0):
        self._answer = Answer("http://gbif/search", 200, headers or {}, body, asked_at_us)

    def get(self, path, params=None):
        return self._answer


class Paged:
    """A service of which a function of query, limit and offset says how it answers."""

    def __init__(self, reply):
        self._reply = reply

    def get(self, path, params):
        return answer(self._reply(params, params["limit"], params["offset"]))

    def post(self, path, body):
        return answer(self._reply(body, body["limit"], body["offset"]))


def answer(body):
    return Answer("http://gbif/search", 200, {}, body, 0)


def body(results, count, ends):
    said = {"offset": 0, "limit": 300, "endOfRecords": ends, "count": count, "facets": []}
    return json.dumps(said | {"results": results}).encode()


def page(results):
    return body(results, len(results), ends=True)


def scripted(reply, **about):
    source = gbif("http://127.0.0.1:1")
    source.service = Replies(reply, **about)
    return source.page(source._query, 0, 300).records


def sweep_of(reply, **options):
    source = gbif("http://127.0.0.1:1", **options)
    source.service = Paged(reply)
    return one_sweep(source)
