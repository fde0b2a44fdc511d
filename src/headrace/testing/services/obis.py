"""OBIS, API v3, as far as it is asked for records and datasets.

Records come in the order of their ids, `after` the id given (`-1` is from the start). Absences,
dropped records and pure events are hidden unless asked for: `true` gives only them, `include` them
too (robis documents it so). A page of more than 10,000 is refused with 400. A name that is not
known stands as NAME_NOT_FOUND in an `error` beside what the other names found, with status 200.
Answers carry a weak ETag, as Express makes it, which `If-None-Match` is held against.
"""

from __future__ import annotations

import hashlib
from base64 import b64encode
from bisect import bisect_right
from collections.abc import Sequence
from http import HTTPStatus
from typing import Any

import msgspec

from headrace.testing.services.collection import Collection, Condition, Facts, Record, Shape, Test
from headrace.testing.services.exchange import Reply, Request, copied, json_reply, not_played
from headrace.testing.services.moments import micros, millis_text
from headrace.testing.services.taxa import Draw

SIZE_MAX = 10_000
SIZE = 10
RANKS = (
    *("kingdom", "subkingdom", "infrakingdom", "phylum", "subphylum", "infraphylum"),
    *("parvphylum", "gigaclass", "megaclass", "superclass", "class", "subclass"),
    *("infraclass", "subterclass", "superorder", "order", "suborder", "infraorder"),
    *("parvorder", "superfamily", "family", "subfamily", "genus", "species"),
)
TAXON = (
    *RANKS,
    *(f"{rank}id" for rank in RANKS),
    *("scientificName", "scientificNameID", "originalScientificName", "aphiaID", "category"),
)
NOT_PLAYED = {
    *("geometry", "areaid", "instituteid", "startdepth", "enddepth", "redlist", "hab", "wrims"),
    *("hasextensions", "flags", "exclude", "q", "measurementtype", "measurementtypeid"),
}
"""Parameters of the real search that change its answer, and that the stand-in has no answer to."""
HIDDEN = {"absence": "absence", "dropped": "dropped"}
FIELDS = ("dataset", "node", "taxon", "name", "date_start", "date_end", "absence", "dropped")
UPDATED_US = 1_704_067_200_000_000
"""2024-01-01: when datasets were updated that were not changed since."""


def _facts(record: Record) -> Facts:
    ids = [record.get("aphiaID"), *(record.get(f"{rank}id") for rank in RANKS)]
    names = [record.get("scientificName"), *(record.get(rank) for rank in RANKS)]
    return (
        (record["dataset_id"],),
        tuple(record.get("node_id") or ()),
        tuple({number for number in ids if number is not None}),
        tuple({name.lower() for name in names if name}),
        _one(record.get("date_start")),
        _one(record.get("date_end")),
        (int(bool(record.get("absence"))),),
        (int(bool(record.get("dropped"))),),
    )


def _one(value: Any) -> tuple[Any, ...]:  # noqa: ANN401 - a fact of any type
    return () if value is None else (value,)


SHAPE = Shape(FIELDS, lambda r: r["id"], _facts, lambda r: r["id"])


