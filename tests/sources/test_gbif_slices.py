from __future__ import annotations

import json
from collections import Counter

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.model.errors import Invalid
from headrace.model.source import PulledRecord
from headrace.sources.gbif_query import Step, read_query
from headrace.sources.gbif_search import Found, Position, Slices
from headrace.sources.gbif_slices import FACET_VALUES_MAX, FIELDS, VALUES_MAX, Facet

WALL = 12


class Shelf:
    """Records in an order, searched as GBIF does; `before` is called before each page."""

    def __init__(self, records, before=lambda: None):
        self.records = records
        self.before = before
        self.pages = []

    def _within(self, path):
        kept = {step.field: step for step in path}
        return [
            record
            for record in self.records
            if all(record.get(f) in (s.values or (None,)) for f, s in kept.items())
        ]

    def page(self, path, offset, limit):
        assert offset + limit <= WALL, "the service refuses this"
        self.before()
        within = self._within(path)
        self.pages.append((path, offset, limit))
        pulled = [PulledRecord(b"{}", r["key"].encode()) for r in within[offset : offset + limit]]
        return Found(pulled, len(within), offset + limit >= len(within))

    def facet(self, path, field):
        within = self._within(path)
        counts = Counter(r[field] for r in within if field in r)
        return Facet(field, dict(counts.most_common(FACET_VALUES_MAX)), len(within))


def shelf(*fields):
    """Return a shelf of records with these fields, keyed by their place."""
    return Shelf([{"key": str(n), **f} for n, f in enumerate(fields)])


def read(search, at=None, *, page_size=5, careful=True):
    slices = Slices(search, page_size, careful=careful, wall=WALL)
    return list(slices.parts(at or Position()))


def keys(parts):
    return [record.key.decode() for part in parts for record in part.records]


VALUES = {
    "year": st.sampled_from(["-44", "98", "1999", "2000", "2001"]),
    "month": st.sampled_from(["1", "2", "10", "12"]),
    "country": st.sampled_from(["DK", "NA", "US"]),
}
RECORDS = st.lists(
    st.fixed_dictionaries({"datasetKey": st.sampled_from("abc")}, optional=VALUES), max_size=60
)


@settings(max_examples=150, deadline=None)
@given(RECORDS)
def test_slices_cover_a_query_and_do_not_overlap(fields):
    search = shelf(*fields)
    alike = Counter(tuple(sorted(f.items())) for f in fields)
    if alike and max(alike.values()) > WALL:
        with pytest.raises(Invalid, match="cannot be cut further"):
            read(search)
        return
    parts = read(search)
    assert sorted(keys(parts), key=int) == [str(n) for n in range(len(fields))]
    assert all(part.sound and not part.repeats for part in parts)


@settings(max_examples=40, deadline=None)
@given(RECORDS, st.data())
def test_a_reading_goes_on_from_any_position(fields, data):
    search = shelf(*fields)
    try:
        parts = read(search)
    except Invalid:
        return
    number = data.draw(st.integers(0, len(parts) - 1))
    at = msgspec.json.decode(parts[number].position, type=Position)
    rest = read(search, at)
    assert keys(rest) == keys(parts[number + 1 :])
    assert [p.position for p in rest] == [p.position for p in parts[number + 1 :]]


def test_a_position_stays_small_however_many_slices_there_are():
    search = shelf(*({"datasetKey": f"{n:036d}", "year": str(n % 90)} for n in range(600)))
    parts = read(search)
    assert len(keys(parts)) == 600
    assert max(len(part.position) for part in parts) < 1_500


def test_what_a_slice_joins_is_far_below_the_wall():
    counts = {str(year): 10 for year in range(1900, 2000)}
    facet = Facet("year", counts, 1000)
    assert facet.after(None, 35) == Step("year", ("1900", "1901", "1902"))
    assert facet.after(Step("year", ("1998",)), 35) == Step("year", ("1999",))
    assert len(facet.after(None, 10**9).values) == VALUES_MAX
    assert facet.after(Step("year", ("1999",)), 35) is None


