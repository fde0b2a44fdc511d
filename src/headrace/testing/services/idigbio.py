"""iDigBio, search API v2, as far as it is asked for records.

By the server's own code (iDigBio/idigbio-search-api): `limit` is clamped to 5,000 without a word,
a page past 100,000 is an error 500, a field that is not indexed one of 400, and the answer to every
request is dated with the newest `datemodified` of all, which `If-Modified-Since` is held against.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from typing import Any

import msgspec

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
)
from headrace.testing.services.generated import idigbio_moment
from headrace.testing.services.moments import DAY_US, EPOCH, http_date, micros, millis_text
from headrace.testing.services.taxa import Draw

LIMIT_MAX = 5_000
LIMIT = 100
WALL = 100_000
DATES = ("datemodified", "datecollected")
FIELDS = (
    *("uuid", *DATES, "recordset", "scientificname", "kingdom", "phylum", "class", "order"),
    *("family", "genus", "country", "countrycode", "basisofrecord", "institutioncode"),
    *("occurrenceid", "catalognumber", "etag", "hasImage", "dqs", "stateprovince", "continent"),
)
UNINDEXED = ("data", "indexData", "geopoint", "recordids", "flags", "canonicalname", "taxonid")
"""Other names that may be asked for among `fields`, or searched without a test of them here."""
VERBATIM_TAXON = (
    *("dwc:scientificName", "dwc:scientificNameAuthorship", "dwc:kingdom", "dwc:phylum"),
    *("dwc:class", "dwc:order", "dwc:family", "dwc:genus", "dwc:specificEpithet"),
    *("dwc:infraspecificEpithet", "dwc:taxonRank", "dwc:taxonomicStatus", "dwc:vernacularName"),
)
TAXON = (
    *("scientificname", "canonicalname", "kingdom", "phylum", "class", "order", "family", "genus"),
    *("specificepithet", "infraspecificepithet", "taxonrank", "taxonomicstatus", "taxonid"),
    *("highertaxon", "commonname", "commonnames"),
)


def _facts(record: Record) -> Facts:
    terms = record["indexTerms"]
    return tuple(_values(name, terms.get(name)) for name in FIELDS)


def _values(name: str, value: Any) -> tuple[Fact, ...]:  # noqa: ANN401 - JSON of any type
    if value is None:
        return ()
    if name in DATES:
        at = micros(value)
        return () if at is None else (at,)
    if isinstance(value, list):
        return tuple(v for one in value for v in _values(name, one))
    return (value.lower() if isinstance(value, str) else value,)


SHAPE = Shape(FIELDS, lambda r: r["uuid"], _facts, lambda r: r["uuid"])


class Refused(Exception):
    """The request cannot be answered; holds the reply that says so."""

    def __init__(self, reply: Reply) -> None:
        """Hold the reply."""
        super().__init__(reply.status)
        self.reply = reply


def _wrong(message: str, name: str, **context: object) -> Refused:
    """Return the refusal of a wrong request, as the server's `jsonErrors` words it."""
    body = {"error": message, "name": name, "statusCode": 400} | context
    return Refused(json_reply(body, 400))


