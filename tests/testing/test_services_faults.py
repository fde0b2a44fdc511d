"""What the stand-ins can be told to do wrong, and what they notice of their clients."""

from __future__ import annotations

import threading
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime

import httpx2
import pytest

from headrace.model.clock import ManualClock
from headrace.model.errors import Invalid
from headrace.testing.services import services
from headrace.testing.services.report import most_within

POLITE = {"User-Agent": "headrace/0 (keeper@example.org)"}
PAGES = {"gbif": "/occurrence/search", "obis": "/occurrence", "idigbio": "/search/records"}


@pytest.fixture(scope="module")
def started():
    with services(records=40) as running:
        yield running


@pytest.fixture
def running(started):
    started.heal()
    started.forget()
    return started


def ask(running, service="gbif", **more):
    url = getattr(running, service) + PAGES[service]
    return httpx2.get(url, headers=POLITE, params=more, timeout=10)


@pytest.mark.parametrize("service", list(PAGES))
def test_the_next_requests_of_a_service_fail_and_then_no_more(running, service):
    running.fail("too_many_requests", service=service, requests=2, retry_after_s=3)
    for _ in range(2):
        refused = ask(running, service)
        assert (refused.status_code, refused.headers["retry-after"]) == (429, "3")
        assert isinstance(refused.json(), list)
    assert ask(running, service).status_code == 200
    other = next(s for s in PAGES if s != service)
    assert ask(running, other).status_code == 200


def test_a_fault_may_last_for_a_time():
    clock = ManualClock()
    with services(records=10, clock=clock) as running:
        running.fail("status", status=503, seconds=60, retry_after_s=30, as_date=True)
        refused = ask(running)
        assert refused.status_code == 503
        when = parsedate_to_datetime(refused.headers["retry-after"])
        now = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=clock.now_us())
        assert (when - now).total_seconds() == 30
        clock.advance(59.9)
        assert ask(running).status_code == 503
        clock.advance(0.1)
        assert ask(running).status_code == 200


def test_a_fault_may_be_for_some_requests_only_and_come_later(running):
    running.fail("status", path="offset=20", after=1)
    statuses = [ask(running, offset=o).status_code for o in (0, 20, 20, 20)]
    assert statuses == [200, 200, 500, 200]


def test_429_may_have_no_body(running):
    running.fail("too_many_requests", body="")
    refused = ask(running)
    assert (refused.status_code, refused.content) == (429, b"")
    assert "retry-after" not in refused.headers


@pytest.mark.parametrize(
    ("fault", "status", "kind"),
    [
        ("html", 200, "text/html"),
        ("not_json", 200, "application/json"),
        ("cut", 200, "application/json"),
    ],
)
def test_an_answer_that_is_no_json(running, fault, status, kind):
    running.fail(fault)
    answer = ask(running)
    assert answer.status_code == status
    assert answer.headers["content-type"].startswith(kind)
    with pytest.raises(ValueError, match=r"Expecting|Unterminated|Extra"):
        answer.json()


def test_an_error_inside_a_200(running):
    running.fail("error_in_200", service="obis")
    answer = ask(running, "obis")
    assert (answer.status_code, answer.json()) == (200, {"error": ["Bad Request"]})


def test_a_body_that_ends_before_its_length(running):
    running.fail("truncated")
    with pytest.raises(httpx2.RemoteProtocolError):
        ask(running)
    assert ask(running).status_code == 200


def test_a_connection_that_is_reset(running):
    running.fail("reset")
    with pytest.raises(httpx2.TransportError):
        ask(running)


def test_an_answer_that_does_not_come(running):
    running.fail("hang", hold_s=30)
    with pytest.raises(httpx2.ReadTimeout):
        httpx2.get(running.gbif + PAGES["gbif"], timeout=0.2)


def test_a_body_that_trickles(running):
    running.fail("slow", bytes_per_s=200)
    with httpx2.stream("GET", running.gbif + PAGES["gbif"], headers=POLITE, timeout=10) as answer:
        pieces = answer.iter_raw()
        begun = next(pieces) + next(pieces)
        assert 2 <= len(begun) < int(answer.headers["content-length"])


def test_a_redirect_to_a_private_address(running):
    running.fail("redirect", location="http://10.0.0.1/")
    moved = ask(running)
    assert (moved.status_code, moved.headers["location"]) == (302, "http://10.0.0.1/")


