"""Certificate revocation lists: whether one may be believed, and whom it names.

Source: RFC 5280, sections 5 and 6.3. Read by hand over the original bytes, like certificates. Only whole,
direct lists are accepted: a delta, partial or indirect one says nothing of the certificates it leaves out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from cryptography.exceptions import InvalidSignature

from nodeos.core.errors import Finding
from nodeos.core.wire import ParseError
from provisioning.verify.der import (
    BIT_STRING,
    GENERALIZED_TIME,
    INTEGER,
    SEQUENCE,
    UTC_TIME,
    Certificate,
    Extension,
    Node,
    attributes,
    children,
    extensions,
    integer,
    oid,
    only,
    pem_blocks,
    take,
    time,
)
from provisioning.verify.findings import finding
from provisioning.verify.path import SIGN_LISTS, key_usage, same_name, verify_signature

_TIMES = (UTC_TIME, GENERALIZED_TIME)
_AUTHORITY_KEY, _SUBJECT_KEY = "2.5.29.35", "2.5.29.14"
# Issuing distribution point, delta indicator, certificate issuer (in an entry): not a whole, direct list.
_PARTIAL = {"2.5.29.28", "2.5.29.27", "2.5.29.29"}
_KNOWN = {_AUTHORITY_KEY, "2.5.29.20"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Crl:
    """A revocation list. ``revoked`` maps serial numbers to when they were revoked; ``tbs`` is what was signed,
    ``der`` the whole.

    ``odd`` are extensions that keep it from being a whole, direct list, or critical ones not understood.
    """

    der: bytes
    tbs: bytes
    algorithm: str
    parameters: bytes
    signature: bytes
    issuer: bytes
    this_update: datetime
    next_update: datetime | None
    revoked: dict[int, datetime]
    extensions: dict[str, Extension]
    odd: tuple[str, ...]

    @property
    def issuer_text(self) -> str:
        return ", ".join(value for _, value in attributes(self.issuer, "list issuer")) or "(no name)"


def parse_crls(data: bytes, what: str) -> list[Crl]:
    """Every list of a PEM text, or the one of a DER file. Raises ParseError."""
    blocks = pem_blocks(data, "X509 CRL", what) or [data]
    return [parse_crl(der, f"{what}: list {n}" if len(blocks) > 1 else what) for n, der in enumerate(blocks)]


def parse_crl(data: bytes, what: str = "revocation list") -> Crl:
    """Parse a DER CertificateList. Raises ParseError."""
    parts = children(only(data, SEQUENCE, what), what)
    if [part.tag for part in parts] != [SEQUENCE, SEQUENCE, BIT_STRING]:
        raise ParseError(f"{what}: not a revocation list")
    tbs, algorithm, signature = parts
    fields = children(tbs, what)
    version = fields.pop(0) if fields and fields[0].tag == INTEGER else None
    if (
        len(fields) < 3
        or fields[0].tag != SEQUENCE
        or fields[1].tag != SEQUENCE
        or fields[2].tag not in _TIMES
    ):
        raise ParseError(f"{what}: not a revocation list")
    if version is not None and integer(version, what) != 1:
        raise ParseError(f"{what}: version {integer(version, what) + 1} is not known")
    if fields[0].raw != algorithm.raw:
        raise ParseError(f"{what}: it names two signature algorithms")
    kind = children(algorithm, what)
    if not kind or not signature.content or signature.content[0] != 0:
        raise ParseError(f"{what}: wrong form of its signature")
    rest = fields[3:]
    next_update = time(rest.pop(0), what) if rest and rest[0].tag in _TIMES else None
    entries = children(rest.pop(0), what) if rest and rest[0].tag == SEQUENCE else []
    own = extensions(rest.pop(0).content, what) if rest and rest[0].tag == 0xA0 else {}
    if rest:
        raise ParseError(f"{what}: something unknown stands at its end")
    attributes(fields[1].raw, f"{what} issuer")
    revoked: dict[int, datetime] = {}
    odd = [name for name, e in own.items() if name in _PARTIAL or (e.critical and name not in _KNOWN)]
    for entry in entries:
        serial, when, strange = _entry(entry, what)
        revoked.setdefault(serial, when)
        odd += [name for name in strange if name not in odd]
    return Crl(
        der=data,
        tbs=tbs.raw,
        algorithm=oid(kind[0], what),
        parameters=b"".join(item.raw for item in kind[1:]),
        signature=signature.content[1:],
        issuer=fields[1].raw,
        this_update=time(fields[2], what),
        next_update=next_update,
        revoked=revoked,
        extensions=own,
        odd=tuple(odd),
    )


def _entry(entry: Node, what: str) -> tuple[int, datetime, list[str]]:
    """Serial number, time, and extensions that make the list indirect or are critical."""
    parts = children(entry, what)
    if entry.tag != SEQUENCE or len(parts) not in (2, 3):
        raise ParseError(f"{what}: wrong form of an entry")
    more = extensions(parts[2].raw, what) if len(parts) == 3 else {}
    strange = [name for name, e in more.items() if name in _PARTIAL or e.critical]
    return integer(parts[0], what), time(parts[1], what), strange


def check_revocation(
    path: Sequence[Certificate], crls: Sequence[Crl], at: datetime, *, family: str, demand: bool = True
) -> tuple[list[Finding], tuple[Certificate, ...]]:
    """Findings, and the certificates of the ``path`` (leaf to root) that a believable list speaks of.

    Without lists nothing is checked. With ``demand`` at least one of them must be by an issuer of the path:
    lists of somebody else would look like a check that was made.
    """
    found: list[Finding] = []
    listed: list[Certificate] = []
    if not crls:
        return found, ()
    spoken = False
    issuers = [*path[1:], *([path[-1]] if path[-1].self_issued else [])]
    for certificate, issuer in zip(path, issuers, strict=False):
        lists = [crl for crl in crls if _is_by(crl, issuer)]
        spoken = spoken or bool(lists)
        wrong = [f for crl in lists for f in _believable(crl, issuer, family)]
        if lists and not wrong:
            # An older list beside a newer one is no fault.
            wrong += _current(max(lists, key=lambda crl: crl.this_update), at, family)
        found += [item for item in wrong if item not in found]
        for crl in lists:
            if certificate.serial in crl.revoked:
                when = crl.revoked[certificate.serial]
                words = f"{certificate.subject_text}: revoked on {when:%Y-%m-%d} by {crl.issuer_text}"
                found.append(finding(f"{family}.revoked", words))
                break
        if lists and not wrong:
            listed.append(certificate)
    if demand and not spoken:
        names = "; ".join(sorted({crl.issuer_text for crl in crls}))
        wanted = "; ".join(sorted({issuer.subject_text for issuer in issuers}))
        words = f"no list is by an issuer of this path: found {names}, expected {wanted}"
        found.append(finding(f"{family}.crl_unrelated", words))
    return found, tuple(listed)


def check_list(crl: Crl, known: Sequence[Certificate]) -> list[Finding]:
    """Why this list is of no use to somebody who knows these certificates; its dates aside."""
    issuers = [certificate for certificate in known if _is_by(crl, certificate)]
    if not issuers:
        return [finding("crl.issuer", f"no certificate of {crl.issuer_text} is known")]
    reasons = [_believable(crl, issuer, "crl") for issuer in issuers]
    found = min(reasons, key=len)
    if crl.next_update is None:
        found.append(
            finding("crl.expired", f"the list of {crl.issuer_text} does not say until when it holds")
        )
    return found


def _is_by(crl: Crl, issuer: Certificate) -> bool:
    """The issuer's name, and its key where both say which: makers give several keys one name."""
    if not same_name(crl.issuer, issuer.subject):
        return False
    named, own = crl.extensions.get(_AUTHORITY_KEY), issuer.extensions.get(_SUBJECT_KEY)
    if named is None or own is None:
        return True
    try:
        parts = children(only(named.value, SEQUENCE, "key identifier"), "key identifier")
        key, _ = take(own.value, "key identifier")
    except ParseError:
        return True
    return all(part.content == key.content for part in parts if part.tag == 0x80)


