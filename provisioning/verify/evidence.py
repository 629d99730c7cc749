"""The two verifications of an enrolment: who asks, and what it proves. Pure: all that is needed comes in."""

from __future__ import annotations

import hmac
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from nodeos.core.errors import Finding, RefusedError
from nodeos.core.principal import Principal
from nodeos.core.protocol import Evidence, Request, Statement, qualifying_data, secret_proof
from nodeos.core.release import Release
from nodeos.core.site import SignedSite, SiteConfig
from nodeos.core.wire import ParseError
from provisioning.verify.celog import parse_measure_log
from provisioning.verify.chain import TpmModel, check_chain
from provisioning.verify.crl import Crl
from provisioning.verify.der import Certificate, parse_certificate
from provisioning.verify.escrow import Escrow, check_escrow
from provisioning.verify.eventchecks import check_events, check_replay, check_unlogged
from provisioning.verify.eventlog import Event, parse_event_log
from provisioning.verify.findings import Result, Verdict, all_findings, finding, refusals, verdict
from provisioning.verify.fingerprint import Report, parse_report
from provisioning.verify.keys import check_attestation_key, check_endorsement_key
from provisioning.verify.naming import events_of
from provisioning.verify.policy import (
    Enrolled,
    check_firmware,
    check_identity,
    check_memory,
    check_release,
    check_site,
    check_update,
    check_volume,
)
from provisioning.verify.possession import check_possession
from provisioning.verify.profile import Profile, check_fingerprint
from provisioning.verify.quote import Clock, check_clock, check_quote
from provisioning.verify.tpm import Public, Quote, parse_public

