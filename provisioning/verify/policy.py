"""Do the PCRs show our release, in this site's configuration, on the same firmware and volume as before?"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import load_der_public_key

from nodeos.core.errors import Finding
from nodeos.core.protocol import NodeKeys, StateVolume, UpdateStatus
from nodeos.core.release import BootPhase, Release
from nodeos.core.site import PCR as SITE_PCR
from nodeos.core.site import MemoryPolicy, SiteConfig
from nodeos.core.statepolicy import POLICY_PCRS
from nodeos.core.statereport import Mode
from provisioning.verify.eventlog import Event
from provisioning.verify.findings import Verdict, finding, verdict
from provisioning.verify.naming import named

# Not 5: the partition table is measured there, and every update renames partitions.
FIRMWARE_PCRS = (0, 1, 2, 3)
ZERO_PCRS = (13, 14)
VOLUME_PCR = 15
_ZERO = bytes(32)
_WORDS = {
    4: "the boot loader and kernel image",
    7: "Secure Boot and its keys",
    11: "the kernel image and the boot phase",
    12: "the site configuration and the kernel command line",
    13: "system extensions, which this image does not have",
    14: "shim's keys, which this image does not use",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Enrolled:
    """What an inducted machine showed when the operator approved it."""

    ak_public: bytes
    keys: NodeKeys
    pcrs: Mapping[int, bytes]
    luks_uuid: str
    boot_id: str


def check_release(
    pcrs: Mapping[int, bytes], claimed: str, releases: Mapping[str, Release], events: Sequence[Event] = ()
) -> tuple[Verdict, Release | None]:
    """PCRs 4 and 11 must be those of the release that the node says it runs, and PCR 7 one that it accepts.

    Secure Boot was on for every PCR 7 that a release accepts. The values are those of the SHA-256 bank. ``events``
    are for the findings' words.
    """
    release = releases.get(claimed)
    if release is None:
        known = ", ".join(sorted(releases)) or "none"
        refused = [finding("release.unknown", f"found {claimed!r}, known to this registrar: {known}")]
        return verdict("release", refused), None
    phases = release.pcr11["sha256"]
    expected = {4: release.pcrs["sha256"][4], 11: phases[BootPhase.READY]}
    refused = [
        _differs(index, pcrs[index], value, events if index == 4 else ())
        for index, value in expected.items()
        if pcrs[index] != value
    ]
    if pcrs[7] not in {accepted.sha256 for accepted in release.accepted_pcr7}:
        known = ", ".join(f"{accepted.sha256.hex()} ({accepted.name})" for accepted in release.accepted_pcr7)
        refused.append(finding("pcr.7", f"{_WORDS[7]}: found {pcrs[7].hex()}, expected one of {known}"))
    phase = next((p for p, value in phases.items() if value == pcrs[11]), None)
    if phase is not None and phase is not BootPhase.READY:
        refused.append(
            finding(
                "release.phase", f"the boot stands at {phase}; a node attests once it is {BootPhase.READY}"
            )
        )
    return verdict("release", refused), release


def check_site(pcrs: Mapping[int, bytes], site_document: bytes, events: Sequence[Event] = ()) -> Verdict:
    """PCR 12 holds the site document and nothing else; PCRs 13 and 14 were never extended.

    ``events`` are for the findings' words: whatever a log has for these registers came from elsewhere.
    """
    site = hashlib.sha256(_ZERO + hashlib.sha256(site_document).digest()).digest()
    expected = {SITE_PCR: site, **dict.fromkeys(ZERO_PCRS, _ZERO)}
    return verdict(
        "site",
        [
            _differs(index, pcrs[index], value, events)
            for index, value in expected.items()
            if pcrs[index] != value
        ],
    )


def check_memory(site_document: bytes, claimed: str) -> Verdict:
    """Where the site requires encrypted memory, the node says that its memory is."""
    refused = []
    if SiteConfig.parse(site_document).memory_encryption is MemoryPolicy.REQUIRE and claimed != "active":
        refused.append(finding("memory.encryption", f"found {claimed!r}, the site requires 'active'"))
    return verdict("memory", refused)


def _differs(index: int, found: bytes, expected: bytes, events: Sequence[Event]) -> Finding:
    words = f"{_WORDS[index]}: found {found.hex()}, expected {expected.hex()}"
    return finding(f"pcr.{index}", words + named(events, index))


def check_update(update: UpdateStatus | None, claimed: str) -> Verdict:
    """A node that fell back, or refused what it was offered, runs a release that is allowed; a person should know
    why the other one failed."""
    watch = []
    if update is not None and update.failed is not None:
        watch.append(
            finding(
                "update.fell_back", f"{update.failed} was tried and given up, {update.running} runs again"
            )
        )
    if update is not None and update.delivery is not None and update.delivery.version != update.running:
        told = update.delivery
        watch += [
            finding(f"update.{told.state}", f"{told.version}: {item.code}: {item.message}")
            for item in told.findings
        ]
    refused = []
    if update is not None and update.running != claimed:
        refused.append(finding("update.running", f"found {update.running!r}, the statement says {claimed!r}"))
    return verdict("update", refused, watch)


def check_firmware(pcrs: Mapping[int, bytes], enrolled: Enrolled | None) -> Verdict:
    """PCRs 0-3 as at enrolment, else a person should look: a firmware update changes them too."""
    watch = [
        finding(
            f"pcr.{index}",
            f"the firmware or its settings changed since enrolment: found {pcrs[index].hex()}, "
            f"was {enrolled.pcrs[index].hex()}",
        )
        for index in FIRMWARE_PCRS
        if enrolled is not None and pcrs[index] != enrolled.pcrs[index]
    ]
    return verdict("firmware", (), watch)


def check_volume(
    volume: StateVolume, boot_id: str, pcrs: Mapping[int, bytes], enrolled: Enrolled | None
) -> Verdict:
    """The state volume is open, sealed as it must be, made by us, and the one that was enrolled."""
    refused = []
    if volume.mode is not Mode.OPEN:
        refused.append(finding("volume.locked", "the volume is locked: the node runs without its state"))
    if tuple(sorted(volume.policy_pcrs)) != POLICY_PCRS:
        refused.append(
            finding(
                "volume.policy_pcrs",
                f"found {list(volume.policy_pcrs)}, needed signed policies on PCRs {list(POLICY_PCRS)}",
            )
        )
    if not volume.policy_keys:
        refused.append(finding("volume.policy_keys", "the volume is sealed to no policy key"))
    if pcrs[VOLUME_PCR] == _ZERO:
        refused.append(finding("volume.unmeasured", "PCR 15 is zero: the volume's key was not measured"))
    if enrolled is None:
        if not volume.creation_proven:
            refused.append(
                finding(
                    "volume.unproven",
                    "nothing proves that our initial RAM disk made the volume: somebody else may know its key",
                )
            )
        return verdict("volume", refused)
    if volume.made_this_boot and boot_id != enrolled.boot_id:
        refused.append(finding("volume.remade", "the volume was made anew after this machine was enrolled"))
    if volume.luks_uuid != enrolled.luks_uuid:
        refused.append(
            finding("volume.luks_uuid", f"found {volume.luks_uuid}, enrolled was {enrolled.luks_uuid}")
        )
    if pcrs[VOLUME_PCR] != enrolled.pcrs[VOLUME_PCR]:
        refused.append(
            finding(
                "pcr.15",
                f"the volume's key or the machine's id: found {pcrs[VOLUME_PCR].hex()}, "
                f"enrolled was {enrolled.pcrs[VOLUME_PCR].hex()}",
            )
        )
    return verdict("volume", refused)


def check_identity(keys: NodeKeys, ak_public: bytes, enrolled: Enrolled | None) -> Verdict:
    """The node's keys have the right form, and are the enrolled ones."""
    refused = check_key_forms(keys)
    if enrolled is not None:
        if ak_public != enrolled.ak_public:
            refused.append(finding("identity.ak", "another attestation key than the enrolled one"))
        for name in ("signing", "tls_certificate", "committee"):
            if getattr(keys, name) != getattr(enrolled.keys, name):
                refused.append(
                    finding(f"identity.{name}", f"the node's key {name!r} is not the enrolled one")
                )
    return verdict("identity", refused)


def check_key_forms(keys: NodeKeys) -> list[Finding]:
    """Ed25519, a self-signed certificate, a compressed G2 point."""
    refused = []
    try:
        if not isinstance(load_der_public_key(keys.signing), Ed25519PublicKey) or len(keys.signing) != 44:
            raise ValueError("not an Ed25519 key")
    except (ValueError, UnsupportedAlgorithm) as error:
        refused.append(finding("keys.signing", f"not the DER of an Ed25519 key: {error}"))
    try:
        certificate = x509.load_der_x509_certificate(keys.tls_certificate)
        certificate.verify_directly_issued_by(certificate)
    except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm) as error:
        words = str(error) or type(error).__name__
        refused.append(finding("keys.tls_certificate", f"not a self-signed certificate: {words}"))
    # IRTF "BLS signatures": the top three bits of a compressed point are compression, infinity, sign.
    if keys.committee[0] & 0xC0 != 0x80:
        refused.append(finding("keys.committee", "not a compressed BLS12-381 G2 point"))
    return refused
