from __future__ import annotations

import http.server
import ipaddress
import socket
import threading

import httpcore2
import httpx2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.model.errors import Invalid, Unavailable
from headrace.sources.addresses import (
    CONNECT_TRIES_MAX,
    GuardedBackend,
    check_url,
    follow,
    guarded_client,
    kind_of,
)

PUBLIC_ADDRESS = "93.184.216.34"


def to(*addresses):
    return lambda host, port: addresses


to_public = to(PUBLIC_ADDRESS)


def refused(url, *, private=False, resolve=to_public):
    with pytest.raises(Invalid) as caught:
        check_url(url, private=private, resolve=resolve)
    assert caught.value.message
    assert caught.value.hint
    return caught.value.code


# --- hostile URLs: what is written, and why it is refused

ALWAYS = [
    # not a URL of a service
    ("", "url_scheme"),
    ("example.org", "url_scheme"),
    ("//example.org/", "url_scheme"),
    ("/v1/search", "url_scheme"),
    ("file:///etc/passwd", "url_scheme"),
    ("ftp://example.org/", "url_scheme"),
    ("gopher://127.0.0.1:6379/_FLUSHALL", "url_scheme"),
    ("dict://127.0.0.1:11211/stat", "url_scheme"),
    ("ws://example.org/", "url_scheme"),
    ("javascript:alert(1)", "url_scheme"),
    ("data:text/plain,hello", "url_scheme"),
    ("unix:///var/run/docker.sock", "url_scheme"),
    ("http+unix://%2Fvar%2Frun%2Fdocker.sock/info", "url_scheme"),
    ("jar:http://example.org!/", "url_scheme"),
    ("http:///path", "invalid_url"),
    ("http:example.org", "invalid_url"),
    ("http:/example.org", "invalid_url"),
    ("http://?q", "invalid_url"),
    ("http://#f", "invalid_url"),
    ("http://exa mple.org/", "invalid_url"),
    (" http://example.org/", "invalid_url"),
    ("http://example.org/\r\nX-Injected: 1", "invalid_url"),
    ("http://example.org/\x00", "invalid_url"),
    ("http://127.0.0.1\t@example.org/", "invalid_url"),
    ("http://example.org\\@127.0.0.1/", "invalid_url"),
    ("http:\\\\127.0.0.1\\", "invalid_url"),
    ("http://example.org/" + "a" * 3_000, "invalid_url"),
    ("http://[::1", "invalid_url"),
    ("http://[::1]x/", "invalid_url"),
    ("http://[v1.fe80::a]/", "invalid_url"),
    ("http://[127.0.0.1]/", "invalid_url"),
    ("http://[]/", "invalid_url"),
    ("http://256.256.256.256/", "invalid_url"),
    ("http://0177.0.0.1/", "invalid_url"),
    ("http://\uff11\uff12\uff17.0.0.1/", "invalid_url"),
    ("http://\u2460\u2461\u2466.0.0.1/", "invalid_url"),
    ("http://exa\u200bmple.org/", "invalid_url"),
    ("http://ex\u00adample.org/", "invalid_url"),
    # who asks is nobody's business but the service's
    ("http://user@example.org/", "url_user_info"),
    ("http://user:secret@example.org/", "url_user_info"),
    ("http://example.org@127.0.0.1/", "url_user_info"),
    ("http://@example.org/", "url_user_info"),
    ("http://a@b@example.org/", "url_user_info"),
    ("http://example.org:80@127.0.0.1:8080/", "url_user_info"),
    # other protocols' ports
    ("http://example.org:0/", "url_port"),
    ("http://example.org:22/", "url_port"),
    ("http://example.org:25/", "url_port"),
    ("http://example.org:53/", "url_port"),
    ("http://example.org:1023/", "url_port"),
    ("http://example.org:65536/", "url_port"),
    ("http://example.org:99999/", "url_port"),
    ("http://example.org:-80/", "url_port"),
    ("http://example.org:+80/", "url_port"),
    ("http://example.org:8_0/", "url_port"),
    ("http://example.org:\uff18\uff10/", "url_port"),
    ("http://example.org:80:81/", "invalid_url"),
    ("http://example.org:http/", "invalid_url"),
    # hosts that are none
    ("http://example..org/", "invalid_host"),
    ("http://.example.org/", "invalid_host"),
    ("http://example.org../", "invalid_host"),
    ("http://./", "invalid_host"),
    ("http://-example.org/", "invalid_host"),
    ("http://%31%32%37.0.0.1/", "invalid_host"),
    ("http://127.0.0.1%2f@example.org/", "url_user_info"),
    ("http://127.0.0.1%00.example.org/", "invalid_host"),
    ("http://exam$ple.org/", "invalid_host"),
    ("http://a*b.org/", "invalid_host"),
    ("http://1.2.3.4.5/", "invalid_host"),
    ("http://0x.0x.0x.0xfffff/", "invalid_host"),
    ("http://4294967296/", "invalid_host"),
    ("http://0xffffffffff/", "invalid_host"),
    ("http://09.1/", "invalid_host"),
    ("http://256.1/", "invalid_host"),
    ("http://example.123/", "invalid_host"),
    ("http://" + "a" * 64 + ".org/", "invalid_host"),
    ("http://" + "a." * 127 + "org/", "invalid_host"),
    ("http://[fe80::1%25eth0]/", "invalid_host"),
    ("http://[::1%lo]/", "invalid_host"),
    # addresses that no setting opens
    ("http://0/", "unspecified_address"),
    ("http://0.0.0.0:8080/", "unspecified_address"),
    ("http://0x0/", "unspecified_address"),
    ("http://[::]/", "unspecified_address"),
    ("http://[::ffff:0.0.0.0]/", "unspecified_address"),
    ("http://169.254.169.254/latest/meta-data/", "metadata_address"),
    ("http://169.254.169.254./", "metadata_address"),
    ("http://2852039166/", "metadata_address"),
    ("http://0xA9FEA9FE/", "metadata_address"),
    ("http://0xa9.0376.43518/", "metadata_address"),
    ("http://[::ffff:169.254.169.254]/", "metadata_address"),
    ("http://[::ffff:a9fe:a9fe]/", "metadata_address"),
    ("http://[fd00:ec2::254]/latest/meta-data/", "metadata_address"),
    ("http://[fd20:ce::254]/", "metadata_address"),
    ("http://168.63.129.16/machine", "metadata_address"),
    ("http://100.100.100.200/latest/meta-data/", "metadata_address"),
    ("http://192.0.0.192/", "metadata_address"),
    ("http://169.254.1.1/", "link_local_address"),
    ("http://[fe80::1]/", "link_local_address"),
    ("http://100.64.0.1/", "shared_address"),
    ("http://100.127.255.255/", "shared_address"),
    ("http://192.0.0.1/", "reserved_address"),
    ("http://192.0.2.1/", "documentation_address"),
    ("http://198.51.100.1/", "documentation_address"),
    ("http://203.0.113.1/", "documentation_address"),
    ("http://[2001:db8::1]/", "documentation_address"),
    ("http://[3fff::1]/", "documentation_address"),
    ("http://198.18.0.1/", "benchmarking_address"),
    ("http://198.19.255.255/", "benchmarking_address"),
    ("http://[2001:2::1]/", "benchmarking_address"),
    ("http://224.0.0.1/", "multicast_address"),
    ("http://239.255.255.255/", "multicast_address"),
    ("http://[ff02::1]/", "multicast_address"),
    ("http://240.0.0.1/", "reserved_address"),
    ("http://255.255.255.255/", "reserved_address"),
    ("http://4294967295/", "reserved_address"),
    ("http://[100::1]/", "reserved_address"),
    ("http://[fec0::1]/", "reserved_address"),
    ("http://[5f00::1]/", "reserved_address"),
    ("http://[4000::1]/", "reserved_address"),
    ("http://[2001:10::1]/", "reserved_address"),
    ("http://192.88.99.1/", "tunnel_address"),
    ("http://[::127.0.0.1]/", "tunnel_address"),
    ("http://[::7f00:1]/", "tunnel_address"),
    ("http://[64:ff9b::127.0.0.1]/", "tunnel_address"),
    ("http://[64:ff9b::10.0.0.1]/", "tunnel_address"),
    ("http://[64:ff9b:1::10.0.0.1]/", "tunnel_address"),
    ("http://[2002:7f00:1::]/", "tunnel_address"),
    ("http://[2002:c0a8:101::1]/", "tunnel_address"),
    ("http://[2001:0:7f00:1::]/", "tunnel_address"),
]

