"""As many listen to a live view as may: others are told so, and reading and writing go on."""

from __future__ import annotations

import contextlib
import resource
import socket

import httpx2
import pytest
from run_example import ROOT, Run, until

from headrace.collect.limits import Limits

LISTENERS = Limits().bridge_streams_max
VIEW = "/v1/views/hosts_by_event"


@pytest.fixture
def many_files():
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 2 * LISTENERS
    if hard != resource.RLIM_INFINITY and hard < wanted:
        pytest.skip(f"needs {wanted} open files, and may have {hard}")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_thousand_listeners_and_one_too_many(many_files, tmp_path):
    with Run(ROOT / "examples" / "game" / "pipeline.py", tmp_path / "data") as run:
        httpx2.get(f"{run.url}/purchase_a_sword")
        until(lambda: httpx2.get(run.url + VIEW).json()["rows"], lambda rows: len(rows) == 1)
        with contextlib.ExitStack() as stack:
            listeners = [stack.enter_context(listener(run.port)) for _ in range(LISTENERS)]
            for each in listeners:
                heard(each, b'"event_type":"purchase_sword"')
            refused = httpx2.get(f"{run.url}{VIEW}/live")
            assert refused.status_code == 503
            assert refused.json()["error"]["code"] == "too_many_listeners"
            assert httpx2.get(run.url + VIEW).status_code == 200
            assert httpx2.get(f"{run.url}/purchase_a_knife").status_code == 200
            for each in listeners:
                heard(each, b'"event_type":"purchase_knife"')
    assert run.ended == 0


@contextlib.contextmanager
def listener(port):
    with contextlib.closing(socket.create_connection(("127.0.0.1", port), timeout=60)) as opened:
        opened.sendall(f"GET {VIEW}/live HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        yield opened


def heard(listening, word):
    """Read on until a word comes; an event may come in pieces."""
    received = b""
    while word not in received:
        piece = listening.recv(65_536)
        assert piece, received
        received += piece
