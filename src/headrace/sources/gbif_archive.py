"""Reading a Darwin Core archive as GBIF's downloads are: rows made into records of the search.

An archive is a zip whose `meta.xml` says which file holds the core records, how its lines are cut
into fields, and which term each field is (Darwin Core text guide, https://dwc.tdwg.org/text/).
GBIF's are separated by tabs, not quoted, with one line of names; what the description says is what
is done.

A row becomes the object that the search gives for the same record, as far as the row has it: named
by its terms, without the empty ones, `gbifID` also as `key`, numbers and truth values as such, the
two lists as lists, and the licence by its address. What only one of the two has stays so: a row has
no `country` by name, the search no `mediaType`.
"""

from __future__ import annotations

import csv
import io
import re
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO
from xml.etree import ElementTree as ET

import msgspec

from headrace.model.errors import Invalid, Unavailable

META = "meta.xml"
META_BYTES_MAX = 1 << 20
LINE_CHARACTERS_MAX = 8 << 20
"""Longest line of a file that is read."""

_NAMESPACE = "{http://rs.tdwg.org/dwc/text/}"
_ID = "gbifID"
_SPECIAL = {"\\t": "\t", "\\n": "\n", "\\r": "\r", "\\\\": "\\"}
_INTEGERS = frozenset(
    {
        *("taxonKey", "acceptedTaxonKey", "kingdomKey", "phylumKey", "classKey", "orderKey"),
        *("familyKey", "genusKey", "subgenusKey", "speciesKey"),
        *("year", "month", "day", "startDayOfYear", "endDayOfYear", "individualCount", "crawlId"),
    }
)
_NUMBERS = frozenset(
    {
        *("decimalLatitude", "decimalLongitude", "coordinateUncertaintyInMeters"),
        *("coordinatePrecision", "depth", "depthAccuracy", "elevation", "elevationAccuracy"),
        *("distanceFromCentroidInMeters", "organismQuantity", "sampleSizeValue"),
        "relativeOrganismQuantity",
    }
)
_TRUTHS = frozenset(
    {"hasCoordinate", "hasGeospatialIssues", "isInCluster", "isSequenced", "repatriated"}
)
_LISTS = {"issue": "issues", "networkKey": "networkKeys"}
"""Terms whose values are separated by semicolons, and what the search calls the list."""
_LICENSES = {
    "CC0_1_0": "http://creativecommons.org/publicdomain/zero/1.0/legalcode",
    "CC_BY_4_0": "http://creativecommons.org/licenses/by/4.0/legalcode",
    "CC_BY_NC_4_0": "http://creativecommons.org/licenses/by-nc/4.0/legalcode",
}
_INTEGER = re.compile(r"-?(0|[1-9][0-9]{0,17})")
_NUMBER = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?")


@dataclass(frozen=True, slots=True)
class Core:
    """How the file of core records is to be read."""

    location: str
    encoding: str
    separator: str
    line_end: str
    quote: str
    """Empty for none."""
    header_lines: int
    names: Mapping[int, str]
    """Place of a field → the name of its term."""
    constants: Mapping[str, str]
    """Term → what it is in every row."""


