"""`make demo-biodiversity`: its last line has the old API's answers, equal to the script's."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
from run_example import ROOT

EXAMPLE = ROOT / "examples" / "biodiversity"
DATA = ROOT.parent / "shared" / "data"


def demonstrated(recordings, folder):
    """Return what it prints; it leaves nothing in the folder that it may use."""
    ended = subprocess.run(
        [sys.executable, EXAMPLE / "demo.py", "--exit"],
        env={**os.environ, "HEADRACE_RECORDINGS": str(recordings), "TMPDIR": str(folder)},
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert ended.returncode == 0, (ended.stdout, ended.stderr)
    assert list(folder.iterdir()) == []
    return ended.stdout


def script(folder):
    command = [sys.executable, "-I", EXAMPLE / "truth.py", folder]
    return json.loads(subprocess.run(command, check=True, capture_output=True).stdout)


def answers_of(printed):
    answers = json.loads(printed.splitlines()[-1])
    assert {a["message"] for a in answers.values()} == {"Success"}
    sources = [f"http://{s}.org" for s in ("gbif", "obis", "idigbio")]
    assert answers["listSources"]["sources"] == sources
    species = dict(answers["species"]["count"])
    union = species.pop("all sources")
    assert set(species) == set(sources)
    assert max(species.values()) <= union < sum(species.values())
    return {by: answers[by]["count"] for by in ("kingdom", "species", "source")}


def test_with_generated_records(tmp_path):
    counts = answers_of(demonstrated(tmp_path / "nothing", tmp_path))
    assert sum(counts["kingdom"].values()) == sum(counts["source"].values())


def test_with_recordings_it_counts_what_a_script_counts_in_them(tmp_path):
    if not (DATA / "large").is_dir():
        pytest.skip("the recordings are not at ../shared/data")
    printed = demonstrated(DATA, tmp_path)
    assert answers_of(printed) == script(DATA / "large")
    assert "every count equals the script's" in printed
