from __future__ import annotations

import gzip
import json
import threading
from contextlib import contextmanager

import msgspec
import pytest
from local_server import Quiet, serving_by

from headrace.app.cluster.ports import free_port
from headrace.model.clock import ManualClock, SystemClock
from headrace.model.errors import Closed, Invalid, Unavailable
from headrace.sources import http
from headrace.sources.http import Network, Service, user_agent

ANY = msgspec.json.Decoder()
NOW_US = 1_792_000_000_000_000
"""2026-10-14T17:46:40Z."""
HTTP_NOW = "Wed, 14 Oct 2026 17:46:40 GMT"


class Answers:
    """A server that answers each request with the next of its answers, the last one for ever."""

    def __init__(self):
        self.answers = [(200, {}, b"{}")]
        self.seen = []
        self.at_once = 0
        self.most_at_once = 0
        self.hold = threading.Event()
        self.hold.set()
        self.arrived = threading.Event()

    def next(self):
        return self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]


@contextmanager
def answering():
    answers = Answers()

    class Handler(Quiet):
        def do_GET(self):  # noqa: N802 - so http.server asks for it
            answers.at_once += 1
            answers.most_at_once = max(answers.most_at_once, answers.at_once)
            body = self.rfile.read(int(self.headers.get("content-length", 0)))
            answers.seen.append((self.command, self.path, dict(self.headers), body))
            answers.arrived.set()
            answers.hold.wait(20)
            answer = answers.next()
            answers.at_once -= 1
            if isinstance(answer, bytes):
                self.wfile.write(answer)
                self.close_connection = True
                return
            status, headers, sent = answer
            self.send_response(status)
            for name, value in {"Content-Length": str(len(sent)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(sent)

        do_POST = do_GET  # noqa: N815 - so http.server asks for it

    with serving_by(Handler, answers.hold) as url:
        answers.url = f"{url}/v1"
        yield answers


@pytest.fixture(scope="module")
def server():
    with answering() as answers:
        yield answers


@pytest.fixture
def serving(server):
    server.__init__()
    return server


@pytest.fixture(scope="module")
def network():
    return Network(ManualClock(NOW_US), private=True)


@pytest.fixture
def clock(network):
    """The network's clock, an hour on: no test waits for what another one was asked to wait."""
    network.clock.advance(3600 - network.clock.monotonic_s() % 3600)
    network.clock.set_now_us(NOW_US)
    return network.clock


def service(network, url, **about):
    about = {"contact": "me@example.org", "timeout_s": 10.0, "requests_per_s": 1.0, **about}
    return Service(network, url, closed=about.pop("closed", threading.Event()), **about)


def unavailable(asking, path="/x"):
    with pytest.raises(Unavailable) as failure:
        asking.get(path)
    return failure.value


# --- asking


def test_a_request_says_who_asks_and_what_it_takes(serving, network, clock):
    asking = service(network, serving.url + "/")
    answer = asking.get("/things", {"q": "a b", "n": 3}, headers={"if-none-match": '"e"'})
    ((method, path, headers, _),) = serving.seen
    assert (method, path) == ("GET", "/v1/things?q=a+b&n=3")
    assert headers["user-agent"] == user_agent("me@example.org")
    assert headers["accept-encoding"] == "gzip"
    assert headers["accept"] == "application/json"
    assert headers["if-none-match"] == '"e"'
    assert (answer.status, answer.read(ANY), answer.asked_at_us) == (200, {}, NOW_US)


def test_the_user_agent_names_program_version_and_contact():
    assert user_agent("me@example.org").startswith("headrace/")
    assert user_agent("me@example.org").endswith(" (me@example.org)")
    assert "(" not in user_agent("")
    assert user_agent("a)\r\nX-Evil: 1(é").isprintable()
    assert user_agent("a)\r\nX-Evil: 1(é").count(")") == 1


def test_a_body_is_posted_as_json(serving, network, clock):
    service(network, serving.url).post("/search", {"rq": {"a": 1}})
    ((method, _, headers, body),) = serving.seen
    assert (method, json.loads(body)) == ("POST", {"rq": {"a": 1}})
    assert headers["content-type"] == "application/json"


def test_a_compressed_answer_is_read(serving, network, clock):
    body = gzip.compress(b'{"a": "' + b"x" * 100_000 + b'"}')
    serving.answers = [(200, {"Content-Encoding": "gzip"}, body)]
    assert len(service(network, serving.url).get("/x").read(ANY)["a"]) == 100_000


def test_a_304_is_an_answer(serving, network, clock):
    serving.answers = [(304, {"ETag": '"e"'}, b"")]
    answer = service(network, serving.url).get("/x")
    assert answer.not_modified
    assert answer.headers["etag"] == '"e"'


def test_a_redirect_is_followed_and_one_that_leads_inside_is_not(serving, network, clock):
    serving.answers = [(302, {"Location": "/v1/there"}, b""), (200, {}, b"1")]
    assert service(network, serving.url).get("/x").read(ANY) == 1
    inside = "http://169.254.169.254/latest/meta-data/"
    serving.answers = [(302, {"Location": inside}, b""), (200, {}, b"1")]
    with pytest.raises(Invalid) as refused:
        service(network, serving.url).get("/x")
    assert refused.value.code == "metadata_address"


def test_a_private_address_is_asked_only_with_the_owners_switch(serving):
    guarded = Network(ManualClock(), private=False)
    with pytest.raises(Invalid) as refused:
        service(guarded, serving.url).get("/x")
    assert refused.value.code == "loopback_address"
    assert serving.seen == []
    guarded.close()


@pytest.mark.parametrize("url", ["http://", "http://[", "://x", "ftp://127.0.0.1/x"])
def test_an_url_that_is_none_is_invalid(url, network, clock):
    with pytest.raises(Invalid):
        service(network, url).get("/x")


# --- politeness


def test_requests_to_a_host_are_paced(serving, network, clock):
    asking = service(network, serving.url, requests_per_s=0.5)
    began_s = clock.monotonic_s()
    for _ in range(4):
        asking.get("/x")
    assert clock.monotonic_s() - began_s == pytest.approx(6.0)


def test_two_sources_of_a_host_take_turns(serving, network, clock):
    begun_s = clock.monotonic_s()
    asking = [service(network, serving.url) for _ in range(4)]
    threads = [threading.Thread(target=one.get, args=("/x",)) for one in asking]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(serving.seen) == 4
    assert serving.most_at_once == 1
    assert clock.monotonic_s() - begun_s >= 3.0


@pytest.mark.parametrize(
    ("status", "headers", "wait_s"),
    [
        (429, {"Retry-After": "7"}, 7.0),
        (503, {"Retry-After": "120"}, 120.0),
        (429, {"Retry-After": "Wed, 14 Oct 2026 17:47:10 GMT"}, 30.0),
        # Their clock is an hour ahead of ours: their own date says what they mean.
        (
            429,
            {
                "Retry-After": "Wed, 14 Oct 2026 18:47:10 GMT",
                "Date": "Wed, 14 Oct 2026 18:46:40 GMT",
            },
            30.0,
        ),
        (429, {"Retry-After": "Wed, 14 Oct 2020 00:00:00 GMT"}, 0.0),
        (429, {"Retry-After": "999999999"}, http.RETRY_AFTER_S_MAX),
        (429, {"Retry-After": "soon"}, http.RETRY_AFTER_S),
        (429, {"Retry-After": "-5"}, http.RETRY_AFTER_S),
        (429, {"Retry-After": "\u0663"}, http.RETRY_AFTER_S),
        (429, {}, http.RETRY_AFTER_S),
        (420, {"Retry-After": "9"}, 9.0),
    ],
)
def test_a_service_says_how_long_to_wait(status, headers, wait_s, serving, network, clock):
    headers = {"Date": HTTP_NOW} | {k: v.encode().decode("latin-1") for k, v in headers.items()}
    answer = f"HTTP/1.1 {status} No\r\nContent-Length: 0\r\n" + "".join(
        f"{name}: {value}\r\n" for name, value in headers.items()
    )
    serving.answers = [answer.encode("latin-1") + b"\r\n"]
    failure = unavailable(service(network, serving.url))
    assert failure.code == "asked_to_wait"
    assert failure.retry_after_s == pytest.approx(wait_s)


def test_a_host_that_asked_to_wait_is_left_alone_by_all_sources(serving, network, clock):
    serving.answers = [(429, {"Retry-After": "60"}, b""), (200, {}, b"1")]
    unavailable(service(network, serving.url))
    clock.advance(20)
    waiting = unavailable(service(network, serving.url))
    assert waiting.retry_after_s == pytest.approx(40.0, abs=1)
    assert len(serving.seen) == 1
    clock.advance(40)
    assert service(network, serving.url).get("/x").read(ANY) == 1


def test_too_many_downloads_do_not_hold_up_searches(serving, network, clock):
    serving.answers = [(420, {"Retry-After": "60"}, b"too many"), (200, {}, b"1")]
    asking = service(network, serving.url)
    unavailable(asking)
    assert asking.get("/x").read(ANY) == 1


# --- what goes wrong


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ((500, {}, b'{"error":"Internal Server Error"}'), "answered 500: Internal Server Error"),
        ((502, {}, b"<html><title>Bad\nGateway</title>"), "answered 502: Bad Gateway"),
        ((408, {}, b""), "answered 408"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{", "could not be asked"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n{", "could not be asked"),
        (b"", "could not be asked"),
        (b"nonsense\r\n\r\n", "could not be asked"),
        ((200, {"Content-Encoding": "gzip"}, b"no gzip"), "could not be asked"),
    ],
)
def test_what_is_worth_asking_again(answer, said, serving, network, clock):
    serving.answers = [answer]
    failure = unavailable(service(network, serving.url))
    assert said in failure.message
    assert failure.hint


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"\xef\xbb\xbf <!DOCTYPE html><p>We are back soon", "with HTML"),
        (b'{"a": [1, 2', "cannot be read"),
        (gzip.compress(b'{"a": 1}', mtime=0)[:-12], "cannot be read"),
        (b"", "cannot be read"),
        (b'{"a": "\xff\xfe"}', "cannot be read"),
        (b"[" * 100_000, "cannot be read"),
    ],
)
def test_an_answer_that_is_no_json_is_asked_again(body, said, serving, network, clock):
    zipped = body[:2] == b"\x1f\x8b"
    serving.answers = [(200, {"Content-Encoding": "gzip"} if zipped else {}, body)]
    answer = service(network, serving.url).get("/x")
    with pytest.raises(Unavailable, match=said):
        answer.read(msgspec.json.Decoder(dict[str, object]))


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ((400, {}, b"Something broke: Size 20000 too large"), "Size 20000 too large"),
        ((400, {}, b'{"error":"numeric expected","parameter":"limit"}'), '{"parameter":"limit"}'),
        ((404, {}, b"<!DOCTYPE html><pre>Cannot GET /x</pre>"), "a page of HTML"),
        ((401, {}, b""), "answered 401"),
        ((422, {}, b"x" * 5_000), "x" * http.WORDS_MAX + "…"),
        ((400, {}, b"two\r\n\tlines\x1b[31m"), "two lines [31m"),
        ((300, {}, b""), "answered 300"),
    ],
)
def test_what_asking_again_does_not_help(answer, said, serving, network, clock):
    serving.answers = [answer]
    with pytest.raises(Invalid) as refused:
        service(network, serving.url).get("/x", {"secret": "1"})
    assert refused.value.code == "refused_by_service"
    assert refused.value.message.endswith(said)
    assert "secret" not in refused.value.message
    assert refused.value.hint


