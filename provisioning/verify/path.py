"""Paths of X.509 certificates to a pinned root: signatures, dates, authority, extensions.

Source: RFC 5280, section 6; RFC 4055 (RSA-PSS). Signatures are verified over the original bytes. Every check
gives findings whose codes begin with the ``family`` of the caller, such as ``ek`` or ``snp``.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import datetime
from functools import lru_cache
from typing import Protocol

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa

from nodeos.core.errors import Finding
from nodeos.core.wire import ParseError
from provisioning.verify.der import (
    BIT_STRING,
    BOOLEAN,
    INTEGER,
    SEQUENCE,
    Certificate,
    attributes,
    children,
    integer,
    oid,
    only,
)
from provisioning.verify.findings import finding

BASIC_CONSTRAINTS, KEY_USAGE, EKU, SAN = "2.5.29.19", "2.5.29.15", "2.5.29.37", "2.5.29.17"
# Extensions whose meaning is checked or has no part in whether to trust; others, if critical, refuse.
KNOWN = frozenset(
    {BASIC_CONSTRAINTS, KEY_USAGE, EKU, SAN, "2.5.29.14", "2.5.29.35", "2.5.29.31", "2.5.29.32"}
)
# Bits of a key usage (RFC 5280, 4.2.1.3), the first bit of the BIT STRING being 0x8000.
KEY_ENCIPHERMENT, KEY_AGREEMENT, SIGN_CERTIFICATES, SIGN_LISTS = 0x2000, 0x0800, 0x0400, 0x0200
PSS = "1.2.840.113549.1.1.10"
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


class Signed(Protocol):
    """A certificate or a revocation list: ``tbs`` is what was signed, as it stands in the input."""

    @property
    def tbs(self) -> bytes: ...
    @property
    def algorithm(self) -> str: ...
    @property
    def parameters(self) -> bytes: ...
    @property
    def signature(self) -> bytes: ...


@lru_cache(maxsize=4096)
def _words(name: bytes) -> tuple[tuple[str, str], ...]:
    return tuple((kind, " ".join(value.split()).casefold()) for kind, value in attributes(name, "name"))


def same_name(one: bytes, other: bytes) -> bool:
    """Whether two Names (DER) are one (RFC 5280, 7.1): kind of string, case and extra spaces don't count.

    STMicroelectronics' authorities write their issuer as UTF8String where its own certificate has
    PrintableString. Names only help to find an issuer; the signature decides. Raises ParseError.
    """
    return one == other or _words(one) == _words(other)


def find_path(
    leaf: Certificate,
    others: Sequence[Certificate],
    roots: Sequence[Certificate],
    found: list[Finding],
    *,
    family: str,
) -> list[Certificate]:
    """Leaf to root; empty with a finding if there is no path whose signatures hold."""
    broken: list[str] = []
    highest = leaf
    checks = 0

    def search(at: Certificate, path: list[Certificate]) -> list[Certificate] | None:
        nonlocal highest, checks
        highest = at
        for candidate in (*roots, *others):
            if not same_name(candidate.subject, at.issuer) or candidate in path or checks >= _MAX_SIGNATURES:
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
        found.append(finding(f"{family}.signature", "; ".join(broken)))
    else:
        found.append(
            finding(
                f"{family}.untrusted",
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


def verify_signature(certificate: Signed, issuer: Certificate) -> None:
    """Raises InvalidSignature, or ParseError for an algorithm that is not accepted (SHA-1 is not)."""
    key = issuer.key()
    if certificate.algorithm == PSS:
        if not isinstance(key, rsa.RSAPublicKey):
            raise ParseError("certificate: signed with RSA-PSS, but the issuer's key is not RSA")
        algorithm = pss_hash(certificate.parameters)
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


def pss_hash(parameters: bytes) -> hashes.HashAlgorithm:
    """The hash that RSASSA-PSS parameters name. Raises ParseError for SHA-1, which is what absence means."""
    what = "RSA-PSS parameters"
    for part in children(only(parameters, SEQUENCE, what), what):
        if part.tag == 0xA0:
            inner = children(only(part.content, SEQUENCE, what), what)
            name = oid(inner[0], what) if inner else ""
            if name in _PSS_HASHES:
                return _PSS_HASHES[name]
            raise ParseError(f"{what}: the hash {name} is not accepted")
    raise ParseError(f"{what}: SHA-1 is not accepted")


def check_dates(certificate: Certificate, at: datetime, *, family: str) -> list[Finding]:
    """Refuses a certificate outside its validity."""
    who = certificate.subject_text
    if at < certificate.not_before:
        words = f"{who}: found {at:%Y-%m-%d}, expected a time from {certificate.not_before:%Y-%m-%d} on"
        return [finding(f"{family}.not_yet_valid", words)]
    if at > certificate.not_after:
        words = f"{who}: found {at:%Y-%m-%d}, expected a time until {certificate.not_after:%Y-%m-%d}"
        return [finding(f"{family}.expired", words)]
    return []


def check_authority(certificate: Certificate, below: int, *, family: str) -> list[Finding]:
    """A CA flag, the right to sign certificates, and a path length of at least ``below``."""
    who = certificate.subject_text
    found = []
    is_ca, length = basic_constraints(certificate)
    if not is_ca:
        found.append(
            finding(f"{family}.not_a_ca", f"{who} issued a certificate and is no authority (CA flag)")
        )
    if length is not None and length < below:
        found.append(
            finding(f"{family}.path_length", f"{who}: found {below} authorities below it, expected {length}")
        )
    usage = key_usage(certificate)
    if usage is not None and not usage & SIGN_CERTIFICATES:
        found.append(finding(f"{family}.key_usage", f"the key of {who} may not sign certificates"))
    return found


def key_usage(certificate: Certificate) -> int | None:
    """The key usage as 16 bits from 0x8000 down; None if there is none, 0 for one that can't be read."""
    extension = certificate.extensions.get(KEY_USAGE)
    if extension is None:
        return None
    try:
        bits = only(extension.value, BIT_STRING, "key usage").content
    except ParseError:
        return 0
    return int.from_bytes(bits[1:3].ljust(2, b"\0"), "big")


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


def check_critical(
    path: Sequence[Certificate], known: Collection[str] = KNOWN, *, family: str
) -> list[Finding]:
    """Refuses critical extensions that nobody here understands (RFC 5280, 4.2)."""
    return [
        finding(
            f"{family}.critical_extension",
            f"{c.subject_text}: the critical extension {name} is not understood",
        )
        for c in path
        for name, extension in c.extensions.items()
        if extension.critical and name not in known
    ]
