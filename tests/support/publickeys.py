"""A folder with the public halves that a build needs, each with its private half thrown away."""

from __future__ import annotations

import datetime
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.types import PublicKeyTypes
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import NameOID

_DAY = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)


def pem(key: PublicKeyTypes) -> bytes:
    """The public key in PEM (SubjectPublicKeyInfo)."""
    return key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def certificate() -> bytes:
    """A self-signed certificate in PEM."""
    key = generate_private_key(SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test verity")])
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
    builder = builder.serial_number(1).not_valid_before(_DAY).not_valid_after(_DAY.replace(year=2040))
    return builder.sign(key, SHA256()).public_bytes(Encoding.PEM)


def make_public_keys(directory: Path) -> Path:
    """Fills ``directory``, which it makes."""
    directory.mkdir(parents=True)
    (directory / "pcr.pub.pem").write_bytes(pem(generate_private_key(SECP256R1()).public_key()))
    for name in ("site.pub.pem", "release.pub.pem"):
        (directory / name).write_bytes(pem(Ed25519PrivateKey.generate().public_key()))
    (directory / "verity.crt").write_bytes(certificate())
    return directory
