"""Secure Boot variables: signature lists, and the signed updates (.auth files) of PK, KEK, db and dbx.

Source: UEFI 2.10, sections 8.2.2 (EFI_VARIABLE_AUTHENTICATION_2), 8.3 (EFI_TIME) and 32.4.1 (signature lists).
A "list" here is the value of such a variable: EFI_SIGNATURE_LISTs one after the other. Every refusal is a
UsageError. Nothing here depends on the clock: the time of an update is given.
"""

from __future__ import annotations

import datetime
import struct
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from image import pkcs7
from image.pkcs7 import RsaSigner
from nodeos.core.errors import UsageError

EFI_GLOBAL = uuid.UUID("8be4df61-93ca-11d2-aa0d-00e098032b8c")
IMAGE_SECURITY_DATABASE = uuid.UUID("d719b2cb-3d3a-4596-a3bc-dad00e67656f")
VENDORS = {"PK": EFI_GLOBAL, "KEK": EFI_GLOBAL, "db": IMAGE_SECURITY_DATABASE, "dbx": IMAGE_SECURITY_DATABASE}
X509 = uuid.UUID("a5c059a1-94e4-4aa7-87b5-ab155c2bf072")
SHA256 = uuid.UUID("c1c41626-504c-4092-aca9-41f936934328")
_PKCS7 = uuid.UUID("4aafd29d-68df-49ee-8aa9-347d375665a7")
# Non-volatile, boot services, runtime, time-based authenticated; and append.
_ATTRIBUTES, _APPEND = 0x27, 0x40
_LIST = struct.Struct("<16sIII")
_TIME = struct.Struct("<HBBBBBBIhBB")


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One EFI_SIGNATURE_DATA: ``data`` is a DER certificate or a hash, by ``kind``."""

    kind: uuid.UUID
    owner: uuid.UUID
    data: bytes

    def to_bytes(self) -> bytes:
        """EFI_SIGNATURE_DATA, as PCR 7's authority event has it."""
        return self.owner.bytes_le + self.data


def certificate_list(certificate: x509.Certificate, owner: uuid.UUID) -> bytes:
    """An EFI_SIGNATURE_LIST with one X.509 certificate. Several certificates are several lists."""
    return to_lists([Entry(kind=X509, owner=owner, data=certificate.public_bytes(Encoding.DER))])


def hash_list(digests: Iterable[bytes], owner: uuid.UUID) -> bytes:
    """An EFI_SIGNATURE_LIST of SHA-256 Authenticode digests, in their order. Empty if there are none."""
    entries = [Entry(kind=SHA256, owner=owner, data=digest) for digest in digests]
    if any(len(entry.data) != 32 for entry in entries):
        raise UsageError("a SHA-256 hash for dbx has 32 bytes")
    return to_lists(entries)


