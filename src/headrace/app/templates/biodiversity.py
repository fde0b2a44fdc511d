"""Records of one species from GBIF, OBIS and iDigBio, followed and counted together.

headrace run pipeline.py
headrace sources list --watch
curl http://127.0.0.1:8080/count?by=source

A run asks the three public services, once a second at most each, and again a day later. Say in
CONTACT who you are first: their operators want to know, and are kinder to those who say it.
"""

from headrace import Pipeline, Record, field

SPECIES = "Monachus monachus"
CONTACT = ""
"""Such as "data@museum.example.org"; it is sent to the services with each request."""

pipeline = Pipeline("biodiversity")


class GbifRecord(Record):
    """A few of a record's fields; those that are not named here are kept as well."""

    key: int | str
    kingdom: str | None = None
    species: str | None = None
    country: str | None = None
    year: int | None = None


class ObisRecord(Record):
    """A record of OBIS."""

    id: str
    kingdom: str | None = None
    species: str | None = None
    country: str | None = None
    date_year: int | None = None


class Terms(Record):
    """What iDigBio made of the collection's words."""

    kingdom: str | None = None
    genus: str | None = None
    epithet: str | None = field("specificepithet", default=None)
    country: str | None = None


class IdigbioRecord(Record):
    """An item of iDigBio's search."""

    uuid: str
    terms: Terms | None = field("indexTerms", default=None)


gbif = pipeline.topic("gbif", GbifRecord, partitions=3, store=False)
obis = pipeline.topic("obis", ObisRecord, partitions=3, store=False)
idigbio = pipeline.topic("idigbio", IdigbioRecord, partitions=3, store=False)

pipeline.source(
    "gbif",
    kind="gbif",
    topic=gbif,
    filter=f"scientificName={SPECIES}",
    contact=CONTACT,
    interval_s=86_400,
)
pipeline.source("obis", kind="obis", topic=obis, taxon=SPECIES, contact=CONTACT, interval_s=86_400)
pipeline.source(
    "idigbio", kind="idigbio", topic=idigbio, taxon=SPECIES, contact=CONTACT, interval_s=86_400
)

# One row a record: its newest version. A record that is gone where it comes from leaves it.
pipeline.table(
    "occurrences",
    {
        gbif: """
            SELECT 'gbif' AS source, CAST(key AS VARCHAR) AS id, kingdom, species, country, year,
                   _seen_at AS seen_at, _value AS raw, _deleted AS deleted
            FROM gbif
        """,
        obis: """
            SELECT 'obis' AS source, id, kingdom, species, country, date_year AS year,
                   _seen_at AS seen_at, _value AS raw, _deleted AS deleted
            FROM obis
        """,
        idigbio: """
            SELECT 'idigbio' AS source, uuid AS id, terms.kingdom AS kingdom,
                   terms.genus || ' ' || terms.epithet AS species, terms.country AS country,
                   CAST(NULL AS BIGINT) AS year,
                   _seen_at AS seen_at, _value AS raw, _deleted AS deleted
            FROM idigbio
        """,
    },
    key=("source", "id"),
    version="seen_at",
    deleted="deleted",
)

pipeline.view(
    "by_kingdom",
    """
    SELECT source, lower(kingdom) AS kingdom, count(*) AS records,
           count(DISTINCT lower(species)) AS species
    FROM occurrences GROUP BY source, lower(kingdom)
    """,
)
pipeline.query(
    "/count",
    "SELECT {by}, sum(records)::BIGINT AS n FROM by_kingdom GROUP BY 1 ORDER BY n DESC, 1",
    params={"by": ["source", "kingdom"]},
)
