import asyncio

import pytest

from headrace.collect.body import BodyReader
from headrace.collect.exchange import HeaderList
from headrace.collect.limits import Budget, Limits, Share
from headrace.model.clock import ManualClock
from headrace.model.errors import Invalid, Unavailable

LIMITS = Limits(body_bytes_max=200_000, body_timeout_s=10.0)


class Wire:
    """Gives chunks as the server does: one empty at the end, two where it broke off."""

    def __init__(self, *chunks, ends=1, stalls=False):
        self.whole = b"".join(chunks)
        self.chunks = iter([*chunks, *[b""] * ends])
        self.stalls = stalls

    def __call__(self):
        return self._coming(self.whole)

    def __aiter__(self):
        return self

    def __anext__(self):
        return self._coming(next(self.chunks, None))

    def _coming(self, data):
        future = asyncio.get_running_loop().create_future()
        if not self.stalls:
            if data is None:
                future.set_exception(StopAsyncIteration())
            else:
                future.set_result(data)
        return future


def read(wire, *headers, budget_bytes=1_000_000, act=None):
    async def run():
        clock = ManualClock()
        bodies = BodyReader(LIMITS, clock)
        budget = Budget(budget_bytes)
        share = Share(budget)
        task = asyncio.ensure_future(bodies.read(HeaderList(list(headers)), wire, share))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        if act:
            act(bodies, clock)
        try:
            return await task
        finally:
            share.give_back()
            assert budget.used == 0

    return asyncio.run(run())


def length(n):
    return ("content-length", str(n))


CHUNKED = ("transfer-encoding", "chunked")


def code(*arguments, **options):
    with pytest.raises((Invalid, Unavailable)) as refused:
        read(*arguments, **options)
    return refused.value.code


def test_bodies_arrive_whole():
    assert read(Wire(b"abc"), length(3)) == b"abc"
    assert (
        read(Wire(b"a" * 70_000, b"b" * 30_000), length(100_000)) == b"a" * 70_000 + b"b" * 30_000
    )
    assert read(Wire(b"ab", b"c"), CHUNKED) == b"abc"
    assert read(Wire(b"ignored")) == b""


def test_a_declared_length_over_the_limit_is_refused_unread():
    assert code(Wire(stalls=True), length(200_001)) == "body_too_large"


def test_a_streamed_length_over_the_limit_is_refused_as_it_comes():
    assert code(Wire(*[b"x" * 50_000] * 5), CHUNKED) == "body_too_large"


def test_the_budget_of_all_bodies_is_kept():
    assert code(Wire(b"x" * 500), length(500), budget_bytes=499) == "too_busy"
    assert code(Wire(b"x" * 500), CHUNKED, budget_bytes=499) == "too_busy"
    assert code(Wire(b"x" * 100_000), length(100_000), budget_bytes=99_999) == "too_busy"


def test_a_body_that_broke_off_is_never_taken_for_a_whole_one():
    assert code(Wire(b"ab", ends=2), CHUNKED) == "incomplete_body"
    assert code(Wire(b"ab", ends=0), CHUNKED) == "incomplete_body"
    assert code(Wire(b"a" * 70_000, ends=2), length(100_000)) == "incomplete_body"


@pytest.mark.parametrize("header", [length(10), length(100_000), CHUNKED])
def test_a_body_that_takes_too_long_is_ended(header):
    def later(bodies, clock):
        clock.advance(9.9)
        bodies.end_overdue()
        clock.advance(0.2)
        bodies.end_overdue()

    assert code(Wire(b"a", stalls=True), header, act=later) == "body_timeout"


def test_a_body_that_is_in_time_is_left_alone():
    with pytest.raises(TimeoutError):
        asyncio.run(_still_reading())


async def _still_reading():
    bodies = BodyReader(LIMITS, ManualClock())
    share = Share(Budget(1_000))
    async with asyncio.timeout(0.05):
        task = asyncio.ensure_future(bodies.read(HeaderList([length(9)]), Wire(stalls=True), share))
        await asyncio.sleep(0)
        bodies.end_overdue()
        done, _ = await asyncio.wait({task}, timeout=1)
        assert not done


def test_a_stop_ends_bodies_that_are_still_coming():
    assert code(Wire(stalls=True), length(9), act=lambda b, _: b.stop()) == "stopping"


@pytest.mark.parametrize("text", ["-1", "+5", "5, 5", "x", "", "٣"])
def test_a_length_that_is_no_number_is_refused(text):
    assert code(Wire(b"x"), ("content-length", text)) == "invalid_content_length"
