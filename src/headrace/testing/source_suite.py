"""What every source guarantees, as a list that any source's tests run over it.

```python
@pytest.mark.parametrize("guarantee", GUARANTEES, ids=lambda g: g.__name__)
def test_mine_keeps(guarantee):
    guarantee(lambda: Mine(MineOptions(...), ManualClock()))
```

Each guarantee is a function of a factory that makes the same source anew, as a restart does. The
source must end, and should have more than one page so that there is something to cut.

A source that sweeps keeps `GUARANTEES` when it is told not to follow, and `SWEEP_GUARANTEES` when
it follows: over a service that stands still, and on a clock that moves when it is waited on.

When a record was seen is not compared: asked for again, it is seen again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TypeVar

import msgspec
from msgspec.structs import replace

from headrace.model.source import (
    BYTES_MAX,
    DIGEST_BYTES,
    RECORDS_MAX,
    Page,
    PulledRecord,
    Source,
    Sweep,
    Swept,
)

MakeSource = Callable[[], Source]
MakeSwept = Callable[[], Swept]
Asked = TypeVar("Asked")

PAGES_MAX = 10_000
"""A source under test that gives more pages is taken for one that does not end."""


def it_ends_with_a_page_that_says_so(make: MakeSource) -> None:
    """The last page, and only it, is `done`."""
    pages = _pages(make, None)
    assert [p.done for p in pages] == [False] * (len(pages) - 1) + [True]


def pages_are_bounded(make: MakeSource) -> None:
    """No page has more than `RECORDS_MAX` records, or more than `BYTES_MAX` in several."""
    for page in _pages(make, None):
        assert len(page.records) <= RECORDS_MAX
        assert len(page.records) <= 1 or sum(len(r.value) for r in page.records) <= BYTES_MAX


def cursors_are_json(make: MakeSource) -> None:
    """Each cursor is JSON, so that it can be kept and shown."""
    for page in _pages(make, None):
        msgspec.json.decode(page.cursor)


def it_gives_the_same_again(make: MakeSource) -> None:
    """Two readings from the start give the same records in the same order."""
    assert _records(_pages(make, None)) == _records(_pages(make, None))


def it_goes_on_after_a_crash_at_every_page(make: MakeSource) -> None:
    """Opened at page p's cursor, it gives exactly what followed page p: no more, no less."""
    pages = _pages(make, None)
    assert len(pages) > 1, "give the suite a source of more than one page"
    for number in range(len(pages)):
        rest = _records(_pages(make, pages[number].cursor))
        assert rest == _records(pages[number + 1 :]), f"after page {number}"


def it_goes_on_after_many_crashes(make: MakeSource) -> None:
    """Opened anew for every single page, it still gives everything once."""
    cursor, got = None, []
    for _ in range(PAGES_MAX):
        source = make()
        page = next(source.open(cursor))
        source.close()
        got += _records([page])
        cursor = page.cursor
        if page.done:
            break
    assert got == _records(_pages(make, None))


def a_page_that_was_not_durable_comes_again(make: MakeSource) -> None:
    """A crash before a page was kept repeats that page and nothing before it."""
    pages = _pages(make, None)
    source = make()
    taken = source.open(pages[0].cursor)
    next(taken)
    source.close()
    assert _records(_pages(make, pages[0].cursor)) == _records(pages[1:])


def at_its_end_it_has_nothing_more(make: MakeSource) -> None:
    """Opened at the last cursor, it is done without a record."""
    last = _pages(make, None)[-1]
    again = _pages(make, last.cursor)
    assert _records(again) == []
    assert again[-1].cursor == last.cursor


def progress_counts_what_was_given(make: MakeSource) -> None:
    """Progress grows by each page's records and ends at their number."""
    pages = _pages(make, None)
    given = 0
    for page in pages:
        given += len(page.records)
        assert page.progress[0] == given
        assert page.progress[1] in (None, len(_records(pages)))


