"""A disk that fills up: nothing is acknowledged that has no room, and it goes on by itself."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2
import pytest
from live import Run, breaches, drain, good, numbers_in, pipeline_text, processed, sending, until

from headrace.testing.checker import Acknowledged

SIZE = "48m"


@contextmanager
def small_disk(at: Path) -> Iterator[Path]:
    """Mount a small disk in memory; it goes away with everything on it."""
    at.mkdir(parents=True, exist_ok=True)
    if os.geteuid() != 0 or shutil.which("mount") is None:
        pytest.skip("needs root and mount, for a small disk in memory")
    command = ["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "tmpfs", str(at)]
    mounted = subprocess.run(command, capture_output=True, text=True, check=False)
    if mounted.returncode:
        pytest.skip(f"cannot mount a disk in memory: {mounted.stderr.strip()}")
    try:
        yield at
    finally:
        subprocess.run(["umount", "-l", str(at)], check=True)


def fill(disk: Path) -> Path:
    """Take all the room that a disk has, to the last byte; removing the file gives it back."""
    path = disk / "filler"
    with path.open("ab", buffering=0) as file:
        for size in (1 << 20, 4096, 1):
            try:
                while True:
                    file.write(b"\0" * size)
            except OSError:
                continue
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "pipeline.py").write_text(pipeline_text())
    return tmp_path


def test_the_whole_data_directory(folder: Path) -> None:
    with small_disk(folder / "data") as disk, Run(folder) as run, sending(run) as client:
        until(lambda: processed(run.data) > 200, "events get through")
        filler = fill(disk)
        until(lambda: len(client.refused) > 3, "events are refused")
        told = Acknowledged(folder / "acknowledged").read()
        refusals = client.refused[-3:]
        assert {r.status_code for r in refusals} == {httpx2.codes.SERVICE_UNAVAILABLE}
        assert all(int(r.headers["Retry-After"]) > 0 for r in refusals)
        until(lambda: len(client.refused) > 10, "events are refused still")
        assert Acknowledged(folder / "acknowledged").read() == told
        filler.unlink()
        at = client.sent
        until(lambda: client.sent > at + 200, "events get through again")
        client.finish()
        until(lambda: processed(run.data) == client.sent, "everything acknowledged is processed")
        assert run.process.poll() is None
        run.__exit__()
        drain(folder)
        assert breaches(folder / "data", client.sent) == []


def test_the_tables_alone(folder: Path) -> None:
    data = folder / "data"
    with small_disk(data) as disk, small_disk(data / "log"), Run(folder) as run:
        with sending(run) as client:
            until(lambda: processed(run.data) > 200, "events get through")
            filler = fill(disk)
            at = client.sent
            until(lambda: client.sent > at + 500, "the door goes on")
            client.finish()
            assert client.refused == []
            assert processed(run.data) < client.sent
            filler.unlink()
            until(lambda: processed(run.data) == client.sent, "everything acknowledged is there")
        assert run.process.poll() is None
        run.__exit__()
        drain(folder)
        assert breaches(data, client.sent) == []
        assert numbers_in(data) == good(range(client.sent))
