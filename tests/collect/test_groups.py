import asyncio
import gc
import uuid

from hypothesis import given
from hypothesis import strategies as st

from headrace.collect.groups import Groups
from headrace.model.batch import Batch, is_client_chosen
from headrace.model.clock import ManualClock, SystemClock, uuid7
from headrace.model.ids import NO_ID, client_id, give_ids


def batch_of(ids):
    batch = Batch()
    for id_ in ids:
        batch.add(b"{}", received_at=1, id=id_)
    return batch


@given(st.lists(st.booleans(), min_size=1, max_size=50))
def test_records_without_an_id_get_one_and_the_others_keep_theirs(named):
    ids = [client_id("", "t", str(i)) if has else NO_ID for i, has in enumerate(named)]
    batch = batch_of(ids)
    give_ids(batch, SystemClock())
    assert [is_client_chosen(i) for i in batch.ids] == named
    assert [a for a, b in zip(batch.ids, ids, strict=True) if b != NO_ID] == [i for i in ids if i]
    assert len(set(batch.ids)) == len(ids)
    for id_, has in zip(batch.ids, named, strict=True):
        value = uuid.UUID(bytes=id_)
        assert (value.variant, value.version) == (uuid.RFC_4122, 8 if has else 7)


def test_counting_up_past_the_last_bit_stays_a_uuid():
    class Last(ManualClock):
        def new_id(self):
            return uuid7(1, b"\xff" * 10)

    batch = batch_of([NO_ID] * 3)
    give_ids(batch, Last())
    assert {uuid.UUID(bytes=i).version for i in batch.ids} == {7}
    assert {uuid.UUID(bytes=i).variant for i in batch.ids} == {uuid.RFC_4122}
    assert len(set(batch.ids)) == 3


def test_a_turn_is_one_batch_and_a_full_one_is_handed_over_early(log):
    async def run():
        log.create("t", 1)
        groups = Groups(log, ManualClock(), lambda _: None)
        waiting = []
        for _ in range(5):
            group = groups.group("t", 600_000)
            group.batch.add(b"{}", received_at=1, id=NO_ID)
            waiting.append(group.done)
        await asyncio.gather(*waiting)
        assert await groups.settled(5)
        return len(set(waiting))

    assert asyncio.run(run()) == 3
    assert list(map(len, log.batches["t"])) == [2, 2, 1]


def test_what_does_not_settle_in_time_is_told(log):
    async def run():
        log.create("t", 1)
        log.hold.clear()
        groups = Groups(log, ManualClock(), lambda _: None)
        groups.group("t", 1).batch.add(b"{}", received_at=1, id=NO_ID)
        groups.flush("t")
        return await groups.settled(0.01)

    assert asyncio.run(run()) is False


def filled():
    """Return every batch of this process that holds records; other tests may have kept some."""
    return [o for o in gc.get_objects() if isinstance(o, Batch) and len(o)]


def test_a_refused_request_leaves_nothing_behind(door, log, full):
    """Not even until garbage is collected: what a stalled log refuses comes again at once."""
    log.refuse = full
    gc.collect()
    before = {id(batch) for batch in filled()}
    gc.disable()
    try:
        for size in (10, 5_000):  # on the loop, and on the thread
            assert door.post(b'{"event_type":"%s"}' % (b"x" * size)).status == 503
        left = [batch for batch in filled() if id(batch) not in before]
    finally:
        gc.enable()
    assert left == []


def test_records_that_wait_are_the_logs_alone(door, log):
    async def run():
        log.hold.clear()
        groups = door.collector.groups
        group = groups.group("events", 1)
        group.batch.add(b"{}", received_at=1, id=NO_ID)
        groups.flush("events")
        left = len(group.batch)
        log.hold.set()
        await group.done
        return left

    assert asyncio.run(run()) == 0
    assert log.all("events").values == [b"{}"]