def to_lists(entries: Sequence[Entry]) -> bytes:
    """The entries as signature lists; neighbours of one kind and size share one, certificates never do."""
    groups: list[list[Entry]] = []
    for entry in entries:
        last = groups[-1][0] if groups else None
        if last and entry.kind == last.kind != X509 and len(entry.data) == len(last.data):
            groups[-1].append(entry)
        else:
            groups.append([entry])
    lists = b""
    for group in groups:
        body = b"".join(entry.to_bytes() for entry in group)
        lists += _LIST.pack(group[0].kind.bytes_le, 28 + len(body), 0, len(body) // len(group)) + body
    return lists


def parse_lists(data: bytes) -> list[Entry]:
    """Every entry of a variable's value. Raises UsageError if a size doesn't fit."""
    entries: list[Entry] = []
    while data:
        if len(data) < 28:
            raise UsageError("a signature list is too short")
        kind, size, header, each = _LIST.unpack_from(data)
        body = data[28 + header : size]
        if not 28 + header <= size <= len(data) or each <= 16 or not body or len(body) % each:
            raise UsageError("a signature list whose sizes don't fit together")
        for start in range(0, len(body), each):
            item = body[start : start + each]
            entries.append(
                Entry(kind=uuid.UUID(bytes_le=kind), owner=uuid.UUID(bytes_le=item[:16]), data=item[16:])
            )
        data = data[size:]
    return entries


def _efi_time(time: datetime.datetime) -> bytes:
    if time.utcoffset() != datetime.timedelta(0):
        raise UsageError("the time of a variable update is not in UTC")
    return _TIME.pack(time.year, time.month, time.day, time.hour, time.minute, time.second, 0, 0, 0, 0, 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Update:
    """A signed update: ``signature`` is PKCS #7 SignedData, ``data`` the lists to set or append."""

    time: datetime.datetime
    signature: bytes
    data: bytes

    def to_bytes(self) -> bytes:
        """The .auth file: EFI_VARIABLE_AUTHENTICATION_2, then the lists."""
        certificate = struct.pack("<IHH", 24 + len(self.signature), 0x0200, 0x0EF1) + _PKCS7.bytes_le
        return _efi_time(self.time) + certificate + self.signature + self.data

    @classmethod
    def parse(cls, auth: bytes) -> Update:
        """Raises UsageError if it is no EFI_VARIABLE_AUTHENTICATION_2 with a PKCS #7 signature."""
        if len(auth) < 40:
            raise UsageError("a Secure Boot variable is too short")
        year, month, day, hour, minute, second, *rest = _TIME.unpack_from(auth)
        length, revision, kind, guid = struct.unpack_from("<IHH16s", auth, 16)
        if any(rest):
            raise UsageError("the time of a variable update has fields that must be zero")
        if (revision, kind, guid) != (0x0200, 0x0EF1, _PKCS7.bytes_le) or not 24 <= length <= len(auth) - 16:
            raise UsageError("a variable update whose signature can't be read")
        try:
            time = datetime.datetime(year, month, day, hour, minute, second, tzinfo=datetime.UTC)
        except ValueError as error:
            raise UsageError(f"the time of a variable update is wrong: {error}") from error
        return cls(time=time, signature=auth[40 : 16 + length], data=auth[16 + length :])


def _message(name: str, time: datetime.datetime, data: bytes, *, append: bool) -> bytes:
    if name not in VENDORS:
        raise UsageError(f"{name!r} is no Secure Boot variable", hint=f"there are {', '.join(VENDORS)}")
    attributes = _ATTRIBUTES | (_APPEND if append else 0)
    head = name.encode("utf-16-le") + VENDORS[name].bytes_le + struct.pack("<I", attributes)
    return head + _efi_time(time) + data


def sign(
    name: str, data: bytes, signer: RsaSigner, certificate: x509.Certificate, *,
    time: datetime.datetime, append: bool = False,
) -> bytes:  # fmt: skip
    """The .auth file that sets (or appends to) ``name``; PK and KEK are signed by PK, db and dbx by KEK or PK.

    ``time`` is in UTC; firmware drops its microseconds. The SignedData has no ContentInfo: older firmware reads
    no other form. Raises UsageError for an unknown name or lists that can't be read.
    """
    parse_lists(data)
    time = time.replace(microsecond=0)
    message = _message(name, time, data, append=append)
    signature = pkcs7.sign(signer, certificate, message=message, wrapped=False)
    return Update(time=time, signature=signature, data=data).to_bytes()


@dataclass(frozen=True, slots=True, kw_only=True)
class Variable:
    """What firmware keeps of a variable: its value, and the time of the last update."""

    data: bytes
    time: datetime.datetime


def apply(
    name: str, current: Variable | None, auth: bytes, *, signers: Sequence[x509.Certificate], append: bool = False
) -> Variable:  # fmt: skip
    """The variable after firmware took the update, signed by one of ``signers`` (the enrolled PK or KEKs).

    Setting needs a time later than the last one. Appending doesn't, keeps the later time, and leaves out entries
    that are there already. Raises UsageError where firmware answers EFI_SECURITY_VIOLATION.
    """
    update = Update.parse(auth)
    added = parse_lists(update.data)
    message = _message(name, update.time, update.data, append=append)
    for index, certificate in enumerate(signers):
        try:
            pkcs7.verify(update.signature, certificate, message=message)
            break
        except UsageError:
            if index == len(signers) - 1:
                raise
    else:
        raise UsageError(f"no key is enrolled that could sign an update of {name}")
    if current is None:
        return Variable(data=update.data, time=update.time)
    if not append:
        if update.time <= current.time:
            raise UsageError(f"the update of {name} is not later than the one before it")
        return Variable(data=update.data, time=update.time)
    known = parse_lists(current.data)
    fresh = [entry for entry in added if entry not in known]
    return Variable(data=current.data + to_lists(fresh), time=max(current.time, update.time))


def payload(auth: bytes) -> bytes:
    """The lists in an .auth file. Raises UsageError if it can't be read."""
    return Update.parse(auth).data
