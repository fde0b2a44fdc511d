"""Occurrence records of GBIF, OBIS and iDigBio in one table, and how many species they name.

The records are read from files, in the folder that the environment variable HEADRACE_OCCURRENCES
names. See README.md.
"""

import os
from pathlib import Path

from headrace import Pipeline, Record, field, tumbling

RECORDINGS = os.environ.get(
    "HEADRACE_OCCURRENCES",
    str(Path(__file__).resolve().parents[2].parent / "shared" / "data" / "large"),
)

pipeline = Pipeline("occurrences")


class GbifRecord(Record):
    """A record of GBIF, as its search answers with it."""

    id: str = field("gbifID")
    dataset: str = field("datasetKey")
    license: str | None = None
    kingdom: str | None = None
    scientific_name: str | None = field("scientificName", default=None)
    species: str | None = None
    basis: str | None = field("basisOfRecord", default=None)
    status: str | None = field("occurrenceStatus", default=None)
    event_date: str | None = field("eventDate", default=None)
    country: str | None = field("countryCode", default=None)
    latitude: float | None = field("decimalLatitude", default=None)
    longitude: float | None = field("decimalLongitude", default=None)


class ObisRecord(Record):
    """A record of OBIS."""

    id: str
    dataset: str = field("dataset_id")
    license: str | None = None
    kingdom: str | None = None
    scientific_name: str | None = field("scientificName", default=None)
    species: str | None = None
    basis: str | None = field("basisOfRecord", default=None)
    absence: bool = False
    event_date: str | None = field("eventDate", default=None)
    country: str | None = None
    latitude: float | None = field("decimalLatitude", default=None)
    longitude: float | None = field("decimalLongitude", default=None)


class Verbatim(Record):
    """What a collection itself wrote of a specimen: text, whatever it means."""

    license: str | None = field("dcterms:license", default=None)
    kingdom: str | None = field("dwc:kingdom", default=None)
    scientific_name: str | None = field("dwc:scientificName", default=None)
    genus: str | None = field("dwc:genus", default=None)
    epithet: str | None = field("dwc:specificEpithet", default=None)
    basis: str | None = field("dwc:basisOfRecord", default=None)
    event_date: str | None = field("dwc:eventDate", default=None)
    country: str | None = field("dwc:country", default=None)
    latitude: str | None = field("dwc:decimalLatitude", default=None)
    longitude: str | None = field("dwc:decimalLongitude", default=None)


class Terms(Record):
    """What iDigBio made of it."""

    recordset: str | None = None


class IdigbioRecord(Record):
    """A record of iDigBio."""

    uuid: str
    data: Verbatim
    terms: Terms = field("indexTerms")


gbif = pipeline.topic("gbif", GbifRecord, store=False)
obis = pipeline.topic("obis", ObisRecord, store=False)
idigbio = pipeline.topic("idigbio", IdigbioRecord, store=False)

pipeline.source(
    "gbif",
    kind="replay",
    topic=gbif,
    path=f"{RECORDINGS}/gbif-record-versions.ndjson.gz",
    records="record",
)
pipeline.source("obis", kind="replay", topic=obis, path=f"{RECORDINGS}/obis-records.ndjson.gz")
pipeline.source(
    "idigbio",
    kind="replay",
    topic=idigbio,
    path=f"{RECORDINGS}/idigbio-record-versions.ndjson.gz",
    records="item",
)

pipeline.table(
    "occurrences",
    {
        gbif: """
            SELECT 'gbif' AS source, id, dataset, license, kingdom, scientific_name, species,
                   basis, status, event_date, country, latitude, longitude
            FROM gbif
        """,
        obis: """
            SELECT 'obis' AS source, id, dataset, license, kingdom, scientific_name, species,
                   basis, CASE WHEN absence THEN 'absent' ELSE 'present' END AS status,
                   event_date, country, latitude, longitude
            FROM obis
        """,
        # A species is a genus with an epithet; a collection's own text may hold blanks around both.
        idigbio: """
            SELECT 'idigbio' AS source, uuid AS id, terms.recordset AS dataset,
                   data.license AS license, data.kingdom AS kingdom,
                   data.scientific_name AS scientific_name,
                   nullif(trim(data.genus), '') || ' ' || nullif(trim(data.epithet), '') AS species,
                   data.basis AS basis, CAST(NULL AS VARCHAR) AS status,
                   data.event_date AS event_date, data.country AS country,
                   TRY_CAST(data.latitude AS DOUBLE) AS latitude,
                   TRY_CAST(data.longitude AS DOUBLE) AS longitude
            FROM idigbio
        """,
    },
)

pipeline.view(
    "by_source_and_kingdom",
    "SELECT source, kingdom, count(*) AS records FROM occurrences GROUP BY source, kingdom",
)
# Species of all sources are those of the union: a species that two of them name counts once. The
# row with all_sources = 1 has them, and `source` is NULL in it.
pipeline.view(
    "species",
    """
    SELECT source, GROUPING(source) AS all_sources, count(*) AS records,
           count(DISTINCT species) AS species, approx_count_distinct(species) AS species_about
    FROM occurrences GROUP BY GROUPING SETS ((source), ())
    """,
)
pipeline.view(
    "every_two_minutes",
    """
    SELECT source, count(*) AS records,
           count(*) FILTER (WHERE lower(kingdom) = 'animalia') AS animals,
           count(*) FILTER (WHERE lower(kingdom) = 'plantae') AS plants,
           count(*) FILTER (WHERE lower(kingdom) = 'fungi') AS fungi,
           approx_count_distinct(species) AS species_about
    FROM occurrences GROUP BY source
    """,
    window=tumbling("2 minutes", on="received_at"),
)
pipeline.view(
    "totals",
    """
    SELECT count(*) AS records, count(kingdom) AS with_kingdom, count(species) AS with_species,
           count(DISTINCT dataset) AS datasets
    FROM occurrences
    """,
)

pipeline.query(
    "/count",
    """
    SELECT {by}, sum(records)::BIGINT AS records FROM by_source_and_kingdom
    GROUP BY ALL ORDER BY records DESC
    """,
    params={"by": ["source", "kingdom"]},
)
pipeline.query("/species", "SELECT * FROM species ORDER BY all_sources, source")