def test_a_body_without_end_is_refused(serving, network, clock, monkeypatch):
    monkeypatch.setattr(http, "ANSWER_BYTES_MAX", 100_000)
    bomb = gzip.compress(b" " * 10_000_000)
    serving.answers = [(200, {"Content-Encoding": "gzip"}, bomb)]
    with pytest.raises(Invalid) as refused:
        service(network, serving.url).get("/x")
    assert refused.value.code == "answer_too_big"


def test_a_service_that_does_not_answer_is_given_up(serving, network, clock):
    serving.hold.clear()
    failure = unavailable(service(network, serving.url, timeout_s=0.2))
    assert failure.code == "timed_out"
    assert "within 0.2 s" in failure.message


def test_where_nothing_listens_is_asked_again(network, clock):
    port = free_port()
    assert unavailable(service(network, f"http://127.0.0.1:{port}")).code == "not_reached"


# --- closing


def test_closing_leaves_a_request_that_hangs(serving):
    network, closed = Network(SystemClock(), private=True), threading.Event()
    asking = service(network, serving.url, closed=closed, timeout_s=600.0)
    serving.hold.clear()
    ended = []

    def ask():
        try:
            asking.get("/x")
        except Closed:
            ended.append("closed")

    thread = threading.Thread(target=ask)
    thread.start()
    assert serving.arrived.wait(20)
    closed.set()
    thread.join(20)
    assert ended == ["closed"]
    serving.hold.set()
    network.close()