def closing_ends_it(make: MakeSource) -> None:
    """Closed during an iteration, it soon gives no more pages and does not say that it is done."""
    source = make()
    pages = source.open(None)
    assert not next(pages).done
    source.close()
    assert not any(page.done for page in pages)


GUARANTEES: tuple[Callable[[MakeSource], None], ...] = (
    it_ends_with_a_page_that_says_so,
    pages_are_bounded,
    cursors_are_json,
    it_gives_the_same_again,
    it_goes_on_after_a_crash_at_every_page,
    it_goes_on_after_many_crashes,
    a_page_that_was_not_durable_comes_again,
    at_its_end_it_has_nothing_more,
    progress_counts_what_was_given,
    closing_ends_it,
)
"""Every guarantee, to be run over each implementation."""


def a_sweep_ends_with_a_page_that_says_so(make: MakeSwept) -> None:
    """Each page names its sweep; the last page of one, and only it, is `sweep_done`."""
    for pages in _sweeps(make, None, 2):
        assert len({_sweep(p).number for p in pages}) == 1
        assert [p.sweep_done for p in pages] == [False] * (len(pages) - 1) + [True]
        assert not any(p.done for p in pages), "a source that follows is never done"


def sweeps_are_numbered_from_one(make: MakeSwept) -> None:
    """Numbers grow by one, and each sweep starts after the one before it."""
    begun = [_sweep(pages[0]) for pages in _sweeps(make, None, 3)]
    assert [sweep.number for sweep in begun] == [1, 2, 3]
    assert begun[0].started_at_us < begun[1].started_at_us < begun[2].started_at_us


def the_first_sweep_gives_everything_once(make: MakeSwept) -> None:
    """It ends as a full one, and has as many different records as the service counts."""
    (pages,) = _sweeps(make, None, 1)
    keys = [record.key for record in _records(pages)]
    assert _sweep(pages[-1]).full
    assert len(set(keys)) == len(keys) == _made(make, lambda source: source.count()[0])


def records_of_a_sweep_can_be_told_apart(make: MakeSwept) -> None:
    """Each has a key, a digest, and when it was seen: not before its sweep began."""
    (pages,) = _sweeps(make, None, 1)
    for page in pages:
        for record in page.records:
            assert record.key
            assert record.digest is not None
            assert len(record.digest) == DIGEST_BYTES
            assert record.seen_at_us is not None
            assert record.seen_at_us >= _sweep(page).started_at_us
            assert not record.deleted
            assert record.id is None, "a changed record would be taken for a duplicate"


def what_did_not_change_has_the_same_digest(make: MakeSwept) -> None:
    """A later sweep gives a record of a service that stands still with the digest it had."""
    first, *later = _sweeps(make, None, 3)
    digests = {record.key: record.digest for record in _records(first)}
    again = [record for pages in later for record in _records(pages)]
    assert [r.key for r in again if digests.get(r.key) != r.digest] == []


def a_sweep_goes_on_after_a_crash_at_every_page(make: MakeSwept) -> None:
    """Opened at page p's cursor, it is in the same sweep and gives exactly what followed."""
    (pages,) = _sweeps(make, None, 1)
    assert sum(1 for p in pages if p.records) > 1, "give the suite a sweep of more than one page"
    for number in range(len(pages) - 1):
        (rest,) = _sweeps(make, pages[number].cursor, 1)
        assert _records(rest) == _records(pages[number + 1 :]), f"after page {number}"
        assert {_named(p) for p in rest} == {_named(pages[0])}


def a_sweep_goes_on_after_many_crashes(make: MakeSwept) -> None:
    """Opened anew for every single page, two sweeps still give everything of theirs once."""
    cursor, got, ended = None, [], 0
    for _ in range(PAGES_MAX):
        source = make()
        page = next(source.open(cursor))
        source.close()
        got += _records([page])
        cursor = page.cursor
        ended += page.sweep_done
        if ended == len(("full", "next")):
            break
    whole = [page for pages in _sweeps(make, None, 2) for page in pages]
    assert got == _records(whole)


