"""A source's page as a batch."""

from __future__ import annotations

from headrace.model.clock import ManualClock
from headrace.model.ids import client_id
from headrace.model.plan import Source, Topic
from headrace.model.source import Page, PulledRecord
from headrace.pull.records import Door


def test_the_ids_of_a_page_grow_so_that_of_two_versions_the_later_one_wins():
    door = Door(Source("s", "replay", "t", {}), Topic("t", 1), ManualClock())
    page = Page([PulledRecord(b"{}") for _ in range(500)], b"")
    ids = door.batch(page).ids
    assert sorted(set(ids)) == ids


def test_a_record_that_has_a_name_keeps_it():
    door = Door(Source("s", "replay", "t", {}), Topic("t", 1), ManualClock())
    first, named, last = door.batch(
        Page([PulledRecord(b"{}"), PulledRecord(b"{}", id="n"), PulledRecord(b"{}")], b"")
    ).ids
    assert named == client_id("source/replay/s", "t", "n")
    assert first < last
