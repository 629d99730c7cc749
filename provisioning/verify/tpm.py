"""TPM 2.0 structures that the verifier reads: TPMT_PUBLIC, TPMS_ATTEST of a quote, TPMT_SIGNATURE.

Source: TCG "TPM 2.0 Library", Part 2 (structures), revision 1.59; names per Part 1, section 16.
Only what this project uses is accepted: RSA and ECC keys, AES-CFB, SHA-1/256/384/512.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from enum import IntEnum, IntFlag

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from nodeos.core.wire import ParseError
from provisioning.verify.reader import Reader

MAGIC = 0xFF544347  # TPM_GENERATED_VALUE
ST_ATTEST_QUOTE = 0x8018


class Alg(IntEnum):
    """TPM_ALG_ID, as far as they are accepted here."""

    RSA = 0x0001
    SHA1 = 0x0004
    AES = 0x0006
    SHA256 = 0x000B
    SHA384 = 0x000C
    SHA512 = 0x000D
    NULL = 0x0010
    ECDSA = 0x0018
    ECC = 0x0023
    CFB = 0x0043


class Attribute(IntFlag):
    """TPMA_OBJECT. Bits that stand for nothing are refused."""

    FIXED_TPM = 1 << 1
    ST_CLEAR = 1 << 2
    FIXED_PARENT = 1 << 4
    SENSITIVE_DATA_ORIGIN = 1 << 5
    USER_WITH_AUTH = 1 << 6
    ADMIN_WITH_POLICY = 1 << 7
    NO_DA = 1 << 10
    ENCRYPTED_DUPLICATION = 1 << 11
    RESTRICTED = 1 << 16
    DECRYPT = 1 << 17
    SIGN = 1 << 18
    X509_SIGN = 1 << 19


DIGEST_NAMES = {Alg.SHA1: "sha1", Alg.SHA256: "sha256", Alg.SHA384: "sha384", Alg.SHA512: "sha512"}
CURVES: dict[int, ec.EllipticCurve] = {0x0003: ec.SECP256R1(), 0x0004: ec.SECP384R1()}
_ALL_ATTRIBUTES = sum(Attribute)


def digest_size(alg: int) -> int:
    """Bytes of a digest. Raises ParseError for a hash that is not accepted."""
    if alg not in DIGEST_NAMES:
        raise ParseError(f"hash algorithm {alg:#06x} is not one of SHA-1, SHA-256, SHA-384, SHA-512")
    return hashlib.new(DIGEST_NAMES[Alg(alg)], usedforsecurity=False).digest_size


def digest(alg: int, data: bytes) -> bytes:
    """The digest of ``data`` under a TPM_ALG_ID. Raises ParseError for a hash that is not accepted."""
    digest_size(alg)
    return hashlib.new(DIGEST_NAMES[Alg(alg)], data, usedforsecurity=False).digest()


@dataclass(frozen=True, slots=True, kw_only=True)
class Public:
    """A TPMT_PUBLIC. ``raw`` is what was parsed; ``scheme`` is (signature algorithm, hash) or None.

    ``symmetric_bits`` is 0 where there is no symmetric algorithm. ``rsa_bits`` and ``exponent`` are 0
    for an ECC key, ``curve`` for an RSA key.
    """

    raw: bytes
    kind: Alg
    name_alg: int
    attributes: Attribute
    policy: bytes
    symmetric_bits: int
    scheme: tuple[int, int] | None
    rsa_bits: int
    exponent: int
    curve: int
    unique: tuple[bytes, ...]

    @property
    def name(self) -> bytes:
        """The TPM name: the hash algorithm and the hash of the public area."""
        return self.name_alg.to_bytes(2, "big") + digest(self.name_alg, self.raw)

    def key(self) -> rsa.RSAPublicKey | ec.EllipticCurvePublicKey:
        """The public key. Raises ParseError if it is not a valid key (a point that is not on its curve)."""
        try:
            if self.kind is Alg.RSA:
                modulus = int.from_bytes(self.unique[0], "big")
                return rsa.RSAPublicNumbers(self.exponent, modulus).public_key()
            x, y = (int.from_bytes(part, "big") for part in self.unique)
            return ec.EllipticCurvePublicNumbers(x, y, CURVES[self.curve]).public_key()
        except ValueError as error:
            raise ParseError(f"public area: not a valid key: {error}") from error

    def spki(self) -> bytes:
        """The key as DER SubjectPublicKeyInfo."""
        return self.key().public_bytes(
            serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
        )


def parse_public(data: bytes, what: str = "TPMT_PUBLIC") -> Public:
    """Parse a TPMT_PUBLIC without its TPM2B size. Raises ParseError."""
    reader = Reader(data, what)
    kind = reader.u16()
    if kind not in (Alg.RSA, Alg.ECC):
        raise reader.fail(f"key type {kind:#06x} is neither RSA nor ECC")
    name_alg = reader.u16()
    digest_size(name_alg)
    attributes = reader.u32()
    if attributes & ~_ALL_ATTRIBUTES:
        raise reader.fail(f"unknown attribute bits {attributes & ~_ALL_ATTRIBUTES:#010x}")
    policy = reader.sized(limit=64)
    symmetric_bits = _symmetric(reader)
    scheme = _scheme(reader)
    bits = exponent = curve = 0
    if kind == Alg.RSA:
        bits = reader.u16()
        if bits not in (2048, 3072, 4096):
            raise reader.fail(f"RSA keys of {bits} bits are not accepted")
        exponent = reader.u32() or 65537
        unique: tuple[bytes, ...] = (reader.sized(limit=512),)
        if int.from_bytes(unique[0], "big").bit_length() != bits:
            raise reader.fail(f"the modulus does not have {bits} bits")
    else:
        curve = reader.u16()
        if curve not in CURVES:
            raise reader.fail(f"curve {curve:#06x} is neither P-256 nor P-384")
        if reader.u16() != Alg.NULL:
            raise reader.fail("a key derivation scheme is not accepted")
        unique = (reader.sized(limit=48), reader.sized(limit=48))
    reader.done()
    return Public(
        raw=data,
        kind=Alg(kind),
        name_alg=name_alg,
        attributes=Attribute(attributes),
        policy=policy,
        symmetric_bits=symmetric_bits,
        scheme=scheme,
        rsa_bits=bits,
        exponent=exponent,
        curve=curve,
        unique=unique,
    )


def _symmetric(reader: Reader) -> int:
    """TPMT_SYM_DEF_OBJECT: 0 for none, else the bits of AES in CFB mode."""
    alg = reader.u16()
    if alg == Alg.NULL:
        return 0
    bits, mode = reader.u16(), reader.u16()
    if alg != Alg.AES or bits not in (128, 256) or mode != Alg.CFB:
        raise reader.fail("the symmetric algorithm is not AES-128 or AES-256 in CFB mode")
    return bits


def _scheme(reader: Reader) -> tuple[int, int] | None:
    """TPMT_RSA_SCHEME or TPMT_ECC_SCHEME: None, or ECDSA with its hash. Others are refused."""
    alg = reader.u16()
    if alg == Alg.NULL:
        return None
    hash_alg = reader.u16()
    if alg != Alg.ECDSA:
        raise reader.fail(f"the signature scheme {alg:#06x} is not ECDSA")
    return alg, hash_alg


@dataclass(frozen=True, slots=True, kw_only=True)
class Quote:
    """A TPMS_ATTEST of type quote. ``clock`` is in milliseconds; ``selection`` maps bank to its PCRs."""

    signer: bytes
    extra_data: bytes
    clock: int
    reset_count: int
    restart_count: int
    safe: bool
    firmware_version: int
    selection: tuple[tuple[int, tuple[int, ...]], ...]
    pcr_digest: bytes


def parse_quote(data: bytes) -> Quote:
    """Parse a TPMS_ATTEST that must be a quote made by a TPM (magic and type). Raises ParseError."""
    reader = Reader(data, "TPMS_ATTEST")
    magic = reader.u32()
    if magic != MAGIC:
        raise reader.fail(f"magic is {magic:#010x}, not {MAGIC:#010x}: no TPM made this")
    kind = reader.u16()
    if kind != ST_ATTEST_QUOTE:
        raise reader.fail(f"type is {kind:#06x}, not a quote ({ST_ATTEST_QUOTE:#06x})")
    signer = reader.sized(limit=66)
    extra_data = reader.sized(limit=64)
    clock, reset_count, restart_count, safe = reader.u64(), reader.u32(), reader.u32(), reader.u8()
    if safe not in (0, 1):
        raise reader.fail(f"'safe' is {safe}, neither 0 nor 1")
    firmware_version = reader.u64()
    count = reader.u32()
    if count > 16:
        raise reader.fail(f"{count} PCR selections, at most 16")
    selection = tuple(_selection(reader) for _ in range(count))
    pcr_digest = reader.sized(limit=64)
    reader.done()
    return Quote(
        signer=signer,
        extra_data=extra_data,
        clock=clock,
        reset_count=reset_count,
        restart_count=restart_count,
        safe=bool(safe),
        firmware_version=firmware_version,
        selection=selection,
        pcr_digest=pcr_digest,
    )


def _selection(reader: Reader) -> tuple[int, tuple[int, ...]]:
    bank, size = reader.u16(), reader.u8()
    if size > 4:
        raise reader.fail(f"a PCR selection of {size} bytes, at most 4")
    bits = int.from_bytes(reader.take(size), "little")
    return bank, tuple(index for index in range(size * 8) if bits >> index & 1)


def parse_signature(data: bytes) -> tuple[int, int, int]:
    """Parse a TPMT_SIGNATURE that must be ECDSA: (hash algorithm, r, s). Raises ParseError."""
    reader = Reader(data, "TPMT_SIGNATURE")
    alg = reader.u16()
    if alg != Alg.ECDSA:
        raise reader.fail(f"signature algorithm {alg:#06x} is not ECDSA")
    hash_alg = reader.u16()
    r, s = reader.sized(limit=66), reader.sized(limit=66)
    reader.done()
    return hash_alg, int.from_bytes(r, "big"), int.from_bytes(s, "big")
