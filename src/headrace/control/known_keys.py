"""The keys that keyed tables have of a topic's records: what `pull` lost with a source's index."""

from __future__ import annotations

from collections.abc import Iterator

import pyarrow.compute as pc

from headrace.model.plan import KEY_COLUMN, Plan
from headrace.model.tables import Tables

_TOPIC = "_topic"


def known_keys(plan: Plan, tables: Tables, topic: str) -> Iterator[bytes]:
    """Yield the key of each record of a topic that is a row of a keyed table; some more than once.

    As of what was published last. A topic whose records no keyed table takes in has none.
    """
    for table in plan.tables:
        if table.keyed is None or all(i.topic != topic for i in table.inputs):
            continue
        snapshot = tables.snapshot(f"tables/{table.name}")
        if snapshot is None:
            continue
        for batch in tables.scan(snapshot):
            of_topic = batch.filter(pc.equal(batch.column(_TOPIC), topic))
            keys = of_topic.column(KEY_COLUMN).drop_null()
            yield from (key.encode() for key in keys.to_pylist())
