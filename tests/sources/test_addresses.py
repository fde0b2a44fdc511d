from __future__ import annotations

import ipaddress
import socket

import httpx2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.model.errors import Invalid, Unavailable
from headrace.sources.addresses import check_url, kind_of

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