UNLESS_PRIVATE = [
    ("http://127.0.0.1/", "loopback_address"),
    ("http://127.0.0.1:8080/", "loopback_address"),
    ("http://127.255.255.254/", "loopback_address"),
    ("http://127.1/", "loopback_address"),
    ("http://127.0.1/", "loopback_address"),
    ("http://0177.1/", "loopback_address"),
    ("http://0x7f.1/", "loopback_address"),
    ("http://0x7F000001/", "loopback_address"),
    ("http://017700000001/", "loopback_address"),
    ("http://2130706433/", "loopback_address"),
    ("http://127.0.0.1./", "loopback_address"),
    ("http://127\u30020\u30020\u30021/", "loopback_address"),
    ("http://[::1]/", "loopback_address"),
    ("http://[0:0:0:0:0:0:0:1]/", "loopback_address"),
    ("http://[::ffff:127.0.0.1]/", "loopback_address"),
    ("http://[::FFFF:7F00:1]/", "loopback_address"),
    ("http://10.0.0.1/", "private_address"),
    ("http://10.255.255.255/", "private_address"),
    ("http://0xa000001/", "private_address"),
    ("http://172.16.0.1/", "private_address"),
    ("http://172.31.255.255/", "private_address"),
    ("http://192.168.0.1/", "private_address"),
    ("http://192.168.257/", "private_address"),
    ("http://3232235521/", "private_address"),
    ("http://[fc00::1]/", "private_address"),
    ("http://[fd12:3456:789a::1]/", "private_address"),
    ("http://[::ffff:10.0.0.1]/", "private_address"),
]

