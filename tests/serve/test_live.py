"""`GET /v1/views/{view}/live`: events as the view is published, and how streams end."""

import json
import signal
import threading
import time
from contextlib import ExitStack, contextmanager

import httpx2
import pytest

from headrace.app.cluster.ports import free_port

HOSTS = ("a", "b", "c")


@pytest.fixture
def server(world, start_server):
    world.epoch([world.sale(0)])
    publish(world, 1)
    port = free_port()
    process = start_server("127.0.0.1", str(port))
    assert process.stdout.readline() == "ready\n"
    return process, f"http://127.0.0.1:{port}"


def publish(world, sales, epoch=1):
    world.publish(
        [{"host": h, "sales": sales, "sum": float(i)} for i, h in enumerate(HOSTS)], epoch
    )


@contextmanager
def listening(url, path="/v1/views/by_host/live", seen=None, **params):
    headers = {"last-event-id": seen} if seen else {}
    with httpx2.stream("GET", url + path, params=params, headers=headers, timeout=20) as answer:
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith("text/event-stream")
        yield events(answer.iter_lines())


def events(lines):
    """Yield (id, data) of each event."""
    found = {}
    for line in lines:
        name, _, value = line.partition(": ")
        if name:
            found[name] = value
        elif not line:
            if "data" in found:
                assert found["event"] == "rows"
                yield found["id"], json.loads(found["data"])
            found = {}


def test_the_newest_comes_at_once_and_each_that_is_published(world, server):
    _, url = server
    with listening(url) as found:
        first, data = next(found)
        assert [r["host"] for r in data["rows"]] == list(HOSTS)
        assert data["rows"][0]["sales"] == 1
        assert (data["more"], data["offsets"]) == (False, {"events/0": 1, "events/1": 0})
        assert data["committed_at"]
        publish(world, 2)
        second, data = next(found)
        assert data["rows"][0]["sales"] == 2
        assert first != second
        world.epoch([world.sale(1)])
        publish(world, 3, epoch=2)
        _, data = next(found)
        assert data["offsets"]["events/0"] == 2


def test_what_was_seen_is_not_sent_again_and_what_was_missed_is_made_good(world, server):
    _, url = server
    with listening(url) as found:
        seen, _ = next(found)
    with listening(url, seen=seen) as found:
        publish(world, 2)
        newer, data = next(found)
        assert data["rows"][0]["sales"] == 2
    publish(world, 3)
    publish(world, 4)
    with listening(url, seen=newer) as found:
        assert next(found)[1]["rows"][0]["sales"] == 4


def test_a_page_is_chosen_like_a_views(world, server):
    _, url = server
    with listening(url, order="-host", limit=2, columns="host", host__ne="b") as found:
        assert next(found)[1]["rows"] == [{"host": "c"}, {"host": "a"}]
    with listening(url, limit=1) as found:
        assert next(found)[1]["more"] is True


@pytest.mark.parametrize(
    ("path", "status", "code"),
    [
        ("/v1/views/nothing/live", 404, "unknown_view"),
        ("/v1/views/sales/live", 404, "unknown_view"),
        ("/v1/views/by_host/live?nosuch=1", 400, "unknown_parameter"),
        ("/v1/views/by_host/live?limit=0", 400, "invalid_parameter"),
        ("/v1/views/by_host/live?limit=100000", 400, "invalid_parameter"),
        ("/v1/views/by_host/live?format=csv", 400, "unknown_parameter"),
    ],
)
def test_what_is_wrong_is_said_instead_of_a_stream(client, path, status, code):
    answer = client.ask(path)
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)


def test_head_is_answered_without_a_stream(client):
    answer = client.ask("/v1/views/by_host/live", "HEAD")
    assert (answer.status_code, answer.content) == (200, b"")
    assert answer.headers["content-type"].startswith("text/event-stream")


def test_many_share_one_channel_and_all_hear_of_a_change(world, server):
    _, url = server
    with ExitStack() as stack:
        streams = [stack.enter_context(listening(url)) for _ in range(40)]
        assert {next(s)[1]["rows"][0]["sales"] for s in streams} == {1}
        publish(world, 2)
        assert {next(s)[1]["rows"][0]["sales"] for s in streams} == {2}


def test_who_reads_slowly_gets_the_newest(world, server):
    _, url = server
    with listening(url) as found:
        next(found)
        # The small buffers between hold a few of them at most.
        for sales in range(2, 12):
            publish(world, sales)
            time.sleep(0.12)
        last = 0
        while last != 11:
            _, data = next(found)
            assert data["rows"][0]["sales"] > last
            last = data["rows"][0]["sales"]


def test_streams_end_with_the_server(world, server):
    process, url = server
    ended = threading.Event()

    def listen():
        with listening(url) as found:
            for _ in found:
                ready.set()
        ended.set()

    ready = threading.Event()
    thread = threading.Thread(target=listen)
    thread.start()
    assert ready.wait(10)
    process.send_signal(signal.SIGTERM)
    assert process.wait(10) == 0
    thread.join(10)
    assert ended.is_set()
