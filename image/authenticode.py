"""Authenticode signatures of PE images, without a signing time: the same image and key give the same bytes.

Source: Microsoft "Windows Authenticode Portable Executable Signature Format" 1.0; UEFI 2.10, section 32.2.
The digest is SHA-256 and the signature RSASSA-PKCS1-v1_5, which all firmware with Secure Boot checks.
"""

from __future__ import annotations

from asn1crypto import algos, core, parser
from cryptography import x509

from image import pe, pkcs7
from image.pkcs7 import RsaSigner
from nodeos.core.errors import UsageError

_INDIRECT_DATA = "1.3.6.1.4.1.311.2.1.4"
_PE_IMAGE_DATA = "1.3.6.1.4.1.311.2.1.15"
# SpcPeImageData: no flags, and the link that every tool writes: an SpcString "<<<Obsolete>>>", UTF-16BE.
_OBSOLETE = "<<<Obsolete>>>".encode("utf-16-be")


class _TypeAndValue(core.Sequence):  # type: ignore[misc]
    _fields = [("type", core.ObjectIdentifier), ("value", core.Any)]  # noqa: RUF012


class _IndirectData(core.Sequence):  # type: ignore[misc]
    _fields = [("data", _TypeAndValue), ("message_digest", algos.DigestInfo)]  # noqa: RUF012


def _short(tag: int, content: bytes) -> bytes:
    return bytes([tag, len(content)]) + content


def indirect_data(digest: bytes) -> bytes:
    """DER SpcIndirectDataContent for the SHA-256 digest of a PE image."""
    link = _short(0xA0, _short(0xA2, _short(0x80, _OBSOLETE)))
    image_data = _short(0x30, b"\x03\x01\x00" + link)
    info = algos.DigestInfo(
        {"digest_algorithm": {"algorithm": "sha256", "parameters": core.Null()}, "digest": digest}
    )
    data = _short(0x30, core.ObjectIdentifier(_PE_IMAGE_DATA).dump() + image_data)
    return _short(0x30, data + info.dump())


def sign(data: bytes, signer: RsaSigner, certificate: x509.Certificate, what: str = "image") -> bytes:
    """The detached signature (DER PKCS #7) of an unsigned image, for ``pe.attach_signature``.

    Raises UsageError if the image is signed already or the certificate isn't the signer's.
    """
    if pe.signatures(data, what):
        raise UsageError(f"{what} is signed already")
    content = indirect_data(pe.authenticode(data, what))
    value = core.load(content).contents
    return pkcs7.sign(
        signer, certificate, message=value, content_type=_INDIRECT_DATA, content=content, attributes=True
    )


def verify(data: bytes, certificate: x509.Certificate, what: str = "image") -> None:
    """Check that the image has exactly one signature, over this image, by the key of ``certificate``.

    Raises UsageError on any mismatch.
    """
    found = pe.signatures(data, what)
    if len(found) != 1:
        raise UsageError(f"{what} has {len(found)} signatures, expected one")
    try:
        verify_detached(_without_padding(found[0]), pe.authenticode(data, what), certificate)
    except UsageError as error:
        raise UsageError(f"{what}: {error.message}", hint=error.hint) from error


def _without_padding(signature: bytes) -> bytes:
    """Some tools count the padding to 8 bytes into WIN_CERTIFICATE's length: take zeros off, no more than that."""
    try:
        length = parser.peek(signature)
    except ValueError as error:
        raise UsageError(f"a signature that can't be read: {error}") from error
    rest = signature[length:]
    return signature if len(rest) >= 8 or any(rest) else signature[:length]


def verify_detached(signature: bytes, digest: bytes, certificate: x509.Certificate) -> None:
    """Check a signature that isn't attached, against the SHA-256 digest of the image. Raises UsageError."""
    content = pkcs7.verify(signature, certificate, content_type=_INDIRECT_DATA)
    try:
        parsed = _IndirectData.load(content, strict=True)
        kind = parsed["data"]["type"].dotted
        algorithm = parsed["message_digest"]["digest_algorithm"]["algorithm"].native
        signed = parsed["message_digest"]["digest"].native
    except (ValueError, TypeError, KeyError) as error:
        raise UsageError(f"a signature that can't be read: {error}") from error
    if kind != _PE_IMAGE_DATA or algorithm != "sha256":
        raise UsageError("the signature is not over the SHA-256 digest of a PE image")
    if signed != digest:
        raise UsageError("the signature is over another image")