def read_rows(path: Path, skip: int) -> Iterator[bytes]:
    """Yield the core records of an archive as JSON objects, but for the first `skip`.

    `Unavailable` for a file that is damaged or cut short: it is to be downloaded again. `Invalid`
    for an archive of another kind.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            core = read_core(_meta(archive))
            if core.location not in archive.namelist():
                raise _unusable(f"it has no file {core.location}")
            with archive.open(core.location) as file:
                for number, row in enumerate(_rows(file, core)):
                    if number >= skip:
                        yield record_of(row, core)
    except csv.Error as error:
        raise _unusable(f"its lines cannot be read: {error}") from error
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, UnicodeDecodeError) as error:
        msg = f"The archive of the download is damaged: {error}"
        hint = "nothing needs to be done: it is downloaded again"
        raise Unavailable(msg, hint=hint, code="damaged_archive") from error


def read_core(meta: bytes) -> Core:
    """Return what `meta.xml` says of the core records; `Invalid` if it cannot be gone by.

    What it leaves out has the defaults of the text guide: commas, quotes, UTF-8, no header.
    """
    try:
        # An entity of an entity of an entity: expat refuses those since 2.4.1, and the file is one
        # of GBIF's own.
        core = ET.fromstring(meta).find(f"{_NAMESPACE}core")  # noqa: S314
    except ET.ParseError as error:
        raise _unusable(f"its {META} is no XML: {error}") from error
    location = core.findtext(f"{_NAMESPACE}files/{_NAMESPACE}location") if core is not None else ""
    if core is None or not location:
        raise _unusable(f"its {META} names no file of core records")
    names, constants = {}, {}
    for field in core.iter(f"{_NAMESPACE}field"):
        name = re.split(r"[/#]", field.get("term", ""))[-1]
        index, default = field.get("index"), field.get("default")
        if index is not None and index.isdecimal():
            names[int(index)] = name
        if default is not None:
            constants[name] = default
    id_field = core.find(f"{_NAMESPACE}id")
    id_index = "" if id_field is None else id_field.get("index", "")
    if id_index.isdecimal():
        names.setdefault(int(id_index), _ID)
    if _ID not in names.values():
        raise _unusable(f"its {META} names no field {_ID}")
    header_lines = core.get("ignoreHeaderLines", "0")
    return Core(
        location=location.strip(),
        encoding=core.get("encoding") or "UTF-8",
        separator=_character(core.get("fieldsTerminatedBy", ",")),
        line_end=_character(core.get("linesTerminatedBy", "\\n")),
        quote=_character(core.get("fieldsEnclosedBy", '"')),
        header_lines=int(header_lines) if header_lines.isdecimal() else 0,
        names=names,
        constants=constants,
    )


def record_of(row: list[str], core: Core) -> bytes:
    """Return a row as the JSON object that the search gives for the record."""
    members: dict[str, object] = {}
    given = {name: row[at] for at, name in core.names.items() if at < len(row)}
    for name, value in {**core.constants, **{n: v for n, v in given.items() if v}}.items():
        if value:
            members[_LISTS.get(name, name)] = _value(name, value)
    if _ID in members:
        members = {"key": members[_ID], **members}
    return msgspec.json.encode(members)


def _value(name: str, value: str) -> object:
    """Return a field's value as the search has it; as it stands if it is not of that kind."""
    if name in _LISTS:
        return value.split(";")
    if name == "license":
        return _LICENSES.get(value, value)
    if name in _TRUTHS and value.lower() in {"true", "false"}:
        return value.lower() == "true"
    if name in _INTEGERS and _INTEGER.fullmatch(value):
        return int(value)
    if name in _NUMBERS and _NUMBER.fullmatch(value):
        return float(value)
    return value


def _meta(archive: zipfile.ZipFile) -> bytes:
    try:
        with archive.open(META) as file:
            meta = file.read(META_BYTES_MAX + 1)
    except KeyError as error:
        raise _unusable(f"it has no {META}") from error
    if len(meta) > META_BYTES_MAX:
        raise _unusable(f"its {META} has more than {META_BYTES_MAX} bytes")
    return meta


def _rows(file: IO[bytes], core: Core) -> Iterator[list[str]]:
    """Yield the rows of a file, without its header."""
    try:
        text = io.TextIOWrapper(file, core.encoding, newline=core.line_end)
    except (LookupError, ValueError) as error:
        raise _unusable(f"its lines cannot be read: {error}") from error
    lines = iter(_bounded_line(text), "")
    rows: Iterator[list[str]] = (
        csv.reader(lines, delimiter=core.separator, quotechar=core.quote)
        if core.quote
        else (line.removesuffix(core.line_end).split(core.separator) for line in lines)
    )
    for number, row in enumerate(rows):
        if number >= core.header_lines and row not in ([], [""]):
            yield row


def _bounded_line(text: io.TextIOWrapper) -> Callable[[], str]:
    def line() -> str:
        read = text.readline(LINE_CHARACTERS_MAX)
        if len(read) == LINE_CHARACTERS_MAX:
            raise _unusable(f"a line has more than {LINE_CHARACTERS_MAX} characters")
        return read

    return line


def _character(text: str) -> str:
    return _SPECIAL.get(text, text)


def _unusable(reason: str) -> Invalid:
    return Invalid(
        f"The archive of the download cannot be read: {reason}",
        hint='use mode="search", and report it: GBIF\'s archives were not like that',
        code="unusable_archive",
    )
