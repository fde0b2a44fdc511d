"""Makes a self-signed certificate for trials, and writes it beside its key."""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from headrace.model.errors import Invalid

LOOPBACK_NAMES = ("localhost", "127.0.0.1", "::1")
SKEW = timedelta(hours=1)
"""A made certificate is valid from this long ago: not all clocks agree."""
SERIAL_BYTES = 16


class Made(NamedTuple):
    """A certificate and its private key, PEM."""

    certificate: bytes
    key: bytes
    ends: datetime


def make(names: Sequence[str], days: int, now_us: int, serial: bytes) -> Made:
    """Make a self-signed certificate for loopback and further names and addresses.

    It signs nothing but itself, so whoever trusts it trusts nobody else by that. `serial` is
    chance. `Invalid` for what is no name.
    """
    now = datetime.fromtimestamp(now_us / 1e6, UTC)
    ends = now + timedelta(days=days)
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Headrace, for development")])
    named = [_general_name(name) for name in dict.fromkeys((*LOOPBACK_NAMES, *names))]
    key_id = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    uses = dict.fromkeys(
        ("content_commitment", "key_encipherment", "data_encipherment", "key_agreement",
         "key_cert_sign", "crl_sign", "encipher_only", "decipher_only"), False,
    )  # fmt: skip
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        # A serial number is positive and has 20 bytes at most (RFC 5280, 4.1.2.2).
        .serial_number(int.from_bytes(serial) | 1)
        .not_valid_before(now - SKEW)
        .not_valid_after(ends)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.KeyUsage(digital_signature=True, **uses), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectAlternativeName(named), critical=False)
        .add_extension(key_id, critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(key_id), critical=False
        )
    )
    encoding = serialization.Encoding.PEM
    return Made(
        builder.sign(key, hashes.SHA256()).public_bytes(encoding),
        key.private_bytes(
            encoding, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        ),
        ends,
    )


def write(made: Made, certificate: Path, key: Path, *, replace: bool) -> None:
    """Write a pair, the key for its owner alone; `Invalid` if a file is there or cannot be made.

    With `replace` files that are there are renewed, the key first.
    """
    try:
        for path, content, mode in ((key, made.key, 0o600), (certificate, made.certificate, 0o644)):
            if path.exists() and not replace:
                raise Invalid(
                    f"{path} is there already",
                    hint="Say --replace to renew it, or name another folder with --to.",
                    code="exists",
                )
            beside = path.with_name(f".{path.name}.{os.getpid()}")
            descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
            with os.fdopen(descriptor, "wb") as file:
                file.write(content)
            beside.replace(path)
    except OSError as error:
        raise Invalid(
            f"{error.filename} cannot be written: {error.strerror}",
            hint="Name a folder of yours with --to.",
            code="not_writable",
        ) from error


def _general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        pass
    labels = name.removeprefix("*.").split(".")
    if not all(label and label.replace("-", "").isalnum() and label.isascii() for label in labels):
        raise Invalid(
            f"{name!r} is no name of a host",
            hint="Names are such as data.example.org, in ASCII, and 192.0.2.1 or ::1.",
            code="bad_host_name",
        )
    return x509.DNSName(name)
