"""A source's page as a batch for the log: ids, keys, and the mark of what was found valid."""

from __future__ import annotations

import msgspec

from headrace.model.batch import UNMARKED, Batch
from headrace.model.clock import Clock, rfc3339
from headrace.model.errors import Invalid
from headrace.model.ids import NO_ID, client_id, give_ids
from headrace.model.plan import Source, Topic
from headrace.model.source import DELETED_HEADER, SEEN_AT_HEADER, Page, PulledRecord
from headrace.sources.paths import name_at
from headrace.stage.validate import Validator


class Door:
    """Makes batches of one source's pages; for use from one thread."""

    def __init__(self, source: Source, topic: Topic, clock: Clock) -> None:
        """Keep the source's scope: its names for records never meet those of another source."""
        self._topic = topic
        self._clock = clock
        self._validator = Validator(topic.schema)
        self._scope = f"source/{source.kind}/{source.name}"

    @property
    def topic(self) -> str:
        """Name of the topic that the batches are for."""
        return self._topic.name

    def batch(self, page: Page) -> Batch:
        """Return the page's records, valid or not, in order, all received now.

        A record that the source has no id or key for gets those of the topic's own fields. Records
        of a sweep that have a key are no repeats of one another, whatever their names: the index
        has told them apart, and what comes back to what it was is news too.
        """
        batch = Batch()
        received_at = self._clock.now_us()
        sweeps = page.sweep is not None
        for record in page.records:
            batch.add(
                record.value,
                received_at=received_at,
                id=NO_ID if sweeps and record.key else self._id(record),
                key=self._key(record),
                headers=_headers(record),
                mark=self._mark(record.value),
            )
        give_ids(batch, self._clock)
        return batch

    def _id(self, record: PulledRecord) -> bytes:
        name = record.id
        if name is None and self._topic.id_field is not None:
            name = name_at(record.value, (self._topic.id_field,))
        if name is None:
            return NO_ID
        return client_id(self._scope, self._topic.name, name)

    def _key(self, record: PulledRecord) -> bytes | None:
        if record.key is not None or self._topic.key_field is None:
            return record.key
        name = name_at(record.value, (self._topic.key_field,))
        return None if name is None else name.encode("utf-8", "surrogatepass")

    def _mark(self, value: bytes) -> int:
        try:
            self._validator.check(value)
        except Invalid:
            return UNMARKED
        return self._validator.fingerprint


def _headers(record: PulledRecord) -> bytes:
    headers = {}
    if record.seen_at_us is not None:
        headers[SEEN_AT_HEADER] = rfc3339(record.seen_at_us)
    if record.deleted:
        headers[DELETED_HEADER] = "true"
    return msgspec.json.encode(headers) if headers else b""
