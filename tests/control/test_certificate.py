"""Which certificates a server may begin with, and the ones that are made for trials."""

import os
import ssl
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from headrace.app import dev_certificate
from headrace.control import certificate
from headrace.model.errors import Invalid

NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)
DAY_US = 86_400 * 1_000_000


def us(moment):
    return int(moment.timestamp()) * 1_000_000


@pytest.fixture
def pair(tmp_path):
    return written(tmp_path, "made")


def written(folder, name, names=()):
    made = dev_certificate.make(names, 90, us(NOW), b"\xff" * dev_certificate.SERIAL_BYTES)
    files = folder / f"{name}-cert.pem", folder / f"{name}-key.pem"
    dev_certificate.write(made, *files, replace=False)
    return files


def signed_with(folder, key):
    """Write a certificate for any kind of key."""
    name = x509.Name([])
    algorithm = None if isinstance(key, ed25519.Ed25519PrivateKey) else hashes.SHA256()
    built = (
        x509.CertificateBuilder(name, name, key.public_key(), 7)
        .not_valid_before(NOW)
        .not_valid_after(NOW + timedelta(days=2))
        .sign(key, algorithm)
    )
    files = folder / "cert.pem", folder / "key.pem"
    files[0].write_bytes(built.public_bytes(serialization.Encoding.PEM))
    files[1].write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    files[1].chmod(0o600)
    return files


def refused(files, now=NOW):
    with pytest.raises(Invalid) as told:
        certificate.check(*files, us(now))
    assert told.value.hint
    return told.value.message


def test_what_is_made_can_be_used_until_it_ends(pair):
    assert certificate.check(*pair, us(NOW)) == NOW + timedelta(days=90)
    certificate.check(*pair, us(NOW - timedelta(minutes=59)))
    assert "is not valid before 2026-11-22 11:00" in refused(pair, NOW - timedelta(minutes=61))
    assert "ended on 2027-02-20 12:00" in refused(pair, NOW + timedelta(days=90))


def test_what_is_made_names_loopback_and_what_else_is_asked_for(tmp_path):
    cert, key = written(tmp_path, "named", ["*.example.org", "192.0.2.1", "localhost"])
    assert key.stat().st_mode & 0o777 == 0o600
    found = x509.load_pem_x509_certificate(cert.read_bytes())
    names = found.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["localhost", "*.example.org"]
    addresses = map(str, names.get_values_for_type(x509.IPAddress))
    assert list(addresses) == ["127.0.0.1", "::1", "192.0.2.1"]
    # Whoever trusts it trusts nobody else by that.
    uses = found.extensions.get_extension_for_class(x509.BasicConstraints)
    assert uses.critical
    assert not uses.value.ca


@pytest.mark.parametrize("name", ["two words", "", "http://x", "münchen.example", "a..b", "*"])
def test_what_is_no_name_is_refused(name):
    with pytest.raises(Invalid, match="no name of a host"):
        dev_certificate.make([name], 1, 0, b"1")


def test_files_that_are_there_are_kept_unless_they_are_to_be_renewed(tmp_path, pair):
    made = dev_certificate.make([], 1, us(NOW), b"1")
    before = [path.read_bytes() for path in pair]
    with pytest.raises(Invalid, match="is there already"):
        dev_certificate.write(made, *pair, replace=False)
    assert [path.read_bytes() for path in pair] == before
    dev_certificate.write(made, *pair, replace=True)
    assert certificate.check(*pair, us(NOW)) == NOW + timedelta(days=1)
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(p.name for p in pair)


def test_a_missing_file_is_named(pair):
    cert, key = pair
    key.unlink()
    assert f"The key {key} cannot be read: No such file" in refused(pair)
    cert.unlink()
    assert f"The certificate {cert} cannot be read: No such file" in refused(pair)


def test_files_without_what_they_are_to_hold(pair):
    cert, key = pair
    kept = key.read_bytes()
    key.write_bytes(b"nothing")
    assert "is no private key" in refused(pair)
    key.write_bytes(kept)
    cert.write_bytes(b"nothing")
    assert "holds no certificate" in refused(pair)


def test_halves_of_two_pairs(tmp_path, pair):
    _, other = written(tmp_path, "other")
    assert "is not that of the certificate" in refused((pair[0], other))


def test_a_key_with_a_password(tmp_path, pair):
    key = serialization.load_pem_private_key(pair[1].read_bytes(), None)
    locked = serialization.BestAvailableEncryption(b"secret")
    pair[1].write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, locked)
    )
    assert "has a password" in refused(pair)


@pytest.mark.parametrize("mode", [0o604, 0o602, 0o666])
def test_a_key_that_others_may_read(pair, mode):
    pair[1].chmod(mode)
    assert f"mode 0{mode:o}" in refused(pair)


def test_a_group_may_read_a_key_only_if_it_is_roots(pair):
    pair[1].chmod(0o640)
    if os.getuid() == 0:
        certificate.check(*pair, us(NOW))
        os.chown(pair[1], 12_345, -1)
    assert "mode 0640" in refused(pair)


@pytest.mark.parametrize(
    ("make", "fits"),
    [
        (lambda: ec.generate_private_key(ec.SECP384R1()), True),
        (ed25519.Ed25519PrivateKey.generate, True),
        (lambda: rsa.generate_private_key(65_537, 2_048), True),
        (lambda: rsa.generate_private_key(65_537, 1_024), False),
        (lambda: ec.generate_private_key(ec.SECP521R1()), False),
    ],
    ids=["p384", "ed25519", "rsa2048", "rsa1024", "p521"],
)
def test_kinds_of_keys_that_the_server_cannot_use_never_reach_it(tmp_path, make, fits):
    files = signed_with(tmp_path, make())
    if fits:
        assert certificate.check(*files, us(NOW)) == NOW + timedelta(days=2)
    else:
        assert "kind of key" in refused(files)


def test_a_client_that_knows_the_certificate_believes_it_strictly(pair):
    """A handshake in memory, without a socket."""
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    now = datetime.now(UTC)
    made = dev_certificate.make([], 1, us(now), b"1")
    dev_certificate.write(made, *pair, replace=True)
    server.load_cert_chain(*pair)
    client = ssl.create_default_context(cafile=pair[0])
    client.verify_flags |= ssl.VERIFY_X509_STRICT
    for name in dev_certificate.LOOPBACK_NAMES:
        to_client, to_server = ssl.MemoryBIO(), ssl.MemoryBIO()
        near = client.wrap_bio(to_client, to_server, server_hostname=name)
        far = server.wrap_bio(to_server, to_client, server_side=True)
        _shake(near, far)
        assert near.getpeercert()["subject"]


def _shake(near, far):
    for _ in range(10):
        done = 0
        for side in (near, far):
            try:
                side.do_handshake()
                done += 1
            except ssl.SSLWantReadError:
                pass
        if done == 2:
            return
    raise AssertionError
