"""Who may unseal the state volume: the policy that a release is signed for, and the floor below which none is.

The key of the state volume is sealed in the TPM under TPM2_PolicyAuthorize: whatever policy the PCR-policy key
has signed will do. A release carries one signed policy for each state of the Secure Boot variables in which it
may start:

    TPM2_PolicyPCR   SHA-256 bank: PCR 7 (our Secure Boot keys), 11 (this release, in its initrd); 12, 13, 15 zero
    TPM2_PolicyNV    no bit at or above the release's security version is set in the floor index

All values are known when the release is signed, so nothing is sealed to whatever a machine happened to show at its
first boot, and a change of db or dbx needs no sealing anew: the next release is signed for the value before the
change and for the one after it. The floor is an NV index whose bits can be set and never cleared: once a machine
has raised it, the TPM itself refuses every older release.

Pure. Sources: TPM 2.0 Library 1.59, Part 2 (structures: 12.2.4 TPMT_PUBLIC, 13.5 TPMS_NV_PUBLIC) and Part 3
(23.7 PolicyPCR, 23.9 PolicyNV, 23.16 PolicyAuthorize).
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Mapping
from dataclasses import dataclass

from nodeos.core.wire import Fields, ParseError, b64, canonical_json, parse_json

# The PCRs of a signed policy.
POLICY_PCRS = (7, 11, 12, 13, 15)
# These must still be zero. systemd-stub measures into 12 and 13 what it finds beside the UKI, in files that nobody
# signed (credentials, command lines, extensions), and systemd acts on some of it before the state is opened. A
# credential's encryption says nothing of who made it: whoever has the machine can have its TPM encrypt one. 15 is
# extended with the volume's key once that is known.
ZERO_PCRS = (12, 13, 15)
# Binds the signature to this one use of the key.
POLICY_REF = b"nodeos state v1"
# In the range that the TCG leaves to the owner (Registry of Reserved TPM 2.0 Handles, section 2.2.2).
FLOOR_INDEX = 0x01804E4F
HIGHEST_VERSION = 63

_ALG_SHA256 = 0x000B
_CC_POLICY_PCR, _CC_POLICY_NV, _CC_POLICY_AUTHORIZE = 0x0000017F, 0x00000149, 0x0000016A
# TPM_EO_BITCLEAR: all bits that are set in the operand are clear in the index.
EO_BITCLEAR = 0x000B
# AUTHWRITE, TPM_NT_BITS, AUTHREAD, NO_DA; WRITTEN comes with the first TPM2_NV_SetBits.
FLOOR_ATTRIBUTES = 1 << 2 | 2 << 4 | 1 << 18 | 1 << 25
_WRITTEN = 1 << 29


def floor_bits(version: int) -> int:
    """The bits of the floor index when the floor is ``version``: one for each version below it."""
    return (1 << _checked(version)) - 1


def floor_of(bits: int) -> int:
    """The floor that an index with these bits stands for: the highest bit counts."""
    return bits.bit_length()


def floor_operand(version: int) -> bytes:
    """What TPM2_PolicyNV of a release with this security version demands to be clear: 8 bytes, big-endian."""
    return ((1 << 64) - 1 ^ floor_bits(version)).to_bytes(8, "big")


def floor_name() -> bytes:
    """The name of the floor index once it was written: the same on every machine."""
    public = struct.pack(">IHIHH", FLOOR_INDEX, _ALG_SHA256, FLOOR_ATTRIBUTES | _WRITTEN, 0, 8)
    return struct.pack(">H", _ALG_SHA256) + _sha256(public)


def approved_policy(pcrs: Mapping[int, bytes], version: int) -> bytes:
    """The policy that is signed: these SHA-256 values of POLICY_PCRS, and a floor of at most ``version``."""
    if tuple(sorted(pcrs)) != POLICY_PCRS:
        raise ValueError(f"a state policy is over the PCRs {POLICY_PCRS}, not {sorted(pcrs)}")
    selection = bytearray(3)
    for pcr in POLICY_PCRS:
        selection[pcr // 8] |= 1 << pcr % 8
    values = _sha256(b"".join(pcrs[pcr] for pcr in POLICY_PCRS))
    chosen = struct.pack(">IHB", 1, _ALG_SHA256, 3) + bytes(selection)
    digest = _sha256(bytes(32) + struct.pack(">I", _CC_POLICY_PCR) + chosen + values)
    arguments = _sha256(floor_operand(version) + struct.pack(">HH", 0, EO_BITCLEAR))
    return _sha256(digest + struct.pack(">I", _CC_POLICY_NV) + arguments + floor_name())


def policy_pcrs(pcr7: bytes, pcr11: bytes) -> dict[int, bytes]:
    """The PCRs of a signed policy: these two, and zeroes."""
    return {7: pcr7, 11: pcr11, **dict.fromkeys(ZERO_PCRS, bytes(32))}


def signed_message(policy: bytes) -> bytes:
    """What the PCR-policy key signs, with ECDSA over its SHA-256 (Part 3, 23.16: aHash)."""
    return policy + POLICY_REF


def key_name(x: bytes, y: bytes) -> bytes:
    """The TPM's name of a public P-256 key as it is loaded for TPM2_VerifySignature.

    ``x`` and ``y`` are 32 bytes each. Attributes: userWithAuth, sign; no scheme, symmetric algorithm or KDF.
    """
    null = 0x0010
    public = struct.pack(">HHIH", 0x0023, _ALG_SHA256, 1 << 6 | 1 << 18, 0)
    public += struct.pack(">HHHH", null, null, 0x0003, null)
    public += struct.pack(">H", 32) + x + struct.pack(">H", 32) + y
    return struct.pack(">H", _ALG_SHA256) + _sha256(public)


def sealed_policy(name: bytes) -> bytes:
    """The policy of a sealed object that takes what the key ``name`` has signed (PolicyAuthorize)."""
    digest = _sha256(bytes(32) + struct.pack(">I", _CC_POLICY_AUTHORIZE) + name)
    return _sha256(digest + POLICY_REF)


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicySignature:
    """One signed policy.

    ``key`` is the SHA-256 of the signer's DER public key; ``signature`` is r and s, 32 bytes each.
    """

    key: bytes
    pcrs: Mapping[int, bytes]
    version: int
    signature: bytes

    @property
    def policy(self) -> bytes:
        return approved_policy(self.pcrs, self.version)

    def to_json(self) -> dict[str, object]:
        return {
            "key": self.key.hex(),
            "pcrs": {str(pcr): value.hex() for pcr, value in self.pcrs.items()},
            "security_version": self.version,
            "signature": b64(self.signature),
        }

    @classmethod
    def parse(cls, fields: Fields) -> PolicySignature:
        """Raises ParseError. The signature is not checked here."""
        values = fields.nested("pcrs")
        parsed = cls(
            key=fields.hexadecimal("key", length=32),
            pcrs={pcr: values.hexadecimal(str(pcr), length=32) for pcr in POLICY_PCRS},
            version=fields.integer("security_version", low=1, high=HIGHEST_VERSION),
            signature=fields.data("signature", length=64),
        )
        values.done()
        fields.done()
        return parsed


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicySignatures:
    """The section ``.pcrsig`` of a unified kernel image: every policy that it was signed for."""

    signatures: tuple[PolicySignature, ...]

    def to_bytes(self) -> bytes:
        return canonical_json({"version": 1, "signatures": [item.to_json() for item in self.signatures]})

    @classmethod
    def parse(cls, data: bytes, what: str = ".pcrsig") -> PolicySignatures:
        """Raises ParseError with the path of the first wrong field. No signature is checked here: the TPM does."""
        fields = parse_json(data.rstrip(b"\0"), what, limit=1 << 16)
        fields.integer("version", low=1, high=1)
        found = cls(signatures=fields.list_of("signatures", _signature))
        fields.done()
        if not found.signatures:
            raise ParseError(f"{what}.signatures: none")
        return found


def _signature(item: object, path: str) -> PolicySignature:
    return PolicySignature.parse(Fields(item, path))


def _checked(version: int) -> int:
    if not 0 <= version <= HIGHEST_VERSION:
        raise ValueError(f"a security version is between 0 and {HIGHEST_VERSION}, not {version}")
    return version


def _sha256(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()
