"""A log that is gone, or older than the tables, is refused; a topic made anew loses nothing."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from live import Run, breaches, contents, drain, free_port, headrace, pipeline_text, sending, until

from headrace.log.embedded import EmbeddedLog
from headrace.model.clock import SystemClock


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "pipeline.py").write_text(pipeline_text('every="20 ms"'))
    return tmp_path


def feed(folder: Path, first: int = 0) -> int:
    with Run(folder) as run, sending(run, first) as client:
        until(lambda: client.sent > first + 200, "events get through")
        client.finish()
    drain(folder)
    return client.sent


def is_refused(folder: Path) -> None:
    before = contents(folder / "data")
    told = headrace(folder, "run", "pipeline.py", "--port", free_port(), status=2)
    assert "backup" in told
    assert "runs at" not in told, "the door was open"
    assert contents(folder / "data") == before


@pytest.mark.parametrize("is_folder_left", [False, True])
def test_a_log_that_was_wiped(folder: Path, *, is_folder_left: bool) -> None:
    feed(folder)
    shutil.rmtree(folder / "data" / "log")
    if is_folder_left:
        (folder / "data" / "log").mkdir()
    is_refused(folder)


def test_a_log_that_is_older_than_the_tables(folder: Path) -> None:
    sent = feed(folder)
    shutil.copytree(folder / "data" / "log", folder / "older")
    feed(folder, sent)
    shutil.rmtree(folder / "data" / "log")
    (folder / "older").rename(folder / "data" / "log")
    # New events would get offsets that the tables contain already, and be lost.
    is_refused(folder)


def test_a_topic_that_was_deleted_and_made_again(folder: Path) -> None:
    sent = feed(folder)
    log = EmbeddedLog(folder / "data" / "log", SystemClock())
    log.delete("events")
    log.create("events", 3)
    log.close()
    assert breaches(folder / "data", feed(folder, sent)) == []
