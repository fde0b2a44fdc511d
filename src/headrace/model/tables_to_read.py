"""Table storage as queries see it: the part of `model.tables.Tables` that changes nothing.

The tables of an owner have it, and so have copies of tables that are far away (`tables/near.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import pyarrow as pa

from headrace.model.tables import DataFile, Snapshot


class TablesToRead(Protocol):
    """The part of `Tables` that queries need; called from many threads."""

    def names(self) -> list[str]:
        """See `Tables`."""

    def snapshot(self, name: str, version: int | None = None) -> Snapshot | None:
        """See `Tables`."""

    def read(self, snapshot: Snapshot, files: Sequence[DataFile] | None = None) -> pa.Table:
        """See `Tables`."""
