"""Ledger rows for tests."""

from __future__ import annotations

import msgspec

from headrace.process.ledger import LedgerRow


def row(epoch: int, **changes: object) -> LedgerRow:
    plain = LedgerRow(
        epoch=epoch,
        committed_at_us=epoch * 1_000_000,
        kind="epoch",
        plan="p",
        incarnations={"events": "i"},
        offsets={"events/0": epoch * 10},
        read_from={},
        clocks={},
        files={},
        table_epochs={},
        topics={},
        tables={},
        topic_totals={},
        table_totals={},
    )
    return msgspec.structs.replace(plain, **changes)
