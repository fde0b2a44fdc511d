"""How a role ends, as its supervisor sees it."""

import subprocess
import sys

import msgspec

from headrace.app.role import EXIT_SYSTEM
from headrace.model.layout import Layout
from headrace.model.plan import Plan


def test_an_error_nobody_expected_is_worth_a_restart(tmp_path):
    layout = Layout.at(tmp_path / "data")
    layout.run.mkdir(parents=True)
    layout.plan.write_bytes(msgspec.json.encode(Plan("broken")))
    layout.log.write_text("a file where a folder has to be")
    command = [sys.executable, "-m", "headrace.app.role", "collect", "--data", str(layout.root)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == EXIT_SYSTEM
    assert "FileExistsError" in ended.stderr
