"""Checks PKCS #7 SignedData with one RSA signer: the signature on a UKI, and the one over a verity root hash.

The node has no library for it, and needs little: RSASSA-PKCS1-v1_5 with SHA-256, DER (RFC 2315; X.690, section
8.1). ``image.pkcs7`` makes these signatures. Certificates' dates don't count, as in firmware and kernel. Every
refusal is a UsageError.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.hashes import SHA256

from nodeos.core.errors import UsageError

_SEQUENCE, _SET, _OID, _INTEGER, _OCTETS, _EXPLICIT0, _EXPLICIT1 = 0x30, 0x31, 0x06, 0x02, 0x04, 0xA0, 0xA1
_SIGNED_DATA = bytes.fromhex("2a864886f70d010702")
_DATA = bytes.fromhex("2a864886f70d010701")
_CONTENT_TYPE = bytes.fromhex("2a864886f70d010903")
_MESSAGE_DIGEST = bytes.fromhex("2a864886f70d010904")
_SHA256 = bytes.fromhex("608648016503040201")
# SPC_INDIRECT_DATA_OBJID (Windows Authenticode Portable Executable Signature Format).
_INDIRECT_DATA = bytes.fromhex("2b060104018237020104")


@dataclass(frozen=True, slots=True)
class _Item:
    """One DER element; ``raw`` with its head."""

    tag: int
    body: bytes
    raw: bytes


def _items(data: bytes) -> list[_Item]:
    """Everything in a constructed element. Raises ValueError."""
    found = []
    while data:
        if len(data) < 2 or data[0] & 0x1F == 0x1F:
            raise ValueError("not DER")
        length, head = data[1], 2
        if length >= 0x80:
            count = length & 0x7F
            if not 1 <= count <= 4 or len(data) < 2 + count:
                raise ValueError("not DER")
            length, head = int.from_bytes(data[2 : 2 + count], "big"), 2 + count
        if head + length > len(data):
            raise ValueError("an element goes beyond its end")
        found.append(_Item(data[0], data[head : head + length], data[: head + length]))
        data = data[head + length :]
    return found


def _one(data: bytes, tag: int) -> _Item:
    found = _items(data)
    if len(found) != 1 or found[0].tag != tag:
        raise ValueError("not the element that must stand there")
    return found[0]


@dataclass(frozen=True, slots=True)
class _Signed:
    content_type: bytes
    content: bytes | None
    issuer: bytes
    serial: bytes
    attributes: bytes | None
    signature: bytes


def _parse(data: bytes) -> _Signed:
    outer = _items(_one(data, _SEQUENCE).body)
    if outer and outer[0].tag == _OID:
        if outer[0].body != _SIGNED_DATA or len(outer) != 2:
            raise ValueError("no SignedData")
        outer = _items(_one(outer[1].body, _SEQUENCE).body)
    fields = [item for item in outer if item.tag not in (_EXPLICIT0, _EXPLICIT1)]
    if [item.tag for item in fields] != [_INTEGER, _SET, _SEQUENCE, _SET] or fields[0].body != b"\1":
        raise ValueError("not SignedData of version 1")
    kind, *content = _items(fields[2].body)
    if kind.tag != _OID or len(content) > 1:
        raise ValueError("its content can't be read")
    signer = _items(_one(fields[3].body, _SEQUENCE).body)
    attributes = next((item for item in signer if item.tag == _EXPLICIT0), None)
    version, name, digest, *rest = [item for item in signer if item.tag not in (_EXPLICIT0, _EXPLICIT1)]
    if version.body != b"\1" or len(rest) != 2 or rest[1].tag != _OCTETS:
        raise ValueError("its signer can't be read")
    issuer, serial = _items(name.body)
    if _items(digest.body)[0].body != _SHA256:
        raise ValueError("it is not over SHA-256")
    return _Signed(
        content_type=kind.body,
        content=_one(content[0].body, content[0].body[0]).body if content and content[0].body else None,
        issuer=issuer.raw,
        serial=serial.body,
        attributes=None if attributes is None else attributes.body,
        signature=rest[1].body,
    )


def _check(signed: _Signed, certificate: x509.Certificate, message: bytes) -> None:
    serial = int.from_bytes(signed.serial, "big", signed=True)
    if signed.issuer != certificate.issuer.public_bytes() or serial != certificate.serial_number:
        raise ValueError("it is by another certificate")
    over = message
    if signed.attributes is not None:
        found: dict[bytes, bytes] = {}
        for item in _items(signed.attributes):
            kind, values = _items(item.body)
            if kind.body in found or len(_items(values.body)) != 1:
                raise ValueError("an attribute stands there twice")
            found[kind.body] = _items(values.body)[0].body
        if found.get(_CONTENT_TYPE) != signed.content_type:
            raise ValueError("its contentType is another one")
        if found.get(_MESSAGE_DIGEST) != hashlib.sha256(message).digest():
            raise ValueError("it is over something else")
        # What is signed is the SET OF, not the implicit tag (RFC 2315, section 9.3).
        length = len(signed.attributes)
        size = b"" if length < 0x80 else length.to_bytes((length.bit_length() + 7) // 8, "big")
        head = bytes([_SET, 0x80 | len(size)]) + size if size else bytes([_SET, length])
        over = head + signed.attributes
    key = certificate.public_key()
    if not isinstance(key, RSAPublicKey):
        raise ValueError("the certificate holds no RSA key")
    key.verify(signed.signature, over, PKCS1v15(), SHA256())


def check_detached(signature: bytes, certificate: x509.Certificate, message: bytes) -> None:
    """``signature`` is over ``message``, which it doesn't carry. Raises UsageError."""
    with _refusals():
        signed = _parse(signature)
        if signed.content_type != _DATA or signed.content is not None:
            raise ValueError("it is not a detached signature over data")
        _check(signed, certificate, message)


def check_authenticode(signature: bytes, certificate: x509.Certificate, digest: bytes) -> None:
    """``signature`` is over an image with this SHA-256 Authenticode digest. Raises UsageError."""
    with _refusals():
        signed = _parse(signature)
        if signed.content_type != _INDIRECT_DATA or signed.content is None:
            raise ValueError("it is not over a PE image")
        _data, info = _items(signed.content)
        algorithm, found = _items(info.body)
        if _items(algorithm.body)[0].body != _SHA256 or found.tag != _OCTETS or found.body != digest:
            raise ValueError("it is over another image")
        _check(signed, certificate, signed.content)


class _refusals:
    """What is wrong with the data in between, as a UsageError."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, InvalidSignature):
            raise UsageError("the signature isn't by the key of the certificate") from error
        if isinstance(error, ValueError | IndexError | TypeError):
            raise UsageError(f"the signature can't be used: {error}") from error
