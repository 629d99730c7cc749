"""What is checked of a locked node that asks for its recovery key. Pure."""

from __future__ import annotations

import hmac
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, EllipticCurvePublicKey
from cryptography.hazmat.primitives.serialization import load_der_public_key

from nodeos.core.errors import Finding
from nodeos.core.protocol import secret_proof
from nodeos.core.recovery_request import LockedEvidence, LockedStatement, recovery_qualifying_data
from nodeos.core.release import Release
from nodeos.core.wire import ParseError
from provisioning.verify.evidence import check_logs
from provisioning.verify.findings import Verdict, finding, refusals, verdict
from provisioning.verify.fingerprint import parse_report
from provisioning.verify.policy import (
    VOLUME_PCR,
    Enrolled,
    check_firmware,
    check_memory,
    check_release,
    check_site,
)
from provisioning.verify.profile import Profile, check_fingerprint
from provisioning.verify.quote import Clock, check_clock, check_quote
from provisioning.verify.tpm import Quote, parse_public


@dataclass(frozen=True, slots=True, kw_only=True)
class LockedExpected:
    """What a locked node's evidence is held against. ``enrolled`` is the node of that volume as it was inducted,
    None if there is none; ``escrowed`` are the blobs that were kept for it; ``clock`` is what the enrolled
    machine's TPM showed last."""

    nonce: bytes
    secret: bytes
    ak_public: bytes
    machine: str
    site_document: bytes
    releases: Mapping[str, Release]
    profile: Profile
    enrolled: Enrolled | None
    enrolled_machine: str | None
    escrowed: Collection[bytes]
    clock: Clock | None


@dataclass(frozen=True, slots=True, kw_only=True)
class LockedAssessment:
    """All that was found. ``authentic``: a genuine TPM made this quote for this challenge."""

    verdicts: tuple[Verdict, ...]
    authentic: bool
    statement: LockedStatement | None
    quote: Quote | None

    @property
    def refused(self) -> tuple[Finding, ...]:
        return refusals(self.verdicts)


def assess_locked(evidence: LockedEvidence, expected: LockedExpected) -> LockedAssessment:
    """Check everything and keep every finding. Raises nothing: the caller looks at ``refused``."""
    qualifying = recovery_qualifying_data(expected.nonce, evidence.statement)
    opened = hmac.compare_digest(evidence.secret_proof, secret_proof(expected.secret, qualifying))
    words = "the sender did not open the credential that its TPM was sent"
    proof = verdict("credential", () if opened else [finding("credential.proof", words)])
    ak = parse_public(expected.ak_public, "attestation key")
    wrong, quote = check_quote(evidence.quote, evidence.signature, ak, qualifying, evidence.pcrs)
    verdicts = [proof, verdict("quote", wrong)]
    authentic = not refusals(verdicts)
    if quote is not None:
        verdicts.append(_tpm(quote, expected))
    verdicts.append(check_logs(evidence.firmware_log, evidence.userspace_log, evidence.pcrs))
    verdicts.append(check_site(evidence.pcrs, expected.site_document))
    verdicts.append(check_firmware(evidence.pcrs, expected.enrolled))
    statement = _statement(evidence, expected, verdicts)
    return LockedAssessment(verdicts=tuple(verdicts), authentic=authentic, statement=statement, quote=quote)


def _tpm(quote: Quote, expected: LockedExpected) -> Verdict:
    """Whether this is the enrolled TPM, and was cleared: both are for the operator to know, and to expect."""
    if expected.enrolled is None or expected.enrolled_machine is None:
        return verdict("tpm", ())
    watch = []
    if expected.machine != expected.enrolled_machine:
        words = f"another TPM than the enrolled one: the machine was {expected.enrolled_machine}"
        watch.append(finding("recovery.new_tpm", words))
    elif expected.ak_public != expected.enrolled.ak_public:
        watch.append(finding("recovery.new_ak", "another attestation key than the enrolled one"))
    elif expected.clock is not None and not check_clock(Clock.of(quote), expected.clock):
        words = "the TPM's counters went on since the last attestation: it was not cleared"
        watch.append(finding("recovery.not_cleared", words))
    return verdict("tpm", (), watch)


def _statement(
    evidence: LockedEvidence, expected: LockedExpected, verdicts: list[Verdict]
) -> LockedStatement | None:
    locked = []
    if evidence.pcrs[VOLUME_PCR] != bytes(32):
        locked.append(
            finding("recovery.pcr15", "PCR 15 is not zero: a volume's key was used in this boot already")
        )
    try:
        statement = LockedStatement.parse(evidence.statement)
    except ParseError as error:
        verdicts += [
            verdict("statement", [finding("statement.form", error.message)]),
            verdict("locked", locked),
        ]
        return None
    release, _ = check_release(evidence.pcrs, statement.release, expected.releases)
    locked += _fresh_key(statement.fresh_key)
    locked += _blob(statement, expected)
    verdicts += [release, verdict("locked", locked)]
    try:
        report = parse_report(statement.fingerprint)
    except ParseError as error:
        verdicts.append(verdict("fingerprint", [finding("fingerprint.form", error.message)]))
        return statement
    verdicts.append(check_memory(expected.site_document, statement.memory_encryption))
    verdicts.append(check_fingerprint(report, expected.profile, statement.memory_encryption))
    return statement


def _fresh_key(der: bytes) -> list[Finding]:
    try:
        key = load_der_public_key(der)
    except (ValueError, UnsupportedAlgorithm) as error:
        return [finding("recovery.fresh_key", f"not a public key in DER: {error}")]
    if not isinstance(key, EllipticCurvePublicKey) or not isinstance(key.curve, SECP256R1):
        return [finding("recovery.fresh_key", "not a P-256 key")]
    return []


def _blob(statement: LockedStatement, expected: LockedExpected) -> list[Finding]:
    if expected.enrolled is None or statement.luks_uuid != expected.enrolled.luks_uuid:
        words = f"no node here has the volume {statement.luks_uuid} with this recovery key"
        return [finding("recovery.volume", words)]
    if statement.recovery not in expected.escrowed:
        return [
            finding("recovery.blob", "it is not the recovery key that was kept when the node was enrolled")
        ]
    return []
