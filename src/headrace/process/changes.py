"""What views change, as records of their change topics.

A record is one row of a view as it now is, or, marked as a deletion, the key of a row that is gone.
Several views may share a topic, so its key names the view too: of records with the same key the
last one holds. A record is appended before the view itself is published, so after a crash it may
come again, and may then say more: records are there at least once.

=====================  ==========================================================
part of a record       what it is
=====================  ==========================================================
key                    JSON array: name of the view, then the values of its key
value                  JSON object: the row, or the columns of the key alone
`headrace-view`        header: name of the view
`headrace-version`     header: version of the table whose rows the view contains
`headrace-epoch`       header: newest epoch of those rows
`headrace-deleted`     header, "true", of a row that is gone
=====================  ==========================================================
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import msgspec
import pyarrow as pa

from headrace.model.batch import Batch
from headrace.model.clock import Clock
from headrace.model.errors import Internal
from headrace.model.ids import NO_ID, give_ids
from headrace.model.log import Log
from headrace.model.plan import View
from headrace.model.source import DELETED_HEADER
from headrace.process.view_store import Contained
from headrace.stage.encode import ENCODER, encode_record, records

VIEW_HEADER = "headrace-view"
VERSION_HEADER = "headrace-version"
EPOCH_HEADER = "headrace-epoch"

RECORDS_MAX = 10_000
"""Records of one append."""


class ChangeTopics:
    """Appends what views change to their topics."""

    def __init__(
        self, log: Log, clock: Clock, expect: Callable[[], Mapping[str, int]] = dict
    ) -> None:
        """`expect` returns what each append expects of keyed state: see `process/standing.py`."""
        self._log = log
        self._clock = clock
        self._expect = expect

    def send(self, view: View, changed: pa.Table, gone: pa.Table, contained: Contained) -> None:
        """Append changed rows and the keys of rows that are gone; return when that is durable.

        `gone` has the columns of the view's key. Raises what `Log.append` does: `Fenced` if another
        process owns the pipeline, whose records must stay the last ones.
        """
        if view.topic is None:
            raise Internal(f"The view {view.name} has no topic for its changes")
        for batch in batches(view, changed, gone, contained, self._clock):
            self._log.append(view.topic, batch, expect=self._expect() or None)


def batches(
    view: View, changed: pa.Table, gone: pa.Table, contained: Contained, clock: Clock
) -> Iterator[Batch]:
    """Yield the records of a view's changes, of rows that are gone first, in bounded batches."""
    headers = {
        VIEW_HEADER: view.name,
        VERSION_HEADER: str(contained.version),
        EPOCH_HEADER: str(contained.epoch),
    }
    plain = msgspec.json.encode(headers)
    deletion = msgspec.json.encode(headers | {DELETED_HEADER: "true"})
    for rows, said in ((gone, deletion), (changed, plain)):
        for at in range(0, rows.num_rows, RECORDS_MAX):
            batch = _batch(view, rows.slice(at, RECORDS_MAX), said, clock.now_us())
            give_ids(batch, clock)
            yield batch


def _batch(view: View, rows: pa.Table, headers: bytes, now_us: int) -> Batch:
    batch = Batch()
    for record in records(rows):
        key = [view.name, *(record[name] for name in view.key)]
        batch.add(
            encode_record(record),
            received_at=now_us,
            id=NO_ID,
            key=ENCODER.encode(key),
            headers=headers,
        )
    return batch