def test_records_without_a_value_are_the_last_slice():
    facet = Facet("year", {"-44": 3, "98": 3}, 10)
    assert facet.missing == 4
    assert facet.after(None, 3) == Step("year", ("-44",))
    assert facet.after(Step("year", ("98",)), 3) == Step("year", None)
    assert facet.after(Step("year", None), 3) is None


@pytest.mark.parametrize(
    ("facet", "usable"),
    [
        (Facet("year", {}, 10), False),
        (Facet("year", {"1999": 10}, 10), False),
        (Facet("year", {"1999": 9}, 10), True),
        (Facet("year", {"1999": 5, "2000": 5}, 10), True),
        (Facet("year", {"1999": 8, "2000": 8}, 10), False),
        (Facet("datasetKey", {str(n): 1 for n in range(FACET_VALUES_MAX)}, 10**6), False),
    ],
    ids=["no values", "one value", "one and none", "two", "several of a record", "cut off"],
)
def test_a_field_is_cut_by_only_if_its_slices_are_smaller_and_apart(facet, usable):
    assert facet.usable is usable


def test_a_field_that_every_record_has_is_preferred():
    fields = [{"datasetKey": "a", "month": str(n % 12 + 1)} for n in range(40)]
    fields += [{"datasetKey": "a", "year": "1999", "month": "1"}]
    search = shelf(*fields)
    assert sorted(keys(read(search)), key=int) == [str(n) for n in range(41)]
    assert all(step.field == "month" for path, _, _ in search.pages for step in path)


