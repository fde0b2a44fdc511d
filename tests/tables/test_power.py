"""A power cut under the writer: what was acknowledged is there, and one fsync less is noticed."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
PROBE = "truncate -s 8M disk && mkfs.ext4 -q disk && mkdir -p at && mount -o loop disk at"

pytestmark = [pytest.mark.power]


@pytest.fixture(scope="module", autouse=True)
def _can_mount(tmp_path_factory):
    if os.geteuid() != 0:
        pytest.skip("needs root, for a loop mount")
    missing = [t for t in ("unshare", "mkfs.ext4", "mount") if shutil.which(t) is None]
    if missing:
        pytest.skip(f"needs {missing}")
    folder = tmp_path_factory.mktemp("probe")
    probe = ["unshare", "-m", "sh", "-c", PROBE]
    found = subprocess.run(probe, cwd=folder, capture_output=True, text=True, check=False)
    if found.returncode:
        pytest.skip(f"cannot mount a loop file here: {found.stderr.strip()}")


def cut_power(folder, mode, epochs, *unsynced):
    command = ["unshare", "-m", sys.executable, str(HERE / "power_cut.py")]
    command += [str(folder), str(mode), str(epochs), *unsynced]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr
    return json.loads(found.stdout)


@pytest.mark.parametrize("mode", [1, 2])
@pytest.mark.parametrize("epochs", [5, 15])
def test_what_was_acknowledged_survives(tmp_path, mode, epochs):
    # 5 epochs end after a compaction, 15 after checkpoints, log cleanup and clean-up of files.
    found = cut_power(tmp_path, mode, epochs)
    assert found == {"acknowledged": epochs - 1, "found": epochs - 1, "wrong": ""}


@pytest.mark.parametrize("unsynced", ["files", "folders"])
@pytest.mark.parametrize("epochs", [5, 15])
def test_a_missing_fsync_would_be_noticed(tmp_path, epochs, unsynced):
    found = cut_power(tmp_path, 2, epochs, unsynced)
    assert found["wrong"] or found["found"] < found["acknowledged"]
