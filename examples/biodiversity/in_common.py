"""SQL expressions that make what three services say comparable.

Each takes the SQL of what was given and returns the SQL of what it means.
"""

KINGDOMS = {
    "Animalia": ("animalia", "metazoa"),
    "Plantae": ("plantae", "viridiplantae", "chlorobionta"),
    "Fungi": ("fungi",),
    "Chromista": ("chromista",),
    "Protozoa": ("protozoa",),
    "Bacteria": (
        *("bacteria", "eubacteria"),
        *("bacillati", "fusobacteriati", "pseudomonadati", "thermotogati"),
    ),
    "Archaea": (
        *("archaea", "archaebacteria"),
        *("methanobacteriati", "nanobdellati", "promethearchaeati", "thermoproteati"),
    ),
    "Viruses": ("viruses", "virus"),
    "incertae sedis": ("incertae sedis", "biota incertae sedis"),
    "not given": ("", "unknown", "unassigned", "not assigned", "undetermined", "unclassified"),
}
"""Bucket → what it is called, in lower case. Any other name is a bucket of its own.

Newer classifications divide bacteria and archaea into four kingdoms each (ICNP: names in -ati) and
viruses into many (ICTV: names in -virae)."""

BASES = (
    *("PRESERVED_SPECIMEN", "FOSSIL_SPECIMEN", "LIVING_SPECIMEN", "MATERIAL_SAMPLE"),
    *("MATERIAL_ENTITY", "MATERIAL_CITATION", "OBSERVATION", "HUMAN_OBSERVATION"),
    *("MACHINE_OBSERVATION", "OCCURRENCE", "UNKNOWN"),
)
NO_EPITHETS = ("sp", "spp", "ssp", "indet", "nov", "cf", "aff")
UUID = "[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}"


def kingdom(given: str) -> str:
    """Return the bucket of a kingdom; every record has one."""
    name = f"lower(trim(COALESCE({given}, '')))"
    cases = " ".join(
        f"WHEN {name} IN ({_list(names)}) THEN '{bucket}'" for bucket, names in KINGDOMS.items()
    )
    return f"CASE {cases} WHEN {name} LIKE '%virae' THEN 'Viruses' ELSE {capitalised(name)} END"


def capitalised(name: str) -> str:
    """Return a name with a large first letter and small others."""
    return f"upper(substr({name}, 1, 1)) || lower(substr({name}, 2))"


def binomial(genus: str, epithet: str) -> str:
    """Return `Genus epithet`, or NULL where the two words name no species."""
    first, second = f"trim({genus})", f"lower(trim({epithet}))"
    return (
        f"CASE WHEN regexp_matches({first}, '^\\p{{L}}[\\p{{L}}-]+$') "
        f"AND regexp_matches({second}, '^\\p{{L}}[\\p{{L}}-]+$') "
        f"AND {second} NOT IN ({_list(NO_EPITHETS)}) "
        f"THEN {capitalised(first)} || ' ' || {second} END"
    )


def status(given: str, absence: str = "false") -> str:
    """Return `present` or `absent`; a record that says nothing is of something present."""
    return (
        f"CASE WHEN COALESCE({absence}, false) OR lower(trim({given})) = 'absent' "
        "THEN 'absent' ELSE 'present' END"
    )


def basis(given: str) -> str:
    """Return a basis of record as GBIF spells it, `HUMAN_OBSERVATION`; any other as it is."""
    word = f"regexp_replace(lower({given}), '[^a-z]', '', 'g')"
    cases = " ".join(f"WHEN '{b.replace('_', '').lower()}' THEN '{b}'" for b in BASES)
    return f"CASE {word} {cases} ELSE upper(trim({given})) END"


def country_code(given: str) -> str:
    """Return a country's two letters, or NULL for any other text."""
    return f"CASE WHEN length(trim({given})) = 2 THEN upper(trim({given})) END"


def licence(given: str) -> str:
    """Return the name of a licence: `CC BY-NC 4.0`, `CC0`, `other`, `not given`.

    The version is left out where none was given. CC0 has one version.
    """
    text = f"regexp_replace(lower(trim(COALESCE({given}, ''))), '[^a-z0-9.]+', '-', 'g')"
    words = f"replace(replace({text}, 'attribution', 'by'), 'non-commercial', 'nc')"
    digits = f"replace(regexp_extract({words}, '[1-4][.-][0-9]'), '-', '.')"
    version = f"COALESCE(' ' || nullif({digits}, ''), '')"
    kinds = " ".join(
        f"WHEN regexp_matches({words}, '{pattern}') THEN '{name}' || {version}"
        for name, pattern in (
            ("CC BY-NC-SA", "by-nc-sa"),
            ("CC BY-NC-ND", "by-nc-nd"),
            ("CC BY-NC", "by-nc"),
            ("CC BY-SA", "by-sa"),
            ("CC BY-ND", "by-nd"),
            ("CC BY", "(cc|licenses|commons)-by"),
        )
    )
    return (
        f"CASE WHEN {text} IN ('', '-', 'unspecified') THEN 'not given' "
        f"WHEN regexp_matches({text}, 'publicdomain-zero|cc-?0|cc-?zero') THEN 'CC0' {kinds} "
        f"WHEN {text} LIKE '%open-government-licence-canada%' THEN 'OGL Canada' ELSE 'other' END"
    )


def link(occurrence_id: str, triplet: tuple[str, str, str], own: str) -> str:
    """Return what two records of one specimen have in common, or a name that no other has.

    That is the `occurrenceID` where it means the same everywhere (a UUID, a URN, a URL), else
    institution, collection and catalogue number, else the record's `own` name.
    """
    said = f"lower(trim({occurrence_id}))"
    parts = [f"nullif(lower(trim({part})), '')" for part in triplet]
    return (
        f"CASE WHEN regexp_matches({said}, '{UUID}$') "
        f"THEN 'uuid:' || regexp_extract({said}, '{UUID}$') "
        f"WHEN {said} LIKE 'urn:catalog:%' THEN 'triplet:' || substr({said}, 13) "
        f"WHEN {said} LIKE 'urn:%' THEN {said} "
        f"WHEN regexp_matches({said}, '^https?://') "
        f"THEN 'url:' || rtrim(regexp_replace({said}, '^https?://', ''), '/') "
        f"ELSE COALESCE('triplet:' || {parts[0]} || ':' || {parts[1]} || ':' || {parts[2]}, {own}) "
        "END"
    )


def _list(names: tuple[str, ...]) -> str:
    return ", ".join(f"'{name}'" for name in names)
