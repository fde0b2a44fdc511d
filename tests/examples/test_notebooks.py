"""The examples' notebooks, run by a kernel over what the examples' own pipelines made.

Answers are compared with plain counts of what was sent. The notebook for Spark is run with Spark's
page, in tests/engines.
"""

from __future__ import annotations

import importlib.util
import json
import random
from collections import Counter, defaultdict

import nbformat
import pytest
from live_game import acts, purchases
from nbclient import NotebookClient
from run_example import ROOT

from headrace.model.clock import ManualClock
from headrace.testing.kit import PipelineKit
from headrace.testing.services.stand_in import StandIn

EXAMPLES = ROOT / "examples"
NOTEBOOKS = sorted(EXAMPLES.glob("*/*.ipynb"))
CELL_S_MAX = 120
TURNS = 12
WINDOW_S = 600
ITEMS = {"purchase_sword": "sword", "buy_sword": "sword", "purchase_knife": "knife"}


@pytest.fixture
def answers(tmp_path, monkeypatch):
    """Run a notebook over a data directory; return what expressions are worth at its end."""
    for name in ("IPYTHONDIR", "JUPYTER_RUNTIME_DIR"):
        monkeypatch.setenv(name, str(tmp_path / name))

    def run(path, folder, **expressions):
        monkeypatch.setenv("HEADRACE_DATA", str(folder))
        notebook = nbformat.read(EXAMPLES / path, as_version=4)
        pairs = ", ".join(f"{name!r}: {said}" for name, said in expressions.items())
        last = f"import json\nprint(json.dumps({{{pairs}}}, default=str))"
        notebook.cells.append(nbformat.v4.new_code_cell(last))
        NotebookClient(notebook, timeout=CELL_S_MAX, kernel_name="python3").execute()
        shown = [o for cell in notebook.cells for o in cell.get("outputs", ())]
        assert any("image/png" in output.get("data", ()) for output in shown), "there is a plot"
        return json.loads(shown[-1]["text"])

    return run


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_a_notebook_is_kept_without_what_it_printed(path):
    cells = [c for c in nbformat.read(path, as_version=4).cells if c.cell_type == "code"]
    assert cells
    assert all(not cell.outputs and cell.execution_count is None for cell in cells)


def test_the_questions_of_the_game(answers):
    messages = [message for turn in range(TURNS) for message in acts(turn)]
    events = [event for turn in range(TURNS) for event in purchases(turn)]
    with PipelineKit.of_file(EXAMPLES / "game" / "pipeline.py") as kit:
        kit.send("MessageHistory", *messages)
        for event in events:
            kit.send("events", event)
            kit.advance(5)
        kit.settle()
        found = answers(
            "game/questions.ipynb",
            kit.folder,
            bought="bought.values.tolist()",
            hosts="hosts.rows()",
            groups="[requested, accepted, declined]",
            over_time="over_time.sum().to_dict()",
            minutes="len(over_time)",
        )
    items = Counter((e["Host"], ITEMS[e["event_type"]]) for e in events if e["event_type"] in ITEMS)
    assert found["bought"] == [[*of, n] for of, n in sorted(items.items())]
    done, by = Counter(), defaultdict(set)
    for event in events + messages:
        done[event["event_type"]] += 1
        by[event["event_type"]].add(event["Host"])
    assert found["hosts"] == [[act, n, len(by[act])] for act, n in sorted(done.items())]
    types = ("request_group", "accept_member", "decline_member")
    assert found["groups"] == [done[act] for act in types]
    assert found["over_time"] == {a: n for a, n in done.items() if a not in types}
    assert found["minutes"] == len(events) * 5 // 60


def example(name, module):
    """Return a module of an example, which is no package."""
    spec = importlib.util.spec_from_file_location(module, EXAMPLES / name / f"{module}.py")
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    return made


def test_species_by_kingdom_over_time(answers):
    stand_in = StandIn(ManualClock(), records=120)
    records = {source: list(stand_in.truth(source)) for source in ("gbif", "obis", "idigbio")}
    with PipelineKit.of_file(EXAMPLES / "biodiversity" / "pipeline.py") as kit:
        for half in (0, 1):
            for source, of in records.items():
                kit.send(source, *of[half::2])
            kit.settle()
            kit.advance(WINDOW_S)
        found = answers(
            "biodiversity/species.ipynb",
            kit.folder,
            kingdoms="kingdoms.values.tolist()",
            species="species.fetchall()",
            over_time='over_time.select("came", "kingdom", "species").rows()',
            so_far="so_far.reset_index().values.tolist()",
        )
    truth = example("biodiversity", "truth")
    counted = truth.Truth({s: dict(enumerate(of)) for s, of in records.items()})
    assert found["kingdoms"] == [[*of, n] for of, n in sorted(counted.by_bucket.items())]
    names = {source: len(of) for source, of in counted.names.items()}
    union = len(set().union(*counted.names.values()))
    assert found["species"] == [*map(list, sorted(names.items())), ["all sources", union]]
    by_kingdom = defaultdict(set)
    for source, of in records.items():
        for record in of:
            name = truth.species(source, record)[0]
            if name is not None and truth.is_present(source, record):
                by_kingdom[truth.bucket(source, record)].add(name)
    last = {kingdom: species for _, kingdom, species in found["over_time"]}
    assert last == {kingdom: len(of) for kingdom, of in by_kingdom.items()}
    assert len({came for came, *_ in found["over_time"]}) == 2
    ends = {source: n for source, _, n, *_ in found["so_far"]}
    assert ends == counted.records


def test_metrics_of_machines(answers):
    data = example("factory", "data")
    chance = random.Random(7)
    measured, orders = list(data.metrics(chance, 10)), list(data.workorders(chance, 10))
    with PipelineKit.of_file(EXAMPLES / "factory" / "pipeline.py") as kit:
        kit.send("metrics", *measured)
        kit.send("workorder", *orders)
        kit.settle()
        found = answers(
            "factory/machines.ipynb",
            kit.folder,
            means="[[*c, len(means[c].dropna()), float(means[c].iloc[0])] for c in means]",
            summary="summary.select('machine', 'metric', 'n').rows()",
            by_machine="by_machine[['good', 'scrapped']].reset_index().values.tolist()",
            orders="len(orders)",
        )
    kinds = Counter((m["machine"], m["metric"]) for m in measured)
    assert found["summary"] == [[*of, n] for of, n in sorted(kinds.items())]
    minutes = defaultdict(list)
    for m in measured:
        minutes[m["metric"], m["machine"], m["time"][:16]].append(m["value"])
    assert len(minutes) == sum(n for *_, n, _ in found["means"])
    begin = min(m["time"] for m in measured)[:16]
    for metric, machine, _, mean in found["means"]:
        of = minutes[metric, machine, begin]
        assert mean == pytest.approx(sum(of) / len(of))
    pieces = Counter()
    for step in orders:
        pieces[step["machine"], step["step"]] += step["pieces"]
    machines = sorted({m for m, _ in pieces})
    assert found["by_machine"] == [
        [m, pieces[m, "finished"], pieces[m, "scrapped"]] for m in machines
    ]
    assert found["orders"] == len({step["order"] for step in orders})
