"""Kafka over TLS: one broker whose certificate a CA of the test has signed.

It has three listeners: one with TLS alone, one that asks clients for a certificate too, and one
with TLS and a password (SCRAM).
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from contextlib import closing

import msgspec
import pytest
from confluent_kafka.admin import AdminClient

from headrace.app.cluster import jars, trial
from headrace.app.cluster.keeper import PROGRAMS, Program
from headrace.app.cluster.ports import HOST, free_ports
from headrace.log.kafka import Kafka, KafkaLog
from headrace.model.clock import SystemClock
from headrace.model.errors import Invalid
from headrace.testing.log_place import expect_error, read_values, values

JAVA = ["java", "-Xmx256m", "-Xms64m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1"]
READY_S_MAX = 60
USER, PASSWORD = "headrace", "a secret"
LISTENERS = ("SSL", "MUTUAL", "SASL_SSL")


if shutil.which("openssl") is None:
    pytest.skip("certificates are made by openssl", allow_module_level=True)


def openssl(*words):
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"]
    command += ["-nodes", "-days", "2", *map(str, words)]
    subprocess.run(command, check=True, capture_output=True, timeout=60)


class Authority:
    """A CA: its `certificate`, and what it has signed."""

    def __init__(self, folder):
        folder.mkdir()
        self.folder = folder
        self.certificate = folder / "ca.pem"
        self._key = folder / "ca.key"
        openssl("-subj", "/CN=ca", "-keyout", self._key, "-out", self.certificate)

    def sign(self, name, address=HOST):
        """Return the files of a new key and of its certificate."""
        key, certificate = self.folder / f"{name}.key", self.folder / f"{name}.pem"
        signed = ["-CA", self.certificate, "-CAkey", self._key]
        signed += ["-addext", f"subjectAltName=IP:{address}"]
        openssl("-subj", f"/CN={name}", *signed, "-keyout", key, "-out", certificate)
        return key, certificate


def properties(folder, ports, authority):
    """Return a broker's properties; the last of its ports is its controller's."""
    key, certificate = authority.sign("broker")
    store = folder / "store.pem"
    store.write_text(key.read_text() + certificate.read_text())
    public = ",".join(f"{n}://{HOST}:{p}" for n, p in zip(LISTENERS, ports, strict=False))
    lines = {
        "node.id": 1,
        "process.roles": "broker,controller",
        "controller.quorum.voters": f"1@{HOST}:{ports[-1]}",
        "controller.listener.names": "CONTROLLER",
        "listeners": f"{public},CONTROLLER://{HOST}:{ports[-1]}",
        "advertised.listeners": public,
        "inter.broker.listener.name": "SSL",
        "listener.security.protocol.map": (
            "CONTROLLER:PLAINTEXT,SSL:SSL,MUTUAL:SSL,SASL_SSL:SASL_SSL"
        ),
        "ssl.keystore.type": "PEM",
        "ssl.keystore.location": store,
        "ssl.truststore.type": "PEM",
        "ssl.truststore.location": authority.certificate,
        "listener.name.mutual.ssl.client.auth": "required",
        "sasl.enabled.mechanisms": "SCRAM-SHA-512",
        "listener.name.sasl_ssl.scram-sha-512.sasl.jaas.config": (
            "org.apache.kafka.common.security.scram.ScramLoginModule required;"
        ),
        "log.dirs": folder / "node",
        "offsets.topic.replication.factor": 1,
        "auto.create.topics.enable": "false",
        "log.cleaner.dedupe.buffer.size": 16 << 20,
    }
    return "".join(f"{name}={value}\n" for name, value in lines.items())


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    return Authority(tmp_path_factory.mktemp("certificates") / "ours")


@pytest.fixture(scope="module")
def broker(tmp_path_factory, authority):
    """The address of each listener, by its name."""
    reason = jars.missing("kafka")
    if reason:
        pytest.skip(reason)
    folder = tmp_path_factory.mktemp("secure")
    ports = free_ports(len(LISTENERS) + 1)
    told = folder / "server.properties"
    told.write_text(properties(folder, ports, authority))
    java = [*JAVA, "-cp", f"{jars.jars('kafka')}/*"]
    user = f"SCRAM-SHA-512=[name={USER},password={PASSWORD}]"
    subprocess.run(
        [*java, "kafka.tools.StorageTool", "format", "-t", "A" * 22, "-c", told, "-S", user],
        check=True,
        capture_output=True,
        timeout=60,
    )
    programs = [Program("broker", [*java, "kafka.Kafka", str(told)], str(folder / "broker.out"))]
    (folder / PROGRAMS).write_bytes(msgspec.json.encode(programs))
    command = [sys.executable, "-m", "headrace.app.cluster.keeper", str(folder), str(os.getpid())]
    keeper = subprocess.Popen(command, stdin=subprocess.DEVNULL)
    addresses = {n: f"{HOST}:{p}" for n, p in zip(LISTENERS, ports, strict=False)}
    try:
        client = {"security.protocol": "SSL", "ssl.ca.location": str(authority.certificate)}
        admin = AdminClient({"bootstrap.servers": addresses["SSL"], "log_level": 0, **client})
        admin.list_topics(timeout=READY_S_MAX)
        yield addresses
    finally:
        keeper.terminate()
        keeper.wait()
        trial.stop_orphans(folder)


def kafka(address, properties):
    named = {name: str(value) for name, value in properties.items()}
    return Kafka(address, named, replication=1, insync_min=1)


def check_log(place, topic):
    """Check that a log keeps and reads records and state there."""
    with closing(KafkaLog(place, SystemClock())) as log:
        log.create(topic, 1)
        log.append(topic, values(b"1"), {topic: b"1"})
        log.append(topic, values(b"2"))
        assert read_values(log, topic) == [b"1", b"2"]
        assert log.get(topic).value == b"1"


def denied(place):
    """Return the error of opening a log that does not get in."""
    error = expect_error(Invalid, lambda: KafkaLog(place, SystemClock()))
    assert error.code == "kafka_denied"
    assert "docs/deploy.md" in error.hint
    return error


def test_tls(broker, authority):
    trusted = {"security.protocol": "SSL", "ssl.ca.location": authority.certificate}
    check_log(kafka(broker["SSL"], trusted), "tls")


def test_tls_with_a_certificate_of_the_client(broker, authority):
    trusted = {"security.protocol": "SSL", "ssl.ca.location": authority.certificate}
    key, certificate = authority.sign("client")
    named = {"ssl.key.location": key, "ssl.certificate.location": certificate}
    check_log(kafka(broker["MUTUAL"], trusted | named), "mutual")
    assert "certificate" in denied(kafka(broker["MUTUAL"], trusted)).message


def test_tls_with_a_password(broker, authority):
    login = {
        "security.protocol": "SASL_SSL",
        "ssl.ca.location": authority.certificate,
        "sasl.mechanism": "SCRAM-SHA-512",
        "sasl.username": USER,
    }
    check_log(kafka(broker["SASL_SSL"], {**login, "sasl.password": PASSWORD}), "password")
    denied(kafka(broker["SASL_SSL"], {**login, "sasl.password": "another"}))


def test_a_broker_that_the_ca_does_not_know_is_not_trusted(broker, tmp_path):
    other = Authority(tmp_path / "other")
    trusted = {"security.protocol": "SSL", "ssl.ca.location": other.certificate}
    error = denied(kafka(broker["SSL"], trusted))
    assert "ssl.ca.location" in error.message


@pytest.mark.parametrize(
    "wrong",
    [
        {"security.protocol": "SSL", "ssl.ca.location": "/nowhere/ca.pem"},
        {"security.protocol": "TLS"},
        {"security.protocoll": "SSL"},
    ],
    ids=["file", "value", "name"],
)
def test_properties_that_the_client_does_not_take(wrong):
    place = kafka(f"{HOST}:1", wrong)
    error = expect_error(Invalid, lambda: KafkaLog(place, SystemClock()))
    assert error.code == "bad_kafka_properties"
    assert "[kafka.properties]" in error.hint
