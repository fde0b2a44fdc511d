"""GBIF, API v1: search, counts, single records, datasets; downloads are beside this file.

By the server's own code (gbif/occurrence): `limit` is clamped to 300 without a word, `offset` +
`limit` over the wall is 400 in plain text, a parameter that is not known is passed over, dates in
ranges count by whole days. Absences are in the answer unless `occurrenceStatus` says otherwise.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec

from headrace.model.clock import Clock
from headrace.testing.services.collection import (
    Collection,
    Condition,
    Fact,
    Facts,
    Record,
    Shape,
    Test,
)
from headrace.testing.services.exchange import (
    Reply,
    Request,
    copied,
    json_reply,
    not_played,
    text_reply,
)
from headrace.testing.services.gbif_downloads import Downloads
from headrace.testing.services.gbif_predicate import test
from headrace.testing.services.gbif_terms import (
    BY_FACET_NAME,
    DATES,
    LICENSES,
    NAMES,
    NOT_PLAYED,
    NUMBERS,
    PARAMETERS,
    TAXON,
    TAXON_KEYS,
    Refused,
    facet_name,
    parse,
)
from headrace.testing.services.moments import millis_text
from headrace.testing.services.taxa import Draw

LIMIT_MAX = 300
LIMIT = 20
WALL = 100_001
"""Most that `offset` + `limit` may be. The documentation says 100,000; the server, this."""
FACET = (0, 10, 1)
"""Where a facet's values begin, how many are given and what they count at least, if not said."""
CACHED = "public, max-age=600"
FIELDS = tuple(dict.fromkeys(PARAMETERS.values()))


Read = Callable[[Record], tuple[Fact, ...]]


def _facts(record: Record) -> Facts:
    return tuple(read(record) for read in READERS)


def _day(text: str) -> tuple[Fact, ...]:
    try:
        return (parse("eventDate", text, first=True),)
    except Refused:
        return ()


def _areas(record: Record) -> tuple[Fact, ...]:
    levels = (record.get("gadm") or {}).values()
    return tuple(level["gid"] for level in levels if "gid" in level)


def _area(level: int) -> Read:
    return lambda r: _one(((r.get("gadm") or {}).get(f"level{level}") or {}).get("gid"))


def _one(value: Fact | None) -> tuple[Fact, ...]:
    return () if value is None else (value,)


def _names(record: Record) -> tuple[Fact, ...]:
    return tuple({record[n].lower() for n in NAMES if n in record})


def _status(record: Record) -> tuple[Fact, ...]:
    # Records of before 2020 have the verbatim word, or none, and were all presences.
    absent = record.get("occurrenceStatus", "").upper() == "ABSENT"
    return ("ABSENT" if absent else "PRESENT",)


READ: dict[str, Read] = {
    "taxonKey": lambda r: tuple({str(r[k]) for k in TAXON_KEYS if k in r}),
    "hasCoordinate": lambda r: ("true" if "decimalLatitude" in r else "false",),
    "license": lambda r: (LICENSES.get(r.get("license", ""), "UNSUPPORTED"),),
    "gadmGid": _areas,
    "name": _names,
    **{f"gadmLevel{n}Gid": _area(n) for n in range(4)},
    "occurrenceStatus": _status,
    "issues": lambda r: tuple(r.get("issues", ())),
}
"""Facts that are not simply a field of the record."""


def _reader(field: str) -> Read:
    if field in READ:
        return READ[field]
    if field in DATES:
        return lambda r: _day(r[field]) if field in r else ()
    if field in NUMBERS:
        return lambda r: (r[field],) if field in r else ()
    return lambda r: (str(r[field]),) if field in r else ()


READERS = tuple(map(_reader, FIELDS))


def _order(record: Record) -> tuple[int, int, int]:
    """The newest year first, its months from January on; what has no year comes last."""
    return (-int(record.get("year") or 0), int(record.get("month") or 13), int(record["key"]))


SHAPE = Shape(FIELDS, lambda r: str(r["key"]), _facts, _order)


