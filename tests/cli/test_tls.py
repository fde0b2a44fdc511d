"""`headrace dev-cert`, and what `headrace run` refuses before anything starts."""

import json

import pytest

from headrace.app import deployment_file
from headrace.app.cli.dev_cert import CERTIFICATE, KEY
from headrace.app.deployment_file import Wanted
from headrace.model.deployment import Deployment, HttpSettings
from headrace.model.errors import Invalid
from headrace.model.layout import Layout

PIPELINE = """
from headrace import Pipeline, Record

class Event(Record):
    n: int

pipeline = Pipeline("p")
pipeline.topic("events", Event)
"""


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "p.py").write_text(PIPELINE)
    return tmp_path


def run(headrace, folder, *options):
    """Ask for a run that is refused; return what is said."""
    ended = headrace("run", folder / "p.py", "--data", folder / "data", *options)
    assert ended.status == 1, ended.err
    assert "hint:" in ended.err
    assert not (folder / "data").exists()
    return " ".join(ended.err.split())


def test_dev_cert_says_how_its_files_are_used(headrace, folder):
    ended = headrace("dev-cert", "--to", folder, "--name", "data.example.org")
    assert ended.status == 0
    assert f"--tls-cert {folder / CERTIFICATE} --tls-key {folder / KEY}" in ended.out
    assert headrace("dev-cert", "--to", folder).status == 1
    told = headrace("dev-cert", "--to", folder, "--replace", "--json").json()
    assert told["key"] == str(folder / KEY)


def test_dev_cert_is_for_names_of_hosts_and_folders_that_can_be_written(headrace):
    assert "no name of a host" in headrace("dev-cert", "--name", "a b").err
    # Nobody makes a file there, not even root.
    assert "cannot be written" in headrace("dev-cert", "--to", "/proc").err


def test_a_certificate_that_cannot_be_used_is_told_before_anything_starts(headrace, folder):
    headrace("dev-cert", "--to", folder)
    pair = ("--tls-cert", folder / CERTIFICATE, "--tls-key", folder / KEY)
    assert "go together" in run(headrace, folder, *pair[:2])
    assert "go together" in run(headrace, folder, *pair[2:])
    (folder / KEY).chmod(0o644)
    assert "mode 0644" in run(headrace, folder, *pair)
    (folder / KEY).unlink()
    assert "cannot be read" in run(headrace, folder, *pair)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--redirect-port", "8081"), "without a certificate"),
        (("--hsts", "1 day"), "without a certificate"),
        (("--trusted-proxy", "proxy.example.org"), "trusted proxy"),
        (("--host-name", "http://x"), "no name of a host"),
    ],
)
def test_options_that_make_no_sense(headrace, folder, options, said):
    assert said in run(headrace, folder, *options)


def test_a_port_that_others_reach_needs_a_certificate(headrace, folder):
    # 192.0.2.1 is nobody's address (RFC 5737), so nothing is listened on in the end.
    assert "other machines" in run(headrace, folder, "--host", "192.0.2.1")
    headrace("dev-cert", "--to", folder)
    pair = ("--tls-cert", folder / CERTIFICATE, "--tls-key", folder / KEY)
    assert "Cannot listen on 192.0.2.1" in run(headrace, folder, "--host", "192.0.2.1", *pair)


def test_options_go_over_the_file_and_are_of_one_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    layout = Layout.at("data")
    (tmp_path / "headrace.toml").write_text(
        '[http]\ntls_cert = "c.pem"\ntls_key = "k.pem"\nhost_names = ["a.example"]\nhsts_s = 60\n'
    )
    flags = HttpSettings(tls_key="other.pem", host_names=("b.example",))
    chosen = deployment_file.wish(Wanted(http=flags), Deployment()).http
    assert chosen == HttpSettings(
        str(tmp_path / "c.pem"), str(tmp_path / "other.pem"), 0, 60, (), ("b.example",)
    )
    layout.root.mkdir()
    deployment_file.keep(layout, Deployment(http=chosen))
    assert json.loads(layout.deployment.read_bytes())["http"]["hsts_s"] == 60
    (tmp_path / "headrace.toml").unlink()
    assert deployment_file.choose(Wanted(), layout).http == HttpSettings()


def test_the_environment_says_it_too(headrace, folder, monkeypatch):
    monkeypatch.setenv("HEADRACE_TRUSTED_PROXY", "10.0.0.1 nowhere")
    assert "nowhere" in run(headrace, folder)


def test_settings_of_the_file_are_checked(tmp_path):
    for text in ("redirect_port = 70000", "hsts_s = -1"):
        (tmp_path / "x.toml").write_text(f'[http]\ntls_cert = "c"\ntls_key = "k"\n{text}\n')
        with pytest.raises(Invalid, match="no such number"):
            deployment_file.wish(Wanted(config=tmp_path / "x.toml"), Deployment())


@pytest.mark.parametrize(("days", "fine"), [(30, True), (13, False)])
def test_doctor_says_in_time_that_a_certificate_ends(headrace, folder, days, fine):
    headrace("dev-cert", "--to", folder, "--days", days)
    (folder / "headrace.toml").write_text(
        f'[http]\ntls_cert = "{folder / CERTIFICATE}"\ntls_key = "{folder / KEY}"\n'
    )
    assert found_of_certificate(headrace)["fine"] == fine
    (folder / KEY).chmod(0o644)
    assert "mode 0644" in found_of_certificate(headrace)["found"]


def found_of_certificate(headrace):
    (found,) = (f for f in headrace("doctor", "--json").json() if f["what"] == "certificate")
    return found