def test_every_field_that_is_cut_by_is_cut_by_at_last():
    alike = [dict.fromkeys(FIELDS[:-1], "7") | {FIELDS[-1]: str(n // 5)} for n in range(40)]
    assert len(keys(read(shelf(*alike)))) == 40


# --- records that come and go meanwhile


def changing(records, *changes):
    """Return a shelf on which a change happens before each page after the first, as they last."""
    left = list(changes)
    search = Shelf([{"key": k} for k in records])

    def before():
        if search.pages and left:
            left.pop(0)(search.records)

    search.before = before
    return search


def remove(key):
    return lambda records: records.remove({"key": key})


def put_first(key):
    return lambda records: records.insert(0, {"key": key})


def test_a_slice_from_which_a_record_went_is_read_again():
    search = changing("abcdefghij", remove("b"))
    parts = read(search)
    # The page after the removal begins one too late: f had moved into the page before.
    assert set("acdefghij") <= set(keys(parts))
    assert all(part.sound for part in parts)
    assert len(keys(parts)) - sum(part.repeats for part in parts) == len("acdefghij")


def test_it_is_read_again_by_other_addresses():
    search = changing("abcdefghij", remove("b"))
    read(search)
    (first, second) = (search.pages[:2], search.pages[2:])
    assert [limit for _, _, limit in first] == [5, 5]
    assert {limit for _, _, limit in second} == {4}


def test_a_record_that_comes_twice_is_counted_once():
    parts = read(changing("abcdefghij", put_first("new")))
    assert len(keys(parts)) - sum(part.repeats for part in parts) == len("abcdefghij") + 1
    assert all(part.sound for part in parts)


def test_what_never_stands_still_is_not_sound():
    ever = [change for n in range(50) for change in (put_first(f"x{n}"), remove(f"x{n}"))]
    search = changing("abcdefghij", *ever)
    parts = read(search)
    assert not parts[-1].sound
    assert len(search.pages) < 12, "it is read again a bounded number of times"


def test_changes_are_not_read_again():
    search = changing("abcdefghij", remove("b"))
    read(search, careful=False)
    assert len(search.pages) == 2


def test_a_reading_that_was_interrupted_still_knows_what_it_saw():
    search = changing("abcdefghij", remove("b"))
    before, after = read(search)[:2], []
    at = msgspec.json.decode(before[0].position, type=Position)
    assert (at.seen, at.count, at.finished) == (5, 10, False)
    after = read(changing("acdefghij"), at)
    # Opened on what is there now, it finds that the slice had more, and reads it again.
    assert set("acdefghij") <= set(keys(after))


def test_a_slice_that_grows_over_the_wall_is_cut():
    search = Shelf([{"key": str(n), "datasetKey": "ab"[n % 2]} for n in range(WALL)])

    def grow():
        if len(search.pages) == 1:
            search.records += [{"key": str(n), "datasetKey": "b"} for n in range(WALL, WALL + 3)]

    search.before = grow
    parts = read(search)
    assert {*keys(parts)} == {str(n) for n in range(WALL + 3)}
    assert len(keys(parts)) - sum(part.repeats for part in parts) == WALL + 3
    assert all(part.sound for part in parts)


# --- queries


def predicate(filter_text, **named):
    return read_query(filter_text, named, status="").predicate()


def equals(key, value):
    return {"type": "equals", "key": key, "value": value}


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ("taxonKey=212", equals("TAXON_KEY", "212")),
        ("TAXON_KEY=212", equals("TAXON_KEY", "212")),
        ("identifiedByID=x", equals("IDENTIFIED_BY_ID", "x")),
        ("gadmLevel0Gid=DNK", equals("GADM_LEVEL_0_GID", "DNK")),
        (
            "country=DK&country=NO",
            {"type": "in", "key": "COUNTRY", "values": ["DK", "NO"]},
        ),
        (
            "year=1990,2000",
            {
                "type": "and",
                "predicates": [
                    {"type": "greaterThanOrEquals", "key": "YEAR", "value": "1990"},
                    {"type": "lessThanOrEquals", "key": "YEAR", "value": "2000"},
                ],
            },
        ),
        ("year=*,2000", {"type": "lessThanOrEquals", "key": "YEAR", "value": "2000"}),
        (
            "lastInterpreted=2026-01-01,*",
            {"type": "greaterThanOrEquals", "key": "LAST_INTERPRETED", "value": "2026-01-01"},
        ),
        ("typeStatus=*", {"type": "isNotNull", "parameter": "TYPE_STATUS"}),
        (
            "geoDistance=55.7,12.5,10km",
            {
                "type": "geoDistance",
                "latitude": "55.7",
                "longitude": "12.5",
                "distance": "10km",
            },
        ),
        ("locality=Hill, north", equals("LOCALITY", "Hill, north")),
        ("", None),
    ],
)
def test_a_query_is_a_predicate_as_the_service_makes_it(query, said):
    assert predicate(query) == said


def test_parameters_must_all_hold_and_one_of_their_values():
    assert predicate("month=1&month=3,4&country=DK") == {
        "type": "and",
        "predicates": [
            equals("COUNTRY", "DK"),
            {
                "type": "or",
                "predicates": [
                    equals("MONTH", "1"),
                    {
                        "type": "and",
                        "predicates": [
                            {"type": "greaterThanOrEquals", "key": "MONTH", "value": "3"},
                            {"type": "lessThanOrEquals", "key": "MONTH", "value": "4"},
                        ],
                    },
                ],
            },
        ],
    }


def test_a_taxonomy_goes_with_the_keys_that_are_of_it():
    query = read_query("checklistKey=c&taxonKey=5&year=2000", {}, status="")
    assert json.loads(json.dumps(query.predicate()))["predicates"] == [
        {"type": "equals", "key": "TAXON_KEY", "value": "5", "checklistKey": "c"},
        equals("YEAR", "2000"),
    ]
    assert query.taxonomy == "c"


def test_a_slice_stands_in_place_of_what_the_filter_says_of_the_field():
    query = read_query("year=1990,2000&country=DK", {}, status="PRESENT")
    year = query.narrowed((Step("year", ("1995", "1996")), Step("month", None)))
    assert year.params() == {
        "country": ["DK"],
        "occurrenceStatus": ["PRESENT"],
        "year": ["1995", "1996"],
    }
    assert {"type": "isNull", "parameter": "MONTH"} in year.predicate()["predicates"]
    within = query.narrowed((Step("year", ("1995", "1996")), Step("year", ("1996",))))
    assert within.params()["year"] == ["1996"]
