"""Every guarantee of table storage, over a real S3 server."""

from __future__ import annotations

import itertools

import pytest

from headrace.model.clock import SystemClock
from headrace.model.errors import Unavailable
from headrace.tables.delta import DeltaTables
from headrace.tables.objects import ObjectStorage
from headrace.testing.object_server import BUCKET, object_server
from headrace.testing.tables_suite import GUARANTEES

# The first test may build the server.
pytestmark = pytest.mark.timeout(900)
PREFIXES = itertools.count()


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    try:
        with object_server(tmp_path_factory.mktemp("s3"), SystemClock()) as running:
            yield running
    except Unavailable as e:
        pytest.skip(str(e))


@pytest.fixture
def url():
    return f"s3://{BUCKET}/deep/{next(PREFIXES)}"


@pytest.mark.parametrize("guarantee", GUARANTEES, ids=lambda g: g.__name__)
def test_s3_keeps(guarantee, server, url):
    def make(clock):
        storage = ObjectStorage(url, clock, server.options())
        return DeltaTables(url, clock, storage=storage)

    guarantee(make)
