from __future__ import annotations

import itertools

import pytest

from headrace.model.clock import SystemClock
from headrace.model.errors import Unavailable
from headrace.testing.object_server import BUCKET, object_server

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


@pytest.fixture
def s3_environment(s3, monkeypatch):
    """The server's address and keys in the environment, as AWS's tools have them."""
    for name, value in s3.environment().items():
        monkeypatch.setenv(name, value)
