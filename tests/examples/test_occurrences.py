"""Occurrence records replayed from files: every count equals that of a plain script over them."""

from __future__ import annotations

import gzip
import json
import random
from collections import Counter, defaultdict

import pytest
from run_example import ROOT, free_port, headrace, told

PIPELINE = ROOT / "examples/occurrences/pipeline.py"
RECORDINGS = ROOT.parent / "shared" / "data" / "large"
FILES = {
    "gbif": "gbif-record-versions.ndjson.gz",
    "obis": "obis-records.ndjson.gz",
    "idigbio": "idigbio-record-versions.ndjson.gz",
}
EXACT_BELOW = 4_096
"""Names up to which an approximate distinct count is exact; beyond, it is within 5 %."""


class Script:
    """What a script of twenty lines finds in the files."""

    def __init__(self, folder):
        self.kingdoms = Counter()
        self.species = defaultdict(set)
        self.records = Counter()
        for source, file in FILES.items():
            for line in gzip.decompress((folder / file).read_bytes()).splitlines():
                record = json.loads(line)
                if source == "gbif":
                    record = record["record"]
                    kingdom, species = record.get("kingdom"), record.get("species")
                elif source == "obis":
                    kingdom, species = record.get("kingdom"), record.get("species")
                else:
                    data = record["item"]["data"]
                    kingdom = data.get("dwc:kingdom")
                    names = [data.get(k) for k in ("dwc:genus", "dwc:specificEpithet")]
                    names = [(name or "").strip(" ") for name in names]
                    species = " ".join(names) if all(names) else None
                self.records[source] += 1
                self.kingdoms[source, kingdom] += 1
                if species is not None:
                    self.species[source].add(species)
        self.all_species = set().union(*self.species.values())


def generate(folder):
    """Write records in the shapes of the three services: small, with gaps, some named by two."""
    rng = random.Random(11)
    names = [f"{g} {e}" for g in ("Numenius", "Batrachoseps", "Eugenia") for e in "abcdefgh"]
    kingdoms = ["Animalia", "Plantae", "Fungi", "animalia", "Chromista", None]

    def fields(**present):
        # A service leaves out what it does not know; some write null.
        return {k: v for k, v in present.items() if v is not None or rng.random() < 0.5}

    def position(kind):
        return kind(round(rng.uniform(-80, 80), 4))

    def gbif(n):
        return {
            "seen_at": "2020-01-01T00:00:00Z",
            "record": {
                "key": 3_000_000_000 + n,
                "gbifID": str(3_000_000_000 + n % 250),
                "datasetKey": f"d{n % 3}",
                "extensions": {},
                "http://unknown.org/language": "en",
                **fields(
                    kingdom=rng.choice(kingdoms),
                    species=rng.choice([*names[:16], None]),
                    scientificName="Naïve “name” 学名",
                    decimalLatitude=position(float),
                ),
            },
        }

    def obis(n):
        return {
            "id": f"o{n}",
            "dataset_id": "d9",
            "flags": ["no_depth"],
            "dropped": False,
            "absence": n % 5 == 0,
            **fields(kingdom=rng.choice(kingdoms), species=rng.choice([*names[8:20], None])),
        }

    def idigbio(n):
        genus, _, epithet = rng.choice(names[12:]).partition(" ")
        verbatim = fields(
            **{
                "dwc:kingdom": rng.choice(kingdoms),
                "dwc:genus": rng.choice([genus, f" {genus} ", "", None]),
                "dwc:specificEpithet": rng.choice([epithet, None]),
                "dwc:decimalLatitude": rng.choice([position(str), "south of the river"]),
            }
        )
        return {"item": {"uuid": f"u{n}", "etag": "e", "data": verbatim, "indexTerms": {}}}

    for source, make in (("gbif", gbif), ("obis", obis), ("idigbio", idigbio)):
        with gzip.open(folder / FILES[source], "wt", encoding="utf-8") as file:
            for n in range({"gbif": 500, "obis": 120, "idigbio": 60}[source]):
                file.write(json.dumps(make(n), ensure_ascii=False) + "\n")
    return folder


