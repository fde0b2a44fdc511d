from __future__ import annotations

import http.server
import socket
import threading

import httpcore2
import httpx2
import pytest

from headrace.model.errors import Invalid
from headrace.sources.addresses import (
    CONNECT_TRIES_MAX,
    GuardedBackend,
    check_url,
    follow,
    guarded_client,
)

PUBLIC_ADDRESS = "93.184.216.34"


def to(*addresses):
    return lambda host, port: addresses


class Answers(http.server.BaseHTTPRequestHandler):
    """Redirects from /to?URL, and tells the Host header everywhere else."""

    protocol_version = "HTTP/1.1"

    def do_GET(self):
        path, _, target = self.path.partition("?")
        self.server.asked.append(self.path)
        if path == "/to":
            self.send_response(302)
            self.send_header("Location", target)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        body = self.headers["Host"].encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answers) as server:
        server.asked = []
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def base(server, host="127.0.0.1"):
    return f"http://{host}:{server.server_address[1]}"


def test_asks_a_local_server_only_with_the_owners_leave(server):
    with guarded_client(private=True, timeout_s=5.0) as client:
        assert client.get(base(server)).text == base(server).removeprefix("http://")
    with guarded_client(private=False, timeout_s=5.0) as client, pytest.raises(Invalid) as caught:
        client.get(base(server))
    assert caught.value.code == "loopback_address"
    assert server.asked == ["/"]


@pytest.mark.parametrize("host", ["2130706433", "0x7f.1", "127.1", "localhost"])
def test_refuses_other_spellings_where_the_connection_is_made(server, host):
    with guarded_client(private=False, timeout_s=5.0) as client, pytest.raises(Invalid) as caught:
        client.get(base(server, host))
    assert caught.value.code == "loopback_address"
    assert server.asked == []


def test_connects_to_the_address_that_it_resolved_and_keeps_the_hosts_name(server):
    asked = []

    def resolve(host, port):
        asked.append((host, port))
        return ["127.0.0.1"]

    with guarded_client(private=True, timeout_s=5.0, resolve=resolve) as client:
        answer = client.get(base(server, "api.example.org"))
        client.get(base(server, "api.example.org"))
    port = server.server_address[1]
    assert answer.text == f"api.example.org:{port}"
    assert asked == [("api.example.org", port)]


def test_a_name_that_changes_its_mind_is_judged_by_what_is_connected_to(server):
    answers = iter([[PUBLIC_ADDRESS], ["127.0.0.1"]])

    def rebinding(host, port):
        return next(answers)

    url = base(server, "rebind.example")
    assert check_url(url, private=False, resolve=rebinding).addresses == (PUBLIC_ADDRESS,)
    with (
        guarded_client(private=False, timeout_s=5.0, resolve=rebinding) as client,
        pytest.raises(Invalid) as caught,
    ):
        client.get(url)
    assert caught.value.code == "loopback_address"
    assert server.asked == []


def test_a_name_that_is_not_there_may_come_back(server):
    answers = iter([[], ["127.0.0.1"]])
    url = base(server, "away.example")
    with guarded_client(private=True, timeout_s=5.0, resolve=lambda *_: next(answers)) as client:
        with pytest.raises(httpx2.ConnectError, match=r"There is no host away\.example"):
            client.get(url)
        assert client.get(url).status_code == 200


def test_every_new_connection_is_judged_anew(server):
    answers = iter([["127.0.0.1"], ["169.254.169.254"]])
    url = base(server, "rebind.example")
    with guarded_client(private=True, timeout_s=5.0, resolve=lambda *_: next(answers)) as client:
        assert client.get(url, headers={"Connection": "close"}).status_code == 200
        with pytest.raises(Invalid) as caught:
            client.get(url)
    assert caught.value.code == "metadata_address"
    assert len(server.asked) == 1


def test_does_not_follow_redirects_by_itself(server):
    with guarded_client(private=True, timeout_s=5.0) as client:
        assert client.get(base(server) + "/to?/elsewhere").status_code == 302
    assert len(server.asked) == 1


def test_follows_when_told_to_and_judges_each_step(server):
    with guarded_client(private=True, timeout_s=5.0) as client:
        request = client.build_request("GET", base(server) + "/to?/elsewhere")
        answer = follow(client, request)
        assert answer.status_code == 200
        answer.close()


