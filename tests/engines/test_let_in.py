"""What docs/engines/README.md says lets another user in, and to tables and views alone."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess

import pyarrow as pa
import pytest
from pages import blocks

from headrace.model.clock import SystemClock
from headrace.tables.delta import DeltaTables

OTHER = "nobody"
ROWS = pa.table({"n": [1]})


@pytest.fixture
def private():
    """The mask that a run has."""
    before = os.umask(0o077)
    yield
    os.umask(before)


def commit(tables, table):
    table.commit([tables.stage(table.snapshot.name, ROWS)])


def let_in(path):
    """Return whether the other user may read a file or folder, by its list."""
    listed = subprocess.check_output(["getfacl", "-pc", path], text=True, timeout=30)
    (entry,) = [e for e in listed.splitlines() if e.startswith(f"user:{OTHER}:")] or [""]
    return entry.partition(":")[2].startswith(f"{OTHER}:r") and "#effective:-" not in entry


def test_new_files_are_open_to_who_is_let_in(private, tmp_path):
    if shutil.which("setfacl") is None:
        pytest.skip("setfacl is not installed")
    tables = DeltaTables(tmp_path, SystemClock())
    known = [tables.create(name, ROWS.schema) for name in ("tables/a", "views/v")]
    tables.create("system/ledger", ROWS.schema)
    for line in blocks("README.md", "sh")["let in"].splitlines():
        words = line.replace("trino", OTHER).replace("game-data", str(tmp_path))
        subprocess.run(shlex.split(words), check=True)
    for table in (*known, tables.create("tables/later", ROWS.schema)):
        commit(tables, table)
        table.checkpoint(0)
    inside = [path for name in ("tables", "views") for path in (tmp_path / name).rglob("*")]
    assert len([path for path in inside if path.suffix == ".json"]) >= 3
    assert [path for path in inside if not let_in(path)] == []
    assert not any(map(let_in, (tmp_path / "system").rglob("*")))
