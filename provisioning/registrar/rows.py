"""What the store keeps, one frozen type for each table. Times are seconds since 1970."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from nodeos.core.protocol import EnrolmentState


@dataclass(frozen=True, slots=True, kw_only=True)
class TrustRow:
    """``kind`` is "root" (pinned) or "intermediate" (only helps to find a path)."""

    sha256: str
    kind: str
    der: bytes
    added_at: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RevocationRow:
    """A manufacturer's revocation list, and its SHA-256."""

    sha256: str
    der: bytes
    added_at: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ReleaseRow:
    version: str
    document: bytes
    added_at: int
    withdrawn_at: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class OfferRow:
    """A release that the nodes of a data centre shall install; ``over_at`` once it was withdrawn or replaced."""

    number: int
    data_center: str
    version: str
    url: str
    rollback: bool
    at: int
    over_at: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CenterRow:
    """``operator`` is the principal of ``operator_key`` (DER); ``site_key`` is Ed25519, 32 raw bytes."""

    name: str
    operator: str
    operator_key: bytes
    profile: str
    node_reward_type: str
    site_key: bytes
    added_at: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Enrolment:
    """``evidence`` is the digest of the latest evidence that passed; ``ek_key`` that of the endorsement key
    itself, set once evidence bound it; ``tpm`` is empty while every request was refused."""

    machine: str
    data_center: str
    state: EnrolmentState
    ek_key: str | None
    tpm: dict[str, str]
    ak_public: bytes | None
    evidence: str | None
    findings: list[dict[str, str]]
    first_at: int
    changed_at: int
    revision: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """``evidence`` is set once the nonce is spent; ``refused`` then holds findings, or None if it passed."""

    id: str
    machine: str
    secret: bytes = field(repr=False)
    nonce: bytes
    request: bytes
    expires_at: int
    evidence: str | None = None
    refused: list[dict[str, str]] | None = None
    counter: int = -1


@dataclass(frozen=True, slots=True, kw_only=True)
class Attestation:
    """``state`` is passed, watch or failed; ``firmware_version`` is the TPM's, hexadecimal."""

    machine: str
    at: int
    state: str
    evidence: str
    boot_id: str | None
    release: str | None
    clock: int
    reset_count: int
    restart_count: int
    firmware_version: str
    pcrs: dict[str, str]
    volume: dict[str, Any] | None
    verdicts: list[dict[str, Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeRow:
    """``signing``, ``tls``, ``committee`` are digests that keep keys unique; ``record`` is a NodeRecord;
    ``addresses`` are those of the node's last good attestation."""

    node_id: str
    machine: str
    data_center: str
    signing: str
    tls: str
    committee: str
    record: bytes
    ak_public: bytes
    pcrs: dict[str, str]
    luks_uuid: str
    boot_id: str
    evidence: str
    addresses: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class RecoveryRow:
    """A locked machine's request. ``body`` is its evidence, ``evidence`` the digest of that; ``answer`` is a
    RecoveryAnswer once the operator gave it, ``used_at`` when the machine attested with its state again."""

    session: str
    machine: str
    node_id: str
    evidence: str
    body: bytes
    nonce: bytes
    ak_public: bytes
    ek_key: str
    clock: int
    reset_count: int
    restart_count: int
    verdicts: list[dict[str, Any]]
    at: int
    expires_at: int
    answer: bytes | None = None
    answered_at: int | None = None
    used_at: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class InstallationRow:
    """What an installer reported from the address ``source``; nothing of it is proven. ``document`` is an
    ``Installation``."""

    at: int
    source: str
    data_center: str
    document: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditRow:
    """``actor`` is a principal, "machine", or "administrator"."""

    at: int
    actor: str
    machine: str | None
    event: str
    before: str | None
    after: str | None
    detail: dict[str, Any]