@pytest.mark.parametrize(
    ("target", "code"),
    [
        ("http://169.254.169.254/latest/meta-data/", "metadata_address"),
        ("http://[::ffff:169.254.169.254]/", "metadata_address"),
        ("http://192.0.2.1/", "documentation_address"),
        ("http://user@127.0.0.1/", "url_user_info"),
        ("http://127.0.0.1:22/", "url_port"),
        ("ftp://127.0.0.1/", "url_scheme"),
        ("file:///etc/passwd", "url_scheme"),
        ("/to?/to", "too_many_redirects"),
    ],
)
def test_a_redirect_that_leads_astray_is_refused(server, target, code):
    with guarded_client(private=True, timeout_s=5.0) as client:
        request = client.build_request("GET", base(server) + f"/to?{target}")
        if code == "too_many_redirects":
            request = client.build_request("GET", base(server) + "/to?" + base(server) + "/to?/to")
        with pytest.raises(Invalid) as caught:
            follow(client, request, redirects_max=1)
    assert caught.value.code == code


def test_a_redirect_from_a_public_name_to_a_private_address_is_refused(server):
    def resolve(host, port):
        return [PUBLIC_ADDRESS]

    class Nearby(GuardedBackend):
        """Judges as always, and then goes to the local server for what is public."""

        def connect_tcp(self, host, port, *rest, **options):
            if host == "public.example":
                return httpcore2.SyncBackend().connect_tcp(
                    "127.0.0.1", server.server_address[1], *rest, **options
                )
            return super().connect_tcp(host, port, *rest, **options)

    with guarded_client(private=False, timeout_s=5.0, resolve=resolve) as client:
        backend = Nearby(private=False, resolve=resolve)
        client._transport._pool._network_backend = backend
        request = client.build_request("GET", f"http://public.example/to?{base(server)}/secret")
        with pytest.raises(Invalid) as caught:
            follow(client, request)
    assert caught.value.code == "loopback_address"
    assert not any("/secret" in path and "/to" not in path for path in server.asked)


def test_a_redirect_from_https_to_http_is_refused():
    def answer(request):
        return httpx2.Response(302, headers={"Location": "http://example.org/"})

    with (
        httpx2.Client(transport=httpx2.MockTransport(answer)) as client,
        pytest.raises(Invalid) as caught,
    ):
        follow(client, client.build_request("GET", "https://example.org/"))
    assert caught.value.code == "url_scheme"


def test_ignores_the_environments_proxies(server, monkeypatch):
    for name in ("HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    with guarded_client(private=True, timeout_s=5.0) as client:
        assert client.get(base(server)).status_code == 200


class Recorded(httpcore2.NetworkBackend):
    """Sockets that all refuse, and what was tried."""

    def __init__(self):
        self.tried = []

    def connect_tcp(self, host, port, *rest):
        self.tried.append(host)
        raise httpcore2.ConnectError("refused")


def test_tries_a_bounded_number_of_addresses_in_turn():
    backend = GuardedBackend(private=False, resolve=to(*(f"8.8.8.{n}" for n in range(20))))
    backend._sockets = Recorded()
    with pytest.raises(httpcore2.ConnectError):
        backend.connect_tcp("example.org", 80)
    assert backend._sockets.tried == [f"8.8.8.{n}" for n in range(CONNECT_TRIES_MAX)]


def test_judges_all_addresses_before_it_tries_the_first():
    backend = GuardedBackend(private=False, resolve=to(PUBLIC_ADDRESS, "127.0.0.1"))
    backend._sockets = Recorded()
    with pytest.raises(Invalid):
        backend.connect_tcp("example.org", 80)
    assert backend._sockets.tried == []


def test_says_the_hosts_name_in_tls_and_not_the_address():
    said = []

    class Stream(httpcore2.NetworkStream):
        def start_tls(self, ssl_context, server_hostname=None, timeout=None):
            said.append(server_hostname)
            raise httpcore2.ConnectError("enough")

        def get_extra_info(self, info):
            return None

        def close(self):
            pass

    class Sockets(Recorded):
        def connect_tcp(self, host, port, *rest):
            self.tried.append(host)
            return Stream()

    sockets = Sockets()
    with guarded_client(private=False, timeout_s=1.0, resolve=to(PUBLIC_ADDRESS)) as client:
        client._transport._pool._network_backend._sockets = sockets
        with pytest.raises(httpx2.ConnectError):
            client.get("https://api.example.org/")
    assert sockets.tried == [PUBLIC_ADDRESS]
    assert said == ["api.example.org"]


def test_does_not_connect_to_unix_sockets():
    with pytest.raises(Invalid):
        GuardedBackend(private=True, resolve=to()).connect_unix_socket("/run/docker.sock")


def test_a_resolver_that_does_not_answer_is_a_failed_connection():
    def resolve(host, port):
        raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")

    client = guarded_client(private=False, timeout_s=1.0, resolve=resolve)
    with client, pytest.raises(httpx2.ConnectError):
        client.get("http://example.org/")
