"""The same answers by a plain script: no pipeline, no SQL, everything in memory.

    python truth.py FOLDER

FOLDER holds the recorded versions of records (`gbif-record-versions.ndjson.gz`,
`obis-records.ndjson.gz`, `idigbio-record-versions.ndjson.gz`), or a file of records for each
service (`gbif.ndjson`, …). Prints one JSON object. Nothing here is shared with the pipeline: it
says the rules of the README a second time, so that a mistake would have to be made twice.
"""

import gzip
import json
import re
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

Json = dict[str, Any]
Version = tuple[str, str | None, Json]
"""A record's id, when this version of it was seen, and the record."""

SOURCES = ("gbif", "obis", "idigbio")
OLD_NAMES = {source: f"http://{source}.org" for source in SOURCES}
UNION = "all sources"
NO_KINGDOM = "Title Unavailable"


def versions(folder: Path, source: str) -> Iterator[Version]:
    """Yield each version of each record of a service."""
    plain = folder / f"{source}.ndjson"
    if plain.is_file():
        with plain.open(encoding="utf-8") as lines:
            for line in lines:
                yield identified(source, None, json.loads(line))
        return
    name = "obis-records" if source == "obis" else f"{source}-record-versions"
    with gzip.open(folder / f"{name}.ndjson.gz", "rt", encoding="utf-8") as lines:
        for line in filter(str.strip, lines):
            document = json.loads(line)
            if source == "gbif":
                yield identified(source, document["seen_at"], document["record"])
            elif source == "idigbio":
                item = document["item"]
                yield identified(source, item["indexTerms"]["datemodified"], item)
            else:
                yield identified(source, None, document)


def identified(source: str, seen_at: str | None, record: Json) -> Version:
    """Return a version with the id of its record."""
    name = {"gbif": "key", "obis": "id", "idigbio": "uuid"}[source]
    return str(record[name]), seen_at, record


def latest(found: Iterable[Version]) -> dict[str, Json]:
    """Return id → record of the newest version of each; of equal times the later one."""
    held: dict[str, tuple[datetime, Json]] = {}
    for key, seen_at, record in found:
        at = moment(seen_at)
        if key not in held or at >= held[key][0]:
            held[key] = at, record
    return {key: record for key, (_, record) in held.items()}


def moment(text: str | None) -> datetime:
    """Return a time as a datetime; what has none is older than all."""
    if text is None:
        return datetime.min.replace(tzinfo=UTC)
    at = datetime.fromisoformat(text)
    return at if at.tzinfo else at.replace(tzinfo=UTC)


def words(record: Any, *path: str) -> Any:  # noqa: ANN401 - JSON holds anything
    """Return what stands at a path of names, or None."""
    for name in path:
        record = record.get(name) if isinstance(record, dict) else None
    return record


def given_kingdom(source: str, record: Json) -> str | None:
    """Return the kingdom in the words of the source: for iDigBio, of the collection."""
    return words(record, "data", "dwc:kingdom") if source == "idigbio" else record.get("kingdom")


def bucket(source: str, record: Json) -> str:
    """Return the normalised kingdom."""
    name = given_kingdom(source, record)
    if source == "idigbio":
        interpreted = words(record, "indexTerms", "kingdom")
        name = name if interpreted is None else interpreted
    name = (name or "").strip(" ").lower()
    if name in {"", "unknown", "unassigned", "not assigned", "undetermined", "unclassified"}:
        return "not given"
    if name in {"incertae sedis", "biota incertae sedis"}:
        return "incertae sedis"
    if name.endswith("virae"):
        return "Viruses"
    others = {
        "metazoa": "Animalia",
        "viridiplantae": "Plantae",
        "chlorobionta": "Plantae",
        "eubacteria": "Bacteria",
        "archaebacteria": "Archaea",
        "virus": "Viruses",
        **dict.fromkeys(
            ("bacillati", "fusobacteriati", "pseudomonadati", "thermotogati"), "Bacteria"
        ),
        **dict.fromkeys(
            ("methanobacteriati", "nanobdellati", "promethearchaeati", "thermoproteati"), "Archaea"
        ),
    }
    return others.get(name, name[:1].upper() + name[1:])


def is_present(source: str, record: Json) -> bool:
    """Return whether a record is of something that was there."""
    if source == "obis" and record.get("absence"):
        return False
    if source == "idigbio":
        status = words(record, "data", "dwc:occurrenceStatus")
    else:
        status = record.get("occurrenceStatus")
    return (status or "").strip(" ").lower() != "absent"