# The logs tell all that was measured into these: the firmware's of 0 to 9, both of 11.
REPLAYED_PCRS = (0, 1, 2, 3, 4, 5, 7, 9, 11)
# Here our own code measures, and keeps no log of it. An event says that something else measured too.
UNLOGGED_PCRS = {
    12: "the site configuration",
    13: "nothing",
    14: "nothing",
    15: "what the state volume's key gives",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Trust:
    """Pinned roots, intermediates that help to find a path to them, and revocation lists of all of these."""

    roots: tuple[Certificate, ...]
    intermediates: tuple[Certificate, ...]
    crls: tuple[Crl, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class DataCenter:
    """What the registrar knows of a data centre: who runs it, and which site key signs its documents."""

    name: str
    operator: Principal
    site_key: Ed25519PublicKey
    node_reward_type: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Asker:
    """A machine whose request passed: a TPM of a pinned manufacturer with a proper attestation key."""

    ek: Public
    ak: Public
    model: TpmModel
    site: SiteConfig


def claimed_site(request: Request) -> SiteConfig:
    """The site document before its signature is checked: only to find out which key must have signed it."""
    return SiteConfig.parse(request.site_document)


def verify_request(request: Request, data_center: DataCenter, trust: Trust, at: datetime) -> Asker:
    """Everything that is checked before a challenge is made. Raises RefusedError with all findings."""
    found: list[Finding] = []
    site = _site(request, data_center, found)
    ek = _public(request.ek_public, "ek.form", "endorsement key", found)
    ak = _public(request.ak_public, "ak.form", "attestation key", found)
    if ak is not None:
        found += check_attestation_key(ak)
    model = None
    if ek is not None:
        wrong = check_endorsement_key(ek)
        found += wrong
        if not any(f.code == "ek.invalid" for f in wrong):
            model = _certificates(request, ek, trust, at, found)
    if found or site is None or ek is None or ak is None or model is None:
        raise RefusedError("the request is refused", tuple(found))
    return Asker(ek=ek, ak=ak, model=model, site=site)


def _site(request: Request, data_center: DataCenter, found: list[Finding]) -> SiteConfig | None:
    signed = SignedSite(document=request.site_document, signature=request.site_signature)
    try:
        site = signed.verify(data_center.site_key)
    except RefusedError as error:
        found += error.findings
        return None
    except ParseError as error:
        found.append(finding("site.form", error.message))
        return None
    if site.data_center != data_center.name:
        found.append(finding("site.data_center", f"found {site.data_center}, needed {data_center.name}"))
    if site.operator != data_center.operator:
        found.append(
            finding(
                "site.operator",
                f"found {site.operator}, the data centre {data_center.name} is run by {data_center.operator}",
            )
        )
    if site.node_reward_type != data_center.node_reward_type:
        found.append(
            finding(
                "site.reward_type",
                f"found {site.node_reward_type}, machines of {data_center.name} are "
                f"{data_center.node_reward_type}",
            )
        )
    return site


def _public(data: bytes, code: str, what: str, found: list[Finding]) -> Public | None:
    try:
        return parse_public(data, what)
    except ParseError as error:
        found.append(finding(code, error.message))
        return None


def _certificates(
    request: Request, ek: Public, trust: Trust, at: datetime, found: list[Finding]
) -> TpmModel | None:
    if not request.ek_certificates:
        found.append(finding("ek.no_certificate", "the TPM holds no endorsement certificate"))
        return None
    try:
        leaf, *others = (
            parse_certificate(der, f"endorsement certificate {index}")
            for index, der in enumerate(request.ek_certificates)
        )
        known = (*others, *trust.intermediates)
        more, model = check_chain(leaf, known, trust.roots, ek.spki(), at, crls=trust.crls)
    except ParseError as error:
        found.append(finding("ek.certificate", error.message))
        return None
    found += more
    return model


@dataclass(frozen=True, slots=True, kw_only=True)
class Expected:
    """What the evidence is held against. ``enrolled`` is None until the machine is inducted.

    ``escrowed`` are the recovery keys that were kept for this machine, by the LUKS UUID of their volume.
    ``clock`` is the latest that this TPM has shown, in whichever session; ``boot_id`` is of the same quote.
    """

    nonce: bytes
    secret: bytes
    machine: str
    ak_public: bytes
    site_document: bytes
    escrowed: Mapping[str, Collection[bytes]]
    releases: Mapping[str, Release]
    profile: Profile
    clock: Clock | None
    boot_id: str | None
    enrolled: Enrolled | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Assessment:
    """All that was found. ``authentic``: the machine's own TPM made this quote for this challenge."""

    verdicts: tuple[Verdict, ...]
    authentic: bool
    statement: Statement | None
    quote: Quote | None
    report: Report | None

    @property
    def result(self) -> Result:
        results = [v.result for v in self.verdicts]
        return next((r for r in (Result.REFUSED, Result.WATCH) if r in results), Result.PASSED)

    @property
    def findings(self) -> tuple[Finding, ...]:
        return all_findings(self.verdicts)


class RefusedEvidence(RefusedError):
    """Evidence that does not hold, with everything that was found out on the way."""

    def __init__(self, assessment: Assessment) -> None:
        super().__init__("the evidence is refused", refusals(assessment.verdicts))
        self.assessment = assessment


def verify_evidence(evidence: Evidence, expected: Expected) -> Assessment:
    """Check everything and keep every finding. Raises RefusedEvidence if any check refuses."""
    qualifying = qualifying_data(expected.nonce, evidence.statement)
    proof = verdict("credential", _proof(evidence, expected, qualifying))
    ak = parse_public(expected.ak_public, "attestation key")
    wrong, quote = check_quote(evidence.quote, evidence.signature, ak, qualifying, evidence.pcrs)
    verdicts = [proof, verdict("quote", wrong)]
    authentic = not refusals(verdicts)
    if quote is not None:
        verdicts.append(_clock(quote, expected))
    verdicts.append(check_logs(evidence.firmware_log, evidence.userspace_log, evidence.pcrs))
    events = events_of(evidence.firmware_log, evidence.userspace_log)
    verdicts.append(check_site(evidence.pcrs, expected.site_document, events))
    verdicts.append(check_firmware(evidence.pcrs, expected.enrolled))
    statement, report = _statement(evidence, expected, verdicts, events)
    if statement is not None and authentic:
        # Of a statement that this TPM did not make, it says nothing; that is refused already.
        verdicts.append(check_possession(statement.keys, evidence.key_proofs, qualifying))
    if statement is not None and quote is not None and expected.boot_id is not None:
        verdicts.append(_boot(statement, quote, expected))
    assessment = Assessment(
        verdicts=tuple(verdicts), authentic=authentic, statement=statement, quote=quote, report=report
    )
    if assessment.result is Result.REFUSED:
        raise RefusedEvidence(assessment)
    return assessment


def _proof(evidence: Evidence, expected: Expected, qualifying: bytes) -> Sequence[Finding]:
    if hmac.compare_digest(evidence.secret_proof, secret_proof(expected.secret, qualifying)):
        return ()
    return (finding("credential.proof", "the sender did not open the credential that its TPM was sent"),)


def _clock(quote: Quote, expected: Expected) -> Verdict:
    before = expected.clock
    return verdict("clock", check_clock(Clock.of(quote), before) if before is not None else ())


def _boot(statement: Statement, quote: Quote, expected: Expected) -> Verdict:
    """Resets and boot ids change together; a system started without a reset has the old one's PCRs."""
    same_boot = statement.boot_id == expected.boot_id
    same_reset = expected.clock is not None and quote.reset_count == expected.clock.reset_count
    if same_boot == same_reset:
        return verdict("boot", ())
    words = "the TPM was reset within one boot" if same_boot else "another boot id without a reset of the TPM"
    return verdict("boot", (), [finding("boot.reset", words)])


def check_logs(firmware_log: bytes, userspace_log: bytes, pcrs: Mapping[int, bytes]) -> Verdict:
    """The logs have the right form and explain the registers.

    PCRs 12 and 15 hold what no log tells: their values are for ``check_site`` and ``check_volume``.
    """
    try:
        log = parse_event_log(firmware_log)
        more = parse_measure_log(userspace_log, first=len(log.events))
        found = (
            *check_events(log, more),
            *check_replay(log, more, pcrs, REPLAYED_PCRS),
            *check_unlogged(log, more, UNLOGGED_PCRS),
        )
    except ParseError as error:
        found = (finding("eventlog.form", error.message),)
    return verdict("eventlog", found)


def _statement(
    evidence: Evidence, expected: Expected, verdicts: list[Verdict], events: Sequence[Event]
) -> tuple[Statement | None, Report | None]:
    try:
        statement = Statement.parse(evidence.statement)
    except ParseError as error:
        verdicts.append(verdict("statement", [finding("statement.form", error.message)]))
        return None, None
    release, _ = check_release(evidence.pcrs, statement.release, expected.releases, events)
    verdicts.append(release)
    verdicts.append(check_update(statement.update, statement.release))
    verdicts.append(check_volume(statement.volume, statement.boot_id, evidence.pcrs, expected.enrolled))
    escrow = Escrow(
        machine=expected.machine,
        luks_uuid=statement.volume.luks_uuid,
        operator_key=SiteConfig.parse(expected.site_document).operator_key,
        known=expected.escrowed.get(statement.volume.luks_uuid, ()),
    )
    verdicts.append(check_escrow(statement.recovery, escrow))
    verdicts.append(check_identity(statement.keys, expected.ak_public, expected.enrolled))
    try:
        report = parse_report(statement.fingerprint)
    except ParseError as error:
        verdicts.append(verdict("fingerprint", [finding("fingerprint.form", error.message)]))
        return statement, None
    verdicts.append(check_memory(expected.site_document, statement.memory_encryption))
    verdicts.append(check_fingerprint(report, expected.profile, statement.memory_encryption))
    return statement, report
