"""A power cut tore the newest commit of a table: the ledger makes it visible again."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from owning import append, checked, comparable, opened

from headrace import Pipeline, Record
from headrace.model.plan import Plan


class Event(Record):
    amount: int


def plan() -> Plan:
    pipe = Pipeline("torn")
    pipe.topic("events", Event)
    pipe.table("big", "SELECT amount FROM events WHERE amount >= 100")
    pipe.view("total", "SELECT count(*) AS n, sum(amount) AS total FROM big")
    return checked(pipe)


def newest_commit(root: Path, table: str) -> Path:
    return max((root / table / "_delta_log").glob("*.json"))


@pytest.mark.parametrize("later_epochs", [0, 1, 3])
@pytest.mark.parametrize("torn", [b"", b'{"add": {"pa'])
def test_a_torn_commit_is_made_again(tmp_path: Path, torn: bytes, later_epochs: int) -> None:
    with opened(tmp_path, plan()) as place:
        # Epochs after the last that the table had rows in leave it as it is.
        for amount in [100, 200, *range(later_epochs)]:
            append(place.log, place.clock, "events", json.dumps({"amount": amount}).encode())
            place.epoch()
        place.publish()
        whole = comparable(place.rows("tables/big"))
        assert len(whole) == 2
        newest_commit(tmp_path, "tables/big").write_bytes(torn)
        place.begin()
        assert comparable(place.rows("tables/big")) == whole
        place.publish()
        assert place.rows("views/total").to_pylist() == [{"n": 2, "total": 300}]
        place.assert_accounted()
