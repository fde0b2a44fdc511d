"""Records of the three aggregators: every count equals that of a plain script over the same files.

The history of the records, that is all their recorded versions in order, goes through the pipeline
in two halves; then some records are removed. Without recordings the history is made up.
"""

from __future__ import annotations

import functools
import gzip
import importlib.util
import json
import tempfile
from collections import Counter
from itertools import islice
from pathlib import Path

import pytest
from run_example import ROOT

from headrace.app.pipeline_file import require_plan
from headrace.model.clock import ManualClock, rfc3339
from headrace.model.errors import Invalid
from headrace.model.source import PulledRecord
from headrace.sources.replay import Replay, ReplayOptions
from headrace.stage.validate import Validator
from headrace.testing.kit import PipelineKit
from headrace.testing.services.stand_in import StandIn

EXAMPLE = ROOT / "examples" / "biodiversity"
DATA = ROOT.parent / "shared" / "data"
SCHEMAS = ROOT.parent / "shared" / "design" / "source-schemas.json"
REPLAYED = {
    "gbif": {"records": "record", "seen_at": "seen_at", "key": "key"},
    "obis": {"key": "id"},
    "idigbio": {"records": "item", "seen_at": "item.indexTerms.datemodified", "key": "uuid"},
}
FILES = {
    "gbif": "gbif-record-versions.ndjson.gz",
    "obis": "obis-records.ndjson.gz",
    "idigbio": "idigbio-record-versions.ndjson.gz",
}
IDS = {"gbif": "key", "obis": "id", "idigbio": "uuid"}
OF_ITS_ARRIVAL = {"event_id", "received_at", "_topic", "_partition", "_offset"}
ENDS_US = 4_000_000_000_000_000
"""Later than anything was recorded: when removed records are found to be gone."""


