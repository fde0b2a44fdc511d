"""A whole pipeline whose tables are on a real S3 server, killed at the steps that commit to it."""

from __future__ import annotations

import signal

import pytest
from sweep import breaches, run

pytestmark = pytest.mark.timeout(900)  # the first test may build the server
TOTAL = 300
# Compaction and checkpoints on their own are killed in tests/tables/test_s3.py.
POINTS = ["stage.1:5", "delta.2:7", "commit.4", "keyed.2", "publish.2:2"]


@pytest.fixture
def sweep(tmp_path, url, s3_environment):
    def one(failpoint=""):
        return run(tmp_path, failpoint=failpoint, total=TOTAL, tables_url=url)

    yield one
    assert not (tmp_path / "tables").exists()
    assert one() == 0
    assert breaches(tmp_path, TOTAL, url) == []


@pytest.mark.parametrize("point", POINTS)
def test_killed_at(sweep, point):
    assert sweep(f"{point}=kill") == -signal.SIGKILL, f"{point} was not reached"


def test_killed_again_in_the_recovery(sweep):
    assert sweep("commit.3:2=kill") == -signal.SIGKILL
    assert sweep("rollforward.1=kill") == -signal.SIGKILL
