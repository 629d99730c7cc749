"""Did a genuine AMD chip sign this SEV-SNP report, and does a policy accept what it says?

Source: AMD 56860 (report), AMD 57230 "VCEK Certificate and KDS Interface Specification", 1.00, section 3 (chain,
extensions of VCEK and VLEK). ARK certificates are pinned in ``amd_roots.toml``; the chip's generation is that
of the ARK at the end of the path, and everything else that names one must agree with it.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from importlib import resources

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

from nodeos.core.errors import Finding, RefusedError
from nodeos.core.wire import Fields, ParseError, parse_toml
from provisioning.verify.crl import Crl, check_revocation
from provisioning.verify.der import INTEGER, OCTET_STRING, Certificate, attributes, integer, only, take, text
from provisioning.verify.findings import Result, Verdict, finding, verdict
from provisioning.verify.path import (
    PSS,
    basic_constraints,
    check_authority,
    check_critical,
    check_dates,
    pss_hash,
    verify_signature,
)
from provisioning.verify.snp_report import (
    ASKED_BY_HOST,
    ECDSA_P384_SHA384,
    KNOWN_PLATFORM,
    Generation,
    Guest,
    SigningKey,
    SnpReport,
    Tcb,
    read_tcb,
)

_AMD = "1.3.6.1.4.1.3704.1"
PRODUCT, HWID, PROVIDER = f"{_AMD}.2", f"{_AMD}.4", f"{_AMD}.5"
SPL = {"bootloader": 1, "tee": 2, "snp": 3, "microcode": 8, "fmc": 9}
_RESERVED_SPL = (4, 5, 6, 7)
# What certificates and the key server call chips of a generation.
_PRODUCTS = {
    "Milan": Generation.MILAN,
    "Genoa": Generation.GENOA,
    "Bergamo": Generation.GENOA,
    "Siena": Generation.GENOA,
    "Turin": Generation.TURIN,
}
_HWID_SIZES = {Generation.MILAN: 64, Generation.GENOA: 64, Generation.TURIN: 8}
COMMON_NAME = "2.5.4.3"
_FAMILY = "snp"


class Grade(StrEnum):
    """How a statement on memory encryption is backed."""

    CHIP_SIGNED = "chip-signed"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True, kw_only=True)
class SnpPolicy:
    """What a verifier accepts beyond a genuine report. Debugging and migration are refused always.

    ``least`` is the lowest TCB by generation; a part of it that is 0 or None asks nothing.
    """

    denied: frozenset[Generation] = frozenset()
    least: Mapping[Generation, Tcb] = field(default_factory=dict)
    require_tsme: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class SnpAssessment:
    """What was found. ``grade`` is CHIP_SIGNED only if nothing refused; ``generation`` is of the pinned root.

    ``path`` is leaf, ASK, ARK, or empty; ``listed`` are those of it that a revocation list spoke of. ``watch`` are
    the findings that do not refuse.
    """

    verdict: Verdict
    watch: tuple[Finding, ...]
    grade: Grade
    report: SnpReport
    generation: Generation | None
    path: tuple[Certificate, ...]
    listed: tuple[Certificate, ...]


class RefusedReport(RefusedError):
    """A report that does not hold or that the policy refuses, with everything that was found out."""

    def __init__(self, assessment: SnpAssessment) -> None:
        refused = tuple(f for f in assessment.verdict.findings if f not in assessment.watch)
        super().__init__("the SEV-SNP report is refused", refused)
        self.assessment = assessment


def load_roots() -> dict[bytes, Generation]:
    """The pinned ARKs: SHA-256 of the certificate, and the generation it stands for."""
    data = resources.files("provisioning.verify").joinpath("amd_roots.toml").read_bytes()
    fields = parse_toml(data, "amd_roots.toml")
    roots = fields.list_of("root", _root)
    fields.done()
    return dict(roots)


def _root(value: object, path: str) -> tuple[bytes, Generation]:
    fields = Fields(value, path)
    root = fields.hexadecimal("sha256", length=32), Generation(fields.text("generation"))
    fields.text("name")
    fields.done()
    return root


def verify_report(
    report: SnpReport,
    leaf: Certificate,
    chain: Sequence[Certificate],
    *,
    report_data: bytes | None,
    at: datetime,
    policy: SnpPolicy,
    crls: Sequence[Crl] = (),
    roots: Mapping[bytes, Generation] | None = None,
) -> SnpAssessment:
    """Check everything and keep every finding. Raises RefusedReport if any check refuses.

    ``leaf`` is the VCEK or VLEK, ``chain`` holds ASK (or ASVK) and ARK in any order. ``report_data`` is what the
    report must carry (64 bytes); with None nothing says that it is fresh, and the result is WATCH. ``crls`` are
    used if there are any; then one must be by an issuer of the path. ``roots`` are the pinned ones unless given.
    """
    pinned = load_roots() if roots is None else roots
    found: list[Finding] = []
    path, generation = _path(leaf, chain, pinned, found)
    for certificate in path or (leaf,):
        found += check_dates(certificate, at, family=_FAMILY)
    for below, certificate in enumerate(path[1:]):
        found += check_authority(certificate, below, family=_FAMILY)
    found += check_critical(path or (leaf,), family=_FAMILY)
    listed: tuple[Certificate, ...] = ()
    if path:
        more, listed = check_revocation(path, crls, at, family=_FAMILY)
        found += more
    watch: list[Finding] = []
    found += _form(report)
    found += _signature(report, leaf)
    found += _leaf(report, leaf)
    if generation is not None:
        found += _generation(report, leaf, generation, policy, watch)
        found += _kind(report, path[1], generation)
        found += _binding(report, leaf, generation)
        found += _levels(report, generation, policy)
    found += _guest(report, report_data, watch)
    if policy.require_tsme and not report.tsme:
        found.append(_differs("snp.tsme", "memory encryption (TSME)", "off", "on"))
    said = verdict("snp", found, watch)
    refused = said.result is Result.REFUSED or generation is None
    assessment = SnpAssessment(
        verdict=said,
        watch=tuple(watch),
        grade=Grade.UNKNOWN if refused else Grade.CHIP_SIGNED,
        report=report,
        generation=generation,
        path=path,
        listed=listed,
    )
    if refused:
        raise RefusedReport(assessment)
    return assessment


def _differs(code: str, what: str, found: object, expected: object) -> Finding:
    return finding(code, f"{what}: found {found}, expected {expected}")


def _path(
    leaf: Certificate,
    chain: Sequence[Certificate],
    pinned: Mapping[bytes, Generation],
    found: list[Finding],
) -> tuple[tuple[Certificate, ...], Generation | None]:
    """Leaf, ASK, ARK with signatures that hold and a pinned end; else nothing, with a finding."""
    ask = next((c for c in chain if c.subject == leaf.issuer and not c.self_issued), None)
    if ask is None:
        others = ", ".join(c.subject_text for c in chain) or "none"
        found.append(_differs("snp.chain", "authority of the chip's key", others, leaf.issuer_text))
        return (), None
    ark = next((c for c in chain if c.subject == ask.issuer and c.self_issued), None)
    if ark is None:
        others = ", ".join(c.subject_text for c in chain)
        found.append(_differs("snp.chain", "root of the chip's key", others, ask.issuer_text))
        return (), None
    generation = pinned.get(hashlib.sha256(ark.der).digest())
    if generation is None:
        digest = hashlib.sha256(ark.der).hexdigest()
        expected = ", ".join(key.hex() for key in pinned)
        found.append(_differs("snp.untrusted", f"SHA-256 of {ark.subject_text}", digest, expected))
        return (), None
    wrong = [
        finding("snp.signature_chain", f"{lower.subject_text}: {error}")
        for lower, upper in ((leaf, ask), (ask, ark))
        for error in _unsigned(lower, upper)
    ]
    found += wrong
    return ((), None) if wrong else ((leaf, ask, ark), generation)


def _unsigned(certificate: Certificate, issuer: Certificate) -> list[str]:
    """Why it is not signed by the issuer with RSA-PSS and SHA-384; empty if it is."""
    try:
        if certificate.algorithm != PSS or not isinstance(pss_hash(certificate.parameters), hashes.SHA384):
            return [f"signed with {certificate.algorithm}, expected RSA-PSS with SHA-384"]
        key = issuer.key()
        if not isinstance(key, rsa.RSAPublicKey) or key.key_size != 4096:
            return [f"the key of {issuer.subject_text} is not RSA-4096"]
        verify_signature(certificate, issuer)
    except (InvalidSignature, ParseError, ValueError):
        return [f"not signed by the key of {issuer.subject_text}"]
    return []


def _form(report: SnpReport) -> list[Finding]:
    """What the specification fixes in every report."""
    found = []
    if report.reserved:
        found.append(_differs("snp.reserved", "reserved fields", "; ".join(report.reserved), "none set"))
    if report.signature_algorithm != ECDSA_P384_SHA384:
        expected = f"{ECDSA_P384_SHA384} (ECDSA P-384 with SHA-384)"
        found.append(_differs("snp.algorithm", "signature algorithm", report.signature_algorithm, expected))
    if report.key_masked:
        found.append(_differs("snp.unsigned", "signature", "left out by the host (MASK_CHIP_KEY)", "one"))
    return found


def _signature(report: SnpReport, leaf: Certificate) -> list[Finding]:
    words = "the report is not signed by the key of the certificate"
    try:
        key = leaf.key()
    except ParseError as error:
        return [finding("snp.key", error.message)]
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP384R1):
        return [_differs("snp.key", "the chip's key", "another kind", "ECC on P-384")]
    try:
        key.verify(encode_dss_signature(report.r, report.s), report.signed, ec.ECDSA(hashes.SHA384()))
    except (InvalidSignature, ValueError):
        return [finding("snp.signature", words)]
    return []


def _leaf(report: SnpReport, leaf: Certificate) -> list[Finding]:
    """The certificate is of the kind of key that the report names, and no authority's."""
    if report.signing_key in (None, SigningKey.NONE):
        key = "none" if report.signing_key is not None else "a reserved value"
        return [_differs("snp.signing_key", "key that signed the report", key, "vcek or vlek")]
    wanted = f"SEV-{str(report.signing_key).upper()}"
    names = [value for name, value in attributes(leaf.subject, "subject") if name == COMMON_NAME]
    found = []
    if names != [wanted]:
        found.append(_differs("snp.signing_key", "certificate's name", ", ".join(names) or "none", wanted))
    if _is_authority(leaf):
        found.append(finding("snp.is_a_ca", "the chip's certificate is an authority's (CA flag)"))
    return found


