"""Records of an epoch as the stage works on them: slices in, one relation a topic out."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from headrace.model.letters import ATTEMPT_HEADER, ONLY_HEADER
from headrace.stage.engine import SCAN_ROWS

_MARK = b'"headrace-'

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Slice:
    """Records of one partition, of schema `model.batch.RECORDS`, at least one, in offset order.

    `clock_us` is the partition's clock before them, None before its first record.
    """

    topic: str
    partition: int
    incarnation: str
    clock_us: int | None
    records: pa.RecordBatch

    @property
    def key(self) -> str:
        """The name under which clocks are kept."""
        return f"{self.topic}/{self.partition}"


@dataclass(frozen=True, slots=True)
class Kept:
    """Some records of a topic's slices: `slices[of[i]]` has the i-th at row `at[i]`."""

    slices: Sequence[Slice]
    of: Ints
    at: Ints

    @classmethod
    def where(cls, slices: Sequence[Slice], flags: Sequence[npt.NDArray[np.bool_]]) -> Kept:
        """Return the records whose flag is set."""
        rows = [np.flatnonzero(f) for f in flags]
        of = np.repeat(np.arange(len(rows)), [len(r) for r in rows])
        return cls(slices, of, np.concatenate(rows))

    def __len__(self) -> int:
        """Return the number of records."""
        return len(self.of)

    def __getitem__(self, i: int) -> tuple[Slice, int]:
        """Return the slice of the i-th record and its row there."""
        return self.slices[int(self.of[i])], int(self.at[i])

    def relation(self, columns: Collection[str]) -> pa.Table:
        """Return the columns asked for, of `value` and the record columns, in batches to scan.

        `event_id` comes as UUID, `value` and `_value` as text: records that are kept are UTF-8.
        """
        tables = []
        for i, part in enumerate(self.slices):
            at = self.at[self.of == i]
            records = part.records
            if len(at) < records.num_rows:
                records = records.take(pa.array(at))
            arrays = [_column(name, part, records) for name in columns]
            # A relation of no column has no rows, even where only their number counts.
            arrays = arrays or [records.column("offset")]
            batch = pa.RecordBatch.from_arrays(arrays, names=list(columns) or ["offset"])
            tables.append(pa.Table.from_batches([batch]))
        joined = pa.concat_tables(tables)
        return pa.Table.from_batches(joined.to_batches(max_chunksize=SCAN_ROWS), joined.schema)

    def only(self) -> dict[int, str]:
        """Return the table that a record is for, of those that are for one table alone."""
        found = {}
        for i, part in enumerate(self.slices):
            headers = part.records.column("headers")
            if pc.sum(pc.binary_length(headers)).as_py():
                for n in np.flatnonzero(self.of == i).tolist():
                    table = header(headers[int(self.at[n])].as_py(), ONLY_HEADER)
                    if table is not None:
                        found[n] = table
        return found


def header(headers: bytes, name: str) -> str | None:
    """Return a record header of Headrace's own, None if there is none."""
    if _MARK not in headers:
        return None
    try:
        value = msgspec.json.decode(headers, type=dict[str, object]).get(name)
    except msgspec.DecodeError:
        return None
    return value if isinstance(value, str) else None


def attempt(headers: bytes) -> int:
    """Return the number of the try that a record is at, from 1."""
    text = header(headers, ATTEMPT_HEADER) or "0"
    return int(text) + 1 if text.isdecimal() and len(text) < len("1000000") else 1


def text_of(data: pa.Array) -> pa.Array:
    """Return bytes as text, with U+FFFD for what is no UTF-8."""
    try:
        return data.cast(pa.string())
    except pa.ArrowInvalid:
        values = [v if v is None else v.decode(errors="replace") for v in data.to_pylist()]
        return pa.array(values, pa.string())


def _column(name: str, part: Slice, records: pa.RecordBatch) -> pa.Array:
    match name:
        case "value" | "_value":
            return records.column("value").view(pa.string())
        case "event_id":
            return pa.ExtensionArray.from_storage(pa.uuid(), records.column("id"))
        case "received_at":
            return records.column("received_at")
        case "_topic":
            return pa.repeat(part.topic, records.num_rows)
        case "_partition":
            return pa.repeat(pa.scalar(part.partition, pa.int32()), records.num_rows)
        case "_offset":
            return records.column("offset")
        case "_key":
            return text_of(records.column("key"))
        case _:
            headers = records.column("headers")
            empty = pc.equal(pc.binary_length(headers), 0)
            return pc.if_else(empty, pa.scalar(None, pa.string()), text_of(headers))