class Obis:
    """Answers for `/obis/v3`."""

    def __init__(self, collection: Collection) -> None:
        """Serve these records."""
        self.collection = collection
        self._updated_us: dict[str, int] = {}

    def answer(self, request: Request) -> Reply:
        """Answer as the real service would."""
        if unknown := NOT_PLAYED & request.query.keys():
            return not_played(", ".join(sorted(unknown)))
        reply = self._answer(request)
        if reply.status != HTTPStatus.OK:
            return reply
        digest = b64encode(hashlib.sha1(reply.body, usedforsecurity=False).digest()).decode()
        etag = {"ETag": f'W/"{len(reply.body):x}-{digest.rstrip("=")}"'}
        if request.headers.get("if-none-match") == etag["ETag"]:
            return Reply(304, headers=etag)
        return msgspec.structs.replace(reply, headers=etag)

    def _answer(self, request: Request) -> Reply:
        match request.path.strip("/").split("/"):
            case ["occurrence"]:
                return self._search(request)
            case ["occurrence", key]:
                found = self.collection.get(key)
                return json_reply({"total": int(found is not None), "results": _list(found)})
            case ["dataset"]:
                return self._datasets(request)
            case ["dataset", key]:
                counts = self._counts(self.collection.select(()))
                found = self._dataset(key, *counts[key]) if key in counts else None
                return json_reply({"total": int(found is not None), "results": _list(found)})
        return json_reply({"error": ["Not found"]}, 404)

    def stamp(self, record: Record, now_us: int) -> Record:
        """Records say nothing of their change: their dataset does."""
        self._updated_us[record["dataset_id"]] = now_us
        return record

    def identify(self, record: Record, donor: Record) -> Record:
        """Return the record as one of the donor's taxon."""
        return copied(record, donor, TAXON)

    def _search(self, request: Request) -> Reply:
        size = request.number("size", SIZE)
        if size > SIZE_MAX:
            return json_reply({"error": [f"size must not be over {SIZE_MAX}"]}, 400)
        found = self.collection.select(_tests(request))
        after = request.first("after", "-1")
        # The ids are sorted: the page begins behind the one given, also if that is gone by now.
        begin = 0 if after == "-1" else bisect_right(found, after)
        page = found[begin : begin + size]
        records = [r for key in page if (r := self.collection.get(key)) is not None]
        body = {"total": len(found), "results": _cut(records, request)}
        if unknown := self._unknown(request):
            body["error"] = ["NAME_NOT_FOUND"] * len(unknown)
        return json_reply(body)

    def _unknown(self, request: Request) -> list[str]:
        names = request.words("scientificname")
        known = set(self.collection.distinct("name")) if names else set()
        return [name for name in names if name.strip().lower() not in known]

    def _datasets(self, request: Request) -> Reply:
        counts = self._counts(self.collection.select(_tests(request)))
        begin = request.number("offset", 0)
        end = begin + request.number("size", len(counts))
        found = [self._dataset(key, *counts[key]) for key in sorted(counts)]
        return json_reply({"total": len(found), "results": found[begin:end]})

    def _counts(self, keys: Sequence[str]) -> dict[str, tuple[int, int, int]]:
        """Return of each dataset how many records it has, how many of absence, how many dropped."""
        counts: dict[str, tuple[int, int, int]] = {}
        columns = (self.collection.column(f, keys) for f in ("dataset", "absence", "dropped"))
        for (dataset,), (absence,), (dropped,) in zip(*columns, strict=True):
            n, a, d = counts.get(str(dataset), (0, 0, 0))
            counts[str(dataset)] = (n + 1, a + int(absence), d + int(dropped))
        return counts

    def _dataset(self, key: str, records: int, absences: int, dropped: int) -> Record:
        number = Draw(key).below(10_000)
        updated = self._updated_us.get(key, UPDATED_US)
        return {
            "id": key,
            "url": f"https://ipt.example.org/resource?r=d{number}",
            "archive": f"https://ipt.example.org/archive.do?r=d{number}",
            "published": millis_text(UPDATED_US, "Z"),
            "created": None,
            "updated": millis_text(updated, "Z"),
            "core": "occurrence",
            "extensions": [],
            "statistics": {"Event": 0, "absence": absences, "dropped": dropped}
            | {"Occurrence": records, "DNADerivedData": 0, "MeasurementOrFact": 0},
            "extent": "POLYGON((-180 -90,-180 90,180 90,180 -90,-180 -90))",
            "title": f"Dataset {number}",
            "citation": f"Headrace stand-in (2024): Dataset {number}.",
            "citation_id": None,
            "abstract": "",
            "intellectualrights": (
                "This work is licensed under a  Creative Commons Attribution (CC-BY) 4.0 License"
            ),
            "feed": {"id": key, "url": "https://ipt.example.org/rss.do"},
            "institutes": None,
            "contacts": [],
            "nodes": [],
            "keywords": [],
            "downloads": [],
            "records": records,
        }


def _tests(request: Request) -> tuple[Test, ...]:
    tests: list[Test] = []
    numbers = [int(w) for w in request.words("taxonid") if w.isdecimal()]
    names = [w.strip().lower() for w in request.words("scientificname")]
    for field, values in (
        ("taxon", numbers),
        ("name", names),
        ("dataset", request.words("datasetid")),
        ("node", request.words("nodeid")),
    ):
        if values:
            tests.append(Condition(field, tuple(values)))
    tests += _dates(request)
    for parameter, field in HIDDEN.items():
        asked = request.first(parameter).lower()
        if asked != "include":
            tests.append(Condition(field, (int(asked == "true"),)))
    if request.first("event").lower() == "true":
        tests.append(Condition("dataset", ()))
    return tuple(tests)


def _dates(request: Request) -> list[Test]:
    tests: list[Test] = []
    if (start := micros(request.first("startdate"))) is not None:
        tests.append(Condition("date_end", low=start // 1000))
    if (end := micros(request.first("enddate"))) is not None:
        tests.append(Condition("date_start", high=end // 1000))
    return tests


def _cut(records: list[Record], request: Request) -> list[Record]:
    fields = set(request.words("fields"))
    return [{k: v for k, v in r.items() if k in fields} for r in records] if fields else records


def _list(record: Record | None) -> list[Record]:
    return [] if record is None else [record]
