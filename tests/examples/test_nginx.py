"""Real nginx before a run, with the configuration of `examples/nginx`."""

from __future__ import annotations

import getpass
import json
import shutil
import socket
import ssl
import subprocess
from contextlib import contextmanager

import httpx2
import pytest
from run_example import ROOT, Run, free_port, headrace, until

NGINX = shutil.which("nginx", path="/usr/sbin:/usr/local/sbin:/usr/bin:/usr/local/bin")
NAME = "data.example.org"
CLIENT = "127.9.8.7"
"""Another address of this machine, from which the test's client asks."""
BODY_BYTES_MAX = 16 << 20

pytestmark = pytest.mark.skipif(NGINX is None, reason="nginx is missing: apt install nginx-light")

MAIN = """
daemon off;
user {user};
pid {folder}/nginx.pid;
error_log {folder}/error.log info;
worker_processes 1;
events {{}}
http {{
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    include {folder}/headrace.conf;
}}
"""
PIPELINE = """
from headrace import Pipeline, Record, field

class Hit(Record):
    n: int | None = None
    host: str | None = field("Host", default=None)
    client: str | None = field("X-Forwarded-For", default=None)
    scheme: str | None = field("X-Forwarded-Proto", default=None)

pipeline = Pipeline("hits")
hits = pipeline.topic("hits", Hit, partitions=1)
pipeline.route("/hit", hits, {})
pipeline.view("by_client", "SELECT client, scheme, count(*) AS n FROM hits GROUP BY ALL")
"""


class Behind:
    """A run, nginx before it, and a client that knows nginx's certificate."""

    def __init__(self, run, folder, https, plain):
        self.run, self.https, self.plain = run, https, plain
        self.trusting = ssl.create_default_context(cafile=folder / "headrace-cert.pem")

    @contextmanager
    def client(self, **options):
        """Ask nginx by its public name, from an address that no proxy has."""
        transport = httpx2.HTTPTransport(verify=self.trusting, local_address=CLIENT, **options)
        url, host = f"https://localhost:{self.https}", {"host": f"{NAME}:{self.https}"}
        with httpx2.Client(transport=transport, base_url=url, headers=host, timeout=60) as client:
            yield client


@pytest.fixture(scope="module")
def behind(tmp_path_factory):
    folder = tmp_path_factory.mktemp("nginx")
    (folder / "hits.py").write_text(PIPELINE)
    https, plain = free_port(), free_port()
    options = ("--trusted-proxy", "127.0.0.1", "--host-name", NAME)
    with Run(folder / "hits.py", folder / "data", *options) as run:
        configure(folder, run.port, https, plain)
        with nginx(folder, https):
            yield Behind(run, folder, https, plain)


def configure(folder, port, https, plain):
    """Write the configuration of the example, with names and ports of this test."""
    headrace("dev-cert", "--to", folder, "--name", NAME)
    text = (ROOT / "examples/nginx/headrace.conf").read_text()
    for written, ours in (
        ("server 127.0.0.1:8080;", f"server 127.0.0.1:{port};"),
        ("listen 80;", f"listen 127.0.0.1:{plain};"),
        ("listen 443 ssl", f"listen 127.0.0.1:{https} ssl"),
        ("/etc/headrace/cert.pem", str(folder / "headrace-cert.pem")),
        ("/etc/headrace/key.pem", str(folder / "headrace-key.pem")),
    ):
        assert text.count(written) == 1, written
        text = text.replace(written, ours)
    (folder / "headrace.conf").write_text(text)
    user = getpass.getuser()
    (folder / "nginx.conf").write_text(MAIN.format(folder=folder, user=user))


@contextmanager
def nginx(folder, port):
    command = [NGINX, "-p", folder, "-c", folder / "nginx.conf", "-e", folder / "error.log"]
    process = subprocess.Popen(list(map(str, command)), stdin=subprocess.DEVNULL)
    try:
        until(lambda: process.poll() is None and listens(port), bool)
        yield process
    finally:
        process.terminate()
        process.wait(30)


