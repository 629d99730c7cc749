"""Is this endorsement key certificate one that a pinned TPM manufacturer issued?

Source: TCG "EK Credential Profile for TPM Family 2.0", 2.5, section 3; RFC 5280, section 6.
Signatures are verified over the original bytes. Root certificates are trusted because they are pinned:
their key and name count, their own signature does not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from nodeos.core.errors import Finding
from nodeos.core.wire import ParseError
from provisioning.verify.der import (
    BOOLEAN,
    INTEGER,
    OID,
    SEQUENCE,
    Certificate,
    attributes,
    children,
    integer,
    oid,
    only,
    take,
)
from provisioning.verify.findings import finding

BASIC_CONSTRAINTS, KEY_USAGE, EKU, SAN = "2.5.29.19", "2.5.29.15", "2.5.29.37", "2.5.29.17"
EKU_EK_CERTIFICATE = "2.23.133.8.1"
TPM_MANUFACTURER, TPM_MODEL, TPM_VERSION = "2.23.133.2.1", "2.23.133.2.2", "2.23.133.2.3"
# Extensions whose meaning is checked here or has no part in whether to trust; others, if critical, refuse.
_KNOWN = {BASIC_CONSTRAINTS, KEY_USAGE, EKU, SAN, "2.5.29.14", "2.5.29.35", "2.5.29.31", "2.5.29.32"}
_PSS = "1.2.840.113549.1.1.10"
_SIGNATURES: dict[str, tuple[type, hashes.HashAlgorithm]] = {
    "1.2.840.113549.1.1.11": (rsa.RSAPublicKey, hashes.SHA256()),
    "1.2.840.113549.1.1.12": (rsa.RSAPublicKey, hashes.SHA384()),
    "1.2.840.113549.1.1.13": (rsa.RSAPublicKey, hashes.SHA512()),
    "1.2.840.10045.4.3.2": (ec.EllipticCurvePublicKey, hashes.SHA256()),
    "1.2.840.10045.4.3.3": (ec.EllipticCurvePublicKey, hashes.SHA384()),
    "1.2.840.10045.4.3.4": (ec.EllipticCurvePublicKey, hashes.SHA512()),
}
_PSS_HASHES: dict[str, hashes.HashAlgorithm] = {
    "2.16.840.1.101.3.4.2.1": hashes.SHA256(),
    "2.16.840.1.101.3.4.2.2": hashes.SHA384(),
    "2.16.840.1.101.3.4.2.3": hashes.SHA512(),
}
MAX_CHAIN = 8
# A sender chooses the intermediates, and could make a maze of them.
_MAX_SIGNATURES = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class TpmModel:
    """What the certificate says of the chip: the TCG's texts, for example ``id:494E5443``."""

    manufacturer: str
    model: str
    version: str


def check_chain(
    leaf: Certificate,
    others: Sequence[Certificate],
    roots: Sequence[Certificate],
    ek_spki: bytes,
    at: datetime,
) -> tuple[tuple[Finding, ...], TpmModel | None]:
    """Every reason to refuse ``leaf`` as the certificate of the key ``ek_spki`` at the time ``at``.

    ``others`` are intermediates from wherever (untrusted), ``roots`` are pinned.
    """
    found: list[Finding] = []
    path = _path(leaf, others, roots, found)
    for certificate in path:
        found += _dates(certificate, at)
    if leaf not in path:
        found += _dates(leaf, at)
    # The root closes the path; the certificates between it and the leaf are counted for the path length.
    for below, certificate in enumerate(path[1:]):
        found += _authority(certificate, below)
    found += _critical(path or [leaf])
    model, more = _leaf(leaf, ek_spki)
    return tuple(found + more), model


def _path(
    leaf: Certificate, others: Sequence[Certificate], roots: Sequence[Certificate], found: list[Finding]
) -> list[Certificate]:
    """Leaf to root; empty with a finding if there is no path whose signatures hold."""
    broken: list[str] = []
    highest = leaf
    checks = 0

    def search(at: Certificate, path: list[Certificate]) -> list[Certificate] | None:
        nonlocal highest, checks
        highest = at
        for candidate in (*roots, *others):
            if candidate.subject != at.issuer or candidate in path or checks >= _MAX_SIGNATURES:
                continue
            checks += 1
            if not _signed_by(at, candidate):
                broken.append(f"{at.subject_text} is not signed by the key of {candidate.subject_text}")
                continue
            if candidate in roots:
                return [*path, candidate]
            if len(path) < MAX_CHAIN:
                longer = search(candidate, [*path, candidate])
                if longer:
                    return longer
        return None

    path = search(leaf, [leaf])
    if path:
        return path
    if broken:
        found.append(finding("ek.signature", "; ".join(broken)))
    else:
        found.append(
            finding(
                "ek.untrusted",
                f"no pinned root leads to it: {highest.subject_text} was issued by {highest.issuer_text}",
            )
        )
    return []


def _signed_by(certificate: Certificate, issuer: Certificate) -> bool:
    try:
        verify_signature(certificate, issuer)
    except (InvalidSignature, ParseError, ValueError):
        return False
    return True


