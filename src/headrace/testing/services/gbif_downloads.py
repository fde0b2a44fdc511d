"""GBIF's downloads: asked for with a predicate, made while one polls, fetched as a zip.

A request needs basic authentication and is answered 201 with the key as plain words. The same
request by the same user within 48 hours is answered with the key that it had. At most three may be
under way for a user: one more is refused with 420. A finished download redirects to its file, of
which a range may be asked for. Archives are those of the real service in
form: tab-separated `occurrence.txt` with one line of names, described by `meta.xml`.
"""

from __future__ import annotations

import base64
import binascii
import io
import re
import threading
import zipfile
import zlib
from collections.abc import Iterable
from typing import Any

import msgspec

from headrace.model.clock import Clock
from headrace.testing.services.collection import Collection, Record
from headrace.testing.services.exchange import TEXT, Reply, Request, json_reply, text_reply
from headrace.testing.services.gbif_predicate import test
from headrace.testing.services.gbif_terms import LICENSES, Refused
from headrace.testing.services.moments import DAY_US, millis_text

ZIP = "application/zip"
SIMULTANEOUS_MAX = 3
POLLS = 2
"""How often a download is asked after before it is there: once preparing, once running."""
SAME_US = 2 * DAY_US
UNDER_WAY = ("PREPARING", "RUNNING")

DC, DWC, GBIF = (
    "http://purl.org/dc/terms/",
    "http://rs.tdwg.org/dwc/terms/",
    "http://rs.gbif.org/terms/1.0/",
)
COLUMNS_OF = {
    GBIF: (
        *("gbifID", "datasetKey", "publishingCountry", "lastInterpreted", "lastParsed"),
        *("lastCrawled", "issue", "hasCoordinate", "protocol", "taxonKey", "acceptedTaxonKey"),
        *("kingdomKey", "phylumKey", "classKey", "orderKey", "familyKey", "genusKey"),
        *("speciesKey", "species", "acceptedScientificName"),
    ),
    DC: ("license", "modified", "references", "rightsHolder", "type"),
    DWC: (
        *("institutionCode", "collectionCode", "datasetName", "basisOfRecord", "occurrenceID"),
        *("catalogNumber", "recordedBy", "individualCount", "occurrenceStatus", "eventDate"),
        *("year", "month", "day", "continent", "countryCode", "stateProvince", "locality"),
        *("decimalLatitude", "decimalLongitude", "coordinateUncertaintyInMeters"),
        *("identifiedBy", "scientificName", "kingdom", "phylum", "class", "order", "family"),
        *("genus", "specificEpithet", "infraspecificEpithet", "taxonRank", "vernacularName"),
        *("taxonomicStatus",),
    ),
}
COLUMNS = {name: space for space, names in COLUMNS_OF.items() for name in names}
"""Column of `occurrence.txt` → the namespace of its term."""


class Download(msgspec.Struct):
    """One download and how far it is."""

    key: str
    user: str
    request: dict[str, Any]
    keys: list[str]
    created_us: int
    modified_us: int
    polls: int = 0
    cancelled: bool = False
    archive: bytes | None = None
    """Made when it is there."""


class Downloads:
    """The downloads of a service; what they hold is what there was when they were asked for."""

    def __init__(self, collection: Collection, clock: Clock) -> None:
        """Begin with none."""
        self._collection = collection
        self._clock = clock
        self._lock = threading.Lock()
        self._all: dict[str, Download] = {}
        self.polls = POLLS

    def answer(self, path: list[str], request: Request) -> Reply:
        """Answer what is asked below `/occurrence/download`."""
        match request.method, path:
            case "POST", ["request"]:
                return self._request(request)
            case "DELETE", ["request", key]:
                return self._cancel(key, request)
            case "GET", ["request", name]:
                return self._result(name.removesuffix(".zip"), request)
            case "GET", ["file", name]:
                return self._file(name.removesuffix(".zip"), request)
            case "GET", [key]:
                return self._status(key, request)
        return text_reply("Download was not found", 404)

    def _request(self, request: Request) -> Reply:
        user = _user(request)
        if user is None:
            return text_reply("", 401)
        try:
            asked: dict[str, Any] = msgspec.json.decode(request.body)
        except msgspec.DecodeError as error:
            raise Refused(f"Cannot parse the request: {error}") from None
        predicate = asked.get("predicate")
        keys = list(self._collection.select((test(predicate),) if predicate else ()))
        with self._lock:
            mine = [d for d in self._all.values() if d.user == user]
            for same in mine:
                if self._is_same(same, asked):
                    return Reply(201, same.key.encode())
            if sum(_state(d, self.polls) in UNDER_WAY for d in mine) >= SIMULTANEOUS_MAX:
                return _too_many(user)
            now_us = self._clock.now_us()
            key = f"{len(self._all) + 1:07d}-{now_us // 1000}"
            self._all[key] = Download(key, user, asked, keys, now_us, now_us)
        return Reply(201, key.encode())

    def _is_same(self, download: Download, asked: dict[str, Any]) -> bool:
        """Return whether a download of lately is what is asked for, in the same format."""
        return (
            not download.cancelled
            and self._clock.now_us() - download.created_us < SAME_US
            and all(download.request.get(n) == asked.get(n) for n in ("predicate", "format"))
        )

    def _cancel(self, key: str, request: Request) -> Reply:
        user = _user(request)
        if user is None:
            return text_reply("", 401)
        found = self._all.get(key)
        if found is None or found.user != user:
            return text_reply("Download was not found", 404)
        found.cancelled = True
        return Reply(204)

    def _status(self, key: str, request: Request) -> Reply:
        found = self._all.get(key)
        if found is None:
            return text_reply("Download was not found", 404)
        records = [r for k in found.keys if (r := self._collection.get(k)) is not None]
        with self._lock:
            found.polls += 1
            found.modified_us = self._clock.now_us()
            state = _state(found, self.polls)
            if state == "SUCCEEDED" and found.archive is None:
                found.archive = archive(key, records)
        done = state == "SUCCEEDED"
        body = {
            "key": key,
            **({"doi": f"10.15468/dl.{key[:7]}"} if done else {}),
            "license": "unspecified",
            "request": found.request | {"type": "OCCURRENCE"},
            "created": millis_text(found.created_us),
            "modified": millis_text(found.modified_us),
            "eraseAfter": millis_text(found.created_us + 180 * DAY_US),
            "status": state,
            "downloadLink": f"{_base(request)}/request/{key}.zip",
            "size": len(found.archive or b""),
            "totalRecords": len(found.keys),
            "numberDatasets": len({r["datasetKey"] for r in records}) if done else 0,
        }
        return json_reply(body)

    def _result(self, key: str, request: Request) -> Reply:
        found = self._all.get(key)
        if found is None or found.archive is None or found.cancelled:
            return text_reply('"Download with this key not found."\n', 404)
        return Reply(
            302, content_type=TEXT, headers={"Location": f"{_base(request)}/file/{key}.zip"}
        )

    def _file(self, key: str, request: Request) -> Reply:
        found = self._all.get(key)
        if found is None or found.archive is None:
            return text_reply("Not Found", 404)
        whole = found.archive
        headers = {"Accept-Ranges": "bytes", "ETag": f'"{len(whole):x}-{zlib.crc32(whole):x}"'}
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", request.headers.get("range", ""))
        if asked is None:
            return Reply(200, whole, ZIP, headers)
        begin, end = int(asked[1]), min(int(asked[2] or len(whole)), len(whole) - 1)
        if begin >= len(whole):
            return Reply(416, b"", ZIP, {"Content-Range": f"bytes */{len(whole)}"})
        headers["Content-Range"] = f"bytes {begin}-{end}/{len(whole)}"
        return Reply(206, whole[begin : end + 1], ZIP, headers)


