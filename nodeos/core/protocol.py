"""The enrolment protocol between a node and the registrar: JSON over TLS, version 1.

    node                                              registrar
    POST /v1/enrolments            Request       →    checks EK certificate, AK attributes, site
                                   Challenge     ←    credential for (EK, AK) and a nonce
    POST /v1/enrolments/M/evidence Evidence      →    checks secret, quote, PCRs, fingerprint
                                   Outcome       ←
    POST /v1/enrolments/M/status   Poll          →    (until the operator has decided)
                                   Outcome       ←
    POST /v1/enrolments/M/access   AccessRequest →    (once inducted: who may reach the node)
                                   AccessAnswer  ←

M is the machine id: hex of SHA-256 over the endorsement key's TPMT_PUBLIC. A node attests again, at every
boot, by the same three steps. The quote's qualifying data binds all that the node states (see
``qualifying_data``), and the node's keys sign it too; the secret of the credential authenticates the polls.
"""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from nodeos.core.access import MAX_ADDRESSES, parse_item
from nodeos.core.addresses import IpAddress
from nodeos.core.errors import Finding
from nodeos.core.principal import Principal
from nodeos.core.statepolicy import HIGHEST_VERSION
from nodeos.core.statereport import Mode, parse_fingerprint, parse_mode
from nodeos.core.wire import (
    Fields,
    ParseError,
    b64,
    canonical_json,
    parse_data,
    parse_finding,
    parse_int,
    parse_json,
)

# All PCRs that a quote must cover, no more and no fewer. 0-3 are the firmware's, recorded at
# enrolment; 4, 7, 11 are predicted by the release; 12 by the site; 14 stays zero; 15 is the volume's key.
QUOTED_PCRS = (0, 1, 2, 3, 4, 5, 7, 9, 11, 12, 13, 14, 15)

_STATEMENT_DOMAIN = b"nodeos-evidence-v1\x00"
_POSSESSION_DOMAIN = b"nodeos-possession-v1\x00"
_POLL_DOMAIN = b"nodeos-poll-v1\x00"
NONCE_BYTES = 32


class DeliveryState(StrEnum):
    """How far a node is with an offer. REFUSED: its checks said no; FAILED: something broke, it is tried again;
    INSTALLED: in the other slot, started with the next boot."""

    FETCHING = "fetching"
    REFUSED = "refused"
    FAILED = "failed"
    INSTALLED = "installed"


class EnrolmentState(StrEnum):
    """Where a machine stands. Only an operator's signature leads from PENDING to INDUCTED."""

    CHALLENGED = "challenged"
    REFUSED = "refused"
    PENDING = "pending"
    REJECTED = "rejected"
    INDUCTED = "inducted"


def machine_id(ek_public: bytes) -> str:
    """The machine's lasting name: hex of SHA-256 over the EK's TPMT_PUBLIC (no TPM2B size)."""
    return hashlib.sha256(ek_public).hexdigest()


def qualifying_data(nonce: bytes, statement: bytes) -> bytes:
    """What the quote signs beside the PCRs: 32 bytes that bind the nonce and the whole statement."""
    return hashlib.sha256(_STATEMENT_DOMAIN + nonce + hashlib.sha256(statement).digest()).digest()


def secret_proof(secret: bytes, qualifying: bytes) -> bytes:
    """Shows that the node activated the credential: HMAC-SHA256 of the qualifying data."""
    return hmac.digest(secret, qualifying, "sha256")


def possession_message(qualifying: bytes) -> bytes:
    """What each of the node's keys signs: that it is there, in this attestation and no other."""
    return _POSSESSION_DOMAIN + qualifying