def _is_authority(leaf: Certificate) -> bool:
    try:
        return basic_constraints(leaf)[0]
    except ParseError:
        return True


def _generation(
    report: SnpReport, leaf: Certificate, generation: Generation, policy: SnpPolicy, watch: list[Finding]
) -> list[Finding]:
    """The pinned root, the certificate and (from version 3 on) the report name one generation of chips."""
    found = []
    if generation in policy.denied:
        allowed = ", ".join(g for g in Generation if g not in policy.denied) or "none"
        found.append(_differs("snp.denied", "generation", generation, f"one that is allowed: {allowed}"))
    if report.cpu is not None and report.cpu.generation is not generation:
        found.append(_differs("snp.cpu", "processor in the report", report.cpu, f"one of {generation}"))
    name = _product(leaf)
    if _PRODUCTS.get(name.partition("-")[0]) is not generation:
        odd = _differs("snp.product", "product in the chip's certificate", name or "none", generation)
        # AMD issued certificates with a wrong product name; where the signed report names the chip itself, that
        # and the root decide.
        (found if report.cpu is None else watch).append(odd)
    return found


def _kind(report: SnpReport, authority: Certificate, generation: Generation) -> list[Finding]:
    """Chips' own keys and providers' keys have an authority each."""
    middle = "VLEK-" if report.signing_key is SigningKey.VLEK else ""
    wanted = f"SEV-{middle}{generation.capitalize()}"
    names = [value for name, value in attributes(authority.subject, "subject") if name == COMMON_NAME]
    if names == [wanted]:
        return []
    return [_differs("snp.authority", "authority of the chip's key", ", ".join(names) or "none", wanted)]