class Idigbio:
    """Answers for `/idigbio/v2`."""

    def __init__(self, collection: Collection) -> None:
        """Serve these records."""
        self.collection = collection

    def answer(self, request: Request) -> Reply:
        """Answer as the real service would."""
        modified_us = max(map(int, self.collection.distinct("datemodified")), default=0)
        dated = {"Last-Modified": http_date(modified_us // 1_000_000 * 1_000_000)}
        dated |= {"Cache-Control": "public, max-age=300", "Vary": "Accept-Encoding, Origin"}
        if request.method == "GET" and _is_fresh(request, modified_us):
            return Reply(304, headers=dated)
        try:
            reply = self._answer(request)
        except Refused as refused:
            return refused.reply
        if reply.status != HTTPStatus.OK:
            return reply
        return msgspec.structs.replace(reply, headers=dated)

    def stamp(self, record: Record, now_us: int) -> Record:
        """Return the record with the date of its change and a new etag, which is of its data."""
        etag = Draw(msgspec.json.encode(record["data"], order="sorted")).hex(40)
        terms = record["indexTerms"] | {"datemodified": idigbio_moment(now_us), "etag": etag}
        return record | {"etag": etag, "indexTerms": terms}

    def identify(self, record: Record, donor: Record) -> Record:
        """Return the record as one of the donor's taxon, verbatim and interpreted."""
        return record | {
            "data": copied(record["data"], donor["data"], VERBATIM_TAXON),
            "indexTerms": copied(record["indexTerms"], donor["indexTerms"], TAXON),
        }

    def _answer(self, request: Request) -> Reply:
        match request.path.strip("/").split("/"):
            case ["search"] | ["search", "records"]:
                return self._search(_parameters(request))
            case ["summary", "count", "records"]:
                return json_reply({"itemCount": len(self._found(_parameters(request)))})
            case ["summary", "modified", "records"]:
                found = self._found(_parameters(request))
                modified = millis_text(self._modified_us(found), "Z")
                return json_reply({"itemCount": len(found), "lastModified": modified})
            case ["view", "records" | "_all", key] | ["view", key]:
                return self._view(key)
        return _not_found()

    def _search(self, asked: Mapping[str, Any]) -> Reply:
        limit = min(LIMIT_MAX, _int(asked, "limit", LIMIT))
        offset = _int(asked, "offset", 0)
        found = self._found(asked)
        wanted, unwanted = _names(asked, "fields"), _names(asked, "fields_exclude")
        if limit < 0 or offset < 0 or offset + limit > WALL:
            return json_reply({"error": "Internal Server Error"}, 500)
        keys = self._sorted(found, asked)[offset : offset + limit]
        records = [r for key in keys if (r := self.collection.get(key)) is not None]
        body = {
            "itemCount": len(found),
            "lastModified": millis_text(self._modified_us(found), "Z"),
            "items": [_item(record, wanted, unwanted) for record in records],
            "attribution": self._attribution(found),
        }
        if str(_given(asked, "no_attribution", "")).lower() in {"true", "yes", "1"}:
            body["attribution"] = {}
        return json_reply(body)

    def _view(self, key: str) -> Reply:
        record = self.collection.get(key)
        if record is None:
            return _not_found()
        recordset = _recordset(record["indexTerms"]["recordset"])
        return json_reply(record | {"attribution": recordset})

    def _found(self, asked: Mapping[str, Any]) -> Sequence[str]:
        rq = _given(asked, "rq", {})
        if isinstance(rq, str):
            rq = _decoded(rq, "rq")
        _check_terms(list(rq))
        return self.collection.select(tuple(self._test(name, value) for name, value in rq.items()))

    def _test(self, field: str, asked: Any) -> Test:  # noqa: ANN401 - JSON
        if field not in FIELDS:
            raise Refused(not_played(f"a condition on {field}"))
        if isinstance(asked, dict):
            return _object_test(field, asked)
        values = asked if isinstance(asked, list) else [asked]
        if field != "scientificname":
            return Condition(field, tuple(_comparable(field, v) for v in values))
        # The one field that is matched by its words, all of which must be there, in any order.
        wanted = [set(str(v).lower().split()) for v in values]
        known = self.collection.distinct(field)
        found = [name for name in known if any(w <= set(str(name).split()) for w in wanted)]
        return Condition(field, tuple(found))

    def _sorted(self, keys: Sequence[str], asked: Mapping[str, Any]) -> Sequence[str]:
        for field, descending in reversed(_order(_given(asked, "sort", [{"dqs": "desc"}]))):
            if field != "uuid" or descending:
                value = dict(zip(keys, self.collection.column(field, keys), strict=True))
                keys = sorted(keys, key=value.__getitem__, reverse=descending)
            else:
                keys = sorted(keys) if keys is not self.collection.select(()) else keys
        return keys

    def _attribution(self, keys: Sequence[str]) -> list[Record]:
        counts = self.collection.counts("recordset", keys)
        most = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
        return [_recordset(str(uuid), count) for uuid, count in most]

    def _modified_us(self, keys: Sequence[str]) -> int:
        newest = max(self.collection.column("datemodified", keys), default=())
        return int(newest[0]) if newest else 0


def _recordset(uuid: str, count: int | None = None) -> Record:
    about: Record = {"uuid": uuid}
    if count is not None:
        about["itemCount"] = count
    number = Draw(uuid).below(10_000)
    return about | {
        "name": f"Collection {number}",
        "description": "",
        "url": "",
        "emllink": f"https://ipt.example.org/eml.do?r=c{number}",
        "archivelink": f"https://ipt.example.org/archive.do?r=c{number}",
        "contacts": [],
        "data_rights": ("CC0", "CC BY", "CC BY-NC")[number % 3],
        "publisher": Draw(uuid, "publisher").uuid(),
    }


def _not_found() -> Reply:
    return json_reply({"error": "Not Found", "statusCode": 404, "status": 404}, 404)


def _is_fresh(request: Request, modified_us: int) -> bool:
    since = request.headers.get("if-modified-since")
    if since is None or request.headers.get("cache-control") == "no-cache":
        return False
    try:
        at = parsedate_to_datetime(since)
    except ValueError:
        return False
    return modified_us // 1_000_000 <= (at - EPOCH).total_seconds()


def _parameters(request: Request) -> dict[str, Any]:
    """Return what is asked for; the body wins, as in the server's `get-param.js`."""
    asked: dict[str, Any] = {name: values[0] for name, values in request.query.items()}
    if request.method == "POST" and request.body:
        try:
            body = msgspec.json.decode(request.body)
        except msgspec.DecodeError:
            raise _wrong("invalid JSON, only supports object and array", "SyntaxError") from None
        asked |= body if isinstance(body, dict) else {}
    return asked


def _given(asked: Mapping[str, Any], name: str, default: Any) -> Any:  # noqa: ANN401 - JSON
    """Return a parameter by its name in snake_case or camelCase."""
    first, *rest = name.split("_")
    return asked.get(name, asked.get(first + "".join(map(str.capitalize, rest)), default))


def _decoded(text: str, name: str) -> Any:  # noqa: ANN401 - JSON
    try:
        return msgspec.json.decode(text)
    except msgspec.DecodeError:
        raise _wrong("unable to parse parameter", "ParameterParseError", parameter=name) from None


def _int(asked: Mapping[str, Any], name: str, default: int) -> int:
    try:
        return int(float(_given(asked, name, default)))
    except (TypeError, ValueError):
        raise _wrong(
            "numeric parameter expected, parsing did not return a number",
            "ParameterParseError",
            parameter=name,
        ) from None


def _names(asked: Mapping[str, Any], name: str) -> list[str] | None:
    given = _given(asked, name, None)
    if given is None:
        return None
    if isinstance(given, str) and given[:1] in {'"', "["}:
        given = _decoded(given, name)
    names = [given] if isinstance(given, str) else list(given)
    _check_terms(names)
    return names


def _check_terms(names: list[str]) -> None:
    known = {*FIELDS, *UNINDEXED, *TAXON, "_id"}
    missing = [n for n in names if n not in known and "*" not in n and not n.startswith("data.")]
    if missing:
        raise _wrong(
            "Terms not found in index for type records", "TermNotFoundError", terms=missing
        )


def _object_test(field: str, asked: Mapping[str, Any]) -> Test:
    kind = asked.get("type")
    if kind in {"exists", "missing"}:
        return Condition(field, negated=kind == "missing")
    if kind == "range":
        return _range(field, asked)
    if kind == "prefix":
        start = str(asked.get("value", "")).lower()
        return Condition(field, low=start, high=start + "\U0010ffff")
    raise _wrong("unable to parse type", "QueryParseError", context=asked)


def _range(field: str, asked: Mapping[str, Any]) -> Test:
    """Return the test of a range; `gt` and `lt` leave their own value out."""
    low, high = asked.get("gte", asked.get("gt")), asked.get("lte", asked.get("lt"))
    above = None if low is None else _comparable(field, low, end="gt" in asked)
    below = None if high is None else _comparable(field, high, end="lte" in asked)
    if "gt" in asked and above is not None:
        above = _next(above)
    if "lt" in asked and below is not None:
        below = _before(below)
    return Condition(field, low=above, high=below)


def _next(value: Fact) -> Fact:
    return value + "\0" if isinstance(value, str) else value + 1


def _before(value: Fact) -> Fact:
    if not isinstance(value, str):
        return value - 1
    # Strings have no last one before another; ids are hexadecimal, so this is one near enough.
    return value[:-1] + chr(ord(value[-1]) - 1) + "\U0010ffff" if value else value


def _comparable(field: str, value: Any, *, end: bool = False) -> Fact:  # noqa: ANN401 - JSON
    """Return a value as the facts have it; a day ends in its last microsecond where `end` says."""
    if field in DATES:
        at = micros(str(value))
        if at is None:
            raise _wrong("failed to parse date field", "RequestError", value=value)
        return at + DAY_US - 1 if end and len(str(value)) == len("2024-01-01") else at
    return value.lower() if isinstance(value, str) else value


def _order(sort: Any) -> list[tuple[str, bool]]:  # noqa: ANN401 - JSON
    if isinstance(sort, str) and sort[:1] in {"[", '"'}:
        sort = _decoded(sort, "sort")
    order = []
    for one in [sort] if isinstance(sort, str) else sort:
        if isinstance(one, str):
            order.append((one, False))
            continue
        for field, how in one.items():
            way = how.get("order") if isinstance(how, dict) else how
            order.append((field, way == "desc"))
    _check_terms([field for field, _ in order])
    return [(field, descending) for field, descending in order if field in FIELDS]


def _item(record: Record, wanted: list[str] | None, unwanted: list[str] | None) -> Record:
    """Return an item as the server's `formatter.js` makes it of what the index gave."""
    source: Record = {**record["indexTerms"], "data": record["data"]}
    if wanted is not None:
        source = {k: v for k, v in source.items() if k in wanted}
    source = {k: v for k, v in source.items() if k not in (unwanted or ())}
    item: Record = {"uuid": record["uuid"], "type": record["type"]}
    if "etag" in source:
        item["etag"] = source["etag"]
    item["data"] = source.pop("data", {})
    return item | {"indexTerms": source}
