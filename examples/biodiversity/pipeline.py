"""Occurrence records of GBIF, OBIS and iDigBio, followed politely, in one table, counted right.

A record has one row, that of its newest version, and one that is gone has none; every count
follows. See README.md.
"""

import os

from occurrences import GBIF, IDIGBIO, OBIS
from records import GbifRecord, IdigbioRecord, ObisRecord, SourceCount

from headrace import Pipeline, param, tumbling

PARTITIONS = int(os.environ.get("HEADRACE_PARTITIONS", "3"))

pipeline = Pipeline(
    "biodiversity",
    add_sources=True,
    # For the demonstration and tests, whose services stand on this machine.
    private_addresses=os.environ.get("HEADRACE_PRIVATE_ADDRESSES") == "1",
    tokens=True,
)

gbif = pipeline.topic("gbif", GbifRecord, partitions=PARTITIONS, store=False)
obis = pipeline.topic("obis", ObisRecord, partitions=PARTITIONS, store=False)
idigbio = pipeline.topic("idigbio", IdigbioRecord, partitions=PARTITIONS, store=False)

pipeline.table(
    "occurrences",
    {gbif: GBIF, obis: OBIS, idigbio: IDIGBIO},
    key=("source", "id"),
    version="seen_at",
    deleted="deleted",
)

# What the services themselves count, for reconciliation: all that they ever said, and the latest.
source_counts = pipeline.topic("source_counts", SourceCount)
pipeline.table(
    "latest_source_counts",
    "SELECT source, kind, filter, records, asked_at FROM source_counts",
    key=("source", "filter"),
    version="asked_at",
)

# What one source has, as messages whenever it changes: records by kingdom as given, and, in the row
# with all_kingdoms = 1, all records and distinct species.
for topic in (gbif, obis, idigbio):
    pipeline.view(
        f"{topic.name}_counts",
        f"""
        SELECT kingdom, GROUPING(kingdom) AS all_kingdoms, count(*) AS records,
               count(DISTINCT species_id) AS species
        FROM occurrences WHERE source = '{topic.name}' AND status = 'present'
        GROUP BY GROUPING SETS ((kingdom), ())
        """,
        publish_to=f"{topic.name}_query",
    )

# When a record's newest version came in. A re-identified record moves to the window of that day.
pipeline.view(
    "every_two_minutes",
    """
    SELECT source, count(*) AS records,
           count(*) FILTER (WHERE kingdom_normalised = 'Animalia') AS animals,
           count(*) FILTER (WHERE kingdom_normalised = 'Plantae') AS plants,
           count(*) FILTER (WHERE kingdom_normalised = 'Fungi') AS fungi,
           count(DISTINCT species_id) AS species, count(DISTINCT species) AS species_names
    FROM occurrences WHERE status = 'present' GROUP BY source
    """,
    window=tumbling("2 minutes", on="received_at"),
    publish_to="occurrences_query",
)

pipeline.view(
    "kingdoms",
    """
    SELECT source, kingdom, kingdom_normalised, status, count(*) AS records
    FROM occurrences GROUP BY source, kingdom, kingdom_normalised, status
    """,
    publish_to="occurrences_query",
)

# Accepted species. Ids are compared within one taxonomy only; names are what sources that follow
# different ones have in common. A row with all_sources = 1 is over the union, and `source` is NULL.
pipeline.view(
    "species_by_id",
    """
    SELECT source, GROUPING(source) AS all_sources, species_taxonomy AS taxonomy,
           count(DISTINCT species_id) FILTER (WHERE status = 'present') AS species,
           count(DISTINCT species_id) AS species_with_absences
    FROM occurrences WHERE species_id IS NOT NULL
    GROUP BY GROUPING SETS ((source, species_taxonomy), (species_taxonomy))
    """,
    publish_to="occurrences_query",
)
pipeline.view(
    "species_by_name",
    """
    SELECT source, GROUPING(source) AS all_sources,
           count(DISTINCT species) FILTER (WHERE status = 'present') AS species,
           count(DISTINCT species) AS species_with_absences
    FROM occurrences GROUP BY GROUPING SETS ((source), ())
    """,
    publish_to="occurrences_query",
)

