"""What `headrace init` writes runs as it is, and answers the commands that stand in it."""

from __future__ import annotations

import shlex

import httpx2
import pytest
from run_example import Run, headrace, until

from headrace.app.cli.init import TEMPLATES


def asked(command, url):
    """Return the answer to one of the `curl` lines of a template."""
    words = shlex.split(command.replace("http://127.0.0.1:8080", url))[1:]
    body = words[words.index("--json") + 1] if "--json" in words else None
    method = "GET" if body is None else "POST"
    headers = {"content-type": "application/json"} if body else {}
    (where,) = [word for word in words if word.startswith(url)]
    return httpx2.request(method, where, content=body, headers=headers)


@pytest.mark.parametrize("template", TEMPLATES)
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