def _state(download: Download, polls: int) -> str:
    if download.cancelled:
        return "CANCELLED"
    if download.polls > polls:
        return "SUCCEEDED"
    return "PREPARING" if download.polls <= 1 else "RUNNING"


def _too_many(user: str) -> Reply:
    return text_reply(
        "A download limitation is exceeded:\n"
        f"User {user} has too many simultaneous downloads; the limit is {SIMULTANEOUS_MAX}.\n"
        "Please wait for some to complete, or cancel any unwanted downloads.  "
        "See your user page.\n",
        420,
    )


def _base(request: Request) -> str:
    return f"http://{request.headers.get('host', '')}/gbif/v1/occurrence/download"


def archive(key: str, records: Iterable[Record]) -> bytes:
    """Return a Darwin Core archive of the records."""
    held = io.BytesIO()
    datasets: dict[str, None] = {}
    with zipfile.ZipFile(held, "w", zipfile.ZIP_DEFLATED) as zipped:
        with zipped.open(_entry("occurrence.txt"), "w") as core:
            core.write(("\t".join(COLUMNS) + "\n").encode())
            for record in records:
                datasets[record["datasetKey"]] = None
                core.write(("\t".join(_cell(name, record) for name in COLUMNS) + "\n").encode())
        zipped.writestr(_entry("meta.xml"), META)
        zipped.writestr(_entry("metadata.xml"), f"<eml packageId='{key}'/>\n")
        cited = "".join(f"Dataset {d}. Accessed via the stand-in of GBIF.\n" for d in datasets)
        zipped.writestr(_entry("citations.txt"), cited)
        zipped.writestr(_entry("rights.txt"), "")
    return held.getvalue()


def _entry(name: str) -> zipfile.ZipInfo:
    """Return an entry without the time at which it was written: an archive is its records."""
    entry = zipfile.ZipInfo(name)
    entry.compress_type = zipfile.ZIP_DEFLATED
    return entry


def _cell(name: str, record: Record) -> str:
    match name:
        case "issue":
            value: object = ";".join(record.get("issues", ()))
        case "hasCoordinate":
            value = "true" if "decimalLatitude" in record else "false"
        case "license":
            value = LICENSES.get(record.get("license", ""), record.get("license", ""))
        case _:
            value = record.get(name, "")
    # The real archives hold no quotes around a cell: what would end it is made a space.
    return "" if value is None else " ".join(str(value).split())


META = (
    '<archive xmlns="http://rs.tdwg.org/dwc/text/" metadata="metadata.xml">\n'
    '  <core encoding="utf-8" fieldsTerminatedBy="\\t" linesTerminatedBy="\\n" '
    'fieldsEnclosedBy="" ignoreHeaderLines="1" '
    'rowType="http://rs.tdwg.org/dwc/terms/Occurrence">\n'
    "    <files>\n      <location>occurrence.txt</location>\n    </files>\n"
    '    <id index="0" />\n'
    + "".join(
        f'    <field index="{n}" term="{space}{name}"/>\n'
        for n, (name, space) in enumerate(COLUMNS.items())
    )
    + "  </core>\n</archive>\n"
)


def _user(request: Request) -> str | None:
    """Return who asks by basic authentication (RFC 7617); None if nobody says who they are."""
    scheme, _, given = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() != "basic":
        return None
    try:
        user, colon, password = base64.b64decode(given, validate=True).decode().partition(":")
    except (binascii.Error, UnicodeDecodeError):
        return None
    return user if colon and user and password else None
