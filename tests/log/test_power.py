"""A power cut under the writer: what was acknowledged is there, and without syncs it is not."""

from __future__ import annotations

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


def cut_power(folder, mode, opener, lines):
    command = ["unshare", "-m", sys.executable, str(HERE / "power_cut.py")]
    command += [str(folder), str(mode), opener, str(lines)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)


@pytest.mark.parametrize("mode", [1, 2])
@pytest.mark.parametrize("lines", [7, 23, 150])
def test_what_was_acknowledged_survives(tmp_path, mode, lines):
    # The longer ones seal and trim segments meanwhile.
    found = cut_power(tmp_path, mode, "open_embedded", lines)
    assert found.stdout == "all there", found.stderr


def test_a_missing_sync_is_noticed(tmp_path):
    found = cut_power(tmp_path, 2, "open_unsynced", 150)
    assert found.stdout != "all there"
