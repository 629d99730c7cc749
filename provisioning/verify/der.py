"""X.509 certificates, read by hand over their original bytes.

Manufacturers' TPM certificates have quirks that strict parsers refuse whole (unsorted SETs, zero bits in
places): this reader takes what verification needs and leaves the rest as the bytes that were signed.
Source: ITU-T X.690 (DER), RFC 5280 (profile), RFC 4055 (RSA algorithms).
"""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass
from datetime import UTC, datetime

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import load_der_public_key

from nodeos.core.wire import ParseError

SEQUENCE, SET, INTEGER, BIT_STRING, OCTET_STRING, BOOLEAN, OID = 0x30, 0x31, 0x02, 0x03, 0x04, 0x01, 0x06
UTC_TIME, GENERALIZED_TIME = 0x17, 0x18
_RSA_OIDS = ("1.2.840.113549.1.1.1", "1.2.840.113549.1.1.7")  # rsaEncryption, RSAES-OAEP
PublicKey = rsa.RSAPublicKey | ec.EllipticCurvePublicKey


@dataclass(frozen=True, slots=True)
class Node:
    """One DER element: its tag byte, its content, and the whole element as it stands in the input."""

    tag: int
    content: bytes
    raw: bytes


def take(data: bytes, what: str) -> tuple[Node, bytes]:
    """The first element and what follows it. Raises ParseError."""
    if len(data) < 2:
        raise ParseError(f"{what}: DER ends too early")
    tag, size, start = data[0], data[1], 2
    if tag & 0x1F == 0x1F:
        raise ParseError(f"{what}: DER tags of several bytes are not accepted")
    if size >= 0x80:
        count = size & 0x7F
        if not 1 <= count <= 4 or len(data) < 2 + count:
            raise ParseError(f"{what}: wrong DER length")
        size, start = int.from_bytes(data[2 : 2 + count], "big"), 2 + count
        if size < 0x80 or size.bit_length() <= 8 * (count - 1):
            raise ParseError(f"{what}: DER length is not in its shortest form")
    end = start + size
    if end > len(data):
        raise ParseError(f"{what}: DER ends too early")
    return Node(tag, data[start:end], data[:end]), data[end:]


def only(data: bytes, tag: int, what: str) -> Node:
    """The one element that ``data`` must be."""
    node, rest = take(data, what)
    if node.tag != tag or rest:
        raise ParseError(f"{what}: not one DER element of tag {tag:#04x}")
    return node


def children(node: Node, what: str) -> list[Node]:
    """The elements inside a constructed one."""
    found, rest = [], node.content
    while rest:
        item, rest = take(rest, what)
        found.append(item)
    return found