def listens(port):
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def test_plain_http_is_sent_to_https(behind):
    sent_on = httpx2.post(
        f"http://127.0.0.1:{behind.plain}/hit?a=1%2F2", headers={"host": NAME}, content=b"{}"
    )
    assert (sent_on.status_code, sent_on.headers["location"]) == (
        308,
        f"https://{NAME}/hit?a=1%2F2",
    )


def test_events_come_in_with_the_clients_own_network_and_views_go_out(behind):
    forged = {"x-forwarded-for": "6.6.6.6", "x-forwarded-proto": "http"}
    with behind.client() as client:
        assert client.post("/hit", json={"n": 1}, headers=forged).status_code == 200
        assert client.post("/v1/topics/hits", json={"n": 2, "client": "none"}).status_code == 200
        records = client.get("/v1/topics/hits/records?partition=0&offset=0").json()["records"]
        value = records[0]["value"]
        assert value["X-Forwarded-For"] == "127.9.8.0"
        assert value["X-Forwarded-Proto"] == "https"
        assert value["Host"] == f"{NAME}:{behind.https}"
        assert client.get("/").status_code == 200


def test_who_goes_past_nginx_cannot_say_who_they_are(behind):
    """The port's own network is not the proxy's address."""
    forged = {"x-forwarded-for": "6.6.6.6", "x-forwarded-proto": "https"}
    transport = httpx2.HTTPTransport(local_address=CLIENT)
    with httpx2.Client(transport=transport, base_url=behind.run.url) as client:
        assert client.get("/hit", headers=forged).status_code == 200
        path = "/v1/topics/hits/records?partition=0&offset=0"
        value = client.get(path).json()["records"][-1]["value"]
    assert (value["X-Forwarded-For"], value["X-Forwarded-Proto"]) == ("127.9.8.0", "http")


def test_a_name_that_is_not_the_servers_is_not_read_by(behind):
    with behind.client() as client:
        refused = client.get("/v1/views/by_client", headers={"host": "evil.example"})
        assert (refused.status_code, refused.json()["error"]["code"]) == (421, "misdirected")


def test_a_live_view_comes_as_it_happens(behind):
    """Were it held back until a buffer is full, the second event would not come."""
    with (
        behind.client() as client,
        behind.client() as sender,
        client.stream("GET", "/v1/views/by_client/live") as live,
    ):
        assert live.headers["content-type"].startswith("text/event-stream")
        told = (line for line in live.iter_lines() if line.startswith("data:"))
        before = next(told)
        assert sender.get("/hit").status_code == 200
        after = next(told)
    assert count(after) > count(before)


def count(line):
    return sum(row["n"] for row in json.loads(line.removeprefix("data:"))["rows"])


def test_a_body_that_is_too_large_is_refused_as_headrace_does(behind):
    largest = b'{"n":1,"pad":"' + b"x" * (BODY_BYTES_MAX - 16) + b'"}'
    assert len(largest) == BODY_BYTES_MAX
    headers = {"content-type": "application/json"}
    url = behind.run.url + "/v1/topics/hits"
    with behind.client() as client, httpx2.Client(timeout=60) as direct:
        assert client.post("/v1/topics/hits", content=largest, headers=headers).status_code == 200
        answers = [
            client.post("/v1/topics/hits", content=largest + b" ", headers=headers),
            direct.post(url, content=largest + b" ", headers=headers),
        ]
    for answer in answers:
        assert answer.status_code == 413
        assert answer.headers["content-type"] == "application/json"
    assert answers[0].json() == answers[1].json()


def test_http_2_is_spoken(behind):
    behind.trusting.set_alpn_protocols(["h2"])
    with (
        socket.create_connection(("127.0.0.1", behind.https), timeout=30) as plain,
        behind.trusting.wrap_socket(plain, server_hostname="localhost") as secure,
    ):
        assert secure.selected_alpn_protocol() == "h2"


def test_while_no_pipeline_runs_it_is_told_to_try_again(tmp_path):
    https = free_port()
    configure(tmp_path, free_port(), https, free_port())
    with nginx(tmp_path, https), Behind(None, tmp_path, https, 0).client() as client:
        answer = client.get("/v1/views")
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
    assert answer.json()["error"]["code"] == "unavailable"
