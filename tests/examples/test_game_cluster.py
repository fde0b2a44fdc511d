"""`make demo-cluster`: the game's file as it is, on brokers and Spark that come and go with it."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import psutil
import pytest
from run_example import ROOT

from headrace.app.cluster import jars, spark

VIEW = {
    "default": 50,
    "purchase_sword": 300,
    "purchase_knife": 120,
    "joined_guild:red": 80,
    "joined_guild:blue": 60,
    "request_group": 200,
    "accept_member": 90,
}


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_game_counts_the_same_on_a_cluster(tmp_path):
    reason = spark.missing() or jars.missing("kafka")
    if reason:
        pytest.skip(reason)
    ended = subprocess.run(
        [sys.executable, ROOT / "examples" / "game" / "demo_cluster.py", "--exit"],
        env={**os.environ, "TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=800,
        check=False,
    )
    assert ended.returncode == 0, (ended.stdout, ended.stderr)
    told = json.loads(ended.stdout.splitlines()[-1])
    assert told == {"sent": 900, "acknowledged": 900, "rows": 900, "view": VIEW}
    assert list(tmp_path.iterdir()) == []
    left = [
        p
        for p in psutil.process_iter(["cmdline"])
        if str(tmp_path) in " ".join(p.info["cmdline"] or [])
    ]
    assert left == []