def oid(node: Node, what: str) -> str:
    """An object identifier in dotted form."""
    if node.tag != OID or not node.content or node.content[-1] & 0x80:
        raise ParseError(f"{what}: not an object identifier")
    numbers, value = [], 0
    for byte in node.content:
        value = value << 7 | byte & 0x7F
        if not byte & 0x80:
            numbers.append(value)
            value = 0
    first = min(numbers[0] // 40, 2)
    return ".".join(str(number) for number in (first, numbers[0] - 40 * first, *numbers[1:]))


def integer(node: Node, what: str) -> int:
    """A whole number."""
    if node.tag != INTEGER or not node.content:
        raise ParseError(f"{what}: not an INTEGER")
    return int.from_bytes(node.content, "big", signed=True)


def text(node: Node) -> str:
    """A character string of any of the kinds that names use."""
    return node.content.decode("utf-16-be" if node.tag == 0x1E else "utf-8", errors="replace")


def attributes(name: bytes, what: str) -> list[tuple[str, str]]:
    """The (type, text) pairs of a Name, in order."""
    found = []
    for part in children(only(name, SEQUENCE, what), what):
        for item in children(part, what):
            pair = children(item, what)
            if part.tag != SET or item.tag != SEQUENCE or len(pair) != 2:
                raise ParseError(f"{what}: wrong form of a name")
            found.append((oid(pair[0], what), text(pair[1])))
    return found


def time(node: Node, what: str) -> datetime:
    """A UTCTime or GeneralizedTime that ends in Z. Raises ParseError."""
    form = {UTC_TIME: "%y%m%d%H%M%SZ", GENERALIZED_TIME: "%Y%m%d%H%M%SZ"}.get(node.tag)
    try:
        words = node.content.decode("ascii")
        if form is None or not words[:-1].isdigit() or len(words) != (13 if node.tag == UTC_TIME else 15):
            raise ValueError("not a time")
        when = datetime.strptime(words, form).replace(tzinfo=UTC)
    except ValueError as error:
        raise ParseError(f"{what}: not a UTC time") from error
    # RFC 5280, 4.1.2.5.1: two-digit years from 50 on are of the 20th century; strptime turns at 69.
    if node.tag == UTC_TIME and when.year >= 2050:
        when = when.replace(year=when.year - 100)
    return when


@dataclass(frozen=True, slots=True, kw_only=True)
class Extension:
    """An extension's value is the content of its OCTET STRING."""

    critical: bool
    value: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Certificate:
    """A certificate. ``der`` is exactly the certificate, without padding; ``tbs`` is what was signed.

    ``algorithm`` is the dotted signature algorithm and ``parameters`` its raw parameters.
    """

    der: bytes
    serial: int
    tbs: bytes
    algorithm: str
    parameters: bytes
    signature: bytes
    issuer: bytes
    subject: bytes
    not_before: datetime
    not_after: datetime
    spki: bytes
    extensions: dict[str, Extension]

    @property
    def subject_text(self) -> str:
        """The subject for people, or a word for an empty one."""
        values = [value for _, value in attributes(self.subject, "certificate subject")]
        return ", ".join(values) or "(no name)"

    @property
    def issuer_text(self) -> str:
        return ", ".join(value for _, value in attributes(self.issuer, "certificate issuer")) or "(no name)"

    @property
    def self_issued(self) -> bool:
        return self.issuer == self.subject

    def key(self) -> PublicKey:
        """The public key; RSA keys marked as RSAES-OAEP are read as RSA keys. Raises ParseError."""
        return parse_spki(self.spki)


def parse_spki(spki: bytes) -> PublicKey:
    """An RSA or ECC key from a SubjectPublicKeyInfo. Raises ParseError."""
    what = "certificate key"
    parts = children(only(spki, SEQUENCE, what), what)
    if len(parts) != 2 or parts[0].tag != SEQUENCE or parts[1].tag != BIT_STRING:
        raise ParseError(f"{what}: wrong form")
    algorithm = children(parts[0], what)
    if not algorithm:
        raise ParseError(f"{what}: no algorithm")
    try:
        if oid(algorithm[0], what) in _RSA_OIDS:
            numbers = children(only(parts[1].content[1:], SEQUENCE, what), what)
            if len(numbers) != 2:
                raise ParseError(f"{what}: wrong form of an RSA key")
            modulus, exponent = (integer(number, what) for number in numbers)
            if modulus <= 0 or exponent <= 0:
                raise ParseError(f"{what}: an RSA key with a negative number")
            return rsa.RSAPublicNumbers(exponent, modulus).public_key()
        key = load_der_public_key(spki)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise ParseError(f"{what}: {error}") from error
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise ParseError(f"{what}: neither RSA nor ECC")
    return key


def parse_certificate(data: bytes, what: str = "certificate") -> Certificate:
    """Parse a DER certificate; padding with 0xFF or 0x00 after it is cut off. Raises ParseError."""
    outer, rest = take(data, what)
    if outer.tag != SEQUENCE or (rest.strip(b"\xff") and rest.strip(b"\x00")):
        raise ParseError(f"{what}: not a certificate, or something other than padding follows it")
    parts = children(outer, what)
    if [part.tag for part in parts] != [SEQUENCE, SEQUENCE, BIT_STRING]:
        raise ParseError(f"{what}: not a certificate")
    tbs, algorithm, signature = parts
    fields = children(tbs, what)
    version = fields.pop(0) if fields and fields[0].tag == 0xA0 else None
    if len(fields) < 6 or [f.tag for f in fields[1:6]] != [SEQUENCE] * 5 or fields[0].tag != INTEGER:
        raise ParseError(f"{what}: wrong form of its fields")
    if fields[1].raw != algorithm.raw:
        raise ParseError(f"{what}: it names two signature algorithms")
    if not signature.content or signature.content[0] != 0:
        raise ParseError(f"{what}: wrong form of its signature")
    times = children(fields[3], what)
    kind = children(algorithm, what)
    if len(times) != 2 or not kind:
        raise ParseError(f"{what}: wrong form of its dates or algorithm")
    certificate = Certificate(
        der=outer.raw,
        serial=integer(fields[0], what),
        tbs=tbs.raw,
        algorithm=oid(kind[0], what),
        parameters=b"".join(item.raw for item in kind[1:]),
        signature=signature.content[1:],
        issuer=fields[2].raw,
        subject=fields[4].raw,
        not_before=time(times[0], what),
        not_after=time(times[1], what),
        spki=fields[5].raw,
        extensions=_versioned([f for f in fields[6:] if f.tag == 0xA3], version, what),
    )
    attributes(certificate.subject, f"{what} subject")
    attributes(certificate.issuer, f"{what} issuer")
    return certificate


def _versioned(found: list[Node], version: Node | None, what: str) -> dict[str, Extension]:
    if not found:
        return {}
    if len(found) != 1 or version is None or version.content != b"\x02\x01\x02":
        raise ParseError(f"{what}: only version 3 has extensions, and only one list of them")
    return extensions(found[0].content, what)


def extensions(content: bytes, what: str) -> dict[str, Extension]:
    """A SEQUENCE of extensions, by their dotted names. Raises ParseError, also for one that stands twice."""
    result: dict[str, Extension] = {}
    for item in children(only(content, SEQUENCE, what), what):
        parts = children(item, what)
        critical = len(parts) == 3 and parts[1].tag == BOOLEAN and parts[1].content != b"\x00"
        if len(parts) not in (2, 3) or parts[-1].tag != OCTET_STRING:
            raise ParseError(f"{what}: wrong form of an extension")
        name = oid(parts[0], what)
        if name in result:
            raise ParseError(f"{what}: the extension {name} stands twice")
        result[name] = Extension(critical=critical, value=parts[-1].content)
    return result


# A certificate in a TPM's NV may stand behind a header of TPM 1.2: TCG_PCCLIENT_STORED_CERT (tag 0x1001, type
# 0 for a full certificate, two bytes of size) and TCG_FULL_CERT (tag 0x1002). Source: TCG PC Client
# Specific Implementation Specification for Conventional BIOS 1.21, 7.3.2.
_STORED, _FULL = b"\x10\x01\x00", b"\x10\x02"


def unwrap(data: bytes) -> bytes:
    """The DER of a certificate as NV areas hold it, without the header that some put before it."""
    if not data.startswith(_STORED):
        return data
    body = data[len(_STORED) + 2 :][: int.from_bytes(data[3:5], "big")]
    return body.removeprefix(_FULL)


def pem_blocks(data: bytes, label: str, what: str) -> list[bytes]:
    """The DER of every block of that label in a PEM text, none if there is none. Raises ParseError."""
    found = []
    words = data.decode("ascii", errors="replace")
    for index, part in enumerate(words.split(f"-----BEGIN {label}-----")[1:]):
        body, end, _ = part.partition(f"-----END {label}-----")
        if not end:
            raise ParseError(f"{what}: block {index} has no end")
        try:
            found.append(base64.b64decode("".join(body.split()), validate=True))
        except (binascii.Error, ValueError) as error:
            raise ParseError(f"{what}: block {index}: not base64") from error
    return found


def certificate_blocks(data: bytes, what: str) -> list[bytes]:
    """The DER of every certificate of a PEM text, or the one of a DER file or a dump of NV. Raises ParseError."""
    return pem_blocks(data, "CERTIFICATE", what) or [unwrap(data)]


def parse_certificates(data: bytes, what: str) -> list[Certificate]:
    """Every certificate of such a file. Raises ParseError."""
    blocks = certificate_blocks(data, what)
    return [
        parse_certificate(der, f"{what}: certificate {index}" if len(blocks) > 1 else what)
        for index, der in enumerate(blocks)
    ]
