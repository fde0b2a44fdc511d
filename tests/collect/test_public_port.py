"""The public port with TLS, with trusted proxies, and asked by strange names: a real collector."""

from __future__ import annotations

import contextlib
import http.client
import json
import ssl
import subprocess
import sys
import time
from contextlib import closing, contextmanager

import msgspec
import pytest

from headrace.app import deployment_file, dev_certificate
from headrace.app.cluster.ports import free_ports
from headrace.model.clock import SystemClock
from headrace.model.deployment import Deployment, HttpSettings
from headrace.model.layout import Layout
from headrace.model.plan import Plan, Route, Topic

PLAN = Plan("p", topics=(Topic("events", 1),), routes=(Route("/hit", "events", {}, "ok"),))
COLLECTOR = """
import signal, sys, threading
import msgspec
from headrace.app.site import open_site
from headrace.collect.limits import Limits
from headrace.collect.run import run_collect
from headrace.model.clock import SystemClock
from headrace.model.layout import Layout
from headrace.model.plan import Plan

stop = threading.Event()
signal.signal(signal.SIGTERM, lambda *_: stop.set())
layout, clock = Layout.at(sys.argv[1]), SystemClock()
run_collect(msgspec.json.decode(sys.argv[2], type=Plan), open_site(layout, clock), clock,
            host="127.0.0.1", port=int(sys.argv[3]), stop=stop, limits=Limits(body_timeout_s=60),
            ready=lambda: print("ready", flush=True))
"""


@contextmanager
def collector(data, port, settings):
    """Run a collector whose port is reached as `settings` say."""
    layout = Layout.at(data)
    data.mkdir()
    deployment_file.keep(layout, Deployment(http=settings))
    plan = msgspec.json.encode(PLAN).decode()
    command = [sys.executable, "-c", COLLECTOR, str(data), plan, str(port)]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, bufsize=1
    )
    try:
        assert process.stdout.readline() == "ready\n", process.stderr.read()
        yield process
        process.terminate()
        _, said = process.communicate(timeout=20)
        assert (process.returncode, said) == (0, "")
    finally:
        process.kill()
        process.communicate()


def make_pair(folder):
    files = folder / "cert.pem", folder / "key.pem"
    clock = SystemClock()
    made = dev_certificate.make([], 2, clock.now_us(), clock.secret(16))
    dev_certificate.write(made, *files, replace=True)
    return files


class Secure:
    """A collector with TLS, and a client that knows its certificate."""

    def __init__(self, folder):
        self.cert, self.key = make_pair(folder)
        self.port, self.plain = free_ports(2)
        self.settings = HttpSettings(
            str(self.cert), str(self.key), redirect_port=self.plain, hsts_s=60
        )

    def context(self):
        return ssl.create_default_context(cafile=self.cert)

    def connect(self, context=None):
        return closing(
            http.client.HTTPSConnection(
                "127.0.0.1", self.port, context=context or self.context(), timeout=30
            )
        )

    def ask(self, method, path, body=None, **headers):
        with self.connect() as connection:
            return asked(connection, method, path, body, **headers)


def asked(connection, method, path, body=None, **headers):
    connection.request(method, path, body, {"Content-Type": "application/json", **headers})
    answer = connection.getresponse()
    return answer.status, dict(answer.getheaders()), answer.read()


@pytest.fixture(scope="module")
def secure(tmp_path_factory):
    folder = tmp_path_factory.mktemp("secure")
    served = Secure(folder)
    with collector(folder / "data", served.port, served.settings):
        yield served


def records(ask):
    status, _, body = ask("GET", "/v1/topics/events/records?partition=0&offset=0&limit=1000")
    assert status == 200, body
    return [one["value"] for one in json.loads(body)["records"]]


def test_a_client_that_knows_the_certificate_is_answered(secure):
    status, headers, body = secure.ask("POST", "/v1/topics/events", '{"n": 1}')
    assert (status, body) == (200, b'{"accepted":1,"dead":0,"errors":[]}')
    assert headers["strict-transport-security"] == "max-age=60"


def test_a_client_that_does_not_know_it_sends_nothing(secure):
    strange = ssl.create_default_context()
    with secure.connect(strange) as connection, pytest.raises(ssl.SSLCertVerificationError):
        connection.request("GET", "/hit")


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion:DeprecationWarning")
def test_old_versions_of_tls_are_refused_by_the_server(secure):
    context = secure.context()
    context.set_ciphers("DEFAULT@SECLEVEL=0")
    context.minimum_version = ssl.TLSVersion.TLSv1
    context.maximum_version = ssl.TLSVersion.TLSv1_1
    with secure.connect(context) as connection, pytest.raises(ssl.SSLError) as refused:
        connection.connect()
    assert "ALERT" in refused.value.reason
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    with secure.connect(context) as connection:
        assert asked(connection, "GET", "/hit")[0] == 200


def test_plain_http_is_sent_to_the_same_address_by_https(secure):
    with closing(http.client.HTTPConnection("127.0.0.1", secure.plain, timeout=30)) as plain:
        target = "/hit%20me/x?q=1%2F2&b"
        status, headers, body = asked(plain, "POST", target, "{}", Host="data.example.org:80")
    to = f"https://data.example.org:{secure.port}{target}"
    assert (status, headers["location"], body) == (308, to, b"")


