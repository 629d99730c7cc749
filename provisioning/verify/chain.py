"""Is this endorsement key certificate one that a pinned TPM manufacturer issued?

Source: TCG "EK Credential Profile for TPM Family 2.0", 2.5, section 3; RFC 5280, section 6.
Root certificates are trusted because they are pinned: their key and name count, their own signature does not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from nodeos.core.errors import Finding
from provisioning.verify.crl import Crl, check_revocation
from provisioning.verify.der import OID, SEQUENCE, Certificate, attributes, children, oid, only, take
from provisioning.verify.findings import finding
from provisioning.verify.path import (
    EKU,
    KEY_AGREEMENT,
    KEY_ENCIPHERMENT,
    SAN,
    basic_constraints,
    check_authority,
    check_critical,
    check_dates,
    find_path,
    key_usage,
)

EKU_EK_CERTIFICATE = "2.23.133.8.1"
TPM_MANUFACTURER, TPM_MODEL, TPM_VERSION = "2.23.133.2.1", "2.23.133.2.2", "2.23.133.2.3"
_FAMILY = "ek"


@dataclass(frozen=True, slots=True, kw_only=True)
class TpmModel:
    """What the certificate says of the chip: the TCG's texts, for example ``id:494E5443``."""

    manufacturer: str
    model: str
    version: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Checked:
    """What was found about an endorsement certificate.

    ``path`` goes from it to a pinned root and is empty if there is none. ``listed`` are those of that path that a
    revocation list spoke of. ``usages`` is None if the certificate does not say.
    """

    findings: tuple[Finding, ...]
    path: tuple[Certificate, ...]
    model: TpmModel | None
    usages: tuple[str, ...] | None
    listed: tuple[Certificate, ...]


def check_chain(
    leaf: Certificate,
    others: Sequence[Certificate],
    roots: Sequence[Certificate],
    ek_spki: bytes,
    at: datetime,
    *,
    crls: Sequence[Crl] = (),
) -> tuple[tuple[Finding, ...], TpmModel | None]:
    """Every reason to refuse ``leaf`` as the certificate of the key ``ek_spki`` at the time ``at``.

    ``others`` are intermediates from wherever (untrusted), ``roots`` are pinned. Of ``crls`` those count whose
    issuer is in the path. Raises ParseError.
    """
    checked = check_certificate(leaf, others, roots, at, crls=crls, demand_list=False)
    found = list(checked.findings)
    spki = leaf.key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    if spki != ek_spki:
        found.append(finding("ek.key", "the certificate is for another key than the endorsement key given"))
    return tuple(found), checked.model


def check_certificate(
    leaf: Certificate,
    others: Sequence[Certificate],
    roots: Sequence[Certificate],
    at: datetime,
    *,
    crls: Sequence[Crl] = (),
    demand_list: bool = True,
) -> Checked:
    """Every reason to refuse ``leaf`` as an endorsement certificate, whichever key it is for.

    With ``crls`` and ``demand_list`` at least one of them must be by an issuer in the path. Raises ParseError.
    """
    found: list[Finding] = []
    path = find_path(leaf, others, roots, found, family=_FAMILY)
    for certificate in path or [leaf]:
        found += check_dates(certificate, at, family=_FAMILY)
    # The root closes the path; the certificates between it and the leaf are counted for the path length.
    for below, certificate in enumerate(path[1:]):
        found += check_authority(certificate, below, family=_FAMILY)
    found += check_critical(path or [leaf], family=_FAMILY)
    listed: tuple[Certificate, ...] = ()
    if path:
        more, listed = check_revocation(path, crls, at, family=_FAMILY, demand=demand_list)
        found += more
    found += _leaf(leaf)
    usages = _usages(leaf)
    return Checked(
        findings=tuple(found),
        path=tuple(path),
        model=_model(leaf),
        usages=None if usages is None else tuple(usages),
        listed=listed,
    )


def _leaf(leaf: Certificate) -> list[Finding]:
    leaf.key()
    found = []
    if basic_constraints(leaf)[0]:
        found.append(finding("ek.is_a_ca", "the endorsement certificate is an authority's (CA flag)"))
    usages = _usages(leaf)
    if usages is not None and EKU_EK_CERTIFICATE not in usages:
        found.append(
            finding("ek.usage", f"found {', '.join(usages)}, expected {EKU_EK_CERTIFICATE} (endorsement)")
        )
    allowed = key_usage(leaf)
    if allowed is not None and not allowed & (KEY_ENCIPHERMENT | KEY_AGREEMENT):
        words = "the certificate's key usage: expected key encipherment or key agreement, found neither"
        found.append(finding("ek.leaf_key_usage", words))
    if _model(leaf) is None:
        found.append(
            finding("ek.san", "the alternative name does not hold the TPM's manufacturer, model and version")
        )
    return found


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