def test_closing_ends_a_pause(serving):
    network, closed = Network(SystemClock(), private=True), threading.Event()
    asking = service(network, serving.url, closed=closed, requests_per_s=0.001)
    asking.get("/x")
    threading.Timer(0.05, closed.set).start()
    with pytest.raises(Closed):
        asking.get("/x")
    with pytest.raises(Closed):
        asking.get("/x")
    assert len(serving.seen) == 1
    network.close()


# --- files


def test_a_file_is_downloaded(serving, network, clock, tmp_path):
    body = bytes(range(256)) * 1_000
    serving.answers = [(200, {"Content-Type": "application/zip"}, body)]
    to = tmp_path / "a.zip"
    answer = service(network, serving.url).download("/x", to)
    assert (answer.body, answer.headers["content-type"]) == (b"", "application/zip")
    assert to.read_bytes() == body


def test_a_file_that_is_cut_off_or_too_large_is_told(serving, network, clock, tmp_path):
    asking = service(network, serving.url)
    serving.answers = [b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nabc"]
    with pytest.raises(Unavailable):
        asking.download("/x", tmp_path / "cut")
    serving.answers = [(200, {}, b"x" * 200_000)]
    with pytest.raises(Invalid) as refused:
        asking.download("/x", tmp_path / "large", bytes_max=1_000)
    assert refused.value.code == "answer_too_big"
    assert (tmp_path / "large").stat().st_size <= 1_000


def test_a_file_that_is_refused_is_not_made(serving, network, clock, tmp_path):
    serving.answers = [(404, {}, b"no such download")]
    with pytest.raises(Invalid, match="no such download"):
        service(network, serving.url).download("/x", tmp_path / "f")
    assert not (tmp_path / "f").exists()