class Gbif:
    """Answers for `/gbif/v1`."""

    def __init__(self, collection: Collection, clock: Clock, wall: int = WALL) -> None:
        """Serve these records; a `wall` lower than the real one keeps tests small."""
        self.collection = collection
        self.downloads = Downloads(collection, clock)
        self._wall = wall
        self.cache_s = 0.0
        """How long an answer to a search stays as it is; the real service: ten minutes."""
        self._clock = clock
        self._cached: dict[str, tuple[float, Reply]] = {}

    def answer(self, request: Request) -> Reply:
        """Answer as the real service would."""
        if unknown := NOT_PLAYED & request.query.keys():
            return not_played(", ".join(sorted(unknown)))
        try:
            return self._answer(request)
        except Refused as refused:
            return text_reply(str(refused), 400)

    def stamp(self, record: Record, now_us: int) -> Record:
        """Return the record as interpreted now."""
        return record | dict.fromkeys(("lastInterpreted", "lastParsed"), millis_text(now_us))

    def identify(self, record: Record, donor: Record) -> Record:
        """Return the record as one of the donor's taxon."""
        return copied(record, donor, TAXON)

    def _answer(self, request: Request) -> Reply:
        match request.path.strip("/").split("/"):
            case ["occurrence", "search"]:
                return self._fresh_or_cached(request)
            case ["occurrence", "search", "predicate"] if request.method == "POST":
                return self._search_predicate(request)
            case ["occurrence", "count"]:
                count = len(self.collection.select(tests(request.query)))
                return Reply(200, str(count).encode())
            case ["occurrence", "download", *rest]:
                return self.downloads.answer(rest, request)
            case ["occurrence", key]:
                record = self.collection.get(key)
                return _not_found(request) if record is None else json_reply(record)
            case ["dataset", key]:
                return self._dataset(key, request)
        return _not_found(request)

    def _fresh_or_cached(self, request: Request) -> Reply:
        if not self.cache_s:
            return self._search(request)
        now_s = self._clock.monotonic_s()
        what = repr(sorted(request.query.items()))
        at_s, reply = self._cached.get(what, (now_s - self.cache_s, None))
        if reply is None or now_s - at_s >= self.cache_s:
            at_s, reply = now_s, self._search(request)
            self._cached[what] = at_s, reply
        headers = {**reply.headers, "Age": str(int(now_s - at_s))}
        return msgspec.structs.replace(reply, headers=headers)

    def _search(self, request: Request) -> Reply:
        limit, offset = request.number("limit", LIMIT), request.number("offset", 0)
        limit = self._paged(limit, offset)
        found = self.collection.select(tests(request.query))
        return self._page(found, offset, limit, self._facets(request, found))

    def _search_predicate(self, request: Request) -> Reply:
        try:
            asked: dict[str, Any] = msgspec.json.decode(request.body)
        except msgspec.DecodeError as error:
            raise Refused(f"Cannot parse the request: {error}") from None
        limit, offset = int(asked.get("limit", LIMIT)), int(asked.get("offset", 0))
        limit = self._paged(limit, offset)
        if asked.get("q"):
            return not_played("q")
        predicate = asked.get("predicate")
        found = self.collection.select((test(predicate),) if predicate else ())
        about = (asked.get("facetOffset"), asked.get("facetLimit"), asked.get("facetMinCount"))
        begin, most, least = (d if n is None else int(n) for n, d in zip(about, FACET, strict=True))
        facets = [
            self._facet(BY_FACET_NAME[name], found, begin, most, least)
            for name in asked.get("facets", ())
            if name in BY_FACET_NAME
        ]
        return self._page(found, offset, limit, facets)

    def _paged(self, limit: int, offset: int) -> int:
        limit = min(limit, LIMIT_MAX)
        if offset + limit > self._wall:
            raise Refused(f"Max offset of {self._wall} exceeded: {offset} + {limit}")
        return limit

    def _page(
        self, found: Sequence[str], offset: int, limit: int, facets: list[dict[str, Any]]
    ) -> Reply:
        keys = found[offset : offset + limit]
        body = {
            "offset": offset,
            "limit": limit,
            "endOfRecords": offset + limit >= len(found),
            "count": len(found),
            "results": [r for key in keys if (r := self.collection.get(key)) is not None],
            "facets": facets,
        }
        return json_reply(body, Cache_Control=CACHED)

    def _facets(self, request: Request, found: Sequence[str]) -> list[dict[str, Any]]:
        begin, most, least = FACET
        begin, most = request.number("facetOffset", begin), request.number("facetLimit", most)
        least = request.number("facetMincount", least)
        return [
            self._facet(
                name,
                found,
                request.number(f"{name}.facetOffset", begin),
                request.number(f"{name}.facetLimit", most),
                least,
            )
            for name in request.query.get("facet", [])
            if name in PARAMETERS
        ]

    def _facet(
        self, name: str, found: Sequence[str], begin: int, most: int, least: int
    ) -> dict[str, Any]:
        """Return how many records have each value, the most frequent values first."""
        counted = self.collection.counts(PARAMETERS[name], found).items()
        ordered = sorted(counted, key=lambda item: (-item[1], str(item[0])))
        counts = [{"name": str(n), "count": count} for n, count in ordered if count >= least]
        return {"field": facet_name(name), "counts": counts[begin : begin + most]}

    def _dataset(self, key: str, request: Request) -> Reply:
        if not re.fullmatch(r"[0-9a-f-]{36}", key):
            raise Refused(f"Invalid UUID string: {key}")
        found = self.collection.select((Condition("datasetKey", (key,)),))
        record = self.collection.get(found[0]) if found else None
        if record is None:
            return _not_found(request)
        title = f"Dataset {Draw(key).below(10_000)}"
        return json_reply(
            {
                "key": key,
                "title": title,
                "type": "OCCURRENCE",
                "license": record.get("license"),
                "publishingOrganizationKey": record.get("publishingOrgKey"),
                "citation": {"text": f"Headrace stand-in (2024). {title}."},
            }
        )


def tests(query: Mapping[str, list[str]]) -> tuple[Test, ...]:
    """Return what the parameters of a search ask for; names that are not known ask nothing."""
    return tuple(
        _test(name, values) for name, values in sorted(query.items()) if name in PARAMETERS
    )


def _test(name: str, values: list[str]) -> Test:
    field = PARAMETERS[name]
    ranges = [v for v in values if "," in v]
    if ranges and field in NUMBERS | DATES:
        low, _, high = ranges[0].partition(",")
        return Condition(
            field,
            low=None if low in {"", "*"} else parse(field, low, first=True),
            high=None if high in {"", "*"} else parse(field, high, first=False),
        )
    if field in DATES:
        return Condition(
            field,
            low=parse(field, values[0], first=True),
            high=parse(field, values[0], first=False),
        )
    return Condition(field, tuple(parse(field, v, first=True) for v in values))


def _not_found(request: Request) -> Reply:
    body = {"status": 404, "error": "", "message": f"Entity not found for uri: {request.path}"}
    return json_reply(body, 404)
