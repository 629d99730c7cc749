"""The values of the Secure Boot variables: signature lists, and the .auth files that set or extend them.

Source: UEFI 2.10, sections 8.2.2 (EFI_VARIABLE_AUTHENTICATION_2), 8.3 (EFI_TIME) and 32.4.1 (signature lists).
A "list" here is the value of such a variable: EFI_SIGNATURE_LISTs one after the other. Every refusal is a
UsageError. ``image.efivars`` signs and applies updates.
"""

from __future__ import annotations

import datetime
import struct
import uuid
from collections.abc import Sequence
from dataclasses import dataclass

from nodeos.core.errors import UsageError
from nodeos.core.wire import ParseError

EFI_GLOBAL = uuid.UUID("8be4df61-93ca-11d2-aa0d-00e098032b8c")
IMAGE_SECURITY_DATABASE = uuid.UUID("d719b2cb-3d3a-4596-a3bc-dad00e67656f")
VENDORS = {"PK": EFI_GLOBAL, "KEK": EFI_GLOBAL, "db": IMAGE_SECURITY_DATABASE, "dbx": IMAGE_SECURITY_DATABASE}
X509 = uuid.UUID("a5c059a1-94e4-4aa7-87b5-ab155c2bf072")
SHA256 = uuid.UUID("c1c41626-504c-4092-aca9-41f936934328")
# Non-volatile, boot services, runtime, time-based authenticated; and append.
ATTRIBUTES, APPEND = 0x27, 0x40
_PKCS7 = uuid.UUID("4aafd29d-68df-49ee-8aa9-347d375665a7")
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
            raise ParseError("a signature list is too short")
        kind, size, header, each = _LIST.unpack_from(data)
        body = data[28 + header : size]
        if not 28 + header <= size <= len(data) or each <= 16 or not body or len(body) % each:
            raise ParseError("a signature list whose sizes don't fit together")
        for start in range(0, len(body), each):
            item = body[start : start + each]
            entries.append(
                Entry(kind=uuid.UUID(bytes_le=kind), owner=uuid.UUID(bytes_le=item[:16]), data=item[16:])
            )
        data = data[size:]
    return entries


def certificates(entries: Sequence[Entry]) -> tuple[bytes, ...]:
    """The DER certificates among the entries, in their order."""
    return tuple(entry.data for entry in entries if entry.kind == X509)


def efi_time(time: datetime.datetime) -> bytes:
    """EFI_TIME. Raises UsageError for a time that is not in UTC."""
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
        return efi_time(self.time) + certificate + self.signature + self.data

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


def payload(auth: bytes) -> bytes:
    """The lists in an .auth file. Raises UsageError if it can't be read."""
    return Update.parse(auth).data
