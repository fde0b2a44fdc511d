from __future__ import annotations

import itertools
import sys
from pathlib import Path

import pytest

from headrace.model.clock import SystemClock
from headrace.model.errors import Unavailable
from headrace.testing.object_server import BUCKET, object_server

# The writer is run as a process by some tests, and its parts are used by others.
sys.path.insert(0, str(Path(__file__).parent))
_PREFIXES = itertools.count()


@pytest.fixture(scope="module")
def s3(tmp_path_factory):
    """A real S3 server; the first test that asks for it may have to build it."""
    try:
        with object_server(tmp_path_factory.mktemp("s3"), SystemClock()) as running:
            yield running
    except Unavailable as e:
        pytest.skip(str(e))


@pytest.fixture
def url():
    """A prefix of the server's bucket that nobody else uses."""
    return f"s3://{BUCKET}/deep/{next(_PREFIXES)}"
