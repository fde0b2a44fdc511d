"""The source `http_stream`, over a server that breaks off, repeats and resumes."""

from __future__ import annotations

import json
import threading
from contextlib import closing, contextmanager
from urllib.parse import parse_qs, urlsplit

import msgspec
import pytest
from local_server import Quiet, serving_by

from headrace.model.clock import SystemClock
from headrace.model.errors import Invalid, Unavailable
from headrace.model.options import read_options
from headrace.sources import http_stream
from headrace.sources.http import Network
from headrace.sources.http_stream import PAGE_RECORDS_MAX, HttpStream, HttpStreamOptions
from headrace.testing.source_suite import GUARANTEES

TIMES = [1, 2, 2, 3, 4, 4, 4, 5]


class Streams:
    """A server that sends, to each that connects, the next of its scripts."""

    def __init__(self) -> None:
        self.records = [{"time": t, "n": n} for n, t in enumerate(TIMES)]
        self.media_type = "application/x-ndjson"
        self.breaks_after: list[int | None] = []
        """After how many records each connection breaks off; None and beyond: never."""
        self.resumes = False
        """Whether `from` and `Last-Event-ID` are heeded."""
        self.status = 200
        self.holds = threading.Event()
        """Unset, a connection waits at its end."""
        self.holds.set()
        self.asked: list[tuple[str, dict[str, str]]] = []
        self.url = ""

    def body(self, path, headers):
        """Yield what is sent, piece by piece."""
        records = list(enumerate(self.records))
        query = parse_qs(urlsplit(path).query)
        if self.resumes and "from" in query:
            records = [(i, r) for i, r in records if r["time"] >= float(query["from"][0])]
        if self.resumes and headers.get("last-event-id"):
            records = [(i, r) for i, r in records if i > int(headers["last-event-id"])]
        for i, record in records:
            text = json.dumps(record)
            match self.media_type:
                case "text/event-stream":
                    yield f"id: {i}\ndata: {text}\n\n".encode()
                case "application/json":
                    yield text.encode()
                case _:
                    yield f"{text}\n".encode()


@contextmanager
def streaming():
    streams = Streams()

    class Handler(Quiet):
        def do_GET(self):  # noqa: N802 - so http.server asks for it
            headers = {name.lower(): value for name, value in self.headers.items()}
            streams.asked.append((self.path, headers))
            breaks = streams.breaks_after.pop(0) if streams.breaks_after else None
            self.send_response(streams.status)
            self.send_header("content-type", streams.media_type)
            self.send_header("transfer-encoding", "chunked")
            self.end_headers()
            self.close_connection = True
            for count, piece in enumerate(streams.body(self.path, headers)):
                if count == breaks:
                    # No last chunk: the client sees that it is cut off.
                    self.wfile.write(b"5\r\n{")
                    return
                self.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
                self.wfile.flush()
            streams.holds.wait(10)
            self.wfile.write(b"0\r\n\r\n")

    with serving_by(Handler, streams.holds) as url:
        streams.url = f"{url}/stream"
        yield streams


@pytest.fixture(autouse=True)
def at_any_pace(monkeypatch):
    """Have it connect again at once: these tests are about what comes then."""
    monkeypatch.setattr(http_stream, "REQUESTS_PER_S", 100.0)


@pytest.fixture
def streams():
    with streaming() as made:
        yield made


@pytest.fixture
def network():
    with closing(Network(SystemClock(), private=True)) as made:
        yield made


def source(streams, network, **options):
    return HttpStream(HttpStreamOptions(url=streams.url, **options), SystemClock(), network)


def followed(streams, network, breaks, *, tries=10, **options):
    """Return every record that comes through some breaks, as `pull` would take them."""
    streams.breaks_after = list(breaks)
    found, cursor, page = [], None, None
    for _ in range(tries):
        made = source(streams, network, ends=True, **options)
        try:
            for page in made.open(cursor):
                found += [msgspec.json.decode(r.value) for r in page.records]
                cursor = page.cursor
                if page.done:
                    return found, page
        except Unavailable:
            continue
        finally:
            made.close()
    raise AssertionError("it does not end")


@pytest.mark.parametrize("guarantee", GUARANTEES, ids=lambda g: g.__name__)
def test_the_source_keeps(guarantee, streams, network):
    streams.records = [{"time": n, "n": n} for n in range(2 * PAGE_RECORDS_MAX + 10)]
    guarantee(lambda: source(streams, network, ends=True, position="time"))