def species(source: str, record: Json) -> tuple[str | None, str | None, str | None]:
    """Return name, id and taxonomy of the accepted species, each None where it is not known."""
    if source == "gbif":
        key = record.get("speciesKey")
        if key is None:
            return record.get("species"), None, None
        taxonomy = "GBIF backbone" if str(key).isdecimal() else "Catalogue of Life"
        return record.get("species"), str(key), taxonomy
    if source == "obis":
        key = record.get("speciesid")
        return record.get("species"), key and str(key), key and "WoRMS"
    terms, data = record.get("indexTerms") or {}, record.get("data") or {}
    if terms.get("taxonomicstatus") == "synonym":
        return None, None, None
    name = binomial(
        first(terms.get("genus"), data.get("dwc:genus")),
        first(terms.get("specificepithet"), data.get("dwc:specificEpithet")),
    )
    key = terms.get("taxonid") if terms.get("taxonrank") == "species" else None
    return name, key and str(key), key and "GBIF backbone"


def first(one: str | None, other: str | None) -> str | None:
    """Return the first of two that is there."""
    return other if one is None else one


def binomial(genus: str | None, epithet: str | None) -> str | None:
    """Return the name of a species, or None if these two words make none."""
    genus, epithet = ((word or "").strip(" ") for word in (genus, epithet))
    if not all(is_name(word) for word in (genus, epithet)):
        return None
    if epithet.lower() in {"sp", "spp", "ssp", "indet", "nov", "cf", "aff"}:
        return None
    return f"{genus[0].upper()}{genus[1:].lower()} {epithet.lower()}"


def is_name(word: str) -> bool:
    """Return whether a word is of two letters or more, hyphens allowed after the first."""
    return len(word) > 1 and word[0].isalpha() and all(c.isalpha() or c == "-" for c in word)


def link(source: str, key: str, record: Json) -> str:
    """Return what records of one specimen have in common."""
    data = (record.get("data") or {}) if source == "idigbio" else record
    prefix = "dwc:" if source == "idigbio" else ""
    said = str(data.get(f"{prefix}occurrenceID") or "").strip(" ").lower()
    digits = re.search(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}\Z", said)
    if digits:
        return f"uuid:{digits.group()}"
    if said.startswith("urn:catalog:"):
        return "triplet:" + said.removeprefix("urn:catalog:")
    if said.startswith("urn:"):
        return said
    if said.startswith(("http://", "https://")):
        return "url:" + said.split("://", 1)[1].rstrip("/")
    names = ("institutionCode", "collectionCode", "catalogNumber")
    parts = [(data.get(prefix + name) or "").strip(" ").lower() for name in names]
    return "triplet:" + ":".join(parts) if all(parts) else f"{source}:{key}"


class Truth:
    """Counts over records: {source: {id: record}}."""

    def __init__(
        self, records: Mapping[str, Mapping[str, Json]], *, absences: bool = False
    ) -> None:
        """Count the records that are present, with `absences` all."""
        self.records: Counter[str] = Counter()
        self.by_kingdom: Counter[tuple[str, str | None]] = Counter()
        self.by_bucket: Counter[tuple[str, str]] = Counter()
        self.names: dict[str, set[str]] = defaultdict(set)
        self.ids: dict[tuple[str, str | None], set[str]] = defaultdict(set)
        self.links: dict[str, set[str]] = defaultdict(set)
        for source, held in records.items():
            for key, record in held.items():
                if absences or is_present(source, record):
                    self._add(source, key, record)

    def _add(self, source: str, key: str, record: Json) -> None:
        self.records[source] += 1
        self.by_kingdom[source, given_kingdom(source, record)] += 1
        self.by_bucket[source, bucket(source, record)] += 1
        self.links[source].add(link(source, key, record))
        name, identifier, taxonomy = species(source, record)
        if name is not None:
            self.names[source].add(name)
        if identifier is not None:
            self.ids[source, taxonomy].add(identifier)

    def old_answers(self) -> dict[str, dict[str, int]]:
        """Return what the old API's `/count` and `/listSources` say."""
        kingdoms: Counter[str] = Counter()
        for (_, name), n in self.by_kingdom.items():
            kingdoms[name or NO_KINGDOM] += n
        return {
            "kingdom": dict(sorted(kingdoms.items())),
            "species": {
                **{OLD_NAMES[s]: len(self.names[s]) for s in SOURCES if self.records[s]},
                UNION: len(set().union(*self.names.values())),
            },
            "source": {OLD_NAMES[s]: self.records[s] for s in SOURCES if self.records[s]},
        }


def records_of(folder: str | Path) -> dict[str, dict[str, Json]]:
    """Return the newest version of every record: {source: {id: record}}.

    OBIS does not give records that it dropped for their quality.
    """
    newest = {source: latest(versions(Path(folder), source)) for source in SOURCES}
    newest["obis"] = {k: r for k, r in newest["obis"].items() if not r.get("dropped")}
    return newest


if __name__ == "__main__":
    print(json.dumps(Truth(records_of(sys.argv[1])).old_answers(), ensure_ascii=False))
