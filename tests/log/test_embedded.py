from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
import threading
from contextlib import closing

import apsw
import pytest

from headrace.log import segment as segments
from headrace.log.embedded import EmbeddedLog, EmbeddedLogReader
from headrace.log.group import Append
from headrace.log.segment import check_sqlite
from headrace.model.clock import ManualClock, SystemClock
from headrace.model.errors import Closed, Internal, Invalid, Unavailable
from headrace.testing import log_crashes
from headrace.testing.log_place import expect_error, read_values, values
from headrace.testing.log_worker import numbered

WAIT_S = 60
HOUR_S = 3600


@pytest.mark.parametrize("version", ["3.7.0", "3.40.1", "3.44.5", "3.50.6", "3.51.2"])
def test_a_sqlite_that_loses_commits_is_refused(version):
    assert expect_error(Invalid, lambda: check_sqlite(version)).code == "sqlite_unsafe"


@pytest.mark.parametrize("version", ["3.6.23", "3.44.6", "3.50.7", "3.51.3", "3.54.1"])
def test_a_repaired_sqlite_is_taken(version):
    check_sqlite(version)


def test_a_second_writer_is_refused(log, tiny):
    error = expect_error(Invalid, tiny.open)
    assert error.code == "log_in_use"
    assert error.hint
    log.append("events", numbered(0, 1))
    log.close()
    tiny.open().close()


def test_commits_are_synced(log):
    connection = log._writer._connection
    assert connection.pragma("journal_mode") == "wal"
    assert connection.pragma("synchronous") == 2
    assert connection.pragma("wal_autocheckpoint") == 0


def test_an_old_segment_is_sealed_once_it_holds_something(roomy):
    clock = ManualClock()
    with closing(EmbeddedLog(roomy.directory, clock, segment_age_s_max=HOUR_S)) as log:
        log.create("events", 1)
        log.append("events", numbered(0, 1))
        clock.advance(HOUR_S - 1)
        log.append("events", numbered(1, 2))
        assert len(roomy.segments()) == 1
        clock.advance(1)
        log.append("events", numbered(2, 3))
        # The answer comes before the segment is tended; the next call comes after it.
        log.put_if("key", 0, b"")
        assert len(roomy.segments()) == 2
        clock.advance(2 * HOUR_S)
        log.create("events", 1)
        log.create("events", 1)
        assert len(roomy.segments()) == 3
        clock.advance(2 * HOUR_S)
        log.create("events", 1)
        log.create("events", 1)
        assert len(roomy.segments()) == 3
        assert read_values(log, "events") == [b"0", b"1", b"2"]


def test_a_sealed_segment_is_one_plain_file(log, tiny):
    log.append("events", numbered(0, 1))
    assert log.seal()
    sealed, newest = tiny.segments()
    assert sorted(path.name for path in tiny.directory.glob(f"{sealed.name}*")) == [sealed.name]
    with closing(apsw.Connection(str(sealed), flags=apsw.SQLITE_OPEN_READONLY)) as connection:
        assert connection.pragma("journal_mode") == "delete"
        assert segments.is_closed(connection)
    assert newest.name.endswith("2.db")


def test_a_segment_held_open_is_settled_later(log, tiny):
    log.append("events", numbered(0, 1))
    holder = segments.open_reading(tiny.segments()[0])
    log.seal()
    assert log._writer._unsettled == [1]
    log.append("events", numbered(1, 2))
    log.trim("events", [2])
    assert len(tiny.segments()) == 2
    holder.close()
    log.trim("events", [2])
    assert len(tiny.segments()) == 1
    assert read_values(log, "events", start=1) == [b"1"]


def test_a_segment_goes_when_no_topic_needs_it(log, tiny):
    log.create("slow", 2)
    log.append("events", numbered(0, 5))
    log.append("slow", numbered(0, 1))
    log.seal()
    log.append("events", numbered(5, 9))
    log.seal()
    log.trim("events", [8])
    assert log.starts("events") == [0]
    log.trim("slow", [1, 0])
    assert log.starts("events") == [5]
    log.delete("events")
    log.create("events", 1)
    log.trim("events", [0])
    assert len(tiny.segments()) == 1


def test_a_trimmed_segment_leaves_no_file_behind(log, tiny):
    log.append("events", numbered(0, 1))
    log.seal()
    log.trim("events", [1])
    assert {path.name.partition(".")[0] for path in tiny.directory.iterdir()} == {
        "lock",
        f"{2:020d}",
    }


def test_leftovers_of_a_crash_are_removed(tiny):
    tiny.open().close()
    strays = [tiny.directory / name for name in (f"{9:020d}.new", f"{7:020d}.db-wal")]
    for stray in strays:
        stray.write_bytes(b"half")
    tiny.open().close()
    assert not any(stray.exists() for stray in strays)


def test_what_waits_is_bounded(roomy):
    waiting, going_on = threading.Event(), threading.Event()

    def block(_):
        waiting.set()
        going_on.wait(WAIT_S)

    with closing(roomy.open(queue_bytes_max=10_000)) as log:
        log.create("events", 1)
        log.submit("events", numbered(0, 1), block)
        waiting.wait(WAIT_S)
        answers = []
        log.submit("events", values(b"x" * 9000), answers.append)
        error = expect_error(
            Unavailable, lambda: log.submit("events", values(b"x" * 9000), answers.append)
        )
        assert error.retry_after_s > 0
        going_on.set()
        log.append("events", values(b"last"))
        assert [len(value) for value in read_values(log, "events")] == [1, 9000, 4]


