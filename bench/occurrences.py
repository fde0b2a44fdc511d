"""Records as large as GBIF's: sixty fields, about 1.4 kB, of which a table takes twenty-two."""

from __future__ import annotations

import gzip
import itertools
import random
from collections.abc import Iterator
from pathlib import Path

import msgspec
from workload import PARTITIONS

from headrace import Pipeline, Record, field
from headrace.define.check import check
from headrace.model.plan import Plan

SPECIES = 20_000


class Occurrence(Record):
    """What is taken of a record."""

    id: str = field("gbifID")
    dataset: str = field("datasetKey")
    publisher: str | None = field("publishingOrgKey", default=None)
    basis: str | None = field("basisOfRecord", default=None)
    status: str | None = field("occurrenceStatus", default=None)
    scientific_name: str | None = field("scientificName", default=None)
    taxon: int | None = field("taxonKey", default=None)
    kingdom: str | None = None
    phylum: str | None = None
    order: str | None = None
    family: str | None = None
    genus: str | None = None
    species: str | None = None
    latitude: float | None = field("decimalLatitude", default=None)
    longitude: float | None = field("decimalLongitude", default=None)
    country: str | None = field("countryCode", default=None)
    province: str | None = field("stateProvince", default=None)
    year: int | None = None
    month: int | None = None
    day: int | None = None
    event_date: str | None = field("eventDate", default=None)
    license: str | None = None


FIELDS = {
    "id": "gbifID STRING",
    "dataset": "datasetKey STRING",
    "publisher": "publishingOrgKey STRING",
    "basis": "basisOfRecord STRING",
    "status": "occurrenceStatus STRING",
    "scientific_name": "scientificName STRING",
    "taxon": "taxonKey BIGINT",
    "kingdom": "kingdom STRING",
    "phylum": "phylum STRING",
    "order": "`order` STRING",
    "family": "family STRING",
    "genus": "genus STRING",
    "species": "species STRING",
    "latitude": "decimalLatitude DOUBLE",
    "longitude": "decimalLongitude DOUBLE",
    "country": "countryCode STRING",
    "province": "stateProvince STRING",
    "year": "year BIGINT",
    "month": "month BIGINT",
    "day": "day BIGINT",
    "event_date": "eventDate STRING",
    "license": "license STRING",
}
"""The same for Spark: a column's name here, and the field's name and type there."""


def make_plan() -> Plan:
    """Return a table of occurrences and how many there are of each species, compiled."""
    made = Pipeline("occurrences")
    made.topic("occurrences", Occurrence, partitions=PARTITIONS)
    made.view("by_species", "SELECT species, count(*) AS n FROM occurrences GROUP BY species")
    found = check(made)
    if not isinstance(found, Plan):
        raise SystemExit("\n".join(map(str, found)))
    return found


def occurrences(count: int, seed: int = 0) -> Iterator[bytes]:
    """Yield made-up records as GBIF's search gives them; the same for the same seed."""
    chance = random.Random(seed)
    encode = msgspec.json.Encoder().encode
    species = [_species(number, chance) for number in range(SPECIES)]
    for number in range(count):
        year, month, day = chance.randrange(1900, 2027), number % 12 + 1, number % 28 + 1
        institution = number % 300
        yield encode(
            {
                "key": 1_000_000_000 + number,
                "datasetKey": f"84b4d6e4-f762-11e1-a439-{institution:012x}",
                "publishingOrgKey": f"8a471700-4ce8-11db-b80e-{institution:012x}",
                "publishingCountry": "US",
                "protocol": "DWC_ARCHIVE",
                "lastCrawled": "2026-01-24T12:28:43.297+00:00",
                "lastParsed": "2026-01-24T12:43:05.517+00:00",
                "crawlId": institution,
                "extensions": {},
                "basisOfRecord": "PRESERVED_SPECIMEN",
                "occurrenceStatus": "PRESENT",
                **species[chance.randrange(SPECIES)],
                "decimalLatitude": round(chance.uniform(-90, 90), 5),
                "decimalLongitude": round(chance.uniform(-180, 180), 5),
                "continent": "NORTH_AMERICA",
                "stateProvince": f"Province {number % 60}",
                "year": year,
                "month": month,
                "day": day,
                "eventDate": f"{year}-{month:02d}-{day:02d}",
                "issues": ["GEODETIC_DATUM_ASSUMED_WGS84", "COORDINATE_ROUNDED"],
                "modified": "2025-02-15T00:00:00.000+00:00",
                "lastInterpreted": "2026-02-16T21:15:53.034+00:00",
                "license": "http://creativecommons.org/licenses/by/4.0/legalcode",
                "isInCluster": False,
                "recordedBy": "A Collector | Another Collector",
                "geodeticDatum": "WGS84",
                "countryCode": "US",
                "country": "United States of America",
                "gbifID": str(1_000_000_000 + number),
                "language": "en",
                "type": "PhysicalObject",
                "catalogNumber": str(number),
                "institutionCode": f"INST-{institution}",
                "collectionCode": "Herps",
                "occurrenceID": f"urn:catalog:INST-{institution}:Herps:{number}",
                "locality": "a campground beside the road, as it is written on the label",
            }
        )


def _species(number: int, chance: random.Random) -> dict[str, object]:
    genus = f"Genus{number // 8}"
    name = f"{genus} epithet{number}"
    return {
        "taxonKey": 2_000_000 + number,
        "kingdomKey": 1,
        "kingdom": chance.choice(("Animalia", "Plantae", "Fungi", "Chromista")),
        "phylum": f"Phylum {number % 30}",
        "class": f"Class {number % 90}",
        "order": f"Order {number % 300}",
        "family": f"Family {number % 1_500}",
        "genus": genus,
        "species": name,
        "genericName": genus,
        "specificEpithet": f"epithet{number}",
        "scientificName": f"{name} Author, 1876",
        "taxonRank": "SPECIES",
    }


def recorded(path: Path, count: int) -> Iterator[bytes]:
    """Yield the records of a file of lines, each with a member `record`, from the start again."""

    class Line(msgspec.Struct):
        record: msgspec.Raw

    decode = msgspec.json.Decoder(Line).decode
    with gzip.open(path) as lines:
        found = [bytes(decode(line).record) for line in lines]
    yield from itertools.islice(itertools.cycle(found), count)