def _product(leaf: Certificate) -> str:
    extension = leaf.extensions.get(PRODUCT)
    if extension is None:
        return ""
    try:
        node, rest = take(extension.value, "product name")
    except ParseError:
        return ""
    return "" if rest or node.tag != 0x16 else text(node)


def _binding(report: SnpReport, leaf: Certificate, generation: Generation) -> list[Finding]:
    """The certificate is for this chip and for the firmware that the report names."""
    found = []
    reported, clean = read_tcb(report.reported_tcb, generation)
    if not clean:
        raw = report.reported_tcb.hex()
        found.append(_differs("snp.reserved", "reserved bytes of the reported TCB", raw, "zeroes"))
    try:
        certified = _certified(leaf, generation)
        if certified != reported:
            found.append(_differs("snp.tcb", "TCB of the chip's certificate", certified, reported))
        found += _chip(report, leaf, generation)
    except ParseError as error:
        found.append(finding("snp.extension", f"the chip's certificate: {error.message}"))
    return found


def _certified(leaf: Certificate, generation: Generation) -> Tcb:
    """The TCB in the certificate's extensions. Raises ParseError."""
    turin = generation is Generation.TURIN
    for number in _RESERVED_SPL:
        if f"{_AMD}.3.{number}" in leaf.extensions and _level(leaf, number):
            raise ParseError(f"the reserved patch level {number} is not zero")
    if not turin and f"{_AMD}.3.{SPL['fmc']}" in leaf.extensions:
        raise ParseError(f"a patch level of the FMC, which {generation} does not have")
    return Tcb(
        bootloader=_level(leaf, SPL["bootloader"]),
        tee=_level(leaf, SPL["tee"]),
        snp=_level(leaf, SPL["snp"]),
        microcode=_level(leaf, SPL["microcode"]),
        fmc=_level(leaf, SPL["fmc"]) if turin else None,
    )