def poll_proof(secret: bytes, session: str, counter: int) -> bytes:
    """Authenticates a poll; ``counter`` grows with every poll of a session."""
    return hmac.digest(secret, _POLL_DOMAIN + session.encode() + counter.to_bytes(8, "big"), "sha256")


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeKeys:
    """The node's public keys, which live on the sealed state partition.

    ``signing``: Ed25519 SubjectPublicKeyInfo in DER; its principal is the node id.
    ``tls_certificate``: self-signed X.509 in DER. ``committee``: BLS12-381 G2 public key, 96 bytes.
    """

    signing: bytes
    tls_certificate: bytes
    committee: bytes

    @property
    def node_id(self) -> Principal:
        return Principal.self_authenticating(self.signing)

    def to_json(self) -> dict[str, str]:
        return {
            "signing": b64(self.signing),
            "tls_certificate": b64(self.tls_certificate),
            "committee": b64(self.committee),
        }

    @classmethod
    def parse(cls, fields: Fields) -> NodeKeys:
        keys = cls(
            signing=fields.data("signing", limit=128),
            tls_certificate=fields.data("tls_certificate", limit=4096),
            committee=fields.data("committee", length=96),
        )
        fields.done()
        return keys


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyProofs:
    """Signatures of ``possession_message`` by each key of NodeKeys: without them a node could claim, and so
    keep from its owner, a key that it has only heard of. ``signing`` and ``tls`` are 64 bytes (ECDSA: r and s),
    ``committee`` is a compressed G1 point of 48 bytes."""

    signing: bytes
    tls: bytes
    committee: bytes

    def to_json(self) -> dict[str, str]:
        return {"signing": b64(self.signing), "tls": b64(self.tls), "committee": b64(self.committee)}

    @classmethod
    def parse(cls, fields: Fields) -> KeyProofs:
        proofs = cls(
            signing=fields.data("signing", length=64),
            tls=fields.data("tls", length=64),
            committee=fields.data("committee", length=48),
        )
        fields.done()
        return proofs


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """Who asks. ``ek_public`` is a TPMT_PUBLIC, ``ak_public`` too; certificates are DER, leaf first."""

    ek_public: bytes
    ek_certificates: tuple[bytes, ...]
    ak_public: bytes
    site_document: bytes
    site_signature: bytes

    @property
    def machine(self) -> str:
        return machine_id(self.ek_public)

    def to_bytes(self) -> bytes:
        return canonical_json(
            {
                "version": 1,
                "ek_public": b64(self.ek_public),
                "ek_certificates": [b64(der) for der in self.ek_certificates],
                "ak_public": b64(self.ak_public),
                "site": {"document": b64(self.site_document), "signature": b64(self.site_signature)},
            }
        )

    @classmethod
    def parse(cls, data: bytes) -> Request:
        fields = parse_json(data, "request")
        fields.integer("version", low=1, high=1)
        site = fields.nested("site")
        request = cls(
            ek_public=fields.data("ek_public", limit=1024),
            ek_certificates=fields.list_of("ek_certificates", parse_data, limit=8),
            ak_public=fields.data("ak_public", limit=1024),
            site_document=site.data("document", limit=1 << 16),
            site_signature=site.data("signature", length=64),
        )
        site.done()
        fields.done()
        return request


@dataclass(frozen=True, slots=True, kw_only=True)
class Challenge:
    """The registrar's answer. ``credential_blob`` is a TPM2B_ID_OBJECT, ``encrypted_secret`` a
    TPM2B_ENCRYPTED_SECRET (both with their size fields); the nonce holds for ``seconds`` seconds, once."""

    session: str
    credential_blob: bytes
    encrypted_secret: bytes
    nonce: bytes
    seconds: int

    def to_bytes(self) -> bytes:
        return canonical_json(
            {
                "session": self.session,
                "credential_blob": b64(self.credential_blob),
                "encrypted_secret": b64(self.encrypted_secret),
                "nonce": b64(self.nonce),
                "seconds": self.seconds,
            }
        )

    @classmethod
    def parse(cls, data: bytes) -> Challenge:
        fields = parse_json(data, "challenge")
        challenge = cls(
            session=fields.text("session", limit=64),
            credential_blob=fields.data("credential_blob", limit=1024),
            encrypted_secret=fields.data("encrypted_secret", limit=1024),
            nonce=fields.data("nonce", length=NONCE_BYTES),
            seconds=fields.integer("seconds", low=1, high=86400),
        )
        fields.done()
        return challenge


