"""Dead letters from end to end: a record fails, the pipeline is mended, the record is replayed."""

from __future__ import annotations

import json
import uuid
from pathlib import Path

import pytest
from owning import Place, append, checked, opened

from headrace import Pipeline, Record
from headrace.control import dead_letters
from headrace.model.errors import Invalid
from headrace.model.ids import client_id
from headrace.model.plan import Plan

CHOSEN = client_id("test", "events", "mine")


class Strict(Record):
    amount: int
    text: str


class Mended(Record):
    amount: float
    text: str


def plan(record: type[Record], number: str = "CAST(text AS INTEGER)") -> Plan:
    pipe = Pipeline("letters")
    events = pipe.topic("events", record, store=False)
    pipe.table("plain", {events: "SELECT text FROM events"})
    pipe.table("numbers", {events: f"SELECT {number} AS number FROM events"})
    pipe.view("sums", "SELECT count(*) AS n, sum(number) AS total FROM numbers")
    return checked(pipe, horizon_s=600)


def send(place: Place, amount: object, text: str, chosen: bytes | None = None) -> None:
    value = json.dumps({"amount": amount, "text": text}).encode()
    append(place.log, place.clock, "events", value, chosen=chosen)


def counts(place: Place) -> tuple[int, int, int]:
    """Return how many rows each table has, and how many dead letters there are."""
    place.publish()
    numbers = place.rows("tables/numbers")
    assert place.rows("views/sums").column("n").to_pylist() == [numbers.num_rows]
    place.assert_accounted()
    return place.rows("tables/plain").num_rows, numbers.num_rows, len(place.letters())


def replay(place: Place, *ids: str) -> None:
    dead_letters.replay(place.log, place.tables, ids, place.clock)


@pytest.mark.parametrize("chosen", [None, CHOSEN], ids=["made id", "chosen id"])
def test_a_record_that_was_none_becomes_a_row_once(tmp_path: Path, chosen: bytes | None) -> None:
    with opened(tmp_path, plan(Strict)) as place:
        send(place, 1.5, "7", chosen)
        send(place, 2, "8")
        place.epoch()
        assert counts(place) == (1, 1, 1)
        (letter,) = place.letters()
        assert (letter["stage"], letter["code"], letter["attempt"]) == (
            "decode",
            "invalid_record",
            1,
        )
        place.begin(plan(Mended))
        replay(place, letter["letter_id"])
        place.epoch()
        assert counts(place) == (2, 2, 1)
        with pytest.raises(Invalid, match="before"):
            replay(place, letter["letter_id"])
        place.begin()
        assert place.epoch() is None
        assert counts(place) == (2, 2, 1)


def test_a_record_that_fails_again_is_another_letter_with_the_next_attempt(tmp_path: Path) -> None:
    with opened(tmp_path, plan(Strict)) as place:
        send(place, "none", "7")
        place.epoch()
        seen = []
        for attempt in (1, 2, 3):
            (letter,) = [x for x in place.letters() if x["letter_id"] not in seen]
            assert letter["attempt"] == attempt
            assert letter["value"] == b'{"amount": "none", "text": "7"}'
            seen.append(letter["letter_id"])
            replay(place, letter["letter_id"])
            place.epoch()
        assert counts(place) == (0, 0, 4)


@pytest.mark.parametrize("chosen", [None, CHOSEN], ids=["made id", "chosen id"])
def test_a_tables_failure_reaches_that_table_alone(tmp_path: Path, chosen: bytes | None) -> None:
    with opened(tmp_path, plan(Strict)) as place:
        send(place, 1, "seven", chosen)
        send(place, 2, "8")
        place.epoch()
        assert counts(place) == (2, 1, 1)
        (letter,) = place.letters()
        assert (letter["stage"], letter["output"]) == ("row", "numbers")
        if chosen:
            assert letter["event_id"] == str(uuid.UUID(bytes=CHOSEN))
        mended = "CASE WHEN text = 'seven' THEN 7 ELSE CAST(text AS INTEGER) END"
        place.begin(plan(Strict, mended))
        replay(place, letter["letter_id"])
        place.epoch()
        assert counts(place) == (2, 2, 1)
        ids = [set(place.rows(f"tables/{t}").column("event_id").to_pylist()) for t in TABLES]
        assert ids[0] == ids[1]
        assert letter["event_id"] in ids[1]
        with pytest.raises(Invalid, match="before"):
            replay(place, letter["letter_id"])
        # The client's own repeat of the record still is one.
        if chosen:
            send(place, 1, "seven", chosen)
            place.epoch()
            assert counts(place) == (2, 2, 1)


TABLES = ("plain", "numbers")


def test_a_tables_failure_that_fails_again_counts_attempts(tmp_path: Path) -> None:
    with opened(tmp_path, plan(Strict)) as place:
        send(place, 1, "seven", CHOSEN)
        place.epoch()
        (first,) = place.letters()
        replay(place, first["letter_id"])
        place.epoch()
        (second,) = [x for x in place.letters() if x["letter_id"] != first["letter_id"]]
        assert (second["attempt"], second["output"]) == (2, "numbers")
        assert second["event_id"] == first["event_id"]
        assert counts(place) == (1, 0, 2)


def test_what_is_discarded_stays_on_record_and_is_not_replayed(tmp_path: Path) -> None:
    with opened(tmp_path, plan(Strict)) as place:
        send(place, "none", "7")
        place.epoch()
        (letter,) = place.letters()
        ids = [letter["letter_id"]]
        dead_letters.discard(place.log, place.tables, ids, place.clock, why="a test")
        with pytest.raises(Invalid, match="before"):
            replay(place, *ids)
        place.begin()
        assert place.epoch() is None
        (act,) = dead_letters.acts(place.log).values()
        assert (act.act, act.why, act.at_us) == ("discarded", "a test", place.clock.now_us())
        assert dead_letters.list_letters(place.tables, place.log).num_rows == 0