@pytest.mark.parametrize("media_type", ["application/x-ndjson", "application/json"])
@pytest.mark.parametrize("resumes", [False, True])
@pytest.mark.parametrize("breaks", [[], [0], [1, 2, 3], [2, 2, 2], [4, 5, 6, 7], [8]])
def test_no_record_is_lost_or_doubled_by_breaks(streams, network, media_type, resumes, breaks):
    streams.media_type, streams.resumes = media_type, resumes
    options = {"resume_param": "from"} if resumes else {}
    found, page = followed(streams, network, breaks, position="time", **options)
    assert found == streams.records
    assert page.progress == (len(TIMES), None)
    assert page.notice == ""


def test_the_place_is_sent_where_the_service_takes_one(streams, network):
    streams.resumes = True
    followed(streams, network, [3], position="time", resume_param="from")
    assert [path for path, _ in streams.asked] == ["/stream", "/stream?from=2"]


@pytest.mark.parametrize("breaks", [[], [3], [1, 2]])
def test_events_go_on_after_the_last_id(streams, network, breaks):
    streams.media_type, streams.resumes = "text/event-stream", True
    found, page = followed(streams, network, breaks)
    assert found == streams.records
    assert page.notice == ""
    if breaks:
        assert streams.asked[1][1]["last-event-id"] == str(breaks[0] - 1)


def test_a_stream_without_a_place_says_that_it_repeats(streams, network):
    found, page = followed(streams, network, [3])
    assert found == streams.records[:3] + streams.records
    assert "taken again" in page.notice


def test_positions_may_be_texts_and_records_may_lack_one(streams, network):
    times = ["2026-01-01", "2026-01-02", None, "2026-01-02", "2026-01-03"]
    streams.records = [{"time": t, "n": n} for n, t in enumerate(times)]
    found, _ = followed(streams, network, [1], position="time")
    assert found == streams.records


def test_records_ids_and_keys_are_found_in_documents(streams, network):
    streams.records = [{"at": {"time": 1}, "data": {"id": 7, "line": "A"}}, {"no": "data"}]
    made = source(streams, network, ends=True, records="data", id="id", key="line")
    (page,) = (p for p in made.open(None) if p.records)
    first, second = page.records
    assert (first.value, first.id, first.key) == (b'{"id": 7, "line": "A"}', "7", b"A")
    assert second.value == b'{"no": "data"}'


def test_records_come_while_the_stream_goes_on(streams, network):
    streams.holds.clear()
    with closing(source(streams, network)) as made:
        pages = made.open(None)
        found = []
        while len(found) < len(TIMES):
            found += next(pages).records
        streams.holds.set()
        with pytest.raises(Unavailable) as ended:
            list(pages)
    assert ended.value.code == "stream_ended"


def test_closing_ends_a_stream_that_waits(streams, network):
    streams.holds.clear()
    made = source(streams, network)
    pages = made.open(None)
    next(pages)
    threading.Timer(0.1, made.close).start()
    list(pages)


def test_silence_counts_as_a_break(streams, network):
    streams.holds.clear()
    made = source(streams, network, idle_s=0.2)
    with pytest.raises(Unavailable) as broke:
        list(made.open(None))
    assert broke.value.code == "timed_out"


@pytest.mark.parametrize(("status", "kind"), [(404, Invalid), (503, Unavailable)])
def test_a_service_that_refuses(streams, network, status, kind):
    streams.status = status
    with pytest.raises(kind):
        list(source(streams, network).open(None))


def test_more_than_is_taken_is_not_read_ahead(streams, network):
    streams.records = [{"time": n, "text": "x" * 10_000} for n in range(20_000)]
    made = source(streams, network, position="time")
    pages = made.open(None)
    first = next(pages)
    assert 1 <= len(first.records) <= PAGE_RECORDS_MAX
    pages.close()
    made.close()


@pytest.mark.parametrize(
    "options",
    [
        {"format": "xml"},
        {"resume_param": "from"},
        {"idle_s": 0},
        {"nosuch": 1},
        {},
    ],
)
def test_options_that_cannot_be_used(options):
    given = {"url": "http://localhost/x", **options} if options else {}
    with pytest.raises(Invalid):
        read_options(HttpStreamOptions, given, "source x")