@dataclass(frozen=True, slots=True, kw_only=True)
class StateVolume:
    """How the state volume is protected, as the initial RAM disk's phase reported it.

    ``policy_keys`` are SHA-256 of the DER public keys whose signed policies open it, each over ``policy_pcrs``.
    ``floor`` is the security version below which no release opens it. ``creation_proven``: the TPM says that
    its key was sealed in our initial RAM disk, so nobody else has known it.
    """

    mode: Mode
    luks_uuid: str
    made_this_boot: bool
    policy_keys: tuple[bytes, ...]
    policy_pcrs: tuple[int, ...]
    floor: int
    creation_proven: bool

    def to_json(self) -> dict[str, Any]:
        return {
            "mode": str(self.mode),
            "luks_uuid": self.luks_uuid,
            "made_this_boot": self.made_this_boot,
            "policy_keys": [key.hex() for key in self.policy_keys],
            "policy_pcrs": list(self.policy_pcrs),
            "floor": self.floor,
            "creation_proven": self.creation_proven,
        }

    @classmethod
    def parse(cls, fields: Fields) -> StateVolume:
        volume = cls(
            mode=parse_mode(fields.text("mode", limit=16), f"{fields.path}.mode"),
            luks_uuid=fields.text("luks_uuid", limit=64),
            made_this_boot=fields.flag("made_this_boot"),
            policy_keys=fields.list_of("policy_keys", parse_fingerprint, limit=4),
            policy_pcrs=fields.list_of("policy_pcrs", parse_int, limit=24),
            floor=fields.integer("floor", high=HIGHEST_VERSION),
            creation_proven=fields.flag("creation_proven"),
        )
        fields.done()
        return volume


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """A release that the registrar wants its nodes to run. ``url`` is the folder with its files, ``manifest`` the
    SHA-256 of its release.json; ``rollback`` says that an older version is meant. ``number`` grows with every
    offer: what failed on a node is not tried again until it is offered again.
    """

    number: int
    version: str
    manifest: bytes
    url: str
    rollback: bool = False

    def to_json(self) -> dict[str, Any]:
        return {
            "number": self.number,
            "version": self.version,
            "manifest": self.manifest.hex(),
            "url": self.url,
            "rollback": self.rollback,
        }

    @classmethod
    def parse(cls, fields: Fields) -> Offer:
        offer = cls(
            number=fields.integer("number"),
            version=fields.text("version", limit=64),
            manifest=fields.hexadecimal("manifest", length=32),
            url=fields.text("url", limit=1024),
            rollback=fields.flag("rollback"),
        )
        fields.done()
        return offer


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivery:
    """What a node made of an offer. ``boot_id`` is the boot in which it did; ``findings`` say why not."""

    number: int
    version: str
    state: DeliveryState
    boot_id: str
    findings: tuple[Finding, ...] = ()

    def to_json(self) -> dict[str, Any]:
        return {
            "number": self.number,
            "version": self.version,
            "state": str(self.state),
            "boot_id": self.boot_id,
            "findings": [f.to_json() for f in self.findings],
        }

    @classmethod
    def parse(cls, fields: Fields) -> Delivery:
        state = fields.text("state", limit=16)
        if state not in set(DeliveryState):
            raise ParseError(f"{fields.path}.state: {state!r} is not one of {', '.join(DeliveryState)}")
        delivery = cls(
            number=fields.integer("number"),
            version=fields.text("version", limit=64),
            state=DeliveryState(state),
            boot_id=fields.text("boot_id", limit=64),
            findings=fields.list_of("findings", parse_finding, limit=32),
        )
        fields.done()
        return delivery


@dataclass(frozen=True, slots=True, kw_only=True)
class UpdateStatus:
    """How the running version came to be started, as the node reads it from its ESP: nothing measures it.

    ``blessed`` is False while an update is on trial; ``failed`` is the version that was tried and given up;
    ``delivery`` is what became of the registrar's last offer.
    """

    running: str
    blessed: bool
    failed: str | None = None
    delivery: Delivery | None = None

    def to_json(self) -> dict[str, Any]:
        value: dict[str, Any] = {"running": self.running, "blessed": self.blessed, "failed": self.failed}
        if self.delivery is not None:
            value["delivery"] = self.delivery.to_json()
        return value

    @classmethod
    def parse(cls, fields: Fields) -> UpdateStatus:
        status = cls(
            running=fields.text("running", limit=64),
            blessed=fields.flag("blessed"),
            failed=fields.text("failed", limit=64) if fields.has("failed") else None,
            delivery=Delivery.parse(fields.nested("delivery")) if fields.has("delivery") else None,
        )
        fields.done()
        return status


