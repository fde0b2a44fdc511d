from __future__ import annotations

from pathlib import Path

import pytest
from rows import row

from headrace.model.clock import ManualClock
from headrace.model.errors import Corrupt, Fenced
from headrace.model.runner import TableCount, TopicCount
from headrace.process.ledger import Ledger, added, expire, last_row, unbalanced
from headrace.tables.delta import DeltaTables


@pytest.fixture
def tables(tmp_path: Path) -> DeltaTables:
    return DeltaTables(tmp_path, ManualClock())


def test_goes_on_from_the_last_row(tables: DeltaTables) -> None:
    ledger = Ledger(tables, "pipe", ManualClock())
    assert (ledger.epoch, ledger.last) == (0, None)
    for epoch in (1, 2, 3):
        ledger.append(row(epoch))
    again = Ledger(tables, "pipe", ManualClock())
    assert again.last == row(3)
    assert [r.epoch for r in again.rows_after(1)] == [2, 3]


def test_refuses_a_row_out_of_turn(tables: DeltaTables) -> None:
    ledger = Ledger(tables, "pipe", ManualClock())
    with pytest.raises(Fenced):
        ledger.append(row(2))
    assert ledger.epoch == 0


def test_of_two_owners_one_is_fenced(tables: DeltaTables) -> None:
    one, two = (Ledger(tables, "pipe", ManualClock()) for _ in range(2))
    one.append(row(1, plan="one"))
    with pytest.raises(Fenced):
        two.append(row(1, plan="two"))
    assert Ledger(tables, "pipe", ManualClock()).last == row(1, plan="one")


def test_another_pipelines_ledger_is_not_taken_for_ours(tables: DeltaTables) -> None:
    Ledger(tables, "pipe", ManualClock()).append(row(1))
    with pytest.raises(Corrupt):
        Ledger(tables, "other", ManualClock())


def test_expiry_keeps_the_plan_and_the_last_row(tables: DeltaTables) -> None:
    ledger = Ledger(tables, "pipe", ManualClock())
    ledger.append(row(1, plan_text='{"name":"pipe"}'))
    for epoch in (2, 3, 4):
        ledger.append(row(epoch))
    assert expire(ledger, before_us=3_000_000, files_txn="pipe/ledger#files") == 2
    kept = ledger.rows_after(0)
    assert [r.epoch for r in kept] == [3, 4]
    assert kept[0].plan_text == '{"name":"pipe"}'
    assert expire(ledger, before_us=99_000_000, files_txn="pipe/ledger#files") == 1
    assert last_row(tables, ledger.table.snapshot).epoch == 4
    ledger.append(row(5))
    assert Ledger(tables, "pipe", ManualClock()).epoch == 5


def test_accounting_adds_up_or_is_named() -> None:
    counts = {"events": TopicCount(read=3, decoded=1, dead=1, duplicates=1)}
    totals = added(added({}, counts), counts)
    assert totals == {"events": TopicCount(read=6, decoded=2, dead=2, duplicates=2)}
    assert unbalanced(row(1, topics=counts)) == []
    wrong = row(1, tables={"t": TableCount(decoded=2, rows=1)})
    assert len(unbalanced(wrong)) == 1
