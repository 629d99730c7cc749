"""PKCS #7 SignedData with one RSA signer, made and checked: what Authenticode and UEFI variables have in common.

RSASSA-PKCS1-v1_5 with SHA-256, version 1, signer by issuer and serial number (RFC 2315), and never a signing time:
the same content, key and certificate give the same bytes. Every refusal is a UsageError.
"""

from __future__ import annotations

import hashlib
from typing import Protocol

from asn1crypto import cms, core, parser
from asn1crypto import x509 as asn1_x509
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding

from nodeos.core.errors import UsageError

_SIGNED_DATA = "1.2.840.113549.1.7.2"
DATA = "1.2.840.113549.1.7.1"


class RsaSigner(Protocol):
    """A key that signs with RSASSA-PKCS1-v1_5 over SHA-256 of the message."""

    def sign(self, message: bytes) -> bytes:
        """Sign ``message`` (not its digest)."""
        ...


class _ContentInfo(core.Sequence):  # type: ignore[misc]  # asn1crypto has no types
    """PKCS #7 ContentInfo: unlike CMS, the content is of any type, not an OCTET STRING."""

    _fields = [  # noqa: RUF012
        ("content_type", core.ObjectIdentifier),
        ("content", core.Any, {"explicit": 0, "optional": True}),
    ]


class _SignedData(core.Sequence):  # type: ignore[misc]
    _fields = [  # noqa: RUF012
        ("version", core.Integer),
        ("digest_algorithms", cms.DigestAlgorithms),
        ("content_info", _ContentInfo),
        ("certificates", cms.CertificateSet, {"implicit": 0, "optional": True}),
        ("signer_infos", cms.SignerInfos),
    ]


def _public_key(certificate: x509.Certificate) -> RSAPublicKey:
    key = certificate.public_key()
    if not isinstance(key, RSAPublicKey):
        raise UsageError("the certificate holds no RSA key", hint="firmware checks RSA signatures only")
    return key


def _check(certificate: x509.Certificate, signature: bytes, message: bytes) -> None:
    try:
        _public_key(certificate).verify(signature, message, PKCS1v15(), SHA256())
    except InvalidSignature as error:
        raise UsageError("the signature isn't by the key of the certificate") from error


def _sha256() -> cms.DigestAlgorithm:
    return cms.DigestAlgorithm({"algorithm": "sha256", "parameters": core.Null()})


def sign(
    signer: RsaSigner, certificate: x509.Certificate, *, message: bytes, content_type: str = DATA,
    content: bytes | None = None, attributes: bool = False, wrapped: bool = True,
) -> bytes:  # fmt: skip
    """DER SignedData over ``message``; ``content`` is DER of what it carries, None for a detached signature.

    With ``attributes`` the signature is over the authenticated attributes contentType and messageDigest, else over
    the message itself. ``wrapped`` puts it into a ContentInfo. Raises UsageError if the certificate isn't the
    signer's.
    """
    parsed = asn1_x509.Certificate.load(certificate.public_bytes(Encoding.DER))
    info = {
        "version": "v1",
        "sid": cms.SignerIdentifier(
            {"issuer_and_serial_number": {"issuer": parsed.issuer, "serial_number": parsed.serial_number}}
        ),
        "digest_algorithm": _sha256(),
        "signature_algorithm": {"algorithm": "rsassa_pkcs1v15", "parameters": core.Null()},
    }
    signed = message
    if attributes:
        signed_attributes = cms.CMSAttributes([
            {"type": "content_type", "values": [content_type]},
            {"type": "message_digest", "values": [hashlib.sha256(message).digest()]},
        ])  # fmt: skip
        info["signed_attrs"] = signed_attributes
        signed = signed_attributes.untag().dump(force=True)
    signature = signer.sign(signed)
    _check(certificate, signature, signed)
    data = _SignedData({
        "version": 1,
        "digest_algorithms": [_sha256()],
        "content_info": _ContentInfo.load(_content_info(content_type, content)),
        "certificates": [parsed],
        "signer_infos": [{**info, "signature": signature}],
    })  # fmt: skip
    if not wrapped:
        return bytes(data.dump())
    return _content_info(_SIGNED_DATA, data.dump())