def _level(leaf: Certificate, number: int) -> int:
    extension = leaf.extensions.get(f"{_AMD}.3.{number}")
    if extension is None:
        raise ParseError(f"the patch level {number} is missing")
    what = f"patch level {number}"
    value = integer(only(extension.value, INTEGER, what), what)
    if not 0 <= value <= 255:
        raise ParseError(f"{what}: {value} is not between 0 and 255")
    return value


def _chip(report: SnpReport, leaf: Certificate, generation: Generation) -> list[Finding]:
    """VCEK: the hardware id is the report's. VLEK: there is none, it names the provider instead."""
    found = []
    if report.signing_key is SigningKey.VLEK:
        if HWID in leaf.extensions or PROVIDER not in leaf.extensions:
            words = "a provider's id and no hardware id"
            found.append(_differs("snp.vlek", "VLEK certificate", "something else", words))
        return found
    if PROVIDER in leaf.extensions:
        found.append(_differs("snp.vcek", "VCEK certificate", "a provider's id", "none"))
    extension = leaf.extensions.get(HWID)
    if extension is None:
        raise ParseError("the hardware id is missing")
    size, value = _HWID_SIZES[generation], extension.value
    if len(value) != size:
        # The key server gives the bare bytes; properly they stand in an OCTET STRING.
        value = only(value, OCTET_STRING, "hardware id").content
    if len(value) != size:
        raise ParseError(f"a hardware id of {len(value)} bytes, {generation} has {size}")
    if not any(report.chip_id):
        found.append(_differs("snp.chip_id", "chip id of the report", "left out by the host", value.hex()))
    elif report.chip_id != value.ljust(64, b"\0"):
        found.append(_differs("snp.chip_id", "chip id of the report", report.chip_id.hex(), value.hex()))
    return found


def _levels(report: SnpReport, generation: Generation, policy: SnpPolicy) -> list[Finding]:
    """The firmware that signed, and the one under which the guest began, are not older than allowed."""
    least = policy.least.get(generation)
    if least is None:
        return []
    found = []
    for name, raw in (("reported", report.reported_tcb), ("launch", report.launch_tcb)):
        tcb = read_tcb(raw, generation)[0]
        lower = tcb.lacks(least)
        if lower:
            what = f"{name} TCB, too low in {', '.join(lower)}"
            found.append(_differs("snp.minimal_tcb", what, tcb, f"at least {least}"))
    return found


def _guest(report: SnpReport, report_data: bytes | None, watch: list[Finding]) -> list[Finding]:
    """What the guest may do and what it asked."""
    found = []
    if report.policy & Guest.DEBUG:
        found.append(_differs("snp.debug", "debugging by the host", "allowed", "forbidden"))
    if report.policy & Guest.MIGRATE:
        found.append(_differs("snp.migration", "migration", "allowed", "forbidden"))
    if report.vmpl > 3:
        asker = "the host" if report.vmpl == ASKED_BY_HOST else report.vmpl
        found.append(_differs("snp.vmpl", "who asked for the report", asker, "a guest at VMPL 0 to 3"))
    if report_data is None:
        words = "no report data was given to compare: this may be an old report, or of another machine"
        watch.append(finding("snp.unbound", words))
    elif not hmac.compare_digest(report.report_data, report_data):
        found.append(_differs("snp.report_data", "report data", report.report_data.hex(), report_data.hex()))
    unknown = report.platform & ~KNOWN_PLATFORM
    if unknown:
        watch.append(finding("snp.platform", f"platform information with unknown bits: {unknown:#x}"))
    return found