def test_an_append_that_never_fits_is_invalid(roomy):
    with closing(roomy.open(queue_bytes_max=10_000)) as log:
        log.create("events", 1)
        error = expect_error(Invalid, lambda: log.append("events", values(b"x" * 10_001)))
        assert error.code == "batch_too_large"
        log.append("events", values(b"fits"))


def test_an_error_in_a_callback_reaches_nobody_else(log, caplog):
    def fail(_):
        raise ValueError("mine")

    log.submit("events", numbered(0, 1), fail)
    log.append("events", numbered(1, 2))
    assert "mine" in caplog.text
    assert read_values(log, "events") == [b"0", b"1"]


def test_no_room_is_unavailable_and_passes(log, monkeypatch):
    log.append("events", numbered(0, 1))
    monkeypatch.setenv("HEADRACE_FAILPOINT", "append.1=full")
    monkeypatch.setattr("headrace.model.failpoint._seen", {})
    error = expect_error(Unavailable, lambda: log.append("events", numbered(1, 2), {"k": b"1"}))
    assert error.code == "no_room"
    assert (log.ends("events"), log.get("k")) == ([1], None)
    log.append("events", numbered(1, 2))
    assert read_values(log, "events") == [b"0", b"1"]


def test_nobody_is_fenced_by_an_append_that_found_no_room(log, monkeypatch):
    monkeypatch.setenv("HEADRACE_FAILPOINT", "append.1=full")
    monkeypatch.setattr("headrace.model.failpoint._seen", {})
    two = [
        Append("events", records, records.size_bytes, print, {"cursor": b"1"}, {"cursor": 0})
        for records in (numbered(0, 1), numbered(1, 1))
    ]
    assert [type(answer) for answer in log._writer.append(two)] == [Unavailable, Unavailable]


def test_no_room_for_the_next_segment_keeps_this_one(log, tiny, monkeypatch):
    log.append("events", numbered(0, 1))
    monkeypatch.setenv("HEADRACE_FAILPOINT", "seal.1=full")
    monkeypatch.setattr("headrace.model.failpoint._seen", {})
    assert not log.seal()
    log.append("events", numbered(1, 2))
    assert log.seal()
    assert read_values(log, "events") == [b"0", b"1"]


@pytest.mark.parametrize("failpoint", ["append.1=error", "append.3=error", "append.3=full"])
def test_doubt_about_a_commit_ends_the_log(roomy, monkeypatch, failpoint):
    fatal = []
    log = roomy.open(fatal=fatal.append)
    log.create("events", 1)
    log.append("events", numbered(0, 1))
    monkeypatch.setenv("HEADRACE_FAILPOINT", failpoint)
    monkeypatch.setattr("headrace.model.failpoint._seen", {})
    error = expect_error(Internal, lambda: log.append("events", numbered(1, 2)))
    assert error.code == "durability_unknown"
    expect_error(Closed, lambda: log.append("events", numbered(2, 3)))
    log.close()
    assert [type(e) for e in fatal] == [OSError]
    monkeypatch.delenv("HEADRACE_FAILPOINT")
    with closing(roomy.open()) as log:
        (end,) = log.ends("events")
        assert read_values(log, "events") == [b"%d" % n for n in range(end)]
        assert end == (2 if failpoint.startswith("append.3") else 1)


@pytest.mark.skipif(not shutil.which("strace"), reason="strace is not installed")
def test_a_failed_sync_ends_the_process(tiny):
    worker = [sys.executable, "-m", "headrace.testing.log_worker", *tiny.worker(), "1000"]
    inject = "inject=fdatasync,fsync:error=EIO:when=60+"
    command = ["strace", "-f", "-o", "/dev/null", "-e", "trace=fdatasync,fsync", "-e", inject]
    done = subprocess.run(
        [*command, *worker], capture_output=True, text=True, timeout=WAIT_S, check=False
    )
    if "Operation not permitted" in done.stderr:
        pytest.skip("processes may not be traced here")
    assert done.returncode == 70
    assert "recovered from disk" in done.stderr
    acknowledged = {}
    log_crashes.note_acknowledged(done.stdout, acknowledged)
    assert acknowledged
    log_crashes.check_numbered(tiny, acknowledged)


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 3 MB."""
    if os.geteuid() != 0:
        pytest.skip("only root may mount a small file system")
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mounting is not allowed here")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_a_full_disk_is_unavailable_until_there_is_room(small_disk):
    ballast = small_disk / "ballast"
    ballast.write_bytes(bytes(1 << 20))
    sent = []
    with closing(EmbeddedLog(small_disk / "log", SystemClock())) as log:
        log.create("events", 1)

        def fill():
            while True:
                value = os.urandom(20_000)
                log.append("events", values(value))
                sent.append(value)

        assert expect_error(Unavailable, fill).code == "no_room"
        expect_error(Unavailable, fill)
        assert read_values(log, "events") == sent
        ballast.unlink()
        count = len(sent)
        expect_error(Unavailable, fill)
        assert len(sent) > count
        assert read_values(log, "events") == sent
    with closing(EmbeddedLogReader(small_disk / "log")) as reader:
        assert read_values(reader, "events") == sent


def test_a_reader_notices_that_the_log_was_begun_again(tiny):
    with closing(tiny.reader()) as reader:
        for number in range(2):
            with closing(tiny.open()) as log:
                log.create("events", 1)
                log.append("events", numbered(0, 3))
                log.seal()
                log.append("events", numbered(3, 4 + number))
                assert len(read_values(reader, "events")) == 4 + number
            tiny.wipe()
        assert reader.describe() == {}


def test_errno_of_no_room():
    assert segments.is_no_room(OSError(errno.ENOSPC, ""))
    assert not segments.is_no_room(OSError(errno.EIO, ""))
    assert not segments.is_no_room(apsw.IOError())
