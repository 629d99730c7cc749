"""How an operator's requests are signed and checked. Shared by the command line and the registrar.

The signature is over a domain, then the canonical JSON of the registrar it is for, method, path with query,
SHA-256 of the body, timestamp and nonce. It travels in four headers. The registrar is named by its
certificate authority, which the operator pins: what one registrar was sent is worth nothing at another.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import secrets
import ssl
from collections.abc import Mapping
from dataclasses import dataclass

from hsm import keys
from hsm.signer import Signer
from nodeos.core.errors import Finding, RefusedError, UsageError
from nodeos.core.principal import Principal
from nodeos.core.wire import b64, canonical_json

DOMAIN = b"nodeos-operator-v2\x00"
KEY, TIMESTAMP, NONCE, SIGNATURE = (
    "nodeos-operator-key",
    "nodeos-operator-timestamp",
    "nodeos-operator-nonce",
    "nodeos-operator-signature",
)
WINDOW_SECONDS = 300
NONCE_HEX = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """A request: the id of the registrar that it is for, HTTP method, path with query, and body."""

    registrar: str
    method: str
    path: str
    body: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """Who signed a request, and the headers that prove it later."""

    principal: Principal
    public_key: bytes
    timestamp: int
    nonce: str
    signature: bytes


def registrar_id(ca: str) -> str:
    """Names a registrar: hex of SHA-256 over its authority's certificate (DER). ``ca`` is PEM text.

    Raises UsageError for anything but exactly one certificate.
    """
    if ca.count("-----BEGIN ") == 1:
        try:
            return hashlib.sha256(ssl.PEM_cert_to_DER_cert(ca.strip())).hexdigest()
        except ValueError:
            pass
    raise UsageError("the registrar's CA must be one certificate in PEM", hint="take ca.pem of the registrar")


def _message(asked: Asked, timestamp: int, nonce: str) -> bytes:
    signed = {
        "registrar": asked.registrar,
        "method": asked.method,
        "path": asked.path,
        "body": hashlib.sha256(asked.body).hexdigest(),
        "timestamp": timestamp,
        "nonce": nonce,
    }
    return DOMAIN + canonical_json(signed)


def sign(signer: Signer, asked: Asked, at: int) -> dict[str, str]:
    """The headers of one request; ``at`` is the time in seconds since 1970."""
    nonce = secrets.token_hex(NONCE_HEX // 2)
    return {
        KEY: b64(signer.public_key),
        TIMESTAMP: str(at),
        NONCE: nonce,
        SIGNATURE: b64(signer.sign(_message(asked, at, nonce))),
    }


def verify(headers: Mapping[str, str], asked: Asked, at: int) -> Caller:
    """Who signed. The nonce still has to be used up. Raises RefusedError."""
    try:
        key = base64.b64decode(headers.get(KEY, ""), validate=True)
        signature = base64.b64decode(headers.get(SIGNATURE, ""), validate=True)
    except (binascii.Error, ValueError) as error:
        raise _refused("operator.headers", "a header is not base64") from error
    stamp, nonce = headers.get(TIMESTAMP, ""), headers.get(NONCE, "")
    if not (key and stamp.isascii() and stamp.isdigit() and len(stamp) <= 12) or not _is_nonce(nonce):
        raise _refused("operator.headers", "key, timestamp, nonce or signature is missing or malformed")
    timestamp = int(stamp)
    try:
        keys.verify(key, _message(asked, timestamp, nonce), signature)
    except (keys.SignatureError, UsageError) as error:
        raise _refused(
            "operator.signature", "the signature does not fit key, request and registrar"
        ) from error
    if abs(at - timestamp) > WINDOW_SECONDS:
        words = f"signed at {timestamp}, it is {at} here; at most {WINDOW_SECONDS} s apart are allowed"
        raise _refused("operator.time", words, hint="set this computer's clock")
    return Caller(
        principal=Principal.self_authenticating(key),
        public_key=key,
        timestamp=timestamp,
        nonce=nonce,
        signature=signature,
    )


def _is_nonce(text: str) -> bool:
    return len(text) == NONCE_HEX and all(letter in "0123456789abcdef" for letter in text)


def _refused(code: str, message: str, *, hint: str | None = None) -> RefusedError:
    return RefusedError("the request is refused", (Finding(code=code, message=message),), hint=hint)