def after_the_end_of_a_sweep_comes_the_next(make: MakeSwept) -> None:
    """Opened at the cursor of a sweep's last page, it begins the next one."""
    (pages,) = _sweeps(make, None, 1)
    (following,) = _sweeps(make, pages[-1].cursor, 1)
    assert _sweep(following[0]).number == _sweep(pages[-1]).number + 1


def progress_begins_anew_with_each_sweep(make: MakeSwept) -> None:
    """It counts the records of its sweep."""
    for pages in _sweeps(make, None, 2):
        given = 0
        for page in pages:
            given += len(page.records)
            assert page.progress[0] == given


def a_deletion_is_the_key_and_no_more(make: MakeSwept) -> None:
    """It is a JSON object of one member, which the record has too, and which says the key."""
    (pages,) = _sweeps(make, None, 1)
    source = make()
    for record in _records(pages):
        key = record.key or b""
        deletion = source.deletion(key)
        ((name, said),) = msgspec.json.decode(deletion, type=dict[str, object]).items()
        assert str(said).encode() == key
        assert str(msgspec.json.decode(record.value)[name]).encode() == key
    source.close()


def it_counts_what_it_asks_for(make: MakeSwept) -> None:
    """The service's own count is asked for the filter of the source, and named with it."""
    counted = _made(make, lambda source: source.count())
    assert counted[0] >= 0
    assert counted == _made(make, lambda source: source.count())


def closing_ends_the_sweep(make: MakeSwept) -> None:
    """Closed in a sweep or between two, it gives no page that says that a sweep is done."""
    (whole,) = _sweeps(make, None, 1)
    for number in (0, len(whole) - 1):
        source = make()
        pages = source.open(None)
        for _ in range(number + 1):
            next(pages)
        source.close()
        assert not any(page.sweep_done for page in pages)


SWEEP_GUARANTEES: tuple[Callable[[MakeSwept], None], ...] = (
    a_sweep_ends_with_a_page_that_says_so,
    sweeps_are_numbered_from_one,
    the_first_sweep_gives_everything_once,
    records_of_a_sweep_can_be_told_apart,
    what_did_not_change_has_the_same_digest,
    a_sweep_goes_on_after_a_crash_at_every_page,
    a_sweep_goes_on_after_many_crashes,
    after_the_end_of_a_sweep_comes_the_next,
    progress_begins_anew_with_each_sweep,
    a_deletion_is_the_key_and_no_more,
    it_counts_what_it_asks_for,
    closing_ends_the_sweep,
)
"""What a source that sweeps guarantees beside."""


def _pages(make: MakeSource, cursor: bytes | None) -> list[Page]:
    source = make()
    try:
        return list(_bounded(source.open(cursor)))
    finally:
        source.close()


def _bounded(pages: Iterator[Page]) -> Iterator[Page]:
    for number, page in enumerate(pages):
        assert number < PAGES_MAX, "the source does not end"
        yield page
        if page.done:
            return


def _records(pages: list[Page]) -> list[PulledRecord]:
    return [replace(record, seen_at_us=None) for page in pages for record in page.records]


def _sweeps(make: MakeSwept, cursor: bytes | None, sweeps: int) -> list[list[Page]]:
    """Return the pages of the next so many sweeps, or what is left of the first."""
    taken: list[list[Page]] = [[]]
    source = make()
    try:
        for page in _bounded(source.open(cursor)):
            taken[-1].append(page)
            if page.sweep_done:
                if len(taken) == sweeps:
                    return taken
                taken.append([])
    finally:
        source.close()
    raise AssertionError(f"the source ended in sweep {len(taken)}")


def _sweep(page: Page) -> Sweep:
    assert page.sweep is not None, "a page does not say of which sweep it is"
    return page.sweep


def _named(page: Page) -> tuple[int, int]:
    return _sweep(page).number, _sweep(page).started_at_us


def _made(make: MakeSwept, ask: Callable[[Swept], Asked]) -> Asked:
    source = make()
    try:
        return ask(source)
    finally:
        source.close()
