from __future__ import annotations

import io
import json
from typing import NamedTuple

import pytest

from headrace.app.cli.main import call


class Ended(NamedTuple):
    """How a command line ended."""

    status: int
    out: str
    err: str

    def json(self):
        return json.loads(self.out)


@pytest.fixture
def headrace(capsys, monkeypatch, tmp_path):
    """Run a command line in this process, in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HEADRACE_DATA", raising=False)

    def run(*arguments, stdin=b""):
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        capsys.readouterr()
        status = call([str(a) for a in arguments])
        return Ended(status, *capsys.readouterr())

    return run