# Beside the plain count: records of the same specimen counted once.
pipeline.view(
    "totals",
    """
    SELECT source, GROUPING(source) AS all_sources, count(*) AS records,
           count(*) FILTER (WHERE status = 'present') AS present,
           count(*) FILTER (WHERE status = 'absent') AS absent,
           count(DISTINCT link) FILTER (WHERE status = 'present') AS linked_present,
           max(received_at) AS latest_received_at
    FROM occurrences GROUP BY GROUPING SETS ((source), ())
    """,
    publish_to="occurrences_query",
)

# What to cite, and under which terms.
pipeline.view(
    "datasets",
    """
    SELECT source, dataset, license, count(*) AS records
    FROM occurrences GROUP BY source, dataset, license
    """,
    publish_to="occurrences_query",
)

pipeline.query(
    "/count",
    """
    SELECT {by}, sum(records)::BIGINT AS records,
           CASE WHEN $absences THEN 'occurrence records, present and absent'
                ELSE 'occurrence records, present' END AS unit
    FROM kingdoms WHERE status = 'present' OR $absences
    GROUP BY {by} ORDER BY records DESC, 1
    """,
    params={
        "by": ["source", "kingdom", "kingdom_normalised"],
        "absences": param("boolean", default=False),
    },
)
# Sources and buckets side by side, with their sums: a row without a source is over all of them, one
# without a kingdom over all kingdoms.
pipeline.query(
    "/count/kingdoms",
    """
    SELECT source, kingdom_normalised, sum(records)::BIGINT AS records,
           CASE WHEN $absences THEN 'occurrence records, present and absent'
                ELSE 'occurrence records, present' END AS unit,
           'kingdoms as each source has them, one name for each' AS taxonomy
    FROM kingdoms WHERE status = 'present' OR $absences
    GROUP BY CUBE (source, kingdom_normalised)
    ORDER BY source NULLS LAST, kingdom_normalised NULLS LAST
    """,
    params={"absences": param("boolean", default=False)},
)
pipeline.query(
    "/count/species",
    """
    SELECT source, CASE WHEN $absences THEN species_with_absences ELSE species END AS species,
           'distinct accepted species ids' AS unit, taxonomy
    FROM species_by_id
    UNION ALL
    SELECT source, CASE WHEN $absences THEN species_with_absences ELSE species END AS species,
           'distinct names of accepted species' AS unit,
           CASE WHEN all_sources = 1 THEN 'as each source has it, joined by name'
                ELSE 'as the source has it' END AS taxonomy
    FROM species_by_name
    ORDER BY unit, taxonomy, source NULLS FIRST
    """,
    params={"absences": param("boolean", default=False)},
)
pipeline.query(
    "/count/linked",
    """
    SELECT source, present AS records, linked_present AS linked_records,
           'occurrence records, present; linked: records of one specimen (the same occurrenceID, or'
           || ' institution, collection and catalogue number) count once' AS unit
    FROM totals ORDER BY source NULLS FIRST
    """,
)
pipeline.query(
    "/linked",
    """
    SELECT link, count(*) AS records, list(source || ':' || id ORDER BY source, id) AS ids
    FROM occurrences GROUP BY link HAVING count(DISTINCT source) > 1
    ORDER BY link LIMIT greatest($limit, 0)
    """,
    params={"limit": param("integer", default=100)},
)
pipeline.query(
    "/datasets",
    """
    SELECT source, dataset, license, records FROM datasets
    ORDER BY source, records DESC, dataset, license
    """,
)
pipeline.query(
    "/reconciliation",
    """
    SELECT c.source, c.filter, c.records AS theirs, c.asked_at, t.records AS ours,
           t.latest_received_at AS ours_as_of, t.records - c.records AS difference
    FROM latest_source_counts AS c LEFT JOIN totals AS t ON t.source = c.kind
    ORDER BY c.source, c.filter
    """,
)
