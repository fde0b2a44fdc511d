"""The record in common: one SELECT for each service, all with the same columns.

`kingdom` is as given, `kingdom_normalised` its bucket. `species` is the name of the accepted
species, `species_id` its id in `species_taxonomy`. `link` is what records of one specimen have in
common. `raw` is the record as it came.

A record that says that another one is gone has its id and nothing else; its row has no more either.
"""

from in_common import basis, binomial, country_code, kingdom, licence, link, status

TRIPLET = ("institution_code", "collection_code", "catalog_number")

# GBIF names the accepted species of every record, synonyms too. Its keys are numbers of GBIF's
# backbone; those that are not all digits are of the Catalogue of Life.
GBIF = f"""
    SELECT 'gbif' AS source, key AS id, dataset_key AS dataset,
           {licence("license")} AS license, license AS license_given,
           kingdom, {kingdom("kingdom")} AS kingdom_normalised,
           scientific_name, species, species_key AS species_id,
           CASE WHEN regexp_matches(species_key, '^[0-9]+$') THEN 'GBIF backbone'
                WHEN species_key IS NOT NULL THEN 'Catalogue of Life' END AS species_taxonomy,
           lower(taxon_rank) AS rank, {status("occurrence_status")} AS status,
           {basis("basis_of_record")} AS basis, event_date,
           decimal_latitude AS latitude, decimal_longitude AS longitude,
           country, {country_code("country_code")} AS country_code,
           occurrence_id, {link("occurrence_id", TRIPLET, "'gbif:' || key")} AS link,
           modified, _seen_at AS seen_at, _value AS raw, _deleted AS deleted
    FROM gbif
"""

# OBIS names the accepted species by the World Register of Marine Species.
OBIS = f"""
    SELECT 'obis' AS source, id, dataset_id AS dataset,
           {licence("license")} AS license, license AS license_given,
           kingdom, {kingdom("kingdom")} AS kingdom_normalised,
           scientific_name, species, speciesid AS species_id,
           CASE WHEN speciesid IS NOT NULL THEN 'WoRMS' END AS species_taxonomy,
           lower(taxon_rank) AS rank, {status("occurrence_status", "absence")} AS status,
           {basis("basis_of_record")} AS basis, event_date,
           decimal_latitude AS latitude, decimal_longitude AS longitude,
           country, {country_code("country_code")} AS country_code,
           occurrence_id, {link("occurrence_id", TRIPLET, "'obis:' || id")} AS link,
           modified, _seen_at AS seen_at, _value AS raw, _deleted AS deleted
    FROM obis
"""

# iDigBio looks names up in GBIF's backbone and gives the id of what it found: accepted or not.
# The accepted species of a synonym is not said. Where nothing was found, the collection's own genus
# and epithet stand for the species, without an id.
_GIVEN_LICENCE = "COALESCE(data.dcterms_license, data.dcterms_rights, data.dc_rights)"
_SYNONYM = "COALESCE(terms.taxonomic_status = 'synonym', false)"
_ID = f"CASE WHEN terms.taxon_rank = 'species' AND NOT {_SYNONYM} THEN terms.taxon_id END"
_NAME = binomial(
    "COALESCE(terms.genus, data.genus)", "COALESCE(terms.epithet, data.specific_epithet)"
)
_TRIPLET = tuple(f"data.{part}" for part in TRIPLET)

IDIGBIO = f"""
    SELECT 'idigbio' AS source, uuid AS id, terms.recordset AS dataset,
           {licence(_GIVEN_LICENCE)} AS license, {_GIVEN_LICENCE} AS license_given,
           data.kingdom AS kingdom,
           {kingdom("COALESCE(terms.kingdom, data.kingdom)")} AS kingdom_normalised,
           data.scientific_name AS scientific_name,
           CASE WHEN NOT {_SYNONYM} THEN {_NAME} END AS species, {_ID} AS species_id,
           CASE WHEN {_ID} IS NOT NULL THEN 'GBIF backbone' END AS species_taxonomy,
           lower(COALESCE(terms.taxon_rank, data.taxon_rank)) AS rank,
           {status("data.occurrence_status")} AS status,
           {basis("data.basis_of_record")} AS basis, data.event_date AS event_date,
           COALESCE(terms.geopoint.lat, TRY_CAST(data.decimal_latitude AS DOUBLE)) AS latitude,
           COALESCE(terms.geopoint.lon, TRY_CAST(data.decimal_longitude AS DOUBLE)) AS longitude,
           data.country AS country, {country_code("data.country_code")} AS country_code,
           data.occurrence_id AS occurrence_id,
           {link("data.occurrence_id", _TRIPLET, "'idigbio:' || uuid")} AS link,
           data.dcterms_modified AS modified, _seen_at AS seen_at, _value AS raw,
           _deleted AS deleted
    FROM idigbio
"""
