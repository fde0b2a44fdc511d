"""The reading side where no collector stands before it: its port does what the collector's does."""

import asyncio
import json
import signal
import ssl

import httpx2
import pytest

from headrace.app import deployment_file, dev_certificate
from headrace.app.cluster.ports import free_ports
from headrace.control.public_port import reached
from headrace.model.clock import SystemClock
from headrace.model.deployment import Deployment, HttpSettings
from headrace.serve.front import Front


async def echo(scope, receive, send):
    told = json.dumps([*scope["client"], scope["scheme"]]).encode()
    await send({"type": "http.response.start", "status": 200, "headers": [(b"a", b"1")]})
    await send({"type": "http.response.body", "body": told})


def asked(settings, path="/", peer=("127.0.0.1", 7), bound="127.0.0.1", **headers):
    """Ask an application that tells who asks."""
    front = Front(echo, reached(settings, bound, tokens=False))
    transport = httpx2.ASGITransport(front, client=peer)

    async def ask():
        async with httpx2.AsyncClient(transport=transport, base_url="http://localhost") as http:
            return await http.get(
                path, headers={k.replace("_", "-"): v for k, v in headers.items()}
            )

    return asyncio.run(ask())


FORGED = {"x_forwarded_for": "6.6.6.6, 203.0.113.9", "x_forwarded_proto": "https"}


@pytest.mark.parametrize(
    ("peer", "trusted", "told"),
    [
        (("127.0.0.1", 7), "127.0.0.0/8", ["203.0.113.9", 0, "https"]),
        (("::1", 7), "::1", ["203.0.113.9", 0, "https"]),
        (("127.0.0.1", 7), "10.0.0.0/8", ["127.0.0.1", 0, "http"]),
    ],
)
def test_only_a_trusted_proxy_says_who_asks(peer, trusted, told):
    answer = asked(HttpSettings(trusted_proxies=(trusted,)), peer=peer, **FORGED)
    assert answer.json() == told


def test_without_trusted_proxies_nobody_does():
    assert asked(HttpSettings(), **FORGED).json() == ["127.0.0.1", 7, "http"]


def test_a_strange_name_is_refused_but_to_ask_for_health():
    answer = asked(HttpSettings(), host="evil.example")
    assert (answer.status_code, answer.json()["error"]["code"]) == (421, "misdirected")
    assert asked(HttpSettings(), path="/healthz", host="evil.example").status_code == 200
    named = HttpSettings(host_names=("data.example.org",))
    assert asked(named, host="data.example.org").status_code == 200


def test_https_alone_is_asked_for_only_where_there_is_tls():
    settings = HttpSettings("c", "k", hsts_s=60)
    for host in ("localhost", "evil.example"):
        answer = asked(settings, host=host)
        assert answer.headers["strict-transport-security"] == "max-age=60"
    assert reached(HttpSettings(hsts_s=60), "192.0.2.1", tokens=False).headers == ()


def test_its_own_port_speaks_tls(world, start_server, tmp_path):
    world.epoch([world.sale(0)])
    files = tmp_path / "cert.pem", tmp_path / "key.pem"
    clock = SystemClock()
    made = dev_certificate.make([], 2, clock.now_us(), clock.secret(16))
    dev_certificate.write(made, *files, replace=False)
    port, plain = free_ports(2)
    settings = HttpSettings(*map(str, files), redirect_port=plain)
    deployment_file.keep(world.layout, Deployment(http=settings))
    process = start_server("127.0.0.1", str(port))
    assert process.stdout.readline() == "ready\n"
    trusting = ssl.create_default_context(cafile=files[0])
    sent_on = httpx2.get(f"http://localhost:{plain}/v1/tables/sales?limit=1")
    assert (sent_on.status_code, sent_on.content) == (308, b"")
    assert sent_on.headers["location"] == f"https://localhost:{port}/v1/tables/sales?limit=1"
    with httpx2.Client(verify=trusting) as http:
        assert http.get(sent_on.headers["location"]).status_code == 200
        assert http.get(f"https://127.0.0.1:{port}/", headers={"host": "evil"}).status_code == 421
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=20)
    assert (process.returncode, out, err) == (0, "stopped\n", "")