@dataclass(frozen=True, slots=True, kw_only=True)
class Statement:
    """All that a node states about itself in one boot; its bytes are bound into the quote.

    ``recovery`` is the RecoveryBlob in the header of the state volume, in its canonical bytes: the registrar keeps
    it. ``boot_id`` is the kernel's random boot id, ``release`` the version in os-release (a claim until the
    measurements prove it), ``fingerprint`` the canonical CBOR of the report, ``memory_encryption`` what the
    running system sees ("active", "absent", "unknown"). ``addresses`` are the node's own, which other nodes
    let in.
    """

    boot_id: str
    release: str
    keys: NodeKeys
    volume: StateVolume
    recovery: bytes
    memory_encryption: str
    fingerprint: bytes
    addresses: tuple[IpAddress, ...]
    update: UpdateStatus | None = None

    def to_bytes(self) -> bytes:
        value: dict[str, Any] = {
            "version": 1,
            "boot_id": self.boot_id,
            "release": self.release,
            "keys": self.keys.to_json(),
            "volume": self.volume.to_json(),
            "recovery": b64(self.recovery),
            "memory_encryption": self.memory_encryption,
            "fingerprint": b64(self.fingerprint),
            "addresses": [str(address) for address in self.addresses],
        }
        if self.update is not None:
            value["update"] = self.update.to_json()
        return canonical_json(value)

    @classmethod
    def parse(cls, data: bytes) -> Statement:
        fields = parse_json(data, "statement")
        fields.integer("version", low=1, high=1)
        statement = cls(
            boot_id=fields.text("boot_id", limit=64),
            release=fields.text("release", limit=64),
            keys=NodeKeys.parse(fields.nested("keys")),
            volume=StateVolume.parse(fields.nested("volume")),
            recovery=fields.data("recovery", limit=1 << 13),
            memory_encryption=fields.text("memory_encryption", limit=16),
            fingerprint=fields.data("fingerprint", limit=8192),
            update=UpdateStatus.parse(fields.nested("update")) if fields.has("update") else None,
            addresses=fields.list_of("addresses", parse_item, limit=MAX_ADDRESSES),
        )
        fields.done()
        return statement


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """The proof. ``quote`` is a TPMS_ATTEST and ``signature`` a TPMT_SIGNATURE as the TPM marshals them;
    ``pcrs`` the SHA-256 bank values that the quote's digest is over; the logs are the firmware's binary log
    and systemd's tpm2-measure.log, as they lie on the node."""

    session: str
    statement: bytes
    secret_proof: bytes
    key_proofs: KeyProofs
    quote: bytes
    signature: bytes
    pcrs: dict[int, bytes]
    firmware_log: bytes
    userspace_log: bytes

    def to_bytes(self) -> bytes:
        return canonical_json(
            {
                "session": self.session,
                "statement": b64(self.statement),
                "secret_proof": b64(self.secret_proof),
                "key_proofs": self.key_proofs.to_json(),
                "quote": b64(self.quote),
                "signature": b64(self.signature),
                "pcrs": {str(index): value.hex() for index, value in self.pcrs.items()},
                "firmware_log": b64(self.firmware_log),
                "userspace_log": b64(self.userspace_log),
            }
        )

    @classmethod
    def parse(cls, data: bytes) -> Evidence:
        fields = parse_json(data, "evidence")
        pcrs = fields.nested("pcrs")
        evidence = cls(
            session=fields.text("session", limit=64),
            statement=fields.data("statement", limit=1 << 16),
            secret_proof=fields.data("secret_proof", length=32),
            key_proofs=KeyProofs.parse(fields.nested("key_proofs")),
            quote=fields.data("quote", limit=4096),
            signature=fields.data("signature", limit=1024),
            pcrs={index: pcrs.hexadecimal(str(index), length=32) for index in QUOTED_PCRS},
            firmware_log=fields.data("firmware_log", limit=1 << 18),
            userspace_log=fields.data("userspace_log", limit=1 << 18),
        )
        pcrs.done()
        fields.done()
        return evidence