HARMLESS = [
    ("https://api.gbif.org/v1/occurrence/search?limit=300", None),
    ("HTTPS://API.GBIF.ORG/v1", "https://api.gbif.org/v1"),
    ("https://api.obis.org./v3", "https://api.obis.org/v3"),
    ("https://search.idigbio.org:443/v2", "https://search.idigbio.org/v2"),
    ("http://example.org:8080/a?b=%20c", None),
    ("http://example.org/a#part", "http://example.org/a"),
    ("http://exämple.org/", "http://xn--exmple-cua.org/"),
    ("http://EXÄMPLE.org/", "http://xn--exmple-cua.org/"),
    ("http://my_host.example.org/", None),
    ("http://example.org:/", "http://example.org/"),
    ("http://8.8.8.8/", None),
    ("http://134744072/", "http://8.8.8.8/"),
    ("http://0x8.8.2056/", "http://8.8.8.8/"),
    ("http://[2001:4860:4860::8888]:8080/", None),
    ("http://[2001:4860:4860:0:0:0:0:8888]/", "http://[2001:4860:4860::8888]/"),
    ("http://[64:ff9b::8.8.8.8]/", "http://[64:ff9b::808:808]/"),
    ("http://172.32.0.1/", None),
    ("http://100.128.0.1/", None),
]


@pytest.mark.parametrize(("url", "code"), ALWAYS)
@pytest.mark.parametrize("private", [False, True])
def test_refuses_what_no_setting_allows(url, code, private):
    assert refused(url, private=private) == code


@pytest.mark.parametrize(("url", "code"), UNLESS_PRIVATE)
def test_refuses_private_addresses_unless_the_owner_allows_them(url, code):
    assert refused(url) == code
    assert check_url(url, private=True).addresses


