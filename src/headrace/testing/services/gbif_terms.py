"""The names and values that GBIF's searches, facets, predicates and archives know."""

from __future__ import annotations

import re

from headrace.testing.services.collection import Fact
from headrace.testing.services.moments import DAY_US, micros

RANKS = ("kingdom", "phylum", "class", "order", "family", "genus", "species")
TAXON_KEYS = ("taxonKey", "acceptedTaxonKey", *(f"{rank}Key" for rank in RANKS))
"""A search for `taxonKey` means all below it: any of these fields of a record may hold it."""
TAXON = (
    *TAXON_KEYS,
    *RANKS,
    *("scientificName", "acceptedScientificName", "genericName", "specificEpithet"),
    *("infraspecificEpithet", "taxonRank", "taxonomicStatus", "iucnRedListCategory"),
    *("classifications", "scientificNameAuthorship", "vernacularName"),
)
PARAMETERS = {
    **{name: name for name in (*TAXON_KEYS, "datasetKey", "publishingOrgKey", "installationKey")},
    **{name: name for name in ("publishingCountry", "basisOfRecord", "occurrenceStatus")},
    **{name: name for name in ("year", "month", "day", "eventDate", "lastInterpreted")},
    **{name: name for name in ("modified", "license", "continent", "stateProvince")},
    **{name: name for name in ("institutionCode", "collectionCode", "catalogNumber")},
    **{name: name for name in ("hasCoordinate", "gadmGid", "taxonomicStatus", "protocol")},
    **{name: name for name in ("decimalLatitude", "decimalLongitude")},
    **{f"gadmLevel{n}Gid": f"gadmLevel{n}Gid" for n in range(4)},
    "scientificName": "name",
    "country": "countryCode",
    "issue": "issues",
    "gbifId": "gbifID",
    "occurrenceId": "occurrenceID",
}
"""Parameter of a search → the fact of a record that it asks for."""
NAMES = ("scientificName", "acceptedScientificName", *RANKS)
"""A search for `scientificName` means the taxon of that name: any of these may be it."""
NOT_PLAYED = {"q", "geometry", "geoDistance", "shuffle", "checklistKey", "facetMultiselect"}
"""Parameters of the real search that change its answer, and that the stand-in has no answer to."""
NUMBERS = {"year", "month", "day", "decimalLatitude", "decimalLongitude"}
DATES = {"eventDate", "lastInterpreted", "modified"}
WORDS = {
    "occurrenceStatus": ("PRESENT", "ABSENT"),
    "basisOfRecord": (
        *("PRESERVED_SPECIMEN", "FOSSIL_SPECIMEN", "LIVING_SPECIMEN", "OBSERVATION"),
        *("HUMAN_OBSERVATION", "MACHINE_OBSERVATION", "MATERIAL_SAMPLE", "MATERIAL_CITATION"),
        *("OCCURRENCE", "UNKNOWN", "LITERATURE"),
    ),
}
LICENSES = {
    "http://creativecommons.org/licenses/by-nc/4.0/legalcode": "CC_BY_NC_4_0",
    "http://creativecommons.org/licenses/by/4.0/legalcode": "CC_BY_4_0",
    "http://creativecommons.org/publicdomain/zero/1.0/legalcode": "CC0_1_0",
}


class Refused(Exception):
    """The request is wrong: answered 400, in plain text."""


def facet_name(parameter: str) -> str:
    """Return a parameter's name as facets and predicates write it: `datasetKey`, `DATASET_KEY`."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[a-z])(?=[0-9])", "_", parameter).upper()


BY_FACET_NAME = {facet_name(name): name for name in PARAMETERS}


def parse(field: str, text: str, *, first: bool) -> Fact:
    """Return a value asked for as facts have it; of a date, the first or last moment of its days.

    Raises `Refused`, in the words of the service where they are known.
    """
    if field in DATES:
        # GBIF parses bounds to whole days, and drops the time that is given with them.
        return _day(text.split("/", maxsplit=1)[0].split("T", maxsplit=1)[0], first=first)
    if field in NUMBERS:
        try:
            return float(text) if field.startswith("decimal") else int(text)
        except ValueError:
            kind = "decimal" if field.startswith("decimal") else "integer"
            raise Refused(f"Invalid {kind} range: {text}") from None
    if field in WORDS and text.upper() not in WORDS[field]:
        raise Refused(f"Cannot parse {text} into a known {field[:1].upper()}{field[1:]}")
    if field == "name":
        return text.lower()
    return text.upper() if field in WORDS or field == "countryCode" else text


def _day(text: str, *, first: bool) -> int:
    # GBIF parses the bounds of a range to whole days, and drops the time that is given with them.
    text = text.split("/", maxsplit=1)[0].split("T", maxsplit=1)[0]
    match = re.fullmatch(r"(\d{4})(?:-(\d\d))?(?:-(\d\d))?", text)
    begin = match and micros(f"{match[1]}-{match[2] or '01'}-{match[3] or '01'}")
    if match is None or begin is None:
        raise Refused(f"Invalid date: {text}")
    if first:
        return begin
    if match[3]:
        return begin + DAY_US - 1
    year, month = int(match[1]), int(match[2] or 12)
    year, month = (year + 1, 1) if month == 12 else (year, month + 1)  # noqa: PLR2004 - December
    return (micros(f"{year:04d}-{month:02d}-01") or 0) - 1