def test_a_fault_that_is_not_known_is_refused(running):
    with pytest.raises(Invalid):
        running.fail("explode")
    with pytest.raises(Invalid):
        running.fail("html", colour="red")


def test_answers_are_compressed_where_the_client_takes_that():
    with services(records={"gbif": 40}, gzip=True) as running:
        plain = httpx2.get(running.gbif + PAGES["gbif"], headers={"Accept-Encoding": "identity"})
        packed = ask(running)
        assert packed.headers["content-encoding"] == "gzip"
        assert int(packed.headers["content-length"]) < len(plain.content)
        assert packed.json() == plain.json()
        running.fail("truncated")
        with pytest.raises(httpx2.RemoteProtocolError):
            ask(running)


# What is noticed of clients.


def test_a_polite_client_is_called_polite(running):
    for service in PAGES:
        for _ in range(3):
            ask(running, service)
    report = running.report()
    assert report.polite
    for service in PAGES:
        about = report.services[service]
        assert (about.requests, about.answered, about.most_at_once) == (3, 3, 1)
        assert about.statuses == {"200": 3}


def test_a_client_that_does_not_wait_is_noticed():
    clock = ManualClock()
    with services(records=10, clock=clock) as running:
        running.fail("too_many_requests", service="gbif", retry_after_s=10)
        ask(running)
        clock.advance(9)
        ask(running, "obis")
        assert running.report().polite, "another service did not ask to wait"
        ask(running)
        assert running.report().services["gbif"].too_early == 1
        clock.advance(1)
        ask(running)
        assert running.report().services["gbif"].too_early == 1
        assert not running.report().polite


@pytest.mark.parametrize("agent", ["", "python-httpx2/2", "headrace/0", "me@home"])
def test_a_client_without_a_contact_is_noticed(running, agent):
    httpx2.get(running.gbif + PAGES["gbif"], headers={"User-Agent": agent})
    assert running.report().services["gbif"].without_contact == 1
    assert not running.report().polite


def test_a_client_that_asks_twice_at_once_is_noticed(running):
    running.fail("hang", service="gbif", hold_s=30)
    first = threading.Thread(target=lambda: _until_time_out(running.gbif))
    first.start()
    while not running.requests():
        pass
    ask(running)
    first.join()
    assert running.report().services["gbif"].most_at_once == 2
    assert not running.report().polite


def _until_time_out(url):
    with pytest.raises(httpx2.ReadTimeout):
        httpx2.get(url + PAGES["gbif"], headers=POLITE, timeout=0.5)


def test_a_client_that_gives_up_may_ask_again(running):
    running.fail("hang", service="gbif", hold_s=30)
    _until_time_out(running.gbif)
    while running.recorder.under_way("gbif"):
        pass
    ask(running)
    assert running.report().services["gbif"].most_at_once == 1


def test_the_most_requests_within_a_second_are_counted():
    assert most_within([], 1.0) == 0
    assert most_within([0.0, 0.9, 1.0, 1.5, 1.89, 3.0], 1.0) == 4
    assert most_within([0.0, 1.0, 2.0], 1.0) == 1
    clock = ManualClock()
    with services(records=10, clock=clock) as running:
        for _ in range(4):
            ask(running)
            clock.advance(0.5)
        about = running.report().services["gbif"]
        assert (about.most_in_a_second, about.least_gap_s) == (2, 0.5)


def test_what_is_asked_again_within_a_sweep_is_told(running):
    running.fail("status", path="offset=20")
    for offset in (0, 20, 20, 40, 40):
        ask(running, offset=offset)
    repeated = running.report().services["gbif"].repeated
    assert repeated == {"/gbif/v1/occurrence/search?offset=40": 1}
    running.mark()
    ask(running, offset=40)
    assert running.report().services["gbif"].repeated == {}


def test_every_request_is_kept(running):
    ask(running, "obis", size=3)
    running.fail("reset")
    with pytest.raises(httpx2.TransportError):
        ask(running)
    first, second = running.requests()
    assert (first.service, first.target) == ("obis", "/obis/v3/occurrence?size=3")
    assert (first.status, first.fault, first.user_agent) == (200, None, POLITE["User-Agent"])
    assert (second.status, second.fault) == (None, "reset")