@pytest.mark.parametrize("host", ["a b", "x/y", "evil@x", "", "x:123456"])
def test_plain_http_with_a_host_that_is_none_is_sent_nowhere(secure, host):
    with closing(http.client.HTTPConnection("127.0.0.1", secure.plain, timeout=30)) as plain:
        status, headers, body = asked(plain, "GET", "/hit", Host=host)
    assert (status, headers.get("location")) == (400, None)
    assert json.loads(body)["error"]["hint"]


def test_plain_http_at_the_port_of_tls_is_not_answered(secure):
    with closing(http.client.HTTPConnection("127.0.0.1", secure.port, timeout=30)) as plain:
        plain.request("GET", "/hit")
        with pytest.raises((http.client.HTTPException, ConnectionError)):
            plain.getresponse()


@pytest.mark.parametrize("path", ["/v1/topics", "/v1/topics/events/records", "/", "/v1/views",
                                  "/_/style.css", "/nothing"])  # fmt: skip
def test_readers_who_ask_by_a_strange_name_are_refused(secure, path):
    status, headers, body = secure.ask("GET", path, Host="evil.example")
    assert status == 421
    assert json.loads(body)["error"]["code"] == "misdirected"
    assert headers["strict-transport-security"] == "max-age=60"


def test_what_changes_something_is_refused_by_a_strange_name(secure):
    for method, path in (("POST", "/v1/sources"), ("POST", "/v1/sql"), ("DELETE", "/v1/tokens/x")):
        assert secure.ask(method, path, "{}", Host="evil.example")[0] == 421


def test_events_are_taken_by_any_name_and_health_is_told_by_any(secure):
    for path, body in (("/hit", None), ("/v1/topics/events", '{"n": 2}')):
        assert secure.ask("POST", path, body, Host="tavern.example")[0] == 200
    assert records(secure.ask)[-2]["Host"] == "tavern.example"
    # No role is there to say how it is.
    assert secure.ask("GET", "/healthz", Host="any.example")[0] == 503


def test_a_renewed_certificate_is_taken_and_what_is_under_way_is_answered(tmp_path):
    secure = Secure(tmp_path)
    with collector(tmp_path / "data", secure.port, secure.settings) as process:
        before = secure.cert.read_bytes()
        with secure.connect() as slow:
            slow.putrequest("POST", "/v1/topics/events")
            slow.putheader("Content-Type", "application/json")
            slow.putheader("Content-Length", "8")
            slow.endheaders(b'{"n":')
            other = tmp_path / "other"
            other.mkdir()
            cert, key = make_pair(other)
            secure.cert.write_bytes(cert.read_bytes())
            # Its key has not come yet.
            assert "is not taken: The key" in process.stderr.readline()
            assert "hint: " in process.stderr.readline()
            assert presented(secure) == before
            secure.key.write_bytes(key.read_bytes())
            until(lambda: presented(secure) == cert.read_bytes())
            slow.send(b" 7}")
            answer = slow.getresponse()
            assert (answer.status, answer.read()) == (200, b'{"accepted":1,"dead":0,"errors":[]}')
        # For a moment some connections are still taken with the old one.
        secure.cert = tmp_path / "both.pem"
        secure.cert.write_bytes(before + cert.read_bytes())
        until(lambda: records(secure.ask) == [{"n": 7}])


def until(happens):
    """Return once something happens; a connection may be closed while it is being made."""
    deadline = time.monotonic() + 50
    while time.monotonic() < deadline:
        with contextlib.suppress(ConnectionError, ssl.SSLError, http.client.HTTPException):
            if happens():
                return
        time.sleep(0.1)
    raise AssertionError


def presented(secure):
    """Return the certificate that a new connection is shown."""
    shown = ssl.get_server_certificate(("127.0.0.1", secure.port), timeout=30)
    return shown.encode()


def test_a_trusted_proxy_says_who_the_client_is(tmp_path):
    (port,) = free_ports(1)
    forged = {"X-Forwarded-For": "6.6.6.6, 203.0.113.9", "X-Forwarded-Proto": "https"}
    with collector(tmp_path / "data", port, HttpSettings(trusted_proxies=("127.0.0.1",))):
        event = taken(port, forged)
    assert (event["X-Forwarded-For"], event["X-Forwarded-Proto"]) == ("203.0.113.0", "https")


def test_anybody_else_who_says_so_is_not_believed(tmp_path):
    (port,) = free_ports(1)
    forged = {"X-Forwarded-For": "6.6.6.6, 203.0.113.9", "X-Forwarded-Proto": "https"}
    with collector(tmp_path / "data", port, HttpSettings(trusted_proxies=("10.0.0.0/8",))):
        event = taken(port, forged)
    assert (event["X-Forwarded-For"], event["X-Forwarded-Proto"]) == ("127.0.0.0", "http")


def taken(port, headers):
    """Send an event and return what is kept of it."""
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=30)) as connection:
        assert asked(connection, "GET", "/hit", **headers)[0] == 200

        def ask(method, path):
            return asked(connection, method, path)

        return records(ask)[0]