@pytest.mark.parametrize(("url", "normal"), HARMLESS)
def test_brings_harmless_urls_into_one_form(url, normal):
    checked = check_url(url, private=False, resolve=to(PUBLIC_ADDRESS))
    assert checked.url == (normal or url)
    assert check_url(checked.url, private=False, resolve=to(PUBLIC_ADDRESS)) == checked


def test_there_are_enough_hostile_urls():
    assert len({url for url, _ in ALWAYS + UNLESS_PRIVATE}) >= 80


# --- names


HOSTILE_ADDRESSES = [
    ("127.0.0.1", "loopback_address"),
    ("::1", "loopback_address"),
    ("10.1.2.3", "private_address"),
    ("169.254.169.254", "metadata_address"),
    ("::ffff:192.168.0.1", "private_address"),
    ("fe80::1%2", "link_local_address"),
    ("0.0.0.0", "unspecified_address"),
    ("224.0.0.251", "multicast_address"),
]


@pytest.mark.parametrize(("address", "code"), HOSTILE_ADDRESSES)
def test_a_name_is_refused_if_any_of_its_addresses_is(address, code):
    assert refused("http://example.org/", resolve=to(address)) == code
    assert refused("http://example.org/", resolve=to(PUBLIC_ADDRESS, address)) == code


def test_a_refusal_does_not_tell_what_a_name_resolves_to():
    with pytest.raises(Invalid) as caught:
        check_url("http://intranet.example/", private=False, resolve=to("10.20.30.40"))
    assert "10.20.30.40" not in str(caught.value)


def test_a_name_that_is_not_there():
    def resolve(host, port):
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    assert refused("http://nowhere.example/", resolve=resolve) == "unknown_host"
    assert refused("http://nowhere.example/", resolve=to()) == "unknown_host"


def test_a_resolver_that_does_not_answer():
    def resolve(host, port):
        raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")

    with pytest.raises(Unavailable):
        check_url("http://example.org/", private=False, resolve=resolve)
    with (
        guarded_client(private=False, timeout_s=1.0, resolve=resolve) as client,
        pytest.raises(httpx2.ConnectError),
    ):
        client.get("http://example.org/")


# --- properties


def outside(address):
    """What Python's own tables hold to be unfit: ours must be at least as strict."""
    return not address.is_global or address.is_multicast or address.is_loopback


@given(st.ip_addresses())
def test_is_at_least_as_strict_as_the_standard_library(address):
    if outside(address):
        assert kind_of(address) != "public"


@given(st.ip_addresses(v=4))
def test_all_spellings_of_an_address_are_judged_alike(address):
    number = int(address)
    high, low = number >> 24, number & 0xFFFFFF
    kind = kind_of(address)
    assert kind_of(ipaddress.IPv6Address(f"::ffff:{address}")) == kind
    spellings = [
        f"{number}",
        f"{number:#x}",
        f"0{number:o}",
        f"{high}.{low}",
        f"{high:#x}.{low:#X}".lower(),
        f"[::ffff:{address}]",
        f"{address}.",
    ]
    for spelling in spellings:
        if kind == "public":
            assert check_url(f"http://{spelling}/", private=False)
        else:
            assert refused(f"http://{spelling}/") == f"{kind}_address"


@given(st.ip_addresses(v=4))
def test_a_spelling_leads_where_the_system_would_go(address):
    number = int(address)
    for spelling in (f"{number}", f"{number:#x}", f"0{number:o}"):
        system = ipaddress.IPv4Address(socket.inet_aton(spelling))
        backend_host = httpx2.URL(f"http://{spelling}/").raw_host.decode()
        assert system == address
        assert backend_host == spelling


@given(st.text(max_size=60))
def test_any_text_is_judged_and_never_breaks_the_guard(text):
    for url in (text, f"http://{text}", f"https://{text}/a"):
        try:
            checked = check_url(url, private=False, resolve=to(PUBLIC_ADDRESS))
        except Invalid:
            continue
        assert checked.url.startswith(f"{checked.scheme}://")
        assert httpx2.URL(checked.url).raw_host.decode() == checked.host
        assert all(kind_of(ipaddress.ip_address(a)) == "public" for a in checked.addresses)


# --- connections


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
