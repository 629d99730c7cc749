"""A maker of chips for tests: root, authorities and chips like AMD's, and the reports that they sign."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cache

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding

from provisioning.verify.snp_report import Generation

START = datetime(2026, 1, 1, tzinfo=UTC)
END = START + timedelta(days=3650)
AT = START + timedelta(days=100)
BEFORE, AFTER = AT - timedelta(days=1), AT + timedelta(days=1)
AMD = "1.3.6.1.4.1.3704.1"
HASH = hashes.SHA384()
PSS = padding.PSS(padding.MGF1(HASH), 48)
CHIP = bytes(range(1, 65))
LEVELS = {1: 4, 2: 1, 3: 22, 8: 213}
CPUS = {Generation.MILAN: (0x19, 1, 1), Generation.GENOA: (0x19, 0x11, 1), Generation.TURIN: (0x1A, 2, 1)}
REPORT_DATA = bytes(range(100, 164))


@cache
def rsa_key(number: int, bits: int = 4096) -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(65537, bits)


def name(common: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, common)])


@dataclass(frozen=True, slots=True, kw_only=True)
class Authority:
    """ARK or ASK."""

    common: str
    key: rsa.RSAPrivateKey
    der: bytes
    serial: int

    @property
    def digest(self) -> bytes:
        return hashlib.sha256(self.der).digest()


def authority(
    common: str,
    issuer: Authority | None = None,
    *,
    key: rsa.RSAPrivateKey | None = None,
    signer: rsa.RSAPrivateKey | None = None,
    ca: bool = True,
    path_length: int | None = None,
    sign_usage: bool = True,
    end: datetime = END,
    algorithm: hashes.SHA256 | hashes.SHA384 | None = None,
    pss: bool = True,
) -> Authority:
    """An authority; ``signer`` signs instead of the issuer whose name it carries."""
    own = key or rsa_key(0 if issuer is None else 1)
    serial = x509.random_serial_number()
    digest = algorithm or HASH
    builder = (
        x509.CertificateBuilder()
        .subject_name(name(common))
        .issuer_name(name(issuer.common if issuer else common))
        .public_key(own.public_key())
        .serial_number(serial)
        .not_valid_before(START)
        .not_valid_after(end)
        .add_extension(x509.BasicConstraints(ca, path_length if ca else None), critical=True)
        .add_extension(
            x509.KeyUsage(True, False, False, False, False, sign_usage, True, False, False), critical=True
        )
    )
    padded = padding.PSS(padding.MGF1(digest), digest.digest_size) if pss else None
    signed = builder.sign(signer or (issuer.key if issuer else own), digest, rsa_padding=padded)
    return Authority(common=common, key=own, der=signed.public_bytes(Encoding.DER), serial=serial)


@cache
def ark(generation: Generation) -> Authority:
    return authority(f"ARK-{generation.capitalize()}")


@cache
def ask(generation: Generation, *, vlek: bool = False) -> Authority:
    middle = "VLEK-" if vlek else ""
    return authority(f"SEV-{middle}{generation.capitalize()}", ark(generation), path_length=0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Chip:
    """A chip's key and its certificate."""

    generation: Generation
    key: ec.EllipticCurvePrivateKey
    der: bytes
    vlek: bool


def chip(
    generation: Generation = Generation.MILAN,
    *,
    vlek: bool = False,
    issuer: Authority | None = None,
    common: str | None = None,
    product: str | None = None,
    curve: ec.EllipticCurve | None = None,
    extra: Mapping[str, bytes | None] | None = None,
    ca: bool = False,
    critical: bool = False,
    start: datetime = START,
    end: datetime = END,
) -> Chip:
    """A chip with a VCEK or VLEK; ``extra`` replaces extensions by their number below AMD's, None drops one."""
    key = ec.generate_private_key(curve or ec.SECP384R1())
    above = issuer or ask(generation, vlek=vlek)
    words = (product or generation.capitalize()).encode()
    turin = generation is Generation.TURIN
    extensions: dict[str, bytes | None] = {"1": b"\x02\x01\x00", "2": b"\x16" + bytes([len(words)]) + words}
    for number, level in (LEVELS | ({9: 1} if turin else {4: 0})).items():
        extensions[f"3.{number}"] = der_integer(level)
    if vlek:
        extensions["5"] = b"\x16\x03csp"
    else:
        extensions["4"] = CHIP[:8] if turin else CHIP
    builder = (
        x509.CertificateBuilder()
        .subject_name(name(common or ("SEV-VLEK" if vlek else "SEV-VCEK")))
        .issuer_name(name(above.common))
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(start)
        .not_valid_after(end)
    )
    for below, value in (extensions | dict(extra or {})).items():
        if value is not None:
            odd = x509.UnrecognizedExtension(x509.ObjectIdentifier(f"{AMD}.{below}"), value)
            builder = builder.add_extension(odd, critical=critical and below == "1")
    if ca:
        builder = builder.add_extension(x509.BasicConstraints(True, None), critical=True)
    signed = builder.sign(above.key, HASH, rsa_padding=PSS)
    return Chip(generation=generation, key=key, der=signed.public_bytes(Encoding.DER), vlek=vlek)


def der_integer(value: int) -> bytes:
    body = value.to_bytes(value.bit_length() // 8 + 1, "big")
    return b"\x02" + bytes([len(body)]) + body


def tcb(generation: Generation, *, snp: int = 22) -> bytes:
    """The TCB_VERSION that fits ``LEVELS``."""
    if generation is Generation.TURIN:
        return bytes([1, 4, 1, snp, 0, 0, 0, 213])
    return bytes([4, 1, 0, 0, 0, 0, snp, 213])


def report(of: Chip, *, version: int = 5, at: Mapping[int, bytes] | None = None) -> bytes:
    """A report that the chip signed, with ``at`` written over its bytes before."""
    data = bytearray(0x4A0)

    def put(offset: int, value: bytes) -> None:
        data[offset : offset + len(value)] = value

    put(0x00, struct.pack("<IIQ", version, 7, 0x30000 | 1 << 8 | 55))
    put(0x34, struct.pack("<I", 1))
    put(0x40, struct.pack("<QI", 0x23, 4 if of.vlek else 0))
    put(0x50, REPORT_DATA)
    put(0x90, bytes(range(48)))
    for offset in (0x38, 0x180, 0x1E0, 0x1F0):
        put(offset, tcb(of.generation))
    if version >= 3:
        put(0x188, bytes(CPUS[of.generation]))
    put(0x1A0, CHIP[:8] if of.generation is Generation.TURIN else CHIP)
    put(0x1E8, bytes([4, 55, 1, 0, 4, 55, 1]))
    if version >= 5:
        put(0x1F8, struct.pack("<QQ", 1, 3))
    for offset, value in (at or {}).items():
        put(offset, value)
    numbers = decode_dss_signature(of.key.sign(bytes(data[:0x2A0]), ec.ECDSA(HASH)))
    for index, number in enumerate(numbers):
        put(0x2A0 + 72 * index, number.to_bytes(72, "little"))
    return bytes(data)
