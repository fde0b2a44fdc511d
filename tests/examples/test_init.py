"""What `headrace init` writes runs as it is, and answers the commands that stand in it."""

from __future__ import annotations

import json
import shlex
from collections import Counter

import httpx2
import pytest
from run_example import Run, headrace, until

from headrace.testing.services import services


def asked(command, url):
    """Return the answer to one of the `curl` lines of a template."""
    words = shlex.split(command.replace("http://127.0.0.1:8080", url))[1:]
    body = words[words.index("--json") + 1] if "--json" in words else None
    method = "GET" if body is None else "POST"
    headers = {"content-type": "application/json"} if body else {}
    (where,) = [word for word in words if word.startswith(url)]
    return httpx2.request(method, where, content=body, headers=headers)


@pytest.mark.parametrize("template", ["minimal", "game"])
def test_a_template_runs_as_it_is(template, tmp_path):
    file = tmp_path / "pipeline.py"
    assert "headrace run" in headrace("init", template, "--to", file)
    lines = file.read_text().split('"""')[1].splitlines()
    send, read = [line for line in lines if line.startswith("curl ")]
    with Run(file, tmp_path / "data") as run:
        answer = asked(send, run.url)
        assert answer.status_code == 200, answer.text
        rows = until(lambda: asked(read, run.url).json()["rows"], lambda found: found)
    assert len(rows) == 1
    assert 1 in rows[0].values()
    assert run.ended == 0


def test_the_factory_replays_its_plant(tmp_path):
    file, data = tmp_path / "pipeline.py", tmp_path / "data"
    headrace("init", "factory", "--to", file)
    with Run(file, data) as run:
        watch = ("tail", "--table", "happenings", "--from", "beginning", "--count", 20, "--json")
        rows = [json.loads(line) for line in headrace(*watch, "--data", data).splitlines()]
        assert {"press-1", "press-2", "lathe-1", "oven-1"} == {row["machine"] for row in rows}
        pieces = until(
            lambda: httpx2.get(f"{run.url}/pieces").json(), lambda answer: answer["rows"]
        )
        assert set(pieces["rows"][0]) == {"machine", "good", "scrapped"}
    assert run.ended == 0


KINDS = ("gbif", "obis", "idigbio")


def is_shown(record):
    """Return whether a service shows a record to those who ask for nothing special."""
    hidden = record.get("occurrenceStatus") == "ABSENT" or record.get("absence")
    return not (hidden or record.get("dropped"))


def test_biodiversity_follows_the_three_services(tmp_path):
    """Stand-ins answer here, with all that they have: theirs is no species of that name."""
    file = tmp_path / "pipeline.py"
    headrace("init", "biodiversity", "--to", file)
    text = file.read_text()
    with services(records=40) as served:
        of_theirs = {
            'Pipeline("biodiversity")': 'Pipeline("biodiversity", private_addresses=True)',
            'filter=f"scientificName={SPECIES}"': f'url="{served.gbif}"',
            "topic=obis, taxon=SPECIES": f'topic=obis, url="{served.obis}"',
            "topic=idigbio, taxon=SPECIES": f'topic=idigbio, url="{served.idigbio}"',
            'CONTACT = ""': 'CONTACT = "me@example.org"',
        }
        for template, own in of_theirs.items():
            assert text.count(template) == 1, template
            text = text.replace(template, own)
        file.write_text(text)
        truth = {kind: sum(map(is_shown, served.truth(kind))) for kind in KINDS}
        with Run(file, tmp_path / "data") as run:
            found = until(
                lambda: httpx2.get(f"{run.url}/count?by=source").json()["rows"],
                lambda rows: {row["source"]: row["n"] for row in rows} == truth,
            )
            assert len(found) == 3
            kingdoms = httpx2.get(f"{run.url}/count?by=kingdom").json()["rows"]
    assert sum(row["n"] for row in kingdoms) == sum(truth.values())
    assert Counter(r["kingdom"] for r in kingdoms)["animalia"] == 1
