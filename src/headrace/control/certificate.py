"""Whether a certificate and its key are fit for a server to begin with."""

from __future__ import annotations

import ssl
from datetime import UTC, datetime
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from headrace.model.errors import Invalid

CODE = "bad_certificate"
RSA_BITS_MIN = 2048


def check(certificate: Path, key: Path, now_us: int) -> datetime:
    """Return when a pair ends; `Invalid` unless a server can begin with it now."""
    held = _read(certificate, "certificate")
    _read(key, "key")
    _check_private(key)
    try:
        first = x509.load_pem_x509_certificates(held)[0]
    except ValueError as error:
        raise Invalid(
            f"{certificate} holds no certificate in PEM: {error}",
            hint="It begins with -----BEGIN CERTIFICATE-----; the server's own stands first.",
            code=CODE,
        ) from error
    _check_kind(certificate, first)
    _check_pair(certificate, key)
    now = datetime.fromtimestamp(now_us / 1e6, UTC)
    begins, ends = first.not_valid_before_utc, first.not_valid_after_utc
    if now >= ends:
        raise Invalid(
            f"The certificate {certificate} ended on {ends:%Y-%m-%d %H:%M} UTC",
            hint="Renew it; `headrace dev-cert --replace` makes a new one for trials.",
            code=CODE,
        )
    if now < begins:
        raise Invalid(
            f"The certificate {certificate} is not valid before {begins:%Y-%m-%d %H:%M} UTC",
            hint="Is the clock of this machine right?",
            code=CODE,
        )
    return ends


def _read(path: Path, what: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise Invalid(
            f"The {what} {path} cannot be read: {error.strerror}",
            hint="`headrace dev-cert` makes a certificate and a key for trials.",
            code=CODE,
        ) from error


def _check_private(key: Path) -> None:
    """Refuse a key that others may read; PostgreSQL's rule, which system packages go by too.

    Its owner alone may read it, or also a group if it is root's.
    """
    found = key.stat()
    if found.st_mode & (0o027 if found.st_uid == 0 else 0o077):
        raise Invalid(
            f"Others than its owner may read the key {key} (mode 0{found.st_mode & 0o777:o})",
            hint=f"chmod 600 {key}; if strangers could log in here, make a new one.",
            code=CODE,
        )


def _check_kind(path: Path, certificate: x509.Certificate) -> None:
    """Refuse kinds of keys that the server's TLS (rustls) ends the process over."""
    key = certificate.public_key()
    if isinstance(key, ed25519.Ed25519PublicKey):
        return
    if isinstance(key, ec.EllipticCurvePublicKey) and key.curve.name in {"secp256r1", "secp384r1"}:
        return
    if isinstance(key, rsa.RSAPublicKey) and key.key_size >= RSA_BITS_MIN:
        return
    raise Invalid(
        f"The certificate {path} is for a kind of key that this server cannot use",
        hint=f"Use ECDSA with P-256 or P-384, Ed25519, or RSA with {RSA_BITS_MIN} bits or more.",
        code=CODE,
    )


def _check_pair(certificate: Path, key: Path) -> None:
    def no_password() -> str:
        raise Invalid(
            f"The key {key} has a password",
            hint=f"Nobody is there to be asked: openssl pkey -in {key} -out PLAIN takes it off.",
            code=CODE,
        )

    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, key, no_password)
    except ssl.SSLError as error:
        matches = error.reason != "KEY_VALUES_MISMATCH"
        raise Invalid(
            f"{key} is no private key in PEM: {error.reason or error}"
            if matches
            else f"The key {key} is not that of the certificate {certificate}",
            hint="Give the two files that were made together.",
            code=CODE,
        ) from error