@dataclass(frozen=True, slots=True, kw_only=True)
class Poll:
    """A node's question whether the operator has decided."""

    session: str
    counter: int
    proof: bytes

    def to_json(self) -> dict[str, Any]:
        return {"session": self.session, "counter": self.counter, "proof": b64(self.proof)}

    def to_bytes(self) -> bytes:
        return canonical_json(self.to_json())

    @classmethod
    def parse(cls, data: bytes) -> Poll:
        return cls.parse_fields(parse_json(data, "poll"))

    @classmethod
    def parse_fields(cls, fields: Fields) -> Poll:
        poll = cls(
            session=fields.text("session", limit=64),
            counter=fields.integer("counter"),
            proof=fields.data("proof", length=32),
        )
        fields.done()
        return poll


@dataclass(frozen=True, slots=True, kw_only=True)
class AccessRequest:
    """A node's question who may reach it. ``poll`` shows who asks; ``have`` is the digest of the list it has."""

    poll: Poll
    have: bytes | None

    def to_bytes(self) -> bytes:
        have = None if self.have is None else self.have.hex()
        return canonical_json({"poll": self.poll.to_json(), "have": have})

    @classmethod
    def parse(cls, data: bytes) -> AccessRequest:
        fields = parse_json(data, "request")
        request = cls(
            poll=Poll.parse_fields(fields.nested("poll")),
            have=fields.hexadecimal("have", length=32) if fields.has("have") else None,
        )
        fields.done()
        return request


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeRecord:
    """What the registry holds of an inducted node."""

    node_id: Principal
    machine: str
    data_center: str
    operator: Principal
    node_reward_type: str
    keys: NodeKeys
    inducted_at: int

    def to_json(self) -> dict[str, Any]:
        return {
            "node_id": str(self.node_id),
            "machine": self.machine,
            "data_center": self.data_center,
            "operator": str(self.operator),
            "node_reward_type": self.node_reward_type,
            "keys": self.keys.to_json(),
            "inducted_at": self.inducted_at,
        }

    def to_bytes(self) -> bytes:
        return canonical_json(self.to_json())

    @classmethod
    def parse(cls, fields: Fields) -> NodeRecord:
        record = cls(
            node_id=Principal.parse(fields.text("node_id")),
            machine=fields.text("machine", limit=64),
            data_center=fields.text("data_center", limit=64),
            operator=Principal.parse(fields.text("operator")),
            node_reward_type=fields.text("node_reward_type", limit=16),
            keys=NodeKeys.parse(fields.nested("keys")),
            inducted_at=fields.integer("inducted_at"),
        )
        fields.done()
        if record.keys.node_id != record.node_id:
            raise ParseError(f"{fields.path}.node_id: is not the principal of the signing key")
        return record


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """Where the enrolment stands, why, and when to ask again (seconds). ``node`` is there once inducted, and only
    then there may be an ``offer``."""

    state: EnrolmentState
    findings: tuple[Finding, ...]
    poll_after: int
    node: NodeRecord | None
    offer: Offer | None = None

    def to_bytes(self) -> bytes:
        value: dict[str, Any] = {
            "state": str(self.state),
            "findings": [f.to_json() for f in self.findings],
            "poll_after": self.poll_after,
            "node": None if self.node is None else self.node.to_json(),
        }
        if self.offer is not None:
            value["offer"] = self.offer.to_json()
        return canonical_json(value)

    @classmethod
    def parse(cls, data: bytes) -> Outcome:
        fields = parse_json(data, "outcome")
        try:
            state = EnrolmentState(fields.text("state"))
        except ValueError as error:
            raise ParseError(f"outcome.state: {error}") from error
        outcome = cls(
            state=state,
            findings=fields.list_of("findings", parse_finding),
            poll_after=fields.integer("poll_after", high=86400),
            node=NodeRecord.parse(fields.nested("node")) if fields.has("node") else None,
            offer=Offer.parse(fields.nested("offer")) if fields.has("offer") else None,
        )
        fields.done()
        if (outcome.node is not None) != (outcome.state is EnrolmentState.INDUCTED):
            raise ParseError("outcome.node: must be there when inducted, and only then")
        if outcome.offer is not None and outcome.node is None:
            raise ParseError("outcome.offer: only a node is offered a release")
        return outcome
