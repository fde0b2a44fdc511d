"""Records that nobody observed, in the shapes of the three services, made when they are read.

Record n of a seed is always the same, whatever is read before it. The three share their species
and carry what real records carry: kingdoms in any case or none, synonyms, records of a genus only,
absences, records without a year, a place or coordinates, licences of every kind.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, overload

from headrace.testing.services.collection import Record
from headrace.testing.services.moments import DAY_US, millis_text, moment
from headrace.testing.services.taxa import (
    INCERTAE_SEDIS,
    INCERTAE_SEDIS_GBIF,
    Draw,
    Taxa,
    Taxon,
)

BEGAN_US = 1_704_067_200_000_000
"""2024-01-01: generated records were last changed in the year from then on."""
YEARS = 125
"""Records were observed in the years before 2025."""
DATASETS = 24
LICENSES = (
    "http://creativecommons.org/licenses/by-nc/4.0/legalcode",
    "http://creativecommons.org/licenses/by/4.0/legalcode",
    "http://creativecommons.org/publicdomain/zero/1.0/legalcode",
)


class Country(NamedTuple):
    """A country as each service names it."""

    code: str
    code3: str
    name: str
    latitude: float
    longitude: float


COUNTRIES = (
    Country("US", "USA", "United States of America", 38.0, -97.0),
    Country("DK", "DNK", "Denmark", 56.0, 10.0),
    Country("BR", "BRA", "Brazil", -10.0, -55.0),
    Country("NZ", "NZL", "New Zealand", -41.0, 174.0),
    Country("ZA", "ZAF", "South Africa", -29.0, 24.0),
    Country("JP", "JPN", "Japan", 36.0, 138.0),
)
BASES = ("HUMAN_OBSERVATION", "PRESERVED_SPECIMEN", "MACHINE_OBSERVATION", "MATERIAL_SAMPLE")
GBIF_RANKS = ("kingdom", "phylum", "class", "order", "family", "genus")


class Generated(Sequence[Record]):
    """So many records of one service."""

    service = ""

    def __init__(self, seed: int, records: int, taxa: Taxa, first: int = 0) -> None:
        """Hold records `first` to `first + records - 1` of the seed, made when they are read."""
        self._seed = seed
        self._records = records
        self._first = first
        self._taxa = taxa
        self._datasets = [Draw(seed, "dataset", n).uuid() for n in range(DATASETS)]
        self._publishers = [Draw(seed, "publisher", n).uuid() for n in range(5)]

    def __len__(self) -> int:
        """Return how many there are."""
        return self._records

    @overload
    def __getitem__(self, index: int) -> Record: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Record]: ...
    def __getitem__(self, index: int | slice) -> Record | Sequence[Record]:
        """Return a record, made anew."""
        if isinstance(index, slice):
            return [self[n] for n in range(*index.indices(self._records))]
        if not 0 <= index < self._records:
            raise IndexError(index)
        n = self._first + index
        return self._make(n, Draw(self._seed, self.service, n))

    def _make(self, n: int, draw: Draw) -> Record:
        raise NotImplementedError

    def _dataset(self, draw: Draw) -> str:
        return self._datasets[draw.below(len(self._datasets))]


class GeneratedGbif(Generated):
    """Records as `/v1/occurrence/search` gives them."""

    service = "gbif"

    def _make(self, n: int, draw: Draw) -> Record:
        country = COUNTRIES[draw.below(len(COUNTRIES))]
        changed = millis_text(_changed_us(draw))
        key = 1_000_000_000 + n
        record: Record = {
            "key": key,
            "datasetKey": self._dataset(draw),
            "publishingOrgKey": self._publishers[draw.below(5)],
            "installationKey": self._publishers[draw.below(5)],
            "hostingOrganizationKey": self._publishers[draw.below(5)],
            "publishingCountry": country.code,
            "protocol": "DWC_ARCHIVE",
            "lastCrawled": changed,
            "lastParsed": changed,
            "crawlId": 1 + draw.below(500),
            "extensions": {},
            "basisOfRecord": BASES[draw.below(len(BASES))],
            "occurrenceStatus": "ABSENT" if draw.one_in(20) else "PRESENT",
            **gbif_taxon(self._taxa.any_of(draw), draw),
        }
        if not draw.one_in(10):
            record |= {"countryCode": country.code, "country": country.name}
            record["gadm"] = {"level0": {"gid": country.code3, "name": country.name}}
        if not draw.one_in(6):
            record["decimalLatitude"] = country.latitude + draw.below(800) / 100
            record["decimalLongitude"] = country.longitude + draw.below(800) / 100
            record["geodeticDatum"] = "WGS84"
        if not draw.one_in(12):
            record |= _gbif_date(draw)
        return record | {
            "issues": ["COORDINATE_ROUNDED"] if draw.one_in(3) else [],
            "lastInterpreted": changed,
            "license": LICENSES[draw.below(len(LICENSES))],
            "identifiers": [],
            "media": [],
            "facts": [],
            "relations": [],
            "isInCluster": draw.one_in(8),
            "recordedByIDs": [],
            "identifiedByIDs": [],
            "occurrenceID": f"urn:catalog:headrace:{n:08d}",
            "catalogNumber": f"H-{n:08d}",
            "institutionCode": "HR",
            "collectionCode": "Generated",
            "identifier": f"urn:catalog:headrace:{n:08d}",
            "gbifID": str(key),
        }


class GeneratedObis(Generated):
    """Records as `/v3/occurrence` gives them."""

    service = "obis"

    def _make(self, n: int, draw: Draw) -> Record:
        country = COUNTRIES[draw.below(len(COUNTRIES))]
        taxon = self._taxa.any_of(draw, marine=True)
        absence, dropped = draw.one_in(15), draw.one_in(40)
        record: Record = {
            # The ids of one seed differ in their beginning and come in no order, as real ones.
            "id": _scattered_uuid(self._seed, "obis", n),
            "dataset_id": self._dataset(draw),
            "node_id": [self._publishers[draw.below(3)]],
            "basisOfRecord": "HumanObservation" if draw.one_in(2) else "PreservedSpecimen",
            "occurrenceID": f"urn:catalog:headrace:{draw.below(2 * (n + 1)):08d}",
            "catalogNumber": f"O-{n:08d}",
            "institutionCode": "HR",
            "occurrenceStatus": "absent" if absence else "present",
            "decimalLatitude": country.latitude + draw.below(800) / 100,
            "decimalLongitude": country.longitude + draw.below(800) / 100,
            "absence": absence,
            "dropped": dropped,
            "marine": True,
            "flags": ["NO_DEPTH"] if draw.one_in(3) else [],
            **obis_taxon(taxon, draw),
        }
        if draw.one_in(3):
            record["license"] = LICENSES[draw.below(len(LICENSES))].removesuffix("legalcode")
        if not draw.one_in(12):
            us = _observed_us(draw)
            record["eventDate"] = moment(us).strftime("%Y-%m-%d")
            record |= dict.fromkeys(("date_start", "date_mid", "date_end"), us // 1000)
            record["date_year"] = moment(us).year
        return record


class GeneratedIdigbio(Generated):
    """Records as `/v2/search/records` gives them: verbatim `data`, interpreted `indexTerms`."""

    service = "idigbio"

    def _make(self, n: int, draw: Draw) -> Record:
        country = COUNTRIES[draw.below(len(COUNTRIES))]
        uuid = _scattered_uuid(self._seed, "idigbio", n)
        etag = draw.hex(40)
        catalogue = f"I-{n:08d}"
        occurrence = f"urn:catalog:headrace:{draw.below(2 * (n + 1)):08d}"
        data: dict[str, Any] = {
            "id": uuid,
            "dwc:occurrenceID": occurrence,
            "dwc:catalogNumber": catalogue,
            "dwc:institutionCode": "HR",
            "dwc:basisOfRecord": "PreservedSpecimen",
        }
        terms: dict[str, Any] = {
            "uuid": uuid,
            "etag": etag,
            "recordset": self._dataset(draw),
            "datemodified": idigbio_moment(_changed_us(draw)),
            "basisofrecord": "preservedspecimen",
            "occurrenceid": occurrence,
            "catalognumber": catalogue.lower(),
            "institutioncode": "hr",
            "recordids": [uuid],
            "hasImage": False,
            "hasMedia": False,
            "dqs": round(draw.below(100) / 100, 2),
            "flags": ["geopoint_datum_missing"],
        }
        if not draw.one_in(10):
            data["dwc:country"] = country.name
            terms |= {"country": country.name.lower(), "countrycode": country.code3.lower()}
        if not draw.one_in(6):
            latitude = country.latitude + draw.below(800) / 100
            longitude = country.longitude + draw.below(800) / 100
            data["dwc:decimalLatitude"] = str(latitude)
            data["dwc:decimalLongitude"] = str(longitude)
            terms["geopoint"] = {"lat": latitude, "lon": longitude}
        if not draw.one_in(12):
            at = moment(_observed_us(draw))
            data |= {"dwc:eventDate": f"{at:%Y-%m-%d}", "dwc:year": str(at.year)}
            terms |= {
                "eventdate": f"{at:%Y-%m-%d}",
                "datecollected": f"{at:%Y-%m-%d}T00:00:00+00:00",
            }
        if not draw.one_in(3):
            data["dcterms:license"] = LICENSES[draw.below(len(LICENSES))]
        if draw.one_in(25):
            data["dwc:occurrenceStatus"] = "absent"
        verbatim, interpreted = idigbio_taxon(self._taxa.any_of(draw), draw)
        return {
            "uuid": uuid,
            "type": "records",
            "etag": etag,
            "data": data | verbatim,
            "indexTerms": terms | interpreted,
        }


def gbif_taxon(taxon: Taxon, draw: Draw) -> dict[str, Any]:
    """Return what a GBIF record says of its species: as such, as a synonym, or only its genus."""
    kingdom = taxon.kingdom
    if draw.one_in(30):
        unplaced: dict[str, Any] = {
            "taxonKey": INCERTAE_SEDIS_GBIF,
            "scientificName": INCERTAE_SEDIS,
            "taxonRank": "KINGDOM",
            "taxonomicStatus": "DOUBTFUL",
        }
        # The service gives such records with a kingdom of that name, or with none.
        kingdom_of = {"kingdomKey": INCERTAE_SEDIS_GBIF, "kingdom": INCERTAE_SEDIS}
        return unplaced | (kingdom_of if draw.one_in(2) else {})
    key = 2_000_000 + taxon.number
    names = (kingdom.name, kingdom.phylum, kingdom.class_, kingdom.order, taxon.family, taxon.genus)
    keys = (kingdom.gbif, *taxon.numbers)
    fields: dict[str, Any] = dict(zip((f"{r}Key" for r in GBIF_RANKS), keys, strict=True))
    fields |= dict(zip(GBIF_RANKS, names, strict=True))
    if draw.one_in(12):
        return fields | {
            "taxonKey": keys[-1],
            "acceptedTaxonKey": keys[-1],
            "scientificName": taxon.genus,
            "acceptedScientificName": taxon.genus,
            "genericName": taxon.genus,
            "taxonRank": "GENUS",
            "taxonomicStatus": "ACCEPTED",
        }
    synonym = draw.one_in(9)
    accepted = f"{taxon.species} {taxon.author}"
    return fields | {
        "speciesKey": key,
        "species": taxon.species,
        "taxonKey": 3_000_000 + taxon.number if synonym else key,
        "acceptedTaxonKey": key,
        "scientificName": f"{taxon.synonym} {taxon.author}" if synonym else accepted,
        "acceptedScientificName": accepted,
        "genericName": taxon.genus,
        "specificEpithet": taxon.epithet,
        "taxonRank": "SPECIES",
        "taxonomicStatus": "SYNONYM" if synonym else "ACCEPTED",
    }


def obis_taxon(taxon: Taxon, draw: Draw) -> dict[str, Any]:
    """Return what an OBIS record says of its species, with WoRMS numbers."""
    kingdom = taxon.kingdom
    if draw.one_in(50):
        return {
            "kingdom": "Biota incertae sedis",
            "kingdomid": 12,
            "scientificName": "Biota incertae sedis",
            "originalScientificName": "unknown",
            "scientificNameID": "urn:lsid:marinespecies.org:taxname:12",
            "aphiaID": 12,
        }
    aphia = 2_000_000 + taxon.number
    phylum, class_, order, family, genus = taxon.numbers
    fields: dict[str, Any] = {
        "kingdom": kingdom.name,
        "kingdomid": kingdom.aphia,
        "phylum": kingdom.phylum,
        "phylumid": phylum,
        "class": kingdom.class_,
        "classid": class_,
        "order": kingdom.order,
        "orderid": order,
        "family": taxon.family,
        "familyid": family,
        "genus": taxon.genus,
        "genusid": genus,
    }
    if draw.one_in(12):
        name, aphia = taxon.genus, genus
    else:
        name = taxon.species
        fields |= {"species": name, "speciesid": aphia}
    return fields | {
        "scientificName": name,
        "originalScientificName": taxon.synonym if draw.one_in(9) else name,
        "scientificNameID": f"urn:lsid:marinespecies.org:taxname:{aphia}",
        "aphiaID": aphia,
    }


def idigbio_taxon(taxon: Taxon, draw: Draw) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the verbatim and the interpreted fields of an iDigBio record's species."""
    kingdom = taxon.kingdom.name
    # Five in eight as names are written; the others in capitals, in small letters, not at all.
    given = (kingdom, kingdom.upper(), kingdom.lower(), None)[max(0, draw.below(8) - 4)]
    verbatim = {
        "dwc:scientificName": f"{taxon.species} {taxon.author}",
        "dwc:genus": taxon.genus,
        "dwc:specificEpithet": taxon.epithet,
        "dwc:family": taxon.family,
    }
    interpreted = {
        "scientificname": taxon.species.lower(),
        "canonicalname": taxon.species.lower(),
        "genus": taxon.genus.lower(),
        "specificepithet": taxon.epithet,
        "family": taxon.family.lower(),
        "order": taxon.kingdom.order.lower(),
        "class": taxon.kingdom.class_.lower(),
        "phylum": taxon.kingdom.phylum.lower(),
        "taxonrank": "species",
        "taxonomicstatus": "accepted",
        "taxonid": str(2_000_000 + taxon.number),
    }
    if given is not None:
        verbatim["dwc:kingdom"] = given
        interpreted["kingdom"] = kingdom.lower()
    return verbatim, interpreted


def idigbio_moment(us: int) -> str:
    """Return a moment as iDigBio writes it in `datemodified`."""
    return moment(us).isoformat(timespec="microseconds")


def _scattered_uuid(seed: int, service: str, n: int) -> str:
    return Draw(seed, service, "id", n).uuid()


def _changed_us(draw: Draw) -> int:
    return BEGAN_US + draw.below(366) * DAY_US + draw.below(86_400) * 1_000_000


def _observed_us(draw: Draw) -> int:
    days = (YEARS - min(draw.below(YEARS), draw.below(YEARS)) - 71) * 365
    return (days + draw.below(365)) * DAY_US


def _gbif_date(draw: Draw) -> dict[str, Any]:
    at = moment(_observed_us(draw))
    if draw.one_in(10):
        return {"year": at.year, "eventDate": str(at.year)}
    day = {"year": at.year, "month": at.month, "day": at.day}
    return day | {"eventDate": f"{at:%Y-%m-%dT00:00:00}"}
