from __future__ import annotations

import shutil
import sys
from contextlib import closing

import pytest
from kafka_place import KafkaPlace

from headrace.log.embedded import EmbeddedLog, EmbeddedLogReader
from headrace.log.remote import RemoteLog
from headrace.log.wire import serve_door
from headrace.model.clock import SystemClock

TINY_SEGMENT_BYTES = 2000


class EmbeddedPlace:
    def __init__(self, root, segment_bytes_max=256 << 20):
        self.directory = root / "log"
        self.segment_bytes_max = segment_bytes_max

    def open(self, **options):
        options = {"segment_bytes_max": self.segment_bytes_max, **options}
        # The log's own way is to end the process, which here is the one that runs the tests.
        options.setdefault("fatal", _tell)
        return EmbeddedLog(self.directory, SystemClock(), **options)

    def reader(self):
        return EmbeddedLogReader(self.directory)

    def wipe(self):
        shutil.rmtree(self.directory)

    def worker(self):
        return "headrace.testing.log_worker:open_embedded", str(self.directory)

    def segments(self):
        return sorted(self.directory.glob("*.db"))


class _Guest(RemoteLog):
    """A remote log that brings the owner along, and takes it away again."""

    def __init__(self, place):
        self.owner = place.open()
        self.door = serve_door(self.owner, place.directory / "door")
        super().__init__(place.directory, place.directory / "door")

    def close(self):
        super().close()
        self.door.close()
        self.owner.close()


class RemotePlace(EmbeddedPlace):
    def open(self):
        return _Guest(EmbeddedPlace(self.directory.parent, self.segment_bytes_max))


PLACES = {
    "embedded": EmbeddedPlace,
    "embedded-tiny-segments": lambda root: EmbeddedPlace(root, TINY_SEGMENT_BYTES),
    "remote": RemotePlace,
}


@pytest.fixture(params=PLACES)
def place(request, tmp_path):
    return PLACES[request.param](tmp_path)


@pytest.fixture
def roomy(tmp_path):
    return EmbeddedPlace(tmp_path)


@pytest.fixture
def tiny(tmp_path):
    """A place whose log seals a segment every few appends."""
    return EmbeddedPlace(tmp_path, TINY_SEGMENT_BYTES)


@pytest.fixture
def log(tiny):
    with closing(tiny.open()) as log:
        log.create("events", 1)
        yield log


@pytest.fixture
def kafka_place(kafka):
    place = KafkaPlace(kafka)
    yield place
    place.wipe()


def _tell(error: BaseException) -> None:
    sys.stderr.write(f"the log would end its process: {error!r}\n")
