"""The records of GBIF, OBIS and iDigBio, field by field.

Nothing but a record's own id must be there: a service leaves out what it does not know, and a
record that says that another one is gone has no more. Fields that are not named here are allowed
and stay in the record as it came. What is a number today and a string tomorrow is `int | str`.
"""

from datetime import datetime

from headrace import Json, Record, field


class Area(Record):
    """An administrative area of GADM."""

    gid: str | None = None
    name: str | None = None


class Identifier(Record):
    """Another name of a record."""

    identifier: str | None = None


class GbifRecord(Record):
    """A record of GBIF, as its search answers with it."""

    key: int | str
    dataset_key: str | None = field("datasetKey", default=None)
    publishing_org_key: str | None = field("publishingOrgKey", default=None)
    installation_key: str | None = field("installationKey", default=None)
    hosting_organization_key: str | None = field("hostingOrganizationKey", default=None)
    publishing_country: str | None = field("publishingCountry", default=None)
    protocol: str | None = None
    last_crawled: str | None = field("lastCrawled", default=None)
    last_parsed: str | None = field("lastParsed", default=None)
    crawl_id: int | None = field("crawlId", default=None)
    extensions: dict[str, Json] | None = None
    basis_of_record: str | None = field("basisOfRecord", default=None)
    occurrence_status: str | None = field("occurrenceStatus", default=None)
    taxon_key: int | str | None = field("taxonKey", default=None)
    kingdom_key: int | str | None = field("kingdomKey", default=None)
    phylum_key: int | str | None = field("phylumKey", default=None)
    class_key: int | str | None = field("classKey", default=None)
    order_key: int | str | None = field("orderKey", default=None)
    family_key: int | str | None = field("familyKey", default=None)
    genus_key: int | str | None = field("genusKey", default=None)
    species_key: int | str | None = field("speciesKey", default=None)
    accepted_taxon_key: int | str | None = field("acceptedTaxonKey", default=None)
    scientific_name: str | None = field("scientificName", default=None)
    accepted_scientific_name: str | None = field("acceptedScientificName", default=None)
    kingdom: str | None = None
    phylum: str | None = None
    order_: str | None = field("order", default=None)
    family: str | None = None
    genus: str | None = None
    species: str | None = None
    generic_name: str | None = field("genericName", default=None)
    specific_epithet: str | None = field("specificEpithet", default=None)
    taxon_rank: str | None = field("taxonRank", default=None)
    taxonomic_status: str | None = field("taxonomicStatus", default=None)
    iucn_red_list_category: str | None = field("iucnRedListCategory", default=None)
    decimal_latitude: float | None = field("decimalLatitude", default=None)
    decimal_longitude: float | None = field("decimalLongitude", default=None)
    elevation: float | None = None
    elevation_accuracy: float | None = field("elevationAccuracy", default=None)
    continent: str | None = None
    gadm: dict[str, Area] | None = None
    year: int | None = None
    month: int | None = None
    day: int | None = None
    event_date: str | None = field("eventDate", default=None)
    start_day_of_year: int | str | None = field("startDayOfYear", default=None)
    end_day_of_year: int | str | None = field("endDayOfYear", default=None)
    issues: list[str] | None = None
    last_interpreted: str | None = field("lastInterpreted", default=None)
    license: str | None = None
    is_sequenced: bool | None = field("isSequenced", default=None)
    identifiers: list[Identifier] | None = None
    media: list[Json] | None = None
    facts: list[Json] | None = None
    relations: list[Json] | None = None
    is_in_cluster: bool | None = field("isInCluster", default=None)
    dataset_id: str | None = field("datasetID", default=None)
    recorded_by: str | None = field("recordedBy", default=None)
    identified_by: str | None = field("identifiedBy", default=None)
    geodetic_datum: str | None = field("geodeticDatum", default=None)
    class_: str | None = field("class", default=None)
    country_code: str | None = field("countryCode", default=None)
    recorded_by_ids: list[Json] | None = field("recordedByIDs", default=None)
    identified_by_ids: list[Json] | None = field("identifiedByIDs", default=None)
    gbif_region: str | None = field("gbifRegion", default=None)
    country: str | None = None
    published_by_gbif_region: str | None = field("publishedByGbifRegion", default=None)
    identifier: str | None = None
    event: str | None = field("eventID", default=None)
    language: str | None = field("http://unknown.org/language", default=None)
    footprint_wkt: str | None = field("footprintWKT", default=None)
    original_name_usage: str | None = field("originalNameUsage", default=None)
    municipality: str | None = None
    county: str | None = None
    identification_verification_status: str | None = field(
        "identificationVerificationStatus", default=None
    )
    name_according_to: str | None = field("nameAccordingTo", default=None)
    gbif_id: int | str | None = field("gbifID", default=None)
    occurrence_id: str | None = field("occurrenceID", default=None)
    taxon_id: str | None = field("taxonID", default=None)
    # What the table needs beyond them.
    modified: str | None = None
    institution_code: str | None = field("institutionCode", default=None)
    collection_code: str | None = field("collectionCode", default=None)
    catalog_number: str | None = field("catalogNumber", default=None)