def _content_info(content_type: str, content: bytes | None) -> bytes:
    """DER ContentInfo; the content stands in a tag [0] EXPLICIT."""
    body = core.ObjectIdentifier(content_type).dump()
    if content is not None:
        body += parser.emit(2, 1, 0, content)
    return bytes(parser.emit(0, 1, 16, body))


def verify(
    data: bytes, certificate: x509.Certificate, *, message: bytes | None = None, content_type: str = DATA
) -> bytes:
    """Check DER SignedData by the key of ``certificate``, in a ContentInfo or bare; return the DER content in it.

    ``message`` is what was signed for a detached signature; with None it is the content's value. Other
    authenticated attributes (a signing time) may stand there. Dates in the certificate don't count, as in
    firmware. Raises UsageError on any mismatch.
    """
    try:
        return _verify(data, certificate, message, content_type)
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, OverflowError) as error:
        raise UsageError(f"a signature that can't be read: {error}") from error


def _verify(data: bytes, certificate: x509.Certificate, message: bytes | None, content_type: str) -> bytes:
    signed_data = _load(data)
    if signed_data["version"].native != 1 or len(signed_data["signer_infos"]) != 1:
        raise UsageError("a signature that is not of version 1 with one signer")
    info = signed_data["signer_infos"][0]
    sid = info["sid"].chosen
    expected = asn1_x509.Certificate.load(certificate.public_bytes(Encoding.DER))
    if (
        info["sid"].name != "issuer_and_serial_number"
        or sid["issuer"].dump() != expected.issuer.dump()
        or sid["serial_number"].native != expected.serial_number
    ):
        raise UsageError("the signature is by another certificate")
    if info["digest_algorithm"]["algorithm"].native != "sha256":
        raise UsageError("the signature is not over SHA-256")
    # PKCS #7 names the key's algorithm here; some writers put CMS's sha256WithRSAEncryption.
    if info["signature_algorithm"]["algorithm"].native not in ("rsassa_pkcs1v15", "sha256_rsa"):
        raise UsageError("the signature is not RSASSA-PKCS1-v1_5")
    carried = signed_data["content_info"]
    if carried["content_type"].dotted != content_type:
        raise UsageError(f"the signature is over content of type {carried['content_type'].dotted}")
    content = carried["content"]
    has_content = not isinstance(content, core.Void)
    if has_content == (message is not None):
        raise UsageError("a signature that has to carry its content, or must not")
    der = bytes(content.dump()) if has_content else b""
    if message is None:
        # The field is [0] EXPLICIT: what stands in that tag is the content.
        der = bytes(parser.parse(der, strict=True)[4])
        message = bytes(parser.parse(der, strict=True)[4])
    attributes = info["signed_attrs"]
    signed = message
    if not isinstance(attributes, core.Void) and len(attributes):
        _check_attributes(attributes, message, content_type)
        signed = attributes.untag().dump()
    _check(certificate, info["signature"].native, signed)
    return der


def _load(data: bytes) -> _SignedData:
    outer = core.Sequence.load(data, strict=True)
    if outer[0].tag == core.ObjectIdentifier.tag:
        wrapper = _ContentInfo.load(data, strict=True)
        if wrapper["content_type"].dotted != _SIGNED_DATA:
            raise UsageError("no PKCS #7 SignedData")
        wrapped: _SignedData = wrapper["content"].parse(_SignedData)
        return wrapped
    bare: _SignedData = _SignedData.load(data, strict=True)
    return bare


def _check_attributes(attributes: cms.CMSAttributes, message: bytes, content_type: str) -> None:
    found: dict[str, core.Asn1Value] = {}
    for attribute in attributes:
        kind = attribute["type"].dotted
        if kind in found or len(attribute["values"]) != 1:
            raise UsageError("an authenticated attribute stands there twice")
        found[kind] = attribute["values"][0]
    types = {kind: cms.CMSAttributeType.unmap(kind) for kind in ("content_type", "message_digest")}
    if not set(types.values()) <= found.keys():
        raise UsageError("the authenticated attributes lack contentType or messageDigest")
    if found[types["content_type"]].dotted != content_type:
        raise UsageError("the authenticated contentType is another one")
    if found[types["message_digest"]].native != hashlib.sha256(message).digest():
        raise UsageError("the signature is over something else: messageDigest doesn't match")
