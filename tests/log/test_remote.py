from __future__ import annotations

import os
import signal
import socket
import stat
import subprocess
import sys
import threading
from contextlib import closing

import pytest

from headrace.log.remote import RemoteLog
from headrace.log.wire import FRAME_BYTES_MAX, serve_door
from headrace.model.errors import Closed, Corrupt, Fenced, Internal, Invalid, Unavailable
from headrace.testing.log_place import expect_error, read_values, values
from headrace.testing.log_worker import numbered

WAIT_S = 60

OWNER = """
import sys, threading
from pathlib import Path
from headrace.log.embedded import EmbeddedLog
from headrace.log.wire import serve_door
from headrace.model.clock import SystemClock
log = EmbeddedLog(Path(sys.argv[1]), SystemClock())
log.create("events", 1)
door = serve_door(log, Path(sys.argv[2]))
print("open", flush=True)
threading.Event().wait()
"""


@pytest.fixture
def path(tmp_path):
    return tmp_path / "door"


@pytest.fixture
def door(log, path):
    with closing(serve_door(log, path)) as door:
        yield door


@pytest.fixture
def remote(tiny, path):
    with closing(RemoteLog(tiny.directory, path)) as remote:
        yield remote


def test_without_an_owner_writing_is_unavailable(remote):
    error = expect_error(Unavailable, lambda: remote.create("events", 1))
    assert error.code == "log_owner_absent"
    assert error.hint
    assert remote.describe() == {}


def test_the_socket_is_for_its_user_alone(door, path):
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    door.close()
    assert not path.exists()


def test_a_socket_that_a_dead_owner_left_is_replaced(log, path, remote):
    left = socket.socket(socket.AF_UNIX)
    left.bind(str(path))
    left.close()
    expect_error(Unavailable, lambda: remote.create("events", 1))
    with closing(serve_door(log, path)):
        assert remote.append("events", numbered(0, 1))[0].base_offset == 0


def test_a_path_too_long_for_a_socket_says_so(log, tmp_path):
    error = expect_error(Invalid, lambda: serve_door(log, tmp_path / ("x" * 120)))
    assert error.code == "door_path"


def test_the_owner_may_come_and_go(log, path, remote):
    for number in range(3):
        with closing(serve_door(log, path)):
            remote.append("events", numbered(number, number + 1))
        expect_error(Unavailable, lambda: remote.append("events", values(b"no")))
    assert read_values(remote, "events") == [b"0", b"1", b"2"]


@pytest.mark.parametrize(
    "error",
    [
        Invalid("a", hint="b", code="c"),
        Unavailable("a", hint="b", code="c", retry_after_s=2.5),
        Fenced("a"),
        Corrupt("a", hint="b"),
        Closed("a"),
        Internal("a", code="c"),
    ],
)
def test_an_error_keeps_its_kind_and_words(log, door, remote, monkeypatch, error):
    def fail(*_):
        raise error

    monkeypatch.setattr(log, "create", fail)
    found = expect_error(type(error), lambda: remote.create("events", 1))
    assert type(found) is type(error)
    assert vars(found) == vars(error)


def test_appends_of_one_caller_keep_their_order(door, remote):
    finished = threading.Event()
    answers = []

    def done(answer):
        answers.append(answer[0].base_offset)
        if len(answers) == 2000:
            finished.set()

    for number in range(2000):
        remote.submit("events", numbered(number, number + 1), done)
    assert finished.wait(WAIT_S)
    assert answers == list(range(2000))
    assert read_values(remote, "events") == [b"%d" % number for number in range(2000)]


@pytest.mark.parametrize(
    "noise", [b"\0\0\0\5hello", b"\xff\xff\xff\xff", b"\0\0\0\x09short", b"\0"]
)
def test_noise_harms_only_who_makes_it(door, path, remote, noise):
    with socket.socket(socket.AF_UNIX) as guest:
        guest.connect(str(path))
        guest.sendall(noise)
        guest.shutdown(socket.SHUT_WR)
        guest.settimeout(WAIT_S)
        assert guest.recv(1) == b""
    assert remote.append("events", numbered(0, 1))[0].base_offset == 0


def test_a_frame_too_large_is_not_sent(door, remote):
    batch = values(bytes(FRAME_BYTES_MAX))
    assert expect_error(Invalid, lambda: remote.append("events", batch)).code == "batch_too_large"
    remote.append("events", numbered(0, 1))


def test_the_outcome_of_a_write_is_unknown_when_the_owner_dies_over_it(tiny, path):
    command = [sys.executable, "-c", OWNER, str(tiny.directory), str(path)]
    environment = {**os.environ, "HEADRACE_FAILPOINT": "append.3:3=kill"}
    with (
        subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as owner,
        closing(RemoteLog(tiny.directory, path)) as remote,
    ):
        try:
            assert owner.stdout is not None
            assert owner.stdout.readline() == "open\n"
            remote.append("events", numbered(0, 1))
            error = expect_error(Unavailable, lambda: remote.append("events", numbered(1, 2)))
            assert error.code == "outcome_unknown"
            assert owner.wait(WAIT_S) == -signal.SIGKILL
        finally:
            owner.kill()
        assert read_values(remote, "events") == [b"0", b"1"]


def test_an_owner_that_stands_still_is_not_waited_for_forever(tiny, path):
    command = [sys.executable, "-c", OWNER, str(tiny.directory), str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as owner:
        try:
            assert owner.stdout is not None
            assert owner.stdout.readline() == "open\n"
            with closing(RemoteLog(tiny.directory, path, timeout_s=0.3)) as remote:
                owner.send_signal(signal.SIGSTOP)
                error = expect_error(Unavailable, lambda: remote.append("events", numbered(0, 1)))
                assert error.code == "outcome_unknown"
        finally:
            owner.kill()