class ObisRecord(Record):
    """A record of OBIS, as `/v3/occurrence` answers with it."""

    basis_of_record: str | None = field("basisOfRecord", default=None)
    bibliographic_citation: str | None = field("bibliographicCitation", default=None)
    catalog_number: int | str | None = field("catalogNumber", default=None)
    class_: str | None = field("class", default=None)
    collection_code: str | None = field("collectionCode", default=None)
    coordinate_uncertainty_in_meters: Json = field("coordinateUncertaintyInMeters", default=None)
    country: str | None = None
    decimal_latitude: float | None = field("decimalLatitude", default=None)
    decimal_longitude: float | None = field("decimalLongitude", default=None)
    event_date: str | None = field("eventDate", default=None)
    event: int | str | None = field("eventID", default=None)
    family: str | None = None
    footprint_wkt: str | None = field("footprintWKT", default=None)
    identification_references: str | None = field("identificationReferences", default=None)
    identification_remarks: str | None = field("identificationRemarks", default=None)
    institution_code: str | None = field("institutionCode", default=None)
    kingdom: str | None = None
    locality: str | None = None
    material_sample_id: str | None = field("materialSampleID", default=None)
    maximum_depth_in_meters: float | None = field("maximumDepthInMeters", default=None)
    minimum_depth_in_meters: float | None = field("minimumDepthInMeters", default=None)
    modified: str | None = None
    occurrence_id: int | str | None = field("occurrenceID", default=None)
    occurrence_status: str | None = field("occurrenceStatus", default=None)
    order_: str | None = field("order", default=None)
    organism_quantity: int | str | None = field("organismQuantity", default=None)
    organism_quantity_type: str | None = field("organismQuantityType", default=None)
    phylum: str | None = None
    recorded_by: str | None = field("recordedBy", default=None)
    sample_size_unit: str | None = field("sampleSizeUnit", default=None)
    sample_size_value: int | str | None = field("sampleSizeValue", default=None)
    sampling_protocol: str | None = field("samplingProtocol", default=None)
    scientific_name: str | None = field("scientificName", default=None)
    scientific_name_id: str | None = field("scientificNameID", default=None)
    taxon_rank: str | None = field("taxonRank", default=None)
    id: int | str
    dataset_id: str | None = None
    node_id: list[str] | None = None
    depth: float | None = None
    date_start: int | str | None = None
    date_mid: int | str | None = None
    date_end: int | str | None = None
    date_year: int | None = None
    dropped: bool | None = None
    absence: bool | None = None
    superdomain: str | None = None
    superdomainid: int | str | None = None
    kingdomid: int | str | None = None
    phylumid: int | str | None = None
    classid: int | str | None = None
    orderid: int | str | None = None
    familyid: int | str | None = None
    aphia_id: int | str | None = field("aphiaID", default=None)
    original_scientific_name: str | None = field("originalScientificName", default=None)
    flags: list[str] | None = None
    bathymetry: float | None = None
    shoredistance: float | None = None
    sst: float | None = None
    sss: float | None = None
    # What the table needs beyond them.
    species: str | None = None
    speciesid: int | str | None = None
    license: str | None = None
    country_code: str | None = field("countryCode", default=None)


