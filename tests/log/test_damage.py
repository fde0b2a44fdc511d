from __future__ import annotations

import random
import shutil
import struct
from contextlib import closing

import pytest

from headrace.log.row import pack, unpack
from headrace.log.verify import verify
from headrace.model.batch import encode
from headrace.model.errors import Corrupt, Invalid
from headrace.testing.log_place import expect_error, read_values, values
from headrace.testing.log_worker import numbered

FLIPS = 150
WAL_HEADER_BYTES, FRAME_BYTES = 32, 24 + 4096
SENT = [b"%d " % number * 30 for number in range(120)]


def fill(place):
    with closing(place.open()) as log:
        log.create("events", 1)
        for value in SENT:
            log.append("events", values(value))


def read_all(place):
    with closing(place.reader()) as reader:
        return read_values(reader, "events")


def flip(path, bit):
    with path.open("r+b") as file:
        file.seek(bit // 8)
        (byte,) = file.read(1)
        file.seek(bit // 8)
        file.write(bytes([byte ^ (1 << bit % 8)]))


def test_every_changed_bit_of_a_row_is_found():
    batch = values(b"x" * 50)
    row = pack(1, 0, 7, 1, batch.received_at, 99, encode(batch))
    for column, value in enumerate(row[:9]):
        changed = (*row[:column], value ^ 1, *row[column + 1 :])
        assert expect_error(Corrupt, lambda changed=changed: unpack(changed)).hint
    blob = bytearray(row[10])
    for at in range(len(blob)):
        blob[at] ^= 1
        with pytest.raises(Corrupt):
            unpack((*row[:10], bytes(blob)))
        blob[at] ^= 1


def test_a_changed_bit_is_never_served(roomy):
    chance = random.Random(7)
    sent = [chance.randbytes(1500) for _ in range(60)]
    with closing(roomy.open(segment_bytes_max=1 << 30)) as log:
        log.create("events", 1)
        for value in sent:
            log.append("events", values(value), {"cursor": value * 3})
        log.seal()
        expected = log.describe(), log.scan("")
    assert verify(roomy.directory) == []
    refused = 0
    for number in range(FLIPS):
        path = roomy.segments()[number % 2]
        bit = chance.randrange(path.stat().st_size * 8)
        flip(path, bit)
        try:
            with closing(roomy.reader()) as reader:
                assert (reader.describe(), reader.scan("")) == expected
                assert read_values(reader, "events") == sent
        except (Corrupt, Invalid):
            refused += 1
            assert verify(roomy.directory)
        flip(path, bit)
    # The other bits lie where nothing is stored: in free pages and behind a page's last row.
    assert refused > FLIPS // 8
    assert read_all(roomy) == sent


def test_a_shortened_segment_is_found(tiny):
    fill(tiny)
    path = tiny.segments()[1]
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size - 5000)
    assert next(damage.path for damage in verify(tiny.directory)) == path
    expect_error(Corrupt, lambda: read_all(tiny))


def test_an_empty_segment_is_found(tiny):
    fill(tiny)
    path = tiny.segments()[1]
    path.write_bytes(b"")
    assert next(damage.path for damage in verify(tiny.directory)) == path
    expect_error(Corrupt, lambda: read_all(tiny))


def test_a_missing_segment_is_found(tiny):
    fill(tiny)
    tiny.segments()[1].unlink()
    assert verify(tiny.directory)
    expect_error(Corrupt, lambda: read_all(tiny))
    assert expect_error(Corrupt, tiny.open).code == "log_gap"


def test_a_missing_newest_segment_is_found(tiny):
    fill(tiny)
    tiny.segments()[-1].unlink()
    assert expect_error(Corrupt, tiny.open).code == "log_gap"


def test_an_older_copy_is_told_by_its_ends(tiny, tmp_path):
    fill(tiny)
    shutil.copytree(tiny.directory, tmp_path / "copy")
    with closing(tiny.open()) as log:
        log.append("events", numbered(0, 5))
        before = log.describe(), log.ends("events")
    tiny.wipe()
    shutil.move(tmp_path / "copy", tiny.directory)
    with closing(tiny.open()) as log:
        assert log.describe() == before[0]
        assert log.ends("events")[0] < before[1][0]


@pytest.fixture
def crashed(tiny, tmp_path):
    """A log folder as a kill left it: its newest records are in the WAL alone."""
    with closing(tiny.open(segment_bytes_max=1 << 30)) as log:
        log.create("events", 1)
        for value in SENT:
            log.append("events", values(value))
        copy = tmp_path / "copied"
        copy.mkdir()
        for path in tiny.directory.iterdir():
            if not path.name.endswith("-shm"):
                shutil.copy(path, copy)
    tiny.wipe()
    copy.rename(tiny.directory)
    return tiny


def wal_of(place):
    (path,) = place.directory.glob("*-wal")
    return path


def test_a_crashed_log_recovers_from_its_wal(crashed):
    with closing(crashed.open()) as log:
        assert read_values(log, "events") == SENT


def test_a_commit_cut_short_is_dropped(crashed):
    path = wal_of(crashed)
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size - 10)
    with closing(crashed.open()) as log:
        assert read_values(log, "events") == SENT[:-1]


def test_a_torn_last_commit_is_dropped(crashed):
    path = wal_of(crashed)
    flip(path, (path.stat().st_size - 10) * 8)
    with closing(crashed.open()) as log:
        assert read_values(log, "events") == SENT[:-1]


@pytest.mark.parametrize("frame", [0, 3, 60])
def test_damage_in_the_middle_of_the_wal_is_no_torn_commit(crashed, frame):
    flip(wal_of(crashed), (WAL_HEADER_BYTES + frame * FRAME_BYTES + 200) * 8)
    assert expect_error(Corrupt, crashed.open).code == "log_segment_damaged"


@pytest.mark.parametrize("at", [0, 17, 25])
def test_damage_in_the_header_of_the_wal_is_found(crashed, at):
    flip(wal_of(crashed), at * 8)
    assert expect_error(Corrupt, crashed.open).code == "log_segment_damaged"


def test_the_frames_are_where_the_test_thinks(crashed):
    header = wal_of(crashed).read_bytes()[:WAL_HEADER_BYTES]
    assert struct.unpack(">8I", header)[2] == FRAME_BYTES - 24
