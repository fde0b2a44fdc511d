"""A backup, and what a restore that broke off leaves, cannot be run by mistake."""

import pytest

from headrace.app import restore as restoring
from headrace.app.running import run_pipeline
from headrace.app.supervisor import Address
from headrace.model.clock import SystemClock
from headrace.model.errors import Invalid
from headrace.model.layout import Layout
from headrace.model.plan import Plan
from headrace.process.backup import COMPLETE


def run(root):
    address = Address("127.0.0.1", 1)
    run_pipeline(Plan("p"), Layout.at(root), SystemClock(), address, only=(), say=print)


def test_a_backup_is_restored_before_it_runs(tmp_path):
    (tmp_path / COMPLETE).touch()
    with pytest.raises(Invalid, match="backup") as refused:
        run(tmp_path)
    assert "headrace restore" in refused.value.hint


def test_a_restore_that_broke_off_does_not_run(tmp_path, monkeypatch):
    def broken(_):
        raise OSError("no space left")

    monkeypatch.setattr(restoring, "repair", broken)
    source, target = tmp_path / "copy", tmp_path / "data"
    source.mkdir()
    (source / COMPLETE).touch()
    with pytest.raises(OSError, match="space"):
        restoring.restore(source, Layout.at(target), SystemClock())
    with pytest.raises(Invalid, match="backup"):
        run(target)