def _believable(crl: Crl, issuer: Certificate, family: str) -> list[Finding]:
    found = []
    who = crl.issuer_text
    try:
        verify_signature(crl, issuer)
    except (InvalidSignature, ParseError, ValueError):
        found.append(finding(f"{family}.crl_signature", f"the list of {who} is not signed by its key"))
    usage = key_usage(issuer)
    if usage is not None and not usage & SIGN_LISTS:
        found.append(finding(f"{family}.crl_key_usage", f"the key of {who} may not sign revocation lists"))
    if crl.odd:
        words = f"the list of {who} is partial, or has extensions not understood: {', '.join(crl.odd)}"
        found.append(finding(f"{family}.crl_extension", words))
    return found


def _current(crl: Crl, at: datetime, family: str) -> list[Finding]:
    who = crl.issuer_text
    if at < crl.this_update:
        words = f"the list of {who}: found {at:%Y-%m-%d}, expected a time from {crl.this_update:%Y-%m-%d} on"
        return [finding(f"{family}.crl_not_yet_valid", words)]
    if crl.next_update is None:
        return [finding(f"{family}.crl_expired", f"the list of {who} does not say until when it holds")]
    if at > crl.next_update:
        words = f"the list of {who}: found {at:%Y-%m-%d}, expected a time until {crl.next_update:%Y-%m-%d}"
        return [finding(f"{family}.crl_expired", words)]
    return []