class Verbatim(Record):
    """What a collection itself wrote of a specimen: text, whatever it means."""

    start_day_of_year: str | None = field("dwc:startDayOfYear", default=None)
    dc_language: str | None = field("dc:language", default=None)
    specific_epithet: str | None = field("dwc:specificEpithet", default=None)
    country_code: str | None = field("dwc:countryCode", default=None)
    latest_period_or_highest_system: str | None = field(
        "dwc:latestPeriodOrHighestSystem", default=None
    )
    dc_type: str | None = field("dc:type", default=None)
    recorded_by: str | None = field("dwc:recordedBy", default=None)
    information_withheld: str | None = field("dwc:informationWithheld", default=None)
    georeferenced_date: str | None = field("dwc:georeferencedDate", default=None)
    order_: str | None = field("dwc:order", default=None)
    earliest_eon_or_lowest_eonothem: str | None = field(
        "dwc:earliestEonOrLowestEonothem", default=None
    )
    individual_count: str | None = field("dwc:individualCount", default=None)
    latest_eon_or_highest_eonothem: str | None = field(
        "dwc:latestEonOrHighestEonothem", default=None
    )
    group_: str | None = field("dwc:group", default=None)
    data_generalizations: str | None = field("dwc:dataGeneralizations", default=None)
    earliest_epoch_or_lowest_series: str | None = field(
        "dwc:earliestEpochOrLowestSeries", default=None
    )
    latest_age_or_highest_stage: str | None = field("dwc:latestAgeOrHighestStage", default=None)
    id: str | None = None
    state_province: str | None = field("dwc:stateProvince", default=None)
    dcterms_bibliographic_citation: str | None = field(
        "dcterms:bibliographicCitation", default=None
    )
    event_date: str | None = field("dwc:eventDate", default=None)
    bed: str | None = field("dwc:bed", default=None)
    institution_code: str | None = field("dwc:institutionCode", default=None)
    country: str | None = field("dwc:country", default=None)
    earliest_period_or_lowest_system: str | None = field(
        "dwc:earliestPeriodOrLowestSystem", default=None
    )
    collection_code: str | None = field("dwc:collectionCode", default=None)
    occurrence_status: str | None = field("dwc:occurrenceStatus", default=None)
    kingdom: str | None = field("dwc:kingdom", default=None)
    decimal_latitude: str | None = field("dwc:decimalLatitude", default=None)
    georeference_verification_status: str | None = field(
        "dwc:georeferenceVerificationStatus", default=None
    )
    basis_of_record: str | None = field("dwc:basisOfRecord", default=None)
    genus: str | None = field("dwc:genus", default=None)
    continent: str | None = field("dwc:continent", default=None)
    family: str | None = field("dwc:family", default=None)
    latest_epoch_or_highest_series: str | None = field(
        "dwc:latestEpochOrHighestSeries", default=None
    )
    georeference_sources: str | None = field("dwc:georeferenceSources", default=None)
    higher_classification: str | None = field("dwc:higherClassification", default=None)
    previous_identifications: str | None = field("dwc:previousIdentifications", default=None)
    dcterms_license: str | None = field("dcterms:license", default=None)
    phylum: str | None = field("dwc:phylum", default=None)
    county: str | None = field("dwc:county", default=None)
    locality: str | None = field("dwc:locality", default=None)
    geodetic_datum: str | None = field("dwc:geodeticDatum", default=None)
    taxon_rank: str | None = field("dwc:taxonRank", default=None)
    formation: str | None = field("dwc:formation", default=None)
    class_: str | None = field("dwc:class", default=None)
    catalog_number: str | None = field("dwc:catalogNumber", default=None)
    nomenclatural_code: str | None = field("dwc:nomenclaturalCode", default=None)
    higher_geography: str | None = field("dwc:higherGeography", default=None)
    month: str | None = field("dwc:month", default=None)
    member: str | None = field("dwc:member", default=None)
    coordinate_uncertainty_in_meters: str | None = field(
        "dwc:coordinateUncertaintyInMeters", default=None
    )
    scientific_name_authorship: str | None = field("dwc:scientificNameAuthorship", default=None)
    end_day_of_year: str | None = field("dwc:endDayOfYear", default=None)
    earliest_age_or_lowest_stage: str | None = field("dwc:earliestAgeOrLowestStage", default=None)
    verbatim_locality: str | None = field("dwc:verbatimLocality", default=None)
    verbatim_event_date: str | None = field("dwc:verbatimEventDate", default=None)
    decimal_longitude: str | None = field("dwc:decimalLongitude", default=None)
    latest_era_or_highest_erathem: str | None = field("dwc:latestEraOrHighestErathem", default=None)
    earliest_era_or_lowest_erathem: str | None = field(
        "dwc:earliestEraOrLowestErathem", default=None
    )
    occurrence_id: str | None = field("dwc:occurrenceID", default=None)
    georeference_protocol: str | None = field("dwc:georeferenceProtocol", default=None)
    dcterms_modified: str | None = field("dcterms:modified", default=None)
    scientific_name: str | None = field("dwc:scientificName", default=None)
    day: str | None = field("dwc:day", default=None)
    year: str | None = field("dwc:year", default=None)
    # What the table needs beyond them.
    dcterms_rights: str | None = field("dcterms:rights", default=None)
    dc_rights: str | None = field("dc:rights", default=None)


class Point(Record):
    """A place on Earth, WGS 84."""

    lat: float | None = None
    lon: float | None = None


class Terms(Record):
    """What iDigBio made of a specimen's data: in lower case, names matched where they could be."""

    recordset: str | None = None
    kingdom: str | None = None
    genus: str | None = None
    epithet: str | None = field("specificepithet", default=None)
    taxon_id: int | str | None = field("taxonid", default=None)
    taxon_rank: str | None = field("taxonrank", default=None)
    taxonomic_status: str | None = field("taxonomicstatus", default=None)
    geopoint: Point | None = None


class IdigbioRecord(Record):
    """An item of iDigBio's search: the collection's own data, and what was made of it."""

    uuid: str
    type: str | None = None
    etag: str | None = None
    data: Verbatim | None = None
    terms: Terms | None = field("indexTerms", default=None)


class SourceCount(Record):
    """How many records a service says that it has, of what a source asks for."""

    source: str
    kind: str
    filter: str
    records: int
    asked_at: datetime