def load_script():
    spec = importlib.util.spec_from_file_location("truth", EXAMPLE / "truth.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


truth = load_script()


@functools.cache
def plan_with(partitions):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HEADRACE_PARTITIONS", str(partitions))
        plan = require_plan(EXAMPLE / "pipeline.py")
    assert {t.partitions for t in plan.topics if t.name in FILES} == {partitions}
    return plan


def made_up(folder):
    """Write the history of generated records: some of them are identified anew, twice."""
    stand_in = StandIn(ManualClock(), records=150)
    for source, file in FILES.items():
        versions = list(stand_in.truth(source))
        for _ in range(2):
            stand_in.clock.advance(86_400)
            keys = stand_in.keys(source)[::7]
            versions += [stand_in.reidentify(source, key) for key in keys]
        with gzip.open(folder / file, "wt", encoding="utf-8") as lines:
            for n, record in enumerate(versions):
                # Times grow by record, as the services' own do.
                at = rfc3339(1_600_000_000_000_000 + n * 1_000_000)
                if source == "idigbio":
                    record["indexTerms"]["datemodified"] = at
                shape = {"gbif": {"seen_at": at, "record": record}, "idigbio": {"item": record}}
                lines.write(json.dumps(shape.get(source, record)) + "\n")
    return folder


class History:
    """All versions of all records, in order, as the replay source and as the script read them."""

    def __init__(self, folder):
        self.folder = folder
        self.pulled = {s: self._pulled(s) for s in FILES}
        self.middle = {s: len(records) // 2 for s, records in self.pulled.items()}
        self.versions = {s: list(truth.versions(folder, s)) for s in FILES}
        self.removed = {s: set(list(of)[::5]) for s, of in self.records().items()}
        self.truth = {
            "middle": by_script(self.records(half=True)),
            "end": by_script(self.records()),
            "after removal": by_script(
                {
                    source: {k: r for k, r in records.items() if k not in self.removed[source]}
                    for source, records in self.records().items()
                }
            ),
        }

    def _pulled(self, source):
        path = str(self.folder / FILES[source])
        replay = Replay(ReplayOptions(path=path, **REPLAYED[source]), ManualClock())
        return [record for page in replay.open(None) for record in page.records]

    def records(self, *, half=False):
        """Return the newest versions, by the script: {source: {id: record}}."""
        return {
            s: truth.latest(islice(versions, self.middle[s] if half else None))
            for s, versions in self.versions.items()
        }


@functools.cache
def history_of(kind):
    """Return a history: made once, however the tests over it are ordered."""
    if kind == "recorded":
        return History(DATA / "large")
    with tempfile.TemporaryDirectory() as folder:
        return History(made_up(Path(folder)))


@pytest.fixture(params=["made_up", "recorded"])
def kind(request):
    recorded = all((DATA / "large" / file).is_file() for file in FILES.values())
    if request.param == "recorded" and not recorded:
        pytest.skip("the recordings are not at ../shared/data/large")
    return request.param


@pytest.fixture(scope="module", autouse=True)
def forget():
    """Give the memory back that the histories and what became of them take."""
    yield
    for made in (history_of, replay_of, newest_alone):
        made.cache_clear()


@pytest.fixture
def history(kind):
    return history_of(kind)


def told(kit):
    """Return what the pipeline counts, in the terms of the script."""
    kingdoms = kit.rows("kingdoms")
    present = [row for row in kingdoms if row["status"] == "present"]
    by_name = kit.rows("species_by_name")
    return {
        "records": total(present, "source"),
        "by_kingdom": total(present, "source", "kingdom"),
        "by_bucket": total(present, "source", "kingdom_normalised"),
        "names": {r["source"]: r["species"] for r in by_name},
        "ids": {(r["source"], r["taxonomy"]): r["species"] for r in kit.rows("species_by_id")},
        "links": {r["source"]: r["linked_present"] for r in kit.rows("totals")},
        "everything": sum(row["records"] for row in kingdoms),
    }


def total(rows, *columns):
    counts = Counter()
    for row in rows:
        counts[tuple(row[c] for c in columns) if len(columns) > 1 else row[columns[0]]] += row[
            "records"
        ]
    return counts


def by_script(records):
    found = truth.Truth(records)
    taxonomies = {taxonomy for _, taxonomy in found.ids}
    union = {
        (None, t): len(set().union(*(ids for (_, of), ids in found.ids.items() if of == t)))
        for t in taxonomies
    }
    return {
        "records": found.records,
        "by_kingdom": found.by_kingdom,
        "by_bucket": found.by_bucket,
        "names": {s: len(found.names[s]) for s in records}
        | {None: len(set().union(*found.names.values()))},
        "ids": {k: len(ids) for k, ids in found.ids.items()} | union,
        "links": {s: len(found.links[s]) for s in records}
        | {None: len(set().union(*found.links.values()))},
        "everything": sum(map(len, records.values())),
    }


def occurrences(kit):
    """Return the keyed table by key, without what says how a row came."""
    table = kit.table("occurrences")
    kept = [c for c in table.column_names if c not in OF_ITS_ARRIVAL | {"seen_at"}]
    rows = {(row["source"], row["id"]): row for row in table.select(kept).to_pylist()}
    assert len(rows) == table.num_rows
    return rows


class Replayed:
    """The history through the pipeline: what was found at the middle, the end, and after."""

    def __init__(self, history, partitions):
        with PipelineKit(plan_with(partitions)) as kit:
            for source, records in history.pulled.items():
                kit.pull(source, records[: history.middle[source]])
            self.at_middle = told(kit)
            kit.advance(600)
            for source, records in history.pulled.items():
                kit.pull(source, records[history.middle[source] :])
            self.at_end = told(kit)
            self.rows = occurrences(kit)
            self.windows = kit.rows("every_two_minutes")
            self.datasets = kit.rows("datasets")
            self.by_source = {s: kit.rows(f"{s}_counts") for s in FILES}
            for source, keys in history.removed.items():
                kit.pull(source, [gone(source, key) for key in sorted(keys)])
            self.after_removal = told(kit)
            self.dead = kit.rows("dead_letters")


def gone(source, key):
    """Return the record by which `pull` says that a key is gone."""
    value = json.dumps({IDS[source]: key}).encode()
    return PulledRecord(value, key=key.encode(), seen_at_us=ENDS_US, deleted=True)


@functools.cache
def replay_of(kind, partitions):
    return Replayed(history_of(kind), partitions)


@pytest.fixture(params=[1, 3], ids=["1 partition", "3 partitions"])
def replayed(kind, request):
    return replay_of(kind, request.param)


def test_nothing_is_a_dead_letter(replayed):
    assert replayed.dead == []


def test_half_way_the_counts_are_those_of_that_moment(history, replayed):
    assert replayed.at_middle == history.truth["middle"]
    assert replayed.at_middle != replayed.at_end


def test_at_the_end_the_counts_are_those_of_the_newest_versions(history, replayed):
    assert replayed.at_end == history.truth["end"]


@functools.cache
def newest_alone(kind):
    """Return rows and counts where nothing but the newest versions was loaded."""
    with PipelineKit(plan_with(1)) as kit:
        for source, records in history_of(kind).records().items():
            kit.send(source, *records.values())
        return occurrences(kit), told(kit)


def test_loading_only_the_newest_versions_ends_in_the_same_table(kind, replayed):
    rows, counts = newest_alone(kind)
    assert counts == replayed.at_end
    assert [compared(row) for row in in_order(rows)] == [
        compared(row) for row in in_order(replayed.rows)
    ]


def in_order(rows):
    return [rows[key] for key in sorted(rows)]


def compared(row):
    """Return a row as both ways have it: JSON may be spaced, and only sources give keys."""
    return {**row, "raw": json.loads(row["raw"]), "_key": None}


def test_a_removed_record_leaves_every_count(history, replayed):
    assert all(history.removed.values())
    assert replayed.after_removal == history.truth["after removal"]


def test_species_over_the_union_are_not_the_sum(replayed):
    names = dict(replayed.at_end["names"])
    union = names.pop(None)
    assert max(names.values()) < union < sum(names.values())


def test_buckets_are_named_and_sum_to_the_total(replayed):
    buckets = replayed.at_end["by_bucket"]
    assert sum(buckets.values()) == sum(replayed.at_end["records"].values())
    assert all(name for _, name in buckets)
    assert {"Animalia", "Plantae", "Fungi", "not given"} <= {name for _, name in buckets}


def test_windows_of_two_minutes_add_up(replayed):
    assert {r["window_end"] - r["window_start"] for r in replayed.windows} == {
        (replayed.windows[0]["window_end"] - replayed.windows[0]["window_start"])
    }
    assert (replayed.windows[0]["window_end"] - replayed.windows[0]["window_start"]).seconds == 120
    # A record stands in the window in which its newest version came.
    assert len({r["window_start"] for r in replayed.windows}) == 2
    buckets = replayed.at_end["by_bucket"]
    for source in FILES:
        rows = [r for r in replayed.windows if r["source"] == source]
        assert sum(r["records"] for r in rows) == replayed.at_end["records"][source]
        for column, name in (("animals", "Animalia"), ("plants", "Plantae"), ("fungi", "Fungi")):
            assert sum(r[column] for r in rows) == buckets[source, name]


def test_datasets_to_cite_have_every_record(replayed):
    assert sum(r["records"] for r in replayed.datasets) == replayed.at_end["everything"]
    licences = {r["license"] for r in replayed.datasets}
    assert {"CC BY 4.0", "CC BY-NC 4.0", "CC0"} <= licences


def test_each_source_has_the_counts_of_the_old_system(replayed):
    for source, rows in replayed.by_source.items():
        (total_row,) = [r for r in rows if r["all_kingdoms"]]
        assert total_row["records"] == replayed.at_end["records"][source]
        kingdoms = {(source, r["kingdom"]): r["records"] for r in rows if not r["all_kingdoms"]}
        expected = {k: n for k, n in replayed.at_end["by_kingdom"].items() if k[0] == source}
        assert kingdoms == expected


# --- records


def schemas():
    return {t.name: t.schema for t in plan_with(3).topics if t.name in FILES}


def recorded_records():
    """Yield every record in the recordings: source, file, record."""
    for path in sorted(DATA.rglob("*.json")):
        source = path.relative_to(DATA).parts[0]
        found = json.loads(path.read_bytes()) if source in FILES else None
        if not isinstance(found, dict):
            continue
        for record in found.get("results") or found.get("items") or [found]:
            if isinstance(record, dict) and is_occurrence(source, record):
                yield source, path.name, record
    for source, versions in history_of("recorded").versions.items():
        for _, _, record in versions:
            yield source, FILES[source], record


def is_occurrence(source, record):
    """Return whether it is what the searches answer with, not a dataset, a taxon or a download."""
    marks = {"gbif": {"gbifID", "key"}, "obis": {"id", "aphiaID"}, "idigbio": {"uuid", "type"}}
    return marks[source] <= record.keys()


def test_every_recorded_record_is_valid():
    if not (DATA / "large").is_dir():
        pytest.skip("the recordings are not at ../shared/data")
    validators = {source: Validator(schema) for source, schema in schemas().items()}
    counts, refused = Counter(), []
    for source, name, record in recorded_records():
        counts[source] += 1
        try:
            validators[source].check(json.dumps(record).encode())
        except Invalid as error:
            refused.append((source, name, error.message))
    assert refused == []
    assert counts["gbif"] > 22_000
    assert min(counts["obis"], counts["idigbio"]) > 500


def test_every_field_of_the_old_schemas_is_declared():
    if not SCHEMAS.is_file():
        pytest.skip("the old schemas are not at ../shared/design")
    for source, fields in json.loads(SCHEMAS.read_bytes()).items():
        declared = schemas()[source].fields
        if source == "idigbio":
            declared = next(f.type.fields for f in declared if f.name == "data")
        kinds = {f.alias: f.type.kind for f in declared}
        assert fields.keys() <= kinds.keys(), source
        keys = {n for n in fields if n.endswith(("Key", "key", "ID", "id"))}
        wrong = {n: kinds[n] for n in keys if kinds[n] not in {"string", "text", "list"}}
        assert wrong == {}


KINGDOMS = (
    ("Animalia", "Animalia"),
    (" ANIMALIA ", "Animalia"),
    ("Metazoa", "Animalia"),
    ("Biota incertae sedis", "incertae sedis"),
    ("Eubacteria", "Bacteria"),
    ("Pseudomonadati", "Bacteria"),
    ("Thermoproteati", "Archaea"),
    ("Orthornavirae", "Viruses"),
    ("Dicotyledonae", "Dicotyledonae"),
    ("protista", "Protista"),
    ("", "not given"),
    (None, "not given"),
)
LICENCES = (
    ("http://creativecommons.org/licenses/by-nc/4.0/legalcode", "CC BY-NC 4.0"),
    ("CC_BY_NC_4_0", "CC BY-NC 4.0"),
    ("https://creativecommons.org/licenses/by/4.0/deed.en_US", "CC BY 4.0"),
    ("CC-BY", "CC BY"),
    ("Creative Commons Attribution Non Commercial (CC-BY-NC) 4.0 License.", "CC BY-NC 4.0"),
    ("http://creativecommons.org/licenses/by-nc-sa/3.0/", "CC BY-NC-SA 3.0"),
    ("CC0 1.0", "CC0"),
    ("http://creativecommons.org/publicdomain/zero/1.0/", "CC0"),
    ("http://data.gc.ca/eng/open-government-licence-canada", "OGL Canada"),
    ("ask the curator", "other"),
    ("UNSPECIFIED", "not given"),
    (None, "not given"),
)


def test_a_kingdom_has_a_bucket(kit):
    kit.send("gbif", *({"key": f"k{n}", "kingdom": k} for n, (k, _) in enumerate(KINGDOMS)))
    rows = {r["id"]: r for r in kit.rows("occurrences")}
    found = [rows[f"k{n}"] for n in range(len(KINGDOMS))]
    assert tuple((r["kingdom"], r["kingdom_normalised"]) for r in found) == KINGDOMS


def test_a_licence_has_a_name(kit):
    kit.send("obis", *({"id": f"l{n}", "license": x} for n, (x, _) in enumerate(LICENCES)))
    rows = {r["id"]: r for r in kit.rows("occurrences")}
    found = [rows[f"l{n}"] for n in range(len(LICENCES))]
    assert tuple((r["license_given"], r["license"]) for r in found) == LICENCES


def test_keys_may_become_strings(kit):
    kit.send("gbif", {"key": "3XYZ", "speciesKey": "6W3C4", "species": "Puma concolor"})
    kit.send("gbif", {"key": 9_000_000_000, "speciesKey": 2435099, "species": "Puma concolor"})
    rows = {r["id"]: r for r in kit.rows("occurrences", "id", "species_id", "species_taxonomy")}
    assert (rows["3XYZ"]["species_id"], rows["3XYZ"]["species_taxonomy"]) == (
        "6W3C4",
        "Catalogue of Life",
    )
    assert rows["9000000000"]["species_taxonomy"] == "GBIF backbone"


def test_one_specimen_in_two_aggregators_is_linked(kit):
    name = "0c3bf6cb-4d1c-4d12-9a2e-1f4e1a1a0001"
    triplet = {"institutionCode": "YPM", "collectionCode": "Mam", "catalogNumber": "1"}
    kit.send("gbif", {"key": 1, "occurrenceID": f"urn:uuid:{name}"})
    kit.send("idigbio", {"uuid": "a", "data": {"dwc:occurrenceID": name.upper()}})
    kit.send("gbif", {"key": 2, "occurrenceID": "1", **triplet})
    kit.send("obis", {"id": "b", "occurrenceID": "urn:catalog:YPM:MAM:1"})
    kit.send("obis", {"id": "c", "occurrenceID": "1"})
    links = {(r["source"], r["id"]): r["link"] for r in kit.rows("occurrences")}
    assert links["gbif", "1"] == links["idigbio", "a"] == f"uuid:{name}"
    assert links["gbif", "2"] == links["obis", "b"] == "triplet:ypm:mam:1"
    assert links["obis", "c"] == "obis:c"


@pytest.fixture(scope="module")
def kit():
    with PipelineKit(plan_with(1)) as running:
        yield running
