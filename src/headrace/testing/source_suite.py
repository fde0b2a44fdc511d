"""What every source guarantees, as a list that any source's tests run over it.

```python
@pytest.mark.parametrize("guarantee", GUARANTEES, ids=lambda g: g.__name__)
def test_mine_keeps(guarantee):
    guarantee(lambda: Mine(MineOptions(...), ManualClock()))
```

Each guarantee is a function of a factory that makes the same source anew, as a restart does. The
source must end, and should have more than one page so that there is something to cut.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import msgspec

from headrace.model.source import BYTES_MAX, RECORDS_MAX, Page, PulledRecord, Source

MakeSource = Callable[[], Source]

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
        got += list(page.records)
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
    return [record for page in pages for record in page.records]
