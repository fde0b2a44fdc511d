"""The source `gbif`: occurrence records of the Global Biodiversity Information Facility, API v1.

Two ways to the same records:

* `search` asks `/occurrence/search`, 300 records at a time. The service pages through the first
  100,000 of a query, so a larger one is cut into slices (`gbif_slices`), and because pages are cut
  by offset, slices in which records moved meanwhile are read again (`gbif_search`).
* `download` has GBIF make a Darwin Core archive (`gbif_download`): the way for millions of records.
  It takes an account, and each sweep is a download.

**What a record is.** As the service sends it, byte for byte; rows of an archive are made to look
like it (`gbif_archive`). Its key is `key`, which is a number today and text some day. Two records
are the same if they differ only in `VOLATILE`: what GBIF's own doing changes, not the record.

**Changes** are asked for by `lastInterpreted`, in whole days, which is all that the search takes.
GBIF interprets everything again when its taxonomy changes, so such a sweep may find everything.

**Replies are cached** for ten minutes by their address; a record counts as seen when the service
made the reply, not when the cache gave it.

Rules that are not in GBIF's documentation are from the service's own source, github.com/gbif:
`occurrence` (the limits of the search, its predicates, downloads) and `gbif-api` (ranges, status of
a download).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta

import msgspec

from headrace.model.clock import Clock
from headrace.model.errors import Invalid
from headrace.model.options import option
from headrace.model.source import Sweep
from headrace.sources.gbif_download import SAME_S, Account, Downloads
from headrace.sources.gbif_query import Query, constant, read_query
from headrace.sources.gbif_search import Found, Position, Slices
from headrace.sources.gbif_slices import FACET_VALUES_MAX, WALL, Facet, Path
from headrace.sources.http import Answer, Network
from headrace.sources.sweeps import Part, SweepCursor, SweepOptions, SweepSource, swept_record

PAGE_RECORDS_MAX = 300
"""Records that the search gives at a time; who asks for more is given 300 without a word."""
GET_LENGTH_MAX = 1_500
"""A query that is longer is sent as a predicate: addresses of more than 2,048 characters are
refused on the way."""
VOLATILE = frozenset({"lastInterpreted", "lastCrawled", "lastParsed", "crawlId", "isInCluster"})
"""Members of a record that change without meaning: when GBIF last looked at it, and whether it was
found to resemble others."""
STATUS = {"hide": "PRESENT", "include": "", "only": "ABSENT"}
"""How absences are asked for: our word → `occurrenceStatus`."""

_KEY = "key"
_SEARCH = "/occurrence/search"
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class GbifOptions(SweepOptions):
    """What a source of kind `gbif` can be told."""

    url: str = option(
        "https://api.gbif.org/v1",
        doc="Where the service is.",
        example="https://api.gbif.org/v1",
    )
    page_size: int = option(
        PAGE_RECORDS_MAX,
        doc="Records to ask for at a time.",
        unit="records",
        at_least=1,
        at_most=PAGE_RECORDS_MAX,
        example=100,
    )
    taxon: str = option(
        "",
        doc="Keys of taxa with all that is below them, in GBIF's taxonomy or in that of"
        " checklistKey in the filter, separated by commas; empty for all.",
        example="212",
    )
    dataset: str = option(
        "",
        doc="Keys of datasets, separated by commas; empty for all.",
        example="50c9509d-22c7-4a22-a47d-8c48425ef4a7",
    )
    country: str = option(
        "",
        doc="Countries in which records were observed, as ISO 3166 has them with two letters,"
        " separated by commas; empty for all.",
        example="DK,NO",
    )
    year: str = option(
        "",
        doc="Year of observation, or first and last year, where * is open; empty for all.",
        example="1990,2000",
    )
    absences: str = option(
        "hide",
        doc="Records of a species that was looked for and not found: hide, include, or only.",
        example="include",
    )
    filter: str = option(
        "",
        doc="More of the service's own parameters, as the query of a URL.",
        example="basisOfRecord=PRESERVED_SPECIMEN&hasCoordinate=true",
    )
    mode: str = option(
        "search",
        doc="How records are fetched: search, page by page, or download, as an archive that GBIF"
        " makes first. An archive takes an account and an interval of two days or more, and each"
        " is a full sweep.",
        example="download",
        owner=True,
    )
    user_env: str = option(
        "GBIF_USER",
        doc="Environment variable that holds the name of the account for downloads.",
        example="MUSEUM_GBIF_USER",
        owner=True,
    )
    password_env: str = option(
        "GBIF_PWD",
        doc="Environment variable that holds the account's password.",
        example="MUSEUM_GBIF_PWD",
        owner=True,
    )
    poll_s: float = option(
        60.0,
        doc="Time between two questions whether a download is ready.",
        unit="s",
        at_least=1,
        at_most=3600,
        example=30.0,
    )
    folder: str = option(
        "",
        doc="Folder for an archive while it is read; empty for the system's temporary one.",
        example="/var/tmp",  # noqa: S108 - an example of what is said, not a file that is made
        owner=True,
    )

    def __post_init__(self) -> None:
        """Refuse what the service would take for something else."""
        if self.absences not in STATUS:
            msg = f"absences must be hide, include or only, not {self.absences!r}"
            raise Invalid(msg, hint='for example absences="include"')
        if self.mode not in {"search", "download"}:
            msg = f"mode must be search or download, not {self.mode!r}"
            raise Invalid(msg, hint='for example mode="download"')
        query = query_of(self)
        if self.mode == "search" and self.full_every and "lastInterpreted" in query.terms:
            msg = "filter asks for lastInterpreted, by which sweeps of changes are made"
            raise Invalid(msg, hint="leave it out, or say full_every=0")
        if self.mode == "download" and self.follow and self.interval_s < SAME_S:
            msg = "GBIF gives the same download again for two days, and interval_s is shorter"
            raise Invalid(msg, hint=f"say interval_s={SAME_S:.0f} or more, or follow=False")
        if self.mode == "download" and query.words:
            msg = "filter asks for words (q), which downloads cannot be made of"
            raise Invalid(msg, hint='leave it out, or use mode="search"')


class _Count(msgspec.Struct):
    name: str
    count: int


class _FacetCounts(msgspec.Struct):
    field: str
    counts: list[_Count]


class _Found(msgspec.Struct, rename="camel"):
    """An answer to a search."""

    count: int
    results: list[msgspec.Raw]
    end_of_records: bool
    facets: list[_FacetCounts] = []


_FOUND = msgspec.json.Decoder(_Found)
_POSITION = msgspec.json.Decoder(Position)


class Gbif(SweepSource):
    """See the module's words. `wall` is how many records of a query can be paged through."""

    Options = GbifOptions

    def __init__(
        self, options: GbifOptions, clock: Clock, network: Network, *, wall: int = WALL
    ) -> None:
        downloads = options.mode == "download"
        super().__init__(replace(options, full_every=0) if downloads else options, clock, network)
        self._options = options
        self._query = query_of(options)
        self._wall = wall
        self._downloads = (
            Downloads(
                self.service,
                clock,
                self.closed,
                Account(options.user_env, options.password_env, options.contact),
                poll_s=options.poll_s,
                folder=options.folder,
                volatile=VOLATILE,
            )
            if downloads
            else None
        )

    def filter(self) -> str:
        """See `SweepSource`; a position in an archive is none in a search."""
        return f"{self._query.text()} (download)" if self._downloads else self._query.text()

    def deletion(self, key: bytes) -> bytes:
        """See `Swept`."""
        return msgspec.json.encode({_KEY: key.decode("utf-8", "surrogatepass")})

    def count(self) -> tuple[int, str]:
        """See `Swept`."""
        found, _ = self._ask(self._query, 0)
        return found.count, self._query.text()

    def parts(self, sweep: Sweep, since_us: int | None, position: bytes | None) -> Iterator[Part]:
        """See `SweepSource`."""
        if self._downloads is not None:
            yield from self._downloads.parts(self._query, sweep, position)
            return
        query = self._query
        if since_us is not None:
            day = (_EPOCH + timedelta(microseconds=since_us)).date().isoformat()
            query = query.with_term("lastInterpreted", f"{day},*")
        at = _POSITION.decode(position) if position else Position()
        reading = Slices(
            _Slice(self, query), self._options.page_size, careful=sweep.full, wall=self._wall
        )
        yield from reading.parts(at)

    def _is_whole(self, at: SweepCursor) -> bool:
        """See `SweepSource`; an archive holds what it says it holds, whatever came since."""
        return self._downloads is not None or super()._is_whole(at)

    def page(self, query: Query, offset: int, limit: int) -> Found:
        """Return a page of a query."""
        found, answer = self._ask(query, limit, offset)
        seen_at_us = answer.asked_at_us - _age_us(answer)
        records = [swept_record(bytes(r), _KEY, seen_at_us, VOLATILE) for r in found.results]
        return Found(records, found.count, found.end_of_records)

    def facet(self, query: Query, field: str) -> Facet:
        """Return how many records of a query have each value of a field."""
        found, _ = self._ask(query, 0, 0, field)
        counts = {
            c.name: c.count for f in found.facets if f.field == constant(field) for c in f.counts
        }
        return Facet(field, counts, found.count)

    def _ask(
        self, query: Query, limit: int, offset: int = 0, facet: str = ""
    ) -> tuple[_Found, Answer]:
        """Ask the search: for a page, or for how many records have each value of a field."""
        if not query.absent and len(query.text()) <= GET_LENGTH_MAX:
            page: dict[str, str | int | list[str]] = {"limit": limit, "offset": offset}
            if facet:
                page |= {"facet": facet, "facetLimit": FACET_VALUES_MAX, "facetMincount": 1}
            answer = self.service.get(_SEARCH, {**query.params(), **page})
        else:
            body: dict[str, object] = {"limit": limit, "offset": offset}
            if facet:
                counted = {"facetLimit": FACET_VALUES_MAX, "facetMinCount": 1}
                body |= {"facets": [constant(facet)], **counted}
            if query.words:
                body["q"] = query.words
            answer = self.service.post(
                f"{_SEARCH}/predicate", {"predicate": query.predicate(), **body}
            )
        return answer.read(_FOUND), answer


class _Slice:
    """The search of one query, slice by slice: see `gbif_search.Search`."""

    def __init__(self, gbif: Gbif, query: Query) -> None:
        self._gbif = gbif
        self._query = query

    def page(self, path: Path, offset: int, limit: int) -> Found:
        return self._gbif.page(self._query.narrowed(path), offset, limit)

    def facet(self, path: Path, field: str) -> Facet:
        return self._gbif.facet(self._query.narrowed(path), field)


def query_of(options: GbifOptions) -> Query:
    """Return what a source asks for; `Invalid` if its filter cannot be used."""
    named = {
        "taxonKey": options.taxon,
        "datasetKey": options.dataset,
        "country": options.country,
        "year": options.year,
    }
    return read_query(options.filter, named, status=STATUS[options.absences])


def _age_us(answer: Answer) -> int:
    """Return for how long a cache on the way had kept an answer."""
    age = answer.headers.get("age", "")
    return int(age) * 1_000_000 if age.isdecimal() else 0
