"""RSA keys with certificates, signed UKIs and signed variable updates, for tests of updates."""

from __future__ import annotations

import base64
import datetime
import json
import uuid
from functools import cache

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey, generate_private_key
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from image import authenticode, efivars, pe, pkcs7

BEGIN = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
OWNER = uuid.UUID(int=7)


class Key:
    """An RSA key and its certificate."""

    def __init__(self, name: str) -> None:
        self.key: RSAPrivateKey = generate_private_key(65537, 2048)
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        builder = x509.CertificateBuilder().subject_name(subject).issuer_name(subject).serial_number(1)
        builder = builder.public_key(self.key.public_key()).not_valid_before(BEGIN)
        self.certificate = builder.not_valid_after(BEGIN.replace(year=2040)).sign(self.key, SHA256())
        self.der = self.certificate.public_bytes(Encoding.DER)

    def sign(self, message: bytes) -> bytes:
        return self.key.sign(message, PKCS1v15(), SHA256())


@cache
def key(name: str) -> Key:
    return Key(name)


def signed_image(image: bytes, name: str = "db") -> bytes:
    return pe.attach_signature(image, authenticode.sign(image, key(name), key(name).certificate))


def lists(*names: str) -> bytes:
    """A variable's value with these keys' certificates."""
    return b"".join(efivars.certificate_list(key(name).certificate, OWNER) for name in names)


def auth(variable: str, data: bytes, *, signer: str = "KEK", append: bool = False) -> bytes:
    return efivars.sign(variable, data, key(signer), key(signer).certificate, time=BEGIN, append=append)


def verity_json(root_hash: bytes, name: str = "verity") -> bytes:
    """What the signature partition holds."""
    text = root_hash.hex()
    der = pkcs7.sign(key(name), key(name).certificate, message=text.encode())
    fingerprint = key(name).certificate.fingerprint(SHA256()).hex()
    value = {
        "rootHash": text,
        "certificateFingerprint": fingerprint,
        "signature": base64.b64encode(der).decode(),
    }
    return json.dumps(value).encode()