class Replayed:
    """A folder of recordings, replayed once."""

    def __init__(self, folder, data):
        self.data = data
        self.env = {"HEADRACE_OCCURRENCES": str(folder)}
        self.script = Script(folder)
        self.run()

    def run(self):
        where = ("--data", self.data, "--port", free_port(), "--until-idle")
        headrace("run", PIPELINE, *where, env=self.env)

    def sql(self, query):
        return told("sql", "--data", self.data, query)

    def status(self):
        return told("status", "--data", self.data)


@pytest.fixture(scope="module", params=["generated", "recorded"])
def replayed(request, tmp_path_factory):
    made = tmp_path_factory.mktemp(request.param)
    if request.param == "generated":
        return Replayed(generate(made), made / "data")
    if not all((RECORDINGS / file).is_file() for file in FILES.values()):
        pytest.skip("the recordings are not at ../shared/data/large")
    return Replayed(RECORDINGS, made / "data")


def test_counts_by_source_and_kingdom(replayed):
    query = "SELECT source, kingdom, count(*) AS n FROM occurrences GROUP BY source, kingdom"
    from_table = {(r["source"], r["kingdom"]): r["n"] for r in replayed.sql(query)}
    assert from_table == replayed.script.kingdoms
    rows = replayed.sql("SELECT * FROM by_source_and_kingdom")
    assert {(r["source"], r["kingdom"]): r["records"] for r in rows} == from_table
    assert len(rows) == len(from_table)


def test_distinct_species_by_source_and_over_all(replayed):
    rows = replayed.sql("SELECT * FROM species")
    script = replayed.script
    expected = {source: len(script.species[source]) for source in FILES}
    assert {r["source"]: r["species"] for r in rows if not r["all_sources"]} == expected
    (union,) = [r for r in rows if r["all_sources"]]
    assert union["source"] is None
    assert union["species"] == len(script.all_species) < sum(expected.values())
    assert union["records"] == script.records.total()
    for row in rows:
        tolerance = 0.05 * row["species"] if row["species"] > EXACT_BELOW else 0
        assert abs(row["species_about"] - row["species"]) <= tolerance, row


def test_windows_of_two_minutes_add_up_to_the_totals(replayed):
    kinds = {"animals": "animalia", "plants": "plantae", "fungi": "fungi"}
    sums = ", ".join(f"sum({name})::INT AS {name}" for name in ("records", *kinds))
    rows = replayed.sql(f"SELECT source, {sums} FROM every_two_minutes GROUP BY source")
    for row in rows:
        source = row["source"]
        assert row["records"] == replayed.script.records[source]
        for name, kingdom in kinds.items():
            assert row[name] == sum(
                n
                for (s, k), n in replayed.script.kingdoms.items()
                if s == source and (k or "").lower() == kingdom
            )
    assert {row["source"] for row in rows} == set(FILES)
    sizes = "SELECT DISTINCT window_end - window_start AS size FROM every_two_minutes"
    assert replayed.sql(sizes) == [{"size": "PT120S"}]


def test_the_accounting_closes(replayed):
    status = replayed.status()
    assert status["accounts_close"]
    for source, n in replayed.script.records.items():
        topic = status["topics"][source]
        assert (topic["appended"], topic["decoded"]) == (n, n)
        assert (topic["dead"], topic["duplicates"], topic["waiting"]) == (0, 0, 0)
        assert status["sources"][source]["done"]
    table = status["tables"]["occurrences"]
    total = replayed.script.records.total()
    assert table == {"decoded": total, "rows": total, "filtered": 0, "failed": 0}


def test_a_second_run_adds_nothing(replayed):
    query = (
        "SELECT (SELECT count(*) FROM occurrences)::INT AS in_table, records, with_kingdom,"
        " with_species, datasets FROM totals"
    )
    before, status = replayed.sql(query), replayed.status()
    assert before[0]["in_table"] == before[0]["records"] == replayed.script.records.total()
    replayed.run()
    assert replayed.sql(query) == before
    again = replayed.status()
    assert (again["topics"], again["tables"]) == (status["topics"], status["tables"])