def verify_signature(certificate: Certificate, issuer: Certificate) -> None:
    """Raises InvalidSignature, or ParseError for an algorithm that is not accepted (SHA-1 is not)."""
    key = issuer.key()
    if certificate.algorithm == _PSS:
        if not isinstance(key, rsa.RSAPublicKey):
            raise ParseError("certificate: signed with RSA-PSS, but the issuer's key is not RSA")
        algorithm = _pss_hash(certificate.parameters)
        pss = padding.PSS(padding.MGF1(algorithm), padding.PSS.AUTO)
        key.verify(certificate.signature, certificate.tbs, pss, algorithm)
        return
    if certificate.algorithm not in _SIGNATURES:
        raise ParseError(f"certificate: the signature algorithm {certificate.algorithm} is not accepted")
    kind, algorithm = _SIGNATURES[certificate.algorithm]
    if not isinstance(key, kind):
        raise ParseError("certificate: its signature algorithm does not fit the issuer's key")
    if isinstance(key, rsa.RSAPublicKey):
        key.verify(certificate.signature, certificate.tbs, padding.PKCS1v15(), algorithm)
    else:
        key.verify(certificate.signature, certificate.tbs, ec.ECDSA(algorithm))


def _pss_hash(parameters: bytes) -> hashes.HashAlgorithm:
    what = "RSA-PSS parameters"
    for part in children(only(parameters, SEQUENCE, what), what):
        if part.tag == 0xA0:
            inner = children(only(part.content, SEQUENCE, what), what)
            name = oid(inner[0], what) if inner else ""
            if name in _PSS_HASHES:
                return _PSS_HASHES[name]
            raise ParseError(f"{what}: the hash {name} is not accepted")
    raise ParseError(f"{what}: SHA-1 is not accepted")


def _dates(certificate: Certificate, at: datetime) -> list[Finding]:
    who = certificate.subject_text
    if at < certificate.not_before:
        return [finding("ek.not_yet_valid", f"{who} holds from {certificate.not_before:%Y-%m-%d}")]
    if at > certificate.not_after:
        return [finding("ek.expired", f"{who} ended on {certificate.not_after:%Y-%m-%d}")]
    return []


def _authority(certificate: Certificate, below: int) -> list[Finding]:
    """A CA flag, the right to sign certificates, and a path length of at least ``below``."""
    who = certificate.subject_text
    found = []
    is_ca, length = basic_constraints(certificate)
    if not is_ca:
        found.append(finding("ek.not_a_ca", f"{who} issued a certificate and is no authority (CA flag)"))
    if length is not None and length < below:
        found.append(
            finding("ek.path_length", f"{who} allows {length} authorities below it, there are {below}")
        )
    usage = certificate.extensions.get(KEY_USAGE)
    if usage is not None and not _may_sign_certificates(usage.value):
        found.append(finding("ek.key_usage", f"the key of {who} may not sign certificates"))
    return found


def _may_sign_certificates(value: bytes) -> bool:
    try:
        bits = only(value, 0x03, "key usage").content
    except ParseError:
        return False
    return len(bits) >= 2 and bool(bits[1] & 0x04)


def basic_constraints(certificate: Certificate) -> tuple[bool, int | None]:
    """The CA flag and the path length. Raises ParseError."""
    what = "basic constraints"
    extension = certificate.extensions.get(BASIC_CONSTRAINTS)
    if extension is None:
        return False, None
    parts = children(only(extension.value, SEQUENCE, what), what)
    is_ca = bool(parts) and parts[0].tag == BOOLEAN and parts[0].content != b"\x00"
    lengths = [integer(part, what) for part in parts if part.tag == INTEGER]
    return is_ca, lengths[0] if lengths else None


def _critical(path: Sequence[Certificate]) -> list[Finding]:
    return [
        finding("ek.critical_extension", f"{c.subject_text}: the critical extension {name} is not understood")
        for c in path
        for name, extension in c.extensions.items()
        if extension.critical and name not in _KNOWN
    ]


def _leaf(leaf: Certificate, ek_spki: bytes) -> tuple[TpmModel | None, list[Finding]]:
    found = []
    if basic_constraints(leaf)[0]:
        found.append(finding("ek.is_a_ca", "the endorsement certificate is an authority's (CA flag)"))
    usages = _usages(leaf)
    if usages is not None and EKU_EK_CERTIFICATE not in usages:
        found.append(
            finding("ek.usage", f"made for {', '.join(usages)}, not for endorsement ({EKU_EK_CERTIFICATE})")
        )
    model = _model(leaf)
    if model is None:
        found.append(
            finding("ek.san", "the alternative name does not hold the TPM's manufacturer, model and version")
        )
    spki = leaf.key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    if spki != ek_spki:
        found.append(finding("ek.key", "the certificate is for another key than the endorsement key given"))
    return model, found


def _usages(leaf: Certificate) -> list[str] | None:
    extension = leaf.extensions.get(EKU)
    if extension is None:
        return None
    what = "extended key usage"
    items = children(only(extension.value, SEQUENCE, what), what)
    return [oid(item, what) for item in items if item.tag == OID]


def _model(leaf: Certificate) -> TpmModel | None:
    """The directory name in the subject's alternative name (EK Credential Profile, 3.2.9)."""
    extension = leaf.extensions.get(SAN)
    if extension is None:
        return None
    what = "subject alternative name"
    found: dict[str, str] = {}
    for name in children(only(extension.value, SEQUENCE, what), what):
        if name.tag == 0xA4:
            inner, _ = take(name.content, what)
            found.update(attributes(inner.raw, what))
    if not all(found.get(key) for key in (TPM_MANUFACTURER, TPM_MODEL, TPM_VERSION)):
        return None
    return TpmModel(manufacturer=found[TPM_MANUFACTURER], model=found[TPM_MODEL], version=found[TPM_VERSION])
